"""Reading the operands of library calls: ints, sequences of ints, and arrays of limbs, as rows of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gpu_provider.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.device import CudaArray

__all__ = [
    "MAX_BITS",
    "AnyOperand",
    "Operand",
    "array_to_rows",
    "check_shape",
    "limbs_of",
    "not_less",
    "to_rows",
    "widen",
]

MAX_BITS = 8192
"""Of a modulus or exponent: the largest group of RFC 7919."""

Operand: TypeAlias = "int | Sequence[int] | NDArray[np.uint64]"
AnyOperand: TypeAlias = "Operand | CudaArray"


def to_rows(operand: Operand, name: str) -> NDArray[np.uint8]:
    """[n, bytes], least significant byte first, bytes a multiple of 8. Raises InputError."""
    if isinstance(operand, np.ndarray):
        return array_to_rows(operand, name)
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


def array_to_rows(operand: NDArray[np.uint64], name: str) -> NDArray[np.uint8]:
    """The same for an array alone."""
    if operand.dtype != np.uint64:
        raise InputError(f"the {name} array has dtype {operand.dtype}; it must be uint64, least significant limb first")
    check_shape(operand.shape, name)
    return np.ascontiguousarray(np.atleast_2d(operand), "<u8").view(np.uint8)


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """[n, limbs] or [limbs]. Raises InputError."""
    if len(shape) not in {1, 2} or 0 in shape or shape[-1] * 64 > MAX_BITS:
        raise InputError(
            f"the {name} array has shape {shape}; it must be [n, limbs] or [limbs], with rows of 1 to "
            f"{MAX_BITS // 64} limbs"
        )


def widen(rows: NDArray[np.uint8], count: int, width: int) -> NDArray[np.uint8]:
    """A copy with so many rows and columns: one row is repeated, and zeros are put behind."""
    wide = np.zeros((count, width), np.uint8)
    wide[:, : rows.shape[1]] = rows
    return wide


def not_less(numbers: NDArray[np.uint8], moduli: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The rows in which the number is not less than the modulus; rows of the same width. Compares at the most
    significant byte that differs. Neither is secret, so the time may depend on them."""
    differs = (numbers != moduli)[:, ::-1]
    place = numbers.shape[1] - 1 - differs.argmax(axis=1)
    rows = np.arange(len(numbers))
    return np.flatnonzero(numbers[rows, place] >= moduli[rows, place])


def limbs_of(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """[n, limbs], least significant first, of [n, bytes]."""
    return rows.view("<u8").astype(np.uint64, copy=False)
