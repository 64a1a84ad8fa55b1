"""The multi-thread kernels' host build: what a GPU launches, computed by a function call on a processor.

The same source, arguments and memory layouts (``threads.h``, ``launch.h``), so that what launches kernels is tested
without a GPU. It is slow; batches for the CPU belong to :func:`gpu_provider.kernels.private_op`. Also fills the records
that a device's kernels read. Every call releases the GIL and may be made from any number of threads at once, as long as
no two launches share a blinding pair.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpu_provider.kernels import UnsupportedError, address
from gpu_provider.kernels._kernels import ffi, lib

if TYPE_CHECKING:
    from _cffi_backend import FFI
    from numpy.typing import NDArray

__all__ = [
    "Kernel",
    "Operation",
    "host_kernels",
    "key_record",
    "key_record_address",
    "launch",
    "make_pairs",
    "modexp",
    "modulus_record",
    "private_op",
]


class Operation(enum.IntEnum):
    """What a kernel computes."""

    PRIVATE = lib.GPK_PRIVATE_OPERATION
    MAKE_PAIRS = lib.GPK_MAKE_PAIRS
    MODEXP = lib.GPK_MODEXP


@dataclass(frozen=True)
class Kernel:
    """One kernel of the host build."""

    index: int
    name: str
    operation: Operation
    radix_bits: int
    """32 (chains of carries) or 52 (floating-point multiply-adds)."""
    class_bytes: int
    """Width of a row of numbers."""
    threads: int
    """Of one row."""
    window: int
    rows: int
    """Of one warp: a launch of one row costs as much as a launch of this many."""
    table_bytes: int
    """Shared memory of one warp on a device."""
    record_bytes: int
    """Of a key's record, or of a modulus's."""
    pair_bytes: int
    """Of a blinding pair; 0 for modular exponentiation."""


def host_kernels() -> list[Kernel]:
    """The kernels of the host build: none where an x86-64 processor lacks AVX2 or FMA."""
    found: list[Kernel] = []
    while about := lib.gpk_thread_kernel_at(len(found)):
        found.append(
            Kernel(
                len(found),
                cast("bytes", ffi.string(about.name)).decode(),
                Operation(about.operation),
                about.radix_bits,
                about.class_bytes,
                about.threads,
                about.window,
                about.rows,
                about.table_bytes,
                about.record_bytes,
                about.pair_bytes,
            )
        )
    return found


def launch(kernel: Kernel, arguments: int) -> None:
    """Runs a kernel over all rows. ``arguments``: the address of its launch structure; nothing in it is checked."""
    if lib.gpk_thread_run(kernel.index, ffi.cast("void *", arguments)) != lib.GPK_OK:
        raise MemoryError("no memory for the kernels' workspace")


def key_record_address() -> int:
    """The address of ``gpk_thread_record`` of ``threads.h``, for C code that is not linked with the kernels."""
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
    """Fills ``record`` (uint8 [record_bytes]) for the kernels of that radix and class; it is as secret as the key.

    Raises UnsupportedError if the key does not fit the class, ValueError for numbers that are no RSA key.
    """
    numbers, buffers = _numbers(n, e, p, q, dp, dq, qinv)
    status = lib.gpk_thread_record(radix_bits, class_bytes, _filled(record), *numbers)
    for buffer in buffers:
        ffi.memmove(buffer, bytes(len(buffer)), len(buffer))
    if status == lib.GPK_UNSUPPORTED:
        raise UnsupportedError(
            f"a key of {n.bit_length()} bits with primes of {p.bit_length()} and {q.bit_length()} does not fit the "
            f"kernels of {class_bytes} bytes in radix 2^{radix_bits}"
        )
    if status != lib.GPK_OK:
        raise ValueError("these numbers are no RSA key: n, p, q and e must be odd, e at least 3, qinv below p")


def modulus_record(record: NDArray[np.uint8], radix_bits: int, class_bytes: int, modulus: int) -> None:
    """Fills ``record`` (uint8 [record_bytes]) for the exponentiations of that radix and class.

    Raises UnsupportedError if the modulus does not fit the class, ValueError if it is even or below 3.
    """
    numbers, _buffers = _numbers(modulus)
    status = lib.gpk_thread_modulus(radix_bits, class_bytes, _filled(record), *numbers)
    if status == lib.GPK_UNSUPPORTED:
        raise UnsupportedError(
            f"a modulus of {modulus.bit_length()} bits does not fit the kernels of {class_bytes} bytes in radix "
            f"2^{radix_bits}"
        )
    if status != lib.GPK_OK:
        raise ValueError(f"a modulus must be odd and at least 3; the lowest bits of this are {modulus & 3:02b}")


def private_op(
    kernel: Kernel,
    inputs: NDArray[np.uint8],
    outputs: NDArray[np.uint8],
    ok: NDArray[np.uint8],
    *,
    records: NDArray[np.uint8],
    record_of_row: NDArray[np.uint32],
    pairs: NDArray[np.uint8],
    pair_of_row: NDArray[np.uint32],
    exponent_bits: int,
    any_e: int,
) -> None:
    """``outputs[i] = inputs[i] ** d % n`` with the key of ``records[record_of_row[i]]``, blinded and verified.

    ``records``: uint8 [keys, record_bytes]. ``pairs``: uint8 [pairs, pair_bytes]; row i uses ``pair_of_row[i]``, made
    by :func:`make_pairs` with the same key, no other row in flight the same one; squared behind use. ``inputs``,
    ``outputs``: uint8 [n, class_bytes], least significant byte first. ``ok``: uint8 [n], 1, or 0 with a row of zeros
    where the input is not below the modulus or the result did not verify. ``exponent_bits``: of the longest prime of
    the launch's keys; ``any_e``: their public exponents, OR-ed.
    """
    launch = _private_launch(
        kernel,
        inputs,
        records=records,
        record_of_row=record_of_row,
        pairs=pairs,
        pair_of_row=pair_of_row,
        exponent_bits=exponent_bits,
        any_e=any_e,
    )
    _expect(outputs, inputs.shape, "outputs")
    _expect(ok, (len(inputs),), "ok")
    launch |= {"outputs": _filled(outputs), "ok": _filled(ok)}
    _run(kernel, Operation.PRIVATE, ffi.new("struct gpk_private_launch *", launch))


def make_pairs(
    kernel: Kernel,
    random: NDArray[np.uint8],
    *,
    records: NDArray[np.uint8],
    record_of_row: NDArray[np.uint32],
    pairs: NDArray[np.uint8],
    pair_of_row: NDArray[np.uint32],
    exponent_bits: int,
    any_e: int,
) -> None:
    """Makes ``pairs[pair_of_row[i]]`` for ``records[record_of_row[i]]`` from ``random[i]``, secret random bytes."""
    launch = _private_launch(
        kernel,
        random,
        records=records,
        record_of_row=record_of_row,
        pairs=pairs,
        pair_of_row=pair_of_row,
        exponent_bits=exponent_bits,
        any_e=any_e,
    )
    _run(kernel, Operation.MAKE_PAIRS, ffi.new("struct gpk_private_launch *", launch))


def modexp(
    kernel: Kernel,
    bases: NDArray[np.uint8],
    exponents: NDArray[np.uint8],
    outputs: NDArray[np.uint8],
    *,
    moduli: NDArray[np.uint8],
    modulus_of_row: NDArray[np.uint32],
    exponent_bits: int,
) -> None:
    """``outputs[i] = bases[i] ** exponents[i] % m`` for the modulus m of ``moduli[modulus_of_row[i]]``.

    ``moduli``: uint8 [moduli, record_bytes], by :func:`modulus_record`. ``bases``, ``outputs``: uint8 [n, class_bytes];
    ``exponents``: uint8 [n, a multiple of 4], of which the low ``exponent_bits`` count.
    """
    count = len(bases)
    _expect(bases, (count, kernel.class_bytes), "bases")
    _expect(outputs, bases.shape, "outputs")
    _expect(moduli, (len(moduli), kernel.record_bytes), "moduli")
    _expect(modulus_of_row, (count,), "modulus_of_row", np.uint32)
    width = exponents.shape[1]
    if width % 4 or len(exponents) != count or not 0 < exponent_bits <= 8 * width:
        raise ValueError(
            f"exponents {exponents.shape} of {exponent_bits} bits: rows are words of 4 bytes that hold them"
        )
    _below(modulus_of_row, len(moduli), "modulus_of_row")
    launch = ffi.new(
        "struct gpk_modexp_launch *",
        {
            "count": count,
            "exponent_bits": exponent_bits,
            "exponent_stride": width,
            "modulus_of_row": address("uint32_t[]", modulus_of_row),
            "moduli": _rows(moduli),
            "bases": _rows(bases),
            "exponents": _rows(exponents),
            "outputs": _filled(outputs),
        },
    )
    _run(kernel, Operation.MODEXP, launch)


def _private_launch(
    kernel: Kernel,
    inputs: NDArray[np.uint8],
    *,
    records: NDArray[np.uint8],
    record_of_row: NDArray[np.uint32],
    pairs: NDArray[np.uint8],
    pair_of_row: NDArray[np.uint32],
    exponent_bits: int,
    any_e: int,
) -> dict[str, object]:
    count = len(inputs)
    _expect(inputs, (count, kernel.class_bytes), "inputs")
    _expect(records, (len(records), kernel.record_bytes), "records")
    _expect(pairs, (len(pairs), kernel.pair_bytes), "pairs")
    _expect(record_of_row, (count,), "record_of_row", np.uint32)
    _expect(pair_of_row, (count,), "pair_of_row", np.uint32)
    _below(record_of_row, len(records), "record_of_row")
    _below(pair_of_row, len(pairs), "pair_of_row")
    if not 0 < exponent_bits <= 8 * kernel.class_bytes // 2 + 64 or not 0 < any_e < 1 << 64:
        raise ValueError(f"exponents of {exponent_bits} bits, public exponents of {any_e.bit_length()}")
    return {
        "count": count,
        "exponent_bits": exponent_bits,
        "any_e": any_e,
        "record_of_row": address("uint32_t[]", record_of_row),
        "pair_of_row": address("uint32_t[]", pair_of_row),
        "records": _rows(records),
        "pairs": _filled(pairs),
        "inputs": _rows(inputs),
    }


def _run(kernel: Kernel, operation: Operation, launch: FFI.CData) -> None:
    if kernel.operation is not operation:
        raise ValueError(f"{kernel.name} is no kernel for {operation.name}")
    if lib.gpk_thread_run(kernel.index, launch) != lib.GPK_OK:
        raise MemoryError("no memory for the kernels' workspace")


def _numbers(*numbers: int) -> tuple[list[dict[str, object]], list[FFI.CData]]:
    buffers = []
    for number in numbers:
        size = max(1, (number.bit_length() + 7) // 8)
        buffers.append(ffi.new("uint8_t[]", size))
        ffi.buffer(buffers[-1])[:] = number.to_bytes(size, "little")
    return [{"bytes": buffer, "size": len(buffer)} for buffer in buffers], buffers


def _expect(array: NDArray[np.generic], shape: tuple[int, ...], name: str, dtype: type[np.generic] = np.uint8) -> None:
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous {dtype.__name__} {shape}, not {array.dtype} {array.shape}")


def _below(indices: NDArray[np.uint32], limit: int, name: str) -> None:
    if len(indices) and int(indices.max()) >= limit:
        raise ValueError(f"{name} holds {indices.max()}, of {limit}")


def _rows(array: NDArray[np.uint8]) -> FFI.CData:
    return address("uint8_t[]", array)


def _filled(array: NDArray[np.uint8]) -> FFI.CData:
    if not array.flags.writeable:
        raise TypeError("an array that is to be filled is read-only")
    return _rows(array)
