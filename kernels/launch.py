"""What launches of the CUDA kernels need, on a GPU or in the host build: ``gpu/launch.h`` and ``records.h``."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.kernels import UnsupportedError, c_numbers, filled
from gpu_provider.kernels._kernels import ffi, lib

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MODEXP_LAUNCH",
    "PRIVATE_LAUNCH",
    "Kernel",
    "Operation",
    "key_record",
    "key_record_address",
    "modulus_record",
]


class Operation(enum.IntEnum):
    """What a kernel computes."""

    PRIVATE = lib.GPK_PRIVATE_OPERATION
    MAKE_PAIRS = lib.GPK_MAKE_PAIRS
    MODEXP = lib.GPK_MODEXP

    @property
    def entry(self) -> str:
        """The kernel's name in the machine code."""
        return ("gpk_private", "gpk_make_pairs", "gpk_modexp")[self]


@dataclass(frozen=True)
class Kernel:
    """One kernel that a device can launch."""

    index: int
    """Tells the device which one it is."""
    name: str
    operation: Operation
    radix_bits: int
    class_bytes: int
    """Width of a row of numbers."""
    threads: int
    """The threads that work on one row."""
    window: int
    rows: int
    """The rows that a warp computes: a launch of one row costs as much as a launch of this many."""
    table_bytes: int
    """Shared memory that a warp needs on a device."""
    record_bytes: int
    """Size of a key's record, or of a modulus's."""
    pair_bytes: int
    """Size of a blinding pair; 0 for modular exponentiation."""


def _structure(name: str) -> np.dtype[np.void]:
    """A C structure as NumPy's, with addresses as integers."""
    kind = ffi.typeof(name)
    fields = kind.fields or ()
    return np.dtype(
        {
            "names": [field for field, _ in fields],
            "formats": [f"u{ffi.sizeof(about.type)}" for _, about in fields],
            "offsets": [about.offset for _, about in fields],
            "itemsize": ffi.sizeof(kind),
        }
    )


PRIVATE_LAUNCH = _structure("struct gpk_private_launch")
MODEXP_LAUNCH = _structure("struct gpk_modexp_launch")


def key_record_address() -> int:
    """The address of ``gpk_thread_record`` (``records.h``), for C code that is not linked with the kernels."""
    library: Any = lib
    return int(ffi.cast("uintptr_t", ffi.addressof(library, "gpk_thread_record")))


def key_record(
    record: NDArray[np.uint8],
    radix_bits: int,
    class_bytes: int,
    *,
    n: int,
    e: int,
    p: int,
    q: int,
    dp: int,
    dq: int,
    qinv: int,
) -> None:
    """Fills ``record`` (uint8 [key_bytes]) for the kernels of this radix and class. It is as secret as the key.

    Raises UnsupportedError if the key does not fit the class, ValueError for numbers that are no RSA key.
    """
    with c_numbers(n, e, p, q, dp, dq, qinv) as numbers:
        status = lib.gpk_thread_record(radix_bits, class_bytes, filled(record), *numbers)
    if status == lib.GPK_UNSUPPORTED:
        raise UnsupportedError(
            f"a key of {n.bit_length()} bits with primes of {p.bit_length()} and {q.bit_length()} does not fit the "
            f"kernels of {class_bytes} bytes in radix 2^{radix_bits}"
        )
    if status != lib.GPK_OK:
        raise ValueError("these numbers are no RSA key: n, p, q and e must be odd, e at least 3, qinv below p")


def modulus_record(record: NDArray[np.uint8], radix_bits: int, class_bytes: int, modulus: int) -> None:
    """Fills ``record`` (uint8 [modulus_bytes]) for the kernels of this radix and class.

    Raises UnsupportedError if the modulus does not fit the class, ValueError if it is even or below 3.
    """
    with c_numbers(modulus) as numbers:
        status = lib.gpk_thread_modulus(radix_bits, class_bytes, filled(record), *numbers)
    if status == lib.GPK_UNSUPPORTED:
        raise UnsupportedError(
            f"a modulus of {modulus.bit_length()} bits does not fit the kernels of {class_bytes} bytes in radix "
            f"2^{radix_bits}"
        )
    if status != lib.GPK_OK:
        raise ValueError(f"a modulus must be odd and at least 3; the lowest bits of this are {modulus & 3:02b}")
