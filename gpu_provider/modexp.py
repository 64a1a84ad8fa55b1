"""Modular exponentiation as a library call: reading its operands, and a call's way through the lanes in chunks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gpu_provider.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_BITS", "ModexpCall", "Operand", "modexp_call"]

MAX_BITS = 8192
"""Of a modulus or exponent: the largest group of RFC 7919."""

Operand: TypeAlias = "int | Sequence[int] | NDArray[np.uint64]"


class ModexpCall:
    """One call of modexp(): its operands as little-endian rows, and its result in the making.

    ``bases`` and ``moduli`` are [n, stride], ``exponents`` is [n, exponent_stride]; stride is a multiple of 8.
    """

    def __init__(self, bases: NDArray[np.uint8], exponents: NDArray[np.uint8], moduli: NDArray[np.uint8]) -> None:
        self.bases = bases
        self.exponents = exponents
        self.moduli = moduli
        self.rows, stride = moduli.shape
        self.units_per_row = max(1, (stride // 8) ** 2 * exponents.shape[1])
        """Grows as the time does: limb products in a multiplication, times exponent length."""
        self.next_row = 0
        self.result: Future[NDArray[np.uint8]] = Future()
        self._outputs = np.zeros_like(moduli)
        self._missing = self.rows
        self._lock = threading.Lock()

    def deliver(self, start: int, outputs: NDArray[np.uint8]) -> None:
        """Takes in the results of the rows from ``start``. Any thread."""
        self._outputs[start : start + len(outputs)] = outputs
        with self._lock:
            self._missing -= len(outputs)
            done = self._missing == 0
        if done and not self.result.done():
            self.result.set_result(self._outputs)

    def fail(self, error: Exception) -> None:
        """Ends the call with an error, once. Any thread."""
        with self._lock:
            if not self.result.done():
                self.result.set_exception(error)


def modexp_call(bases: Operand, exponents: Operand, moduli: Operand) -> ModexpCall:
    """Checks the operands of :meth:`gpu_provider.BatchingProvider.modexp` and lays them out. Raises InputError."""
    base_rows, exponent_rows, modulus_rows = (
        _to_rows(operand, name) for operand, name in ((bases, "base"), (exponents, "exponent"), (moduli, "modulus"))
    )
    count = max(len(base_rows), len(exponent_rows), len(modulus_rows))
    for rows, name in ((base_rows, "bases"), (exponent_rows, "exponents"), (modulus_rows, "moduli")):
        if len(rows) not in {1, count}:
            raise InputError(f"there are {len(rows)} {name} for {count} operations; give one for all, or one for each")
    _check_moduli(modulus_rows)
    stride = max(base_rows.shape[1], modulus_rows.shape[1])
    bases_wide, moduli_wide = _widen(base_rows, count, stride), _widen(modulus_rows, count, stride)
    _check_less(bases_wide, moduli_wide)
    # The bases fit the moduli now, so whatever width they came with above that is zeros.
    stride = modulus_rows.shape[1]
    return ModexpCall(
        np.ascontiguousarray(bases_wide[:, :stride]),
        _widen(exponent_rows, count, exponent_rows.shape[1]),
        np.ascontiguousarray(moduli_wide[:, :stride]),
    )


def _to_rows(operand: Operand, name: str) -> NDArray[np.uint8]:
    """[n, bytes], least significant byte first, bytes a multiple of 8."""
    if isinstance(operand, np.ndarray):
        return _array_to_rows(operand, name)
    if not isinstance(operand, int | Sequence):
        raise InputError(
            f"the {name} is of type {type(operand).__name__}; it must be an int, a sequence of ints or a uint64 array"
        )
    numbers = [operand] if isinstance(operand, int) else operand
    if not numbers:
        raise InputError(f"no {name} is given")
    for row, number in enumerate(numbers):
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError(f"{name} {row} is of type {type(number).__name__}; it must be an int")
        if number < 0:
            raise InputError(f"{name} {row} is negative")
        if number.bit_length() > MAX_BITS:
            raise InputError(f"{name} {row} has {number.bit_length()} bits; at most {MAX_BITS} are possible")
    width = max(8, -(-max(number.bit_length() for number in numbers) // 64) * 8)
    data = b"".join(number.to_bytes(width, "little") for number in numbers)
    return np.frombuffer(data, np.uint8).reshape(len(numbers), width)


def _array_to_rows(operand: NDArray[np.uint64], name: str) -> NDArray[np.uint8]:
    if operand.dtype != np.uint64 or operand.ndim not in {1, 2}:
        raise InputError(
            f"the {name} array has dtype {operand.dtype} and {operand.ndim} dimensions; "
            "it must be uint64 [n, limbs] or [limbs], least significant limb first"
        )
    rows = np.atleast_2d(operand)
    if 0 in rows.shape or rows.shape[1] * 64 > MAX_BITS:
        raise InputError(
            f"the {name} array has shape {operand.shape}; it must have rows, of 1 to {MAX_BITS // 64} limbs"
        )
    return np.ascontiguousarray(rows, "<u8").view(np.uint8)


def _widen(rows: NDArray[np.uint8], count: int, width: int) -> NDArray[np.uint8]:
    wide = np.zeros((count, width), np.uint8)
    wide[:, : rows.shape[1]] = rows
    return wide


def _check_moduli(moduli: NDArray[np.uint8]) -> None:
    even = np.flatnonzero(moduli[:, 0] % 2 == 0)
    if even.size:
        raise InputError(f"modulus {even[0]} is even; it must be odd and greater than 1")
    one = np.flatnonzero((moduli[:, 0] == 1) & ~moduli[:, 1:].any(axis=1))
    if one.size:
        raise InputError(f"modulus {one[0]} is 1; it must be odd and greater than 1")


def _check_less(bases: NDArray[np.uint8], moduli: NDArray[np.uint8]) -> None:
    """Compares at the most significant byte that differs. Neither is secret, so the time may depend on them."""
    differs = (bases != moduli)[:, ::-1]
    place = bases.shape[1] - 1 - differs.argmax(axis=1)
    rows = np.arange(len(bases))
    too_large = np.flatnonzero(bases[rows, place] >= moduli[rows, place])
    if too_large.size:
        raise InputError(f"base {too_large[0]} is not less than its modulus; reduce it first")
