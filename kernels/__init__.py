"""Batches of RSA private operations and modular exponentiations on the CPU, eight at a time where it has AVX-512 IFMA.

``DESIGN.md`` describes the arithmetic, ``kernels.h`` the C interface that this wraps. Every call releases the GIL and
may be made from any number of threads at once. Computation on secrets takes constant time.
"""

from __future__ import annotations

import contextlib
import enum
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.kernels._kernels import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _cffi_backend import FFI
    from numpy.typing import NDArray

__all__ = ["Isa", "PrivateKey", "UnsupportedError", "functions_address", "isa", "lanes", "modexp", "private_op"]


class Isa(enum.IntEnum):
    """The instruction set that the kernels use."""

    BEST = lib.GPK_ISA_BEST
    """The fastest that this processor has."""
    PORTABLE = lib.GPK_ISA_PORTABLE
    """Any processor, one operation at a time."""
    IFMA = lib.GPK_ISA_IFMA
    """AVX-512 IFMA, eight operations at a time."""


class UnsupportedError(ValueError):
    """The kernels don't support this key, size or ISA here: leave it to libcrypto."""


def isa(wanted: Isa = Isa.BEST) -> Isa:
    """The ISA that ``wanted`` means on this processor. Raises UnsupportedError if the processor lacks it."""
    found = Isa(lib.gpk_resolve_isa(wanted))
    if found is Isa.BEST:
        raise UnsupportedError(f"this processor lacks what {wanted.name} needs; use Isa.BEST")
    return found


def lanes(wanted: Isa = Isa.BEST) -> int:
    """The lanes of the ISA's vectors: a batch of one private operation costs as much as a batch of this many."""
    return int(lib.gpk_lanes(isa(wanted)))


def functions_address(wanted: Isa = Isa.BEST) -> int:
    """The address of a ``struct gpk_functions`` (``kernels.h``), for C code that is not linked with the kernels."""
    return int(ffi.cast("uintptr_t", lib.gpk_functions_of(isa(wanted))))


class PrivateKey:
    """What the kernels need of one RSA key (RFC 8017, 3.2: with p, q, dP, dQ and qInv).

    The numbers are not checked against one another: if they don't belong together, the check of every operation fails.
    Memory is locked where the limit on locked memory allows, left out of core dumps, and wiped when the object is
    destroyed. Raises UnsupportedError for sizes that the kernels don't support, ValueError for numbers that are no RSA
    key.
    """

    def __init__(self, *, n: int, e: int, p: int, q: int, dp: int, dq: int, qinv: int) -> None:
        key = ffi.new("gpk_key **")
        with c_numbers(n, e, p, q, dp, dq, qinv) as numbers:
            status = lib.gpk_key_new(key, *numbers)
        if status == lib.GPK_NO_MEMORY:
            raise MemoryError("no memory for a key's constants")
        if status == lib.GPK_UNSUPPORTED:
            raise UnsupportedError(
                f"the kernels take keys of {lib.GPK_MIN_BITS} to {lib.GPK_MAX_BITS} bits with two primes, of at most "
                f"2076 each, and e of at most 64; this one has {n.bit_length()} bits and e has {e.bit_length()}"
            )
        if status != lib.GPK_OK:
            raise ValueError("these numbers are no RSA key: n, p, q and e must be odd, e at least 3, qinv below p")
        self.pointer = ffi.gc(key[0], lib.gpk_key_free)
        """``gpk_key *``, valid as long as this object lives."""

    @property
    def locked(self) -> bool:
        """Whether the memory is locked, so that it is never written to swap space."""
        return bool(lib.gpk_key_is_locked(self.pointer))


