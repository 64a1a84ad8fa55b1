"""Modular exponentiation as a library call."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.backends.libcrypto import libcrypto_inverse, libcrypto_modexp
from gpu_provider.engine.calls import Call
from gpu_provider.errors import InputError
from gpu_provider.kinds import MODEXP
from gpu_provider.library.operands import (
    array_to_rows,
    integers_to_rows,
    is_bytes,
    is_number,
    label,
    limbs_of,
    not_less,
    rows_to_integers,
    to_integers,
    to_rows,
    widen,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Backend, Rows
    from gpu_provider.engine.calls import Operands
    from gpu_provider.library.operands import Operand

__all__ = [
    "ModexpCall",
    "check_moduli",
    "exponents_to_rows",
    "modexp_call",
    "only_libcrypto",
    "rows_of_all",
    "units_per_row",
]


class ModexpCall(Call):
    """One call of modexp(). ``bases`` and ``moduli`` have the same width, a multiple of 8."""

    def __init__(
        self,
        bases: Rows,
        exponents: Rows,
        moduli: Rows,
        *,
        public_exponents: bool,
        as_bytes: Sequence[bool] | None,
        single: bool,
    ) -> None:
        """``as_bytes``: for which rows :meth:`answer` returns bytes; None: it returns an array. ``single``: whether it
        returns one number."""
        stride = moduli.shape[1]
        operands = (bases, exponents, moduli)
        units = units_per_row(stride, exponents.shape[1])
        super().__init__(
            kind=MODEXP, operands=operands, row_bytes=stride, units_per_row=units, variant=public_exponents
        )
        self._public_exponents = public_exponents
        self._as_bytes = as_bytes
        self._single = single

    def compute(self, backend: Backend, operands: Operands, outputs: Rows, ok: NDArray[np.uint8]) -> int:
        usual, by_libcrypto = (
            functools.partial(compute, public_exponents=self._public_exponents)
            for compute in (backend.modexp, libcrypto_modexp)
        )
        bases, exponents, moduli = operands
        special = only_libcrypto(moduli)
        if special.any():
            _compute_rows(by_libcrypto, special, operands, outputs)
            _compute_rows(usual, ~special, operands, outputs)
        else:
            usual(bases, exponents, moduli, outputs)
        ok.fill(1)
        return 0

    def answer(self) -> int | bytes | list[int] | list[bytes] | NDArray[np.uint64]:
        """The results, once the call has ended: ints, or big-endian bytes, as many as the modulus has, or limbs."""
        if self._as_bytes is None:
            return limbs_of(self.result)
        numbers: list[Any] = rows_to_integers(self.result)
        for row, as_bytes in enumerate(self._as_bytes):
            if as_bytes:
                numbers[row] = numbers[row].to_bytes(-(-_bits(self.operands[2][row]) // 8), "big")
        return numbers[0] if self._single else numbers


def _compute_rows(
    compute: Callable[[Rows, Rows, Rows, Rows], None], which: NDArray[np.bool_], operands: Operands, outputs: Rows
) -> None:
    """Has ``compute`` fill only the rows of ``outputs`` for which ``which`` is true."""
    bases, exponents, moduli = (operand[which] for operand in operands)
    results = np.empty_like(moduli)
    try:
        if len(results):
            compute(bases, exponents, moduli, results)
            outputs[which] = results
    finally:
        for rows in (bases, exponents, results):
            rows.fill(0)  # may be secret


def units_per_row(stride: int, exponent_stride: int) -> int:
    """What a row costs: the limb products of a multiplication, times the length of the exponent."""
    return max(1, (stride // 8) ** 2 * exponent_stride)


def modexp_call(bases: Operand, exponents: Operand, moduli: Operand, *, public_exponents: bool) -> ModexpCall:
    """Checks the operands of :meth:`gpu_provider.BatchingProvider.modexp` and lays them out. Raises InputError."""
    given = array_to_rows(bases, "base") if isinstance(bases, np.ndarray) else to_integers(bases, "base")
    exponent_rows, negative = exponents_to_rows(exponents, public=public_exponents)
    modulus_rows = to_rows(moduli, "modulus")
    count = rows_of_all(len(given), len(exponent_rows), len(modulus_rows))
    check_moduli(modulus_rows)
    stride = modulus_rows.shape[1]
    base_rows = widen(_reduced(given, modulus_rows), count, stride)
    moduli_wide = widen(modulus_rows, count, stride)
    if negative is not None:
        _invert(base_rows, moduli_wide, np.broadcast_to(negative, count))
    as_bytes: list[bool] | None = None
    if not isinstance(bases, np.ndarray):
        numbers: Any = [bases] if is_number(bases) else bases
        as_bytes = list(map(is_bytes, numbers))
    return ModexpCall(
        base_rows,
        widen(exponent_rows, count, exponent_rows.shape[1]),
        moduli_wide,
        public_exponents=public_exponents,
        as_bytes=as_bytes * count if as_bytes and len(as_bytes) == 1 else as_bytes,
        single=all(map(is_number, (bases, exponents, moduli))),
    )


def exponents_to_rows(exponents: Operand, *, public: bool) -> tuple[Rows, NDArray[np.bool_] | None]:
    """The exponents without their signs, and which of them are negative, if any. If they are public, their rows are as
    short as the longest of them. Raises InputError."""
    negative = None
    if isinstance(exponents, np.ndarray):
        rows = array_to_rows(exponents, "exponent")
    else:
        numbers = to_integers(exponents, "exponent")
        rows = integers_to_rows(list(map(abs, numbers)), "exponent")
        if min(numbers, default=0) < 0:
            negative = np.array([number < 0 for number in numbers], bool)
    if public:
        used = max(1, -(-_bits(np.bitwise_or.reduce(rows)) // 8))
        rows = np.ascontiguousarray(rows[:, :used])
    return rows, negative


def _reduced(bases: Rows | list[int], moduli: Rows) -> Rows:
    """The bases modulo their moduli. What is below its modulus already takes no division; the others are as public as
    their moduli."""
    count, stride = max(len(bases), len(moduli)), moduli.shape[1]
    if not (len(bases) and len(moduli)):
        return np.empty((0, stride), np.uint8)
    if isinstance(bases, list):
        numbers = bases * count if len(bases) == 1 else bases
        values = rows_to_integers(moduli)
        pairs = zip(numbers, values * count if len(values) == 1 else values, strict=True)
        return integers_to_rows([base if 0 <= base < modulus else base % modulus for base, modulus in pairs], "base")
    width = max(bases.shape[1], stride)
    rows, wide = widen(bases, count, width), widen(moduli, count, width)
    for row in not_less(rows, wide).tolist():
        (base,), (modulus,) = rows_to_integers(rows[row : row + 1]), rows_to_integers(wide[row : row + 1])
        rows[row] = np.frombuffer((base % modulus).to_bytes(width, "little"), np.uint8)
    return rows[:, :stride]


def _invert(bases: Rows, moduli: Rows, which: NDArray[np.bool_]) -> None:
    """Replaces some bases by their inverses. Raises InputError."""
    numbers = bases[which]
    inverses = np.empty_like(numbers)
    done = libcrypto_inverse(numbers, moduli[which], inverses)
    if done < len(numbers):
        row = int(np.flatnonzero(which)[done])
        raise InputError(
            f"{label('base', row, len(bases))} has no inverse, which a negative exponent asks for: it has a factor in "
            "common with its modulus"
        )
    bases[which] = inverses


def rows_of_all(bases: int, exponents: int, moduli: int) -> int:
    """How many operations these numbers of operands make. Raises InputError."""
    counts = (bases, exponents, moduli)
    count = 0 if 0 in counts and max(counts) <= 1 else max(counts)
    for rows, name in zip(counts, ("bases", "exponents", "moduli"), strict=True):
        if rows not in {1, count}:
            raise InputError(f"there are {rows} {name} for {count} operations; give one for all, or one for each")
    return count


def check_moduli(moduli: Rows) -> None:
    """Raises InputError if one is 0."""
    positive = moduli.any(axis=1)
    if not positive.all():
        raise InputError(f"{label('modulus', int(positive.argmin()), len(moduli))} is 0; it must be at least 1")


def only_libcrypto(moduli: Rows) -> NDArray[np.bool_]:
    """The moduli that no kernel takes: even ones, and 1."""
    special: NDArray[np.bool_] = (moduli[:, 0] % 2 == 0) | ((moduli[:, 0] == 1) & ~moduli[:, 1:].any(axis=1))
    return special


def _bits(row: NDArray[np.uint8]) -> int:
    return int.from_bytes(row.tobytes(), "little").bit_length()
