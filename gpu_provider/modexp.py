"""Modular exponentiation as a library call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpu_provider.calls import Call
from gpu_provider.errors import InputError
from gpu_provider.lanes import MODEXP
from gpu_provider.operands import not_less, to_rows, widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.base import Backend
    from gpu_provider.calls import Rows
    from gpu_provider.operands import Operand

__all__ = ["ModexpCall", "check_moduli", "modexp_call", "rows_of_all", "units_per_row"]


class ModexpCall(Call):
    """One call of modexp(). ``bases`` and ``moduli`` are [n, stride], ``exponents`` is [n, exponent_stride]; least
    significant byte first, stride a multiple of 8."""

    def __init__(self, bases: NDArray[np.uint8], exponents: NDArray[np.uint8], moduli: NDArray[np.uint8]) -> None:
        rows, stride = moduli.shape
        units = units_per_row(stride, exponents.shape[1])
        super().__init__(kind=MODEXP, work=MODEXP, rows=rows, row_bytes=stride, units_per_row=units)
        self._bases = bases
        self._exponents = exponents
        self._moduli = moduli

    def compute(self, backend: Backend, rows: Rows, outputs: NDArray[np.uint8], ok: NDArray[np.uint8]) -> int:
        backend.modexp(self._bases[rows], self._exponents[rows], self._moduli[rows], outputs)
        ok.fill(1)
        return 0


def units_per_row(stride: int, exponent_stride: int) -> int:
    """Grows as the time does: limb products in a multiplication, times exponent length."""
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
        raise InputError(f"base {too_large[0]} is not less than its modulus; reduce it first")
    # The bases fit the moduli now, so whatever width they came with above that is zeros.
    stride = modulus_rows.shape[1]
    return ModexpCall(
        np.ascontiguousarray(bases_wide[:, :stride]),
        widen(exponent_rows, count, exponent_rows.shape[1]),
        np.ascontiguousarray(moduli_wide[:, :stride]),
    )


def rows_of_all(bases: int, exponents: int, moduli: int) -> int:
    """How many operations so many of each are. Raises InputError."""
    count = max(bases, exponents, moduli)
    for rows, name in ((bases, "bases"), (exponents, "exponents"), (moduli, "moduli")):
        if rows not in {1, count}:
            raise InputError(f"there are {rows} {name} for {count} operations; give one for all, or one for each")
    return count


def check_moduli(moduli: NDArray[np.uint8]) -> None:
    """Raises InputError."""
    even = np.flatnonzero(moduli[:, 0] % 2 == 0)
    if even.size:
        raise InputError(f"modulus {even[0]} is even; it must be odd and greater than 1")
    one = np.flatnonzero((moduli[:, 0] == 1) & ~moduli[:, 1:].any(axis=1))
    if one.size:
        raise InputError(f"modulus {one[0]} is 1; it must be odd and greater than 1")
