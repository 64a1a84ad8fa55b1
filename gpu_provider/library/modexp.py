"""Modular exponentiation as a library call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.engine.calls import Call
from gpu_provider.errors import InputError
from gpu_provider.kinds import MODEXP
from gpu_provider.library.operands import is_bytes, is_number, label, not_less, to_rows, widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.base import Backend, Rows
    from gpu_provider.engine.calls import Operands
    from gpu_provider.library.operands import Operand

__all__ = ["ModexpCall", "check_moduli", "modexp_call", "rows_of_all", "units_per_row"]


class ModexpCall(Call):
    """One call of modexp(). ``bases`` and ``moduli`` have the same width, a multiple of 8."""

    def __init__(self, bases: Rows, exponents: Rows, moduli: Rows, *, as_bytes: Sequence[bool], single: bool) -> None:
        """``as_bytes``: for which rows :meth:`numbers` returns bytes. ``single``: whether it returns one number."""
        stride = moduli.shape[1]
        operands = (bases, exponents, moduli)
        units = units_per_row(stride, exponents.shape[1])
        super().__init__(kind=MODEXP, operands=operands, row_bytes=stride, units_per_row=units)
        self._as_bytes = as_bytes
        self._single = single

    def compute(self, backend: Backend, operands: Operands, outputs: Rows, ok: NDArray[np.uint8]) -> int:
        bases, exponents, moduli = operands
        backend.modexp(bases, exponents, moduli, outputs)
        ok.fill(1)
        return 0

    def numbers(self) -> int | bytes | list[int] | list[bytes]:
        """The results, once the call has ended: ints, or big-endian bytes, as many as the modulus has."""
        numbers: list[Any] = []
        for as_bytes, result, modulus in zip(self._as_bytes, self.result, self.operands[2], strict=True):
            number = int.from_bytes(result.tobytes(), "little")
            numbers.append(number.to_bytes(-(-_bits(modulus) // 8), "big") if as_bytes else number)
        return numbers[0] if self._single else numbers


def units_per_row(stride: int, exponent_stride: int) -> int:
    """What a row costs: the limb products of a multiplication, times the length of the exponent."""
    return max(1, (stride // 8) ** 2 * exponent_stride)


def modexp_call(bases: Operand, exponents: Operand, moduli: Operand) -> ModexpCall:
    """Checks the operands of :meth:`gpu_provider.BatchingProvider.modexp` and lays them out. Raises InputError."""
    base_rows, exponent_rows, modulus_rows = (
        to_rows(operand, name) for operand, name in ((bases, "base"), (exponents, "exponent"), (moduli, "modulus"))
    )
    count = rows_of_all(len(base_rows), len(exponent_rows), len(modulus_rows))
    check_moduli(modulus_rows)
    stride = max(base_rows.shape[1], modulus_rows.shape[1])
    bases_wide, moduli_wide = widen(base_rows, count, stride), widen(modulus_rows, count, stride)
    too_large = not_less(bases_wide, moduli_wide)
    if too_large.size:
        row = int(too_large[0])
        raise InputError(
            f"{label('base', row, len(base_rows))}, of {_bits(bases_wide[row])} bits, is not less than "
            f"{label('modulus', row, len(modulus_rows))}, of {_bits(moduli_wide[row])} bits; reduce it first"
        )
    given = bases if isinstance(bases, Sequence) and not is_bytes(bases) else [bases]
    as_bytes = [is_bytes(base) for base in given]
    # The bases are below the moduli, so any wider columns hold zeros.
    stride = modulus_rows.shape[1]
    return ModexpCall(
        np.ascontiguousarray(bases_wide[:, :stride]),
        widen(exponent_rows, count, exponent_rows.shape[1]),
        np.ascontiguousarray(moduli_wide[:, :stride]),
        as_bytes=as_bytes * count if len(as_bytes) == 1 else as_bytes,
        single=all(map(is_number, (bases, exponents, moduli))),
    )


def rows_of_all(bases: int, exponents: int, moduli: int) -> int:
    """How many operations these numbers of operands make. Raises InputError."""
    counts = (bases, exponents, moduli)
    count = 0 if 0 in counts and max(counts) <= 1 else max(counts)
    for rows, name in zip(counts, ("bases", "exponents", "moduli"), strict=True):
        if rows not in {1, count}:
            raise InputError(f"there are {rows} {name} for {count} operations; give one for all, or one for each")
    return count


def check_moduli(moduli: Rows) -> None:
    """Raises InputError unless all are odd and greater than 1."""
    even = moduli[:, 0] % 2 == 0
    one = (moduli[:, 0] == 1) & ~moduli[:, 1:].any(axis=1)
    bad = np.flatnonzero(even | one)
    if bad.size:
        row = int(bad[0])
        what = "is 1" if one[row] else "is even" if moduli[row].any() else "is 0"
        if _bits(moduli[row]) > 1:
            what = f"has {_bits(moduli[row])} bits and {what}"
        raise InputError(f"{label('modulus', row, len(moduli))} {what}; it must be odd and greater than 1")


def _bits(row: NDArray[np.uint8]) -> int:
    return int.from_bytes(row.tobytes(), "little").bit_length()