def private_op(
    keys: Sequence[PrivateKey],
    inputs: NDArray[np.uint8],
    outputs: NDArray[np.uint8],
    ok: NDArray[np.uint8],
    *,
    isa: Isa = Isa.BEST,
) -> None:
    """``outputs[i] = inputs[i] ** d % n`` with ``keys[i]``, blinded, and verified with the public exponent.

    ``inputs`` and ``outputs``: C-contiguous uint8 [n, bytes], least significant byte first, at most 512 bytes; they
    must not overlap. ``ok``: uint8 [n], set to 1, or to 0 with a row of zeros where the input is not less than the
    modulus, the row is narrower than the key, or the result did not verify. Keys of all sizes may be mixed.
    """
    pointers = ffi.new("gpk_key *[]", [key.pointer for key in keys])
    count, stride = inputs.shape
    if not (len(keys) == len(ok) == count and outputs.shape == inputs.shape):
        raise ValueError(
            f"{len(keys)} keys, inputs {inputs.shape}, outputs {outputs.shape} and {len(ok)} verdicts differ"
        )
    _check(
        lib.gpk_private(isa, count, pointers, _rows(inputs), filled(outputs), stride, filled(ok)),
        isa,
        f"rows of {stride} bytes: the kernels take 1 to 512",
    )


def modexp(
    bases: NDArray[np.uint8],
    exponents: NDArray[np.uint8],
    moduli: NDArray[np.uint8],
    outputs: NDArray[np.uint8],
    ok: NDArray[np.uint8],
    *,
    exponent_bits: int | None = None,
    public_exponents: bool = False,
    isa: Isa = Isa.BEST,
) -> None:
    """``outputs[i] = bases[i] ** exponents[i] % moduli[i]`` for odd moduli.

    ``bases``, ``moduli`` and ``outputs``: C-contiguous uint8 [n, bytes]; ``exponents``: uint8 [n, exponent_bytes];
    at most 1024 bytes, least significant first. Of every exponent the low ``exponent_bits`` count, by default all of
    its row; that length is public, and so are the exponents with ``public_exponents``, which takes less time for short
    ones with few bits set. ``ok``: uint8 [n], set to 1, or to 0 with a row of zeros for a modulus that is even
    or below 3. A base may be larger than its modulus.
    """
    count, stride = bases.shape
    if not (bases.shape == moduli.shape == outputs.shape and len(exponents) == len(ok) == count):
        raise ValueError(
            f"bases {bases.shape}, moduli {moduli.shape}, outputs {outputs.shape}, {len(ok)} verdicts differ"
        )
    width = exponents.shape[1]
    bits = 8 * width if exponent_bits is None else exponent_bits
    _check(
        lib.gpk_modexp(
            isa,
            count,
            _rows(bases),
            _rows(exponents),
            width,
            bits,
            _rows(moduli),
            filled(outputs),
            stride,
            filled(ok),
            public_exponents,
        ),
        isa,
        f"rows of {stride} bytes and exponents of {width}: the kernels take 1 to 1024 of each",
    )


def _rows(array: NDArray[np.uint8]) -> FFI.CData:
    if array.dtype != np.uint8:
        raise TypeError(f"rows are uint8, not {array.dtype}")
    return address("uint8_t[]", array)


@contextlib.contextmanager
def c_numbers(*values: int) -> Iterator[list[dict[str, object]]]:
    """The values as ``struct gpk_number``. Their bytes are wiped at the end."""
    buffers = [ffi.new("uint8_t[]", max(1, (value.bit_length() + 7) // 8)) for value in values]
    try:
        for value, buffer in zip(values, buffers, strict=True):
            ffi.buffer(buffer)[:] = value.to_bytes(len(buffer), "little")
        yield [{"bytes": buffer, "size": len(buffer)} for buffer in buffers]
    finally:
        for buffer in buffers:
            ffi.memmove(buffer, bytes(len(buffer)), len(buffer))


def address(kind: str, array: Any) -> FFI.CData:
    """A C array of type ``kind`` that shares the memory of a C-contiguous array, and keeps it alive."""
    # From the array, not from array.data: CPython 3.11 crashes when it collects a memoryview that is still in use in a
    # garbage cycle.
    return ffi.from_buffer(kind, array)


def filled(array: NDArray[np.uint8]) -> FFI.CData:
    """The same of rows of bytes that a call fills. Raises TypeError if the array is read-only."""
    if not array.flags.writeable:
        raise TypeError("an array that is to be filled is read-only")
    return _rows(array)


def _check(status: int, isa: Isa, unsupported: str) -> None:
    if status == lib.GPK_NO_MEMORY:
        raise MemoryError("no memory for the kernels' workspace")
    if status == lib.GPK_NO_ISA:
        raise UnsupportedError(f"this processor lacks what {isa.name} needs; use Isa.BEST")
    if status != lib.GPK_OK:
        raise UnsupportedError(unsupported)
