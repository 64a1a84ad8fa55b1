"""Instructions that a multiprocessor issues per clock, of the kinds that the two arithmetics consist of.

Each thread runs eight independent chains of one instruction, or of two in turn, and the multiprocessor's own clock
times them, so the result does not depend on the frequency.
"""

import statistics
from typing import Any

import numpy as np

from gpu_provider.kernels import nvrtc

from .launcher import GpuLauncher, Launcher
from .report import Pipe, Report

CHAINS, STEPS, TRIPS, THREADS = 8, 4, 512, 1024
REPEATS = 5

# One step of chain i. WIDE with its carry is what the kernels do: both halves of a product.
WIDE = """asm volatile("{ .reg .u32 l, h; mov.b64 {l, h}, %0; mad.lo.cc.u32 l, %1, %2, l; madc.hi.cc.u32 h, %1, %2, h; "
    "mov.b64 %0, {l, h}; }" : "+l"(wide[i]) : "r"(word[i]), "r"(y));"""
WIDE_CARRY = WIDE.replace("mad.lo.cc", "madc.lo.cc")
ADD = """asm volatile("addc.cc.u32 %0, %0, %1;" : "+r"(sum[i]) : "r"(y));"""  # without the carry, two would become one
DFMA = """asm volatile("fma.rn.f64 %0, %0, %1, %2;" : "+d"(real[i]) : "d"(p), "d"(q));"""
PIPES: dict[str, tuple[str, ...]] = {
    "IMAD.WIDE": (WIDE,),
    "IMAD.WIDE with carry": (WIDE_CARRY,),
    "IMAD": ("""asm volatile("mad.lo.u32 %0, %0, %1, %1;" : "+r"(sum[i]) : "r"(y));""",),
    "DFMA": (DFMA,),
    "DADD": ("""asm volatile("add.rn.f64 %0, %0, %1;" : "+d"(real[i]) : "d"(p));""",),
    "IADD3.X": (ADD,),
    "SHFL": ("""sum[i] = __shfl_xor_sync(0xffffffff, sum[i], 1);""",),
    "IMAD.WIDE + IADD3.X": (WIDE, ADD),
    "DFMA + IADD3.X": (DFMA, ADD),
}
SOURCE = """
extern "C" __global__ void __launch_bounds__(%(threads)d)
pipe(long long *cycles, unsigned long long *sink, unsigned y, double p, double q)
{
    unsigned long long wide[%(chains)d];
    unsigned sum[%(chains)d], word[%(chains)d];
    double real[%(chains)d];
    for (int i = 0; i < %(chains)d; i++) {
        wide[i] = sum[i] = word[i] = threadIdx.x * %(chains)d + i + y;
        real[i] = threadIdx.x + i;
    }
    __syncthreads();
    const long long begin = clock64();
#pragma unroll 1
    for (int trip = 0; trip < %(trips)d; trip++) {
#pragma unroll
        for (int step = 0; step < %(steps)d; step++) {
#pragma unroll
            for (int i = 0; i < %(chains)d; i++) {
                %(body)s
            }
        }
    }
    __syncthreads();
    const long long end = clock64();
    if (threadIdx.x == 0)
        cycles[blockIdx.x] = end - begin;
    unsigned long long all = 0;
    for (int i = 0; i < %(chains)d; i++)
        all += wide[i] + sum[i] + word[i] + (unsigned long long)real[i];
    if (all == 1) /* never, but the compiler does not know */
        *sink = all;
}
"""


def source(name: str) -> str:
    """The source of the kernel that measures a pipe."""
    numbers = {"chains": CHAINS, "steps": STEPS, "trips": TRIPS, "threads": THREADS}
    return SOURCE % {**numbers, "body": "\n".join(PIPES[name])}


def measure(launcher: Launcher, report: Report) -> None:
    if not isinstance(launcher, GpuLauncher):
        report.note("pipes: not measured on the host device, which has none")
        return
    for name, instructions in PIPES.items():
        report.progress(name, len(PIPES))
        cubin = nvrtc.compile_cubin({"pipe.cu": source(name)}, ("--std=c++17",), launcher.architecture)
        per_clock, clock = run(launcher, cubin, len(instructions))
        report.sample(Pipe(pipe=name, per_clock=per_clock, clock_hz=clock))


def run(launcher: GpuLauncher, cubin: bytes, instructions: int) -> tuple[float, float]:
    """Threads' instructions per multiprocessor and clock, and the clock in Hz."""
    launch = launcher.load_other(cubin, "pipe")
    blocks = launcher.multiprocessors
    cycles: Any = launcher.host_array((blocks,), np.int64)
    address, sink = launcher.allocate(cycles.nbytes), launcher.allocate(8)
    rates, clocks = [], []
    arguments = (np.uint64(address), np.uint64(sink), np.uint32(3), np.float64(0.5), np.float64(1.25))
    for _ in range(REPEATS + 1):  # the first wakes the clock
        (seconds,) = launcher.seconds(lambda: launch(blocks, THREADS, arguments))
        launcher.download(cycles, address)
        launcher.wait()
        done = CHAINS * STEPS * TRIPS * instructions * THREADS
        rates.append(done / float(np.median(cycles)))
        clocks.append(float(np.max(cycles)) / seconds)
    return statistics.median(rates[1:]), statistics.median(clocks[1:])


def multiply_adds(arithmetic: str, bits: int, window: int) -> int:
    """IMAD.WIDE or DFMA instructions in the two exponentiations of a private operation, which are most of it. Each
    digit of the exponent takes ``window`` squarings and a product. A product of N limbs has N^2 terms, and its
    reduction N^2; a squaring (N^2 + N) / 2, and N^2. In radix 2^52 each term is two instructions."""
    digits = -(-bits // 2 // window)
    squares, products = (digits - 1) * window, digits - 1 + (1 << window) - 2
    limbs = -(-(bits // 2 + 4) // 52) if arithmetic == "fp64" else bits // 64
    terms = squares * limbs * (3 * limbs + 1) // 2 + products * 2 * limbs**2
    return 2 * terms * (2 if arithmetic == "fp64" else 1)
