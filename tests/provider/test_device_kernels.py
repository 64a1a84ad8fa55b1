"""Which kernel computes, and how that and the first cost curves are measured: on a simulated GPU and a simulated clock.

A GPU that idles has a fraction of its clock, and takes tens of milliseconds of work to reach it.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from bench.gpu.host_device import host_kernels
from gpu_provider.backends.cuda.kernels import KernelChoice
from gpu_provider.costs import CostCurve
from gpu_provider.kernels.launch import Kernel, Operation

WIDTHS = (256, 384, 512)
LARGEST = 4096
PARALLEL_THREADS = 132 * 128
KERNELS = [kernel for kernel in host_kernels() if kernel.radix_bits == 52]
if not KERNELS:
    pytest.skip("this processor lacks AVX2 or FMA, which the host build of the kernels needs", allow_module_level=True)


class Gpu:
    """Takes what bench/kernels/check_cubins.py estimates for an H100 at 2048 bits, and multiples of that for others."""

    def __init__(self, clock_share: float = 1.0) -> None:
        self.now = 0.0
        self.batches = 0
        self.stalls: dict[int, float] = {}
        """By number of the batch: seconds that it takes longer."""
        self._clock_share = clock_share

    def clock(self) -> float:
        return self.now

    def compute(self, kernel: Kernel, rows: int) -> None:
        seconds = truth(kernel, rows) / self._clock_share + self.stalls.get(self.batches, 0.0)
        self._clock_share = min(1.0, self._clock_share + seconds / 0.08)
        self.batches += 1
        self.now += seconds


def truth(kernel: Kernel, rows: int) -> float:
    few = kernel.threads == min(each.threads for each in KERNELS if each.class_bytes == kernel.class_bytes)
    at_once, lone, full, all_that_fit = (4224, 0.0028, 8448, 0.0047) if few else (2112, 0.00244, 5280, 0.00386)
    share = max(0.0, (rows - at_once) / (full - at_once))
    return (lone + share * (all_that_fit - lone)) * (kernel.class_bytes / 256) ** 3


def best(width: int, rows: int) -> float:
    return min(truth(kernel, rows) for kernel in KERNELS if private(kernel, width))


def private(kernel: Kernel, width: int) -> bool:
    return kernel.operation is Operation.PRIVATE and kernel.class_bytes == width


def measured(gpu: Gpu) -> tuple[KernelChoice, dict[int, list[tuple[int, float]]]]:
    choice = KernelChoice(KERNELS, PARALLEL_THREADS)
    return choice, choice.measure(gpu.compute, LARGEST, gpu.clock)


def test_a_gpu_with_an_idle_clock_is_measured_at_its_full_one() -> None:
    _, curves = measured(Gpu(clock_share=0.15))
    for width in WIDTHS:
        assert [rows for rows, _ in curves[width]] == [1 << bits for bits in range(13)]
        for rows, seconds in curves[width]:
            assert seconds == pytest.approx(best(width, rows), rel=0.01)


@pytest.mark.parametrize("stalled", [0, 100, 140, 180, 250])
def test_a_stall_while_measuring_changes_nothing(stalled: int) -> None:
    gpu = Gpu()
    gpu.stalls[stalled] = 0.5
    _, curves = measured(gpu)
    for width in WIDTHS:
        curve = CostCurve(curves[width], measured=True)
        for rows in (1, 10, 1024, 4096):
            assert curve.seconds(rows) == pytest.approx(best(width, rows), rel=0.01)


def test_measuring_ends_on_a_device_that_takes_no_time() -> None:
    calls = []
    KernelChoice(KERNELS, 32).measure(lambda *call: calls.append(call), 4, clock=lambda: 0.0)
    assert len(calls) < 1000


@pytest.mark.parametrize("rows", [1, 700, 1025, 1400, 2048])
def test_one_batch_alone_gets_the_kernel_with_the_lowest_latency(rows: int) -> None:
    choice, _ = measured(Gpu())
    with choice.in_flight(rows) as together:
        kernel = choice.choose(Operation.PRIVATE, 256, together)
    assert truth(kernel, rows) == best(256, rows)


@pytest.mark.parametrize("largest", [0, 512, 4096])
@pytest.mark.parametrize("rows", [1025, 1400, 2112, 4096])
def test_batches_in_flight_together_get_the_kernel_with_the_highest_throughput(rows: int, largest: int) -> None:
    """Three of 2,000 rows at a time: 1.76 against 1.33 million operations a second."""
    choice, gpu = KernelChoice(KERNELS, PARALLEL_THREADS), Gpu()
    if largest:
        choice.measure(gpu.compute, largest, gpu.clock)
    with ExitStack() as workers:
        chosen = [
            choice.choose(Operation.PRIVATE, 256, workers.enter_context(choice.in_flight(rows))) for _ in range(3)
        ]
    assert truth(chosen[-1], 3 * rows) == best(256, 3 * rows)
    with choice.in_flight(1) as together:
        assert together == 1
