"""Reads the operands of library calls (numbers, sequences of numbers, arrays of limbs) as rows of bytes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

from gpu_provider.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.base import Rows
    from gpu_provider.backends.cuda.device import CudaArray
    from gpu_provider.library.dlpack import DlpackArray

__all__ = [
    "MAX_BITS",
    "AnyOperand",
    "BytesLike",
    "Integer",
    "Number",
    "Operand",
    "array_to_rows",
    "check_shape",
    "integers_to_rows",
    "is_bytes",
    "is_number",
    "label",
    "limbs_of",
    "not_less",
    "rows_to_integers",
    "to_int",
    "to_integers",
    "to_rows",
    "widen",
]

MAX_BITS = 8192
"""Most bits of a modulus or exponent: the largest group of RFC 7919."""

Integer: TypeAlias = "int | np.integer[Any]"
"""Anything else with ``__index__`` is read as well."""
BytesLike: TypeAlias = "bytes | bytearray | memoryview"
"""One number, big-endian."""
Number: TypeAlias = "Integer | BytesLike"
Operand: TypeAlias = "Number | Sequence[Integer] | Sequence[BytesLike] | NDArray[np.uint64]"
_BYTES = (bytes, bytearray, memoryview)  # made once: numbers are checked one by one
AnyOperand: TypeAlias = "Operand | CudaArray | DlpackArray"


def is_bytes(operand: object) -> TypeGuard[BytesLike]:
    return isinstance(operand, _BYTES)


def is_number(operand: object) -> TypeGuard[Number]:
    """Whether the operand is one number, not a sequence or an array of them."""
    return (
        isinstance(operand, int)
        or is_bytes(operand)
        or (hasattr(operand, "__index__") and not isinstance(operand, np.ndarray))
    )


def to_int(number: object, name: str) -> int:
    """The value of an int, of what has ``__index__``, or of big-endian bytes. Raises InputError."""
    if isinstance(number, memoryview) and (number.ndim != 1 or number.itemsize != 1):
        raise InputError(
            f"{name} is a memoryview of shape {number.shape} and format {number.format!r}; it must be of bytes in one "
            "dimension"
        )
    if is_bytes(number):
        return int.from_bytes(number, "big")
    try:
        if not isinstance(number, bool):
            return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise InputError(f"{name} must be an int or bytes, not {type(number).__name__}")


def to_rows(operand: Operand, name: str) -> Rows:
    """[n, bytes], least significant byte first, bytes a multiple of 8. Raises InputError."""
    if isinstance(operand, np.ndarray):
        return array_to_rows(operand, name)
    return integers_to_rows(to_integers(operand, name), name)


def to_integers(operand: object, name: str) -> list[int]:
    """The values of a number, or of a sequence of them: any, also negative ones. Raises InputError."""
    if is_number(operand):
        return [to_int(operand, f"the {name}")]
    if isinstance(operand, Sequence) and not isinstance(operand, str):
        return [
            number if type(number) is int else to_int(number, label(name, row, len(operand)))
            for row, number in enumerate(operand)
        ]
    raise InputError(
        f"the {name} must be an int, bytes, a sequence of either or a uint64 array, not {type(operand).__name__}"
    )


def integers_to_rows(numbers: Sequence[int], name: str) -> Rows:
    """Like :func:`to_rows`."""
    bits = max(map(int.bit_length, numbers), default=0)
    if bits > MAX_BITS or min(numbers, default=0) < 0:
        row = next(row for row, number in enumerate(numbers) if number < 0 or number.bit_length() > MAX_BITS)
        reason = (
            "is negative"
            if numbers[row] < 0
            else f"has {numbers[row].bit_length()} bits; at most {MAX_BITS} are possible"
        )
        raise InputError(f"{label(name, row, len(numbers))} {reason}")
    width = max(8, -(-bits // 64) * 8)
    data = b"".join([number.to_bytes(width, "little") for number in numbers])
    return np.frombuffer(data, np.uint8).reshape(len(numbers), width)


def rows_to_integers(rows: Rows) -> list[int]:
    """The inverse of :func:`integers_to_rows`."""
    data, width = rows.tobytes(), rows.shape[1]
    return [int.from_bytes(data[start : start + width], "little") for start in range(0, len(data), width)]


def label(name: str, row: int, rows: int) -> str:
    """What an error calls one of ``rows`` operands."""
    return f"the {name}" if rows == 1 else f"the {name} at index {row}"


def array_to_rows(operand: NDArray[np.uint64], name: str) -> Rows:
    """Like :func:`to_rows`, for an array."""
    if operand.dtype != np.uint64:
        raise InputError(f"the {name} array has dtype {operand.dtype}; it must be uint64, least significant limb first")
    if hasattr(operand, "mask"):  # numpy.ma, without importing it
        raise InputError(f"the {name} array has a mask; give one without")
    check_shape(operand.shape, name)
    return np.ascontiguousarray(np.atleast_2d(operand), "<u8").view(np.uint8)


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Raises InputError unless the shape is [n, limbs] or [limbs]; n may be 0."""
    if len(shape) not in {1, 2} or not 0 < shape[-1] * 64 <= MAX_BITS:
        raise InputError(
            f"the {name} array has shape {shape}; it must be [n, limbs] or [limbs], with rows of 1 to "
            f"{MAX_BITS // 64} limbs"
        )


def widen(rows: Rows, count: int, width: int) -> Rows:
    """A copy of [count, width]: a single row is repeated, and columns are filled up with zeros."""
    wide = np.zeros((count, width), np.uint8)
    wide[:, : rows.shape[1]] = rows
    return wide


def not_less(numbers: Rows, moduli: Rows) -> NDArray[np.intp]:
    """The rows in which the number is not less than the modulus; both have the same width. Compares the most
    significant byte that differs. Neither is secret, so the time may depend on them."""
    differs = (numbers != moduli)[:, ::-1]
    place = numbers.shape[1] - 1 - differs.argmax(axis=1)
    rows = np.arange(len(numbers))
    return np.flatnonzero(numbers[rows, place] >= moduli[rows, place])


def limbs_of(rows: Rows) -> NDArray[np.uint64]:
    """[n, limbs], least significant first, of [n, bytes]."""
    return rows.view("<u8").astype(np.uint64, copy=False)
