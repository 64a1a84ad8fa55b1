"""What the multiply-add unit allows: the mad52 instructions that a batch of eight must issue, and their rate.

It counts only what no implementation can do without: squarings at half cost, reductions at full cost, a fixed window of
five, and what blinding, CRT and verification add.
"""

from collections.abc import Callable
from typing import Any

from cffi import FFI

from ..harness import Bench


def multiply(limbs: int) -> int:
    """mad52 instructions of one Montgomery product."""
    return 4 * limbs * limbs + limbs


def square(limbs: int) -> int:
    return 3 * limbs * limbs + 2 * limbs


def exponentiation(limbs: int, bits: int, window: int) -> int:
    digits = -(-bits // window)
    table = (1 << window) - 2
    return (table + digits - 1) * multiply(limbs) + (digits - 1) * window * square(limbs)


def private_operation(bits: int) -> int:
    """mad52 instructions of one private operation of a whole vector, e = 65537."""
    limbs = -(-bits // 2 // 52)  # of a prime
    halves = 2 * (exponentiation(limbs, bits // 2, 5) + 4 * multiply(limbs))
    blinding = 2 * multiply(2 * limbs) + 2 * square(2 * limbs)
    check = 16 * square(2 * limbs) + 2 * multiply(2 * limbs)
    return halves + multiply(2 * limbs) + blinding + check


def exchange(bits: int) -> int:
    """mad52 instructions of one exponentiation of a whole vector, modulo a number of 2048 bits."""
    return exponentiation(40, bits, 4) + 2 * multiply(40)


def mad52_rate(bench: Bench) -> Callable[[], float]:
    """A function that measures, for half a millisecond, independent mad52 instructions per second. Needs AVX-512
    IFMA."""
    ffi = FFI()
    ffi.cdef("double mad52_rate(uint64_t rounds);")
    library: Any = ffi.dlopen(str(bench.compile("kernels/limit", "-shared", "-fPIC", "-mavx512f")))
    return lambda: float(library.mad52_rate(200_000))
