"""Kernels in Python integers, with the arguments and the memory of ``kernels/launch.h``."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from gpu_provider.backends.device import Kernel, Operation
from gpu_provider.client import class_bytes
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX = 512
RECORD = 7 * MAX


def kernels() -> list[Kernel]:
    return [
        Kernel(f"{operation.name}-{size}-{threads}", operation, 52, size, threads, RECORD, 2 * MAX, 0)
        for operation in (Operation.PRIVATE, Operation.MAKE_PAIRS)
        for size in map(class_bytes, range(5))
        for threads in (4, 8)
    ]


@ffi.callback("gp_fill_record")
def _fill(_radix: int, size: int, record: Any, *numbers: Any) -> int:
    for i, number in enumerate(numbers):
        if number.size > (size if i in {0, 1} else size // 2 + 1):
            return int(lib.GPK_UNSUPPORTED)
        if i == 1 and number.size > 8:
            return int(lib.GPK_UNSUPPORTED)
        ffi.memmove(record + i * MAX, number.bytes, number.size)
    return int(lib.GPK_OK)


FILL = int(ffi.cast("uintptr_t", _fill))


def read(address: int, size: int) -> int:
    return int.from_bytes(ctypes.string_at(address, size), "little")


def write(address: int, number: int, size: int) -> None:
    ctypes.memmove(address, number.to_bytes(size, "little"), size)


class StandInKernels:
    def __init__(self) -> None:
        self.kernels = kernels()

    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        launch = arguments[0]
        size = kernel.class_bytes
        for row in range(int(launch["count"])):
            record = int(launch["records"]) + RECORD * read(int(launch["record_of_row"]) + 4 * row, 4)
            pair = int(launch["pairs"]) + 2 * MAX * read(int(launch["pair_of_row"]) + 4 * row, 4)
            n, e, p, q, dp, dq, qinv = (read(record + i * MAX, MAX) for i in range(7))
            assert n, "a record that was never filled, or was wiped"
            assert e & ~int(launch["any_e"]) == 0
            assert max(p.bit_length(), q.bit_length()) <= int(launch["exponent_bits"])
            x = read(int(launch["inputs"]) + row * size, size)
            if kernel.operation is Operation.MAKE_PAIRS:
                write(pair, pow(x, -e, n), MAX)
                write(pair + MAX, x % n, MAX)
                continue
            factor, inverse = read(pair, MAX), read(pair + MAX, MAX)
            blinded = x * factor % n
            sp, sq = pow(blinded, dp, p), pow(blinded, dq, q)
            result = (sq + q * ((sp - sq) * qinv % p)) * inverse % n
            ok = pow(result, e, n) == x
            write(int(launch["outputs"]) + row * size, result if ok else 0, size)
            write(int(launch["ok"]) + row, ok, 1)
            write(pair, factor * factor % n, MAX)
            write(pair + MAX, inverse * inverse % n, MAX)


class NothingKernels(StandInKernels):
    """Say that every result is there and right."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[Operation] = []

    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        self.launched.append(kernel.operation)
        if kernel.operation is Operation.PRIVATE:
            ctypes.memset(int(arguments[0]["ok"]), 1, int(arguments[0]["count"]))
