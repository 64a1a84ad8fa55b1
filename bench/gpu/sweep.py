"""Private operations per second and the latency of a batch, by batch size, arithmetic, threads, window and key size."""

import statistics
from collections.abc import Sequence
from functools import partial

from gpu_provider.kernels import cubins

from .batches import PrivateBatch
from .launcher import Launcher
from .report import Report, Sweep

BATCHES = (1, 16, 64, 256, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
TINY = (1,)
SECONDS = 0.12  # of the repetitions of one size
REPEATS = (3, 20)
LATENCY_ENOUGH = 0.1  # a larger batch takes longer than any handshake should


def measure(launcher: Launcher, units: Sequence[cubins.Unit], tiny: bool, report: Report) -> None:
    """The backend's own kernels come first, in case there is no time for all."""
    total = len(units) * len(TINY if tiny else BATCHES)
    own = set(cubins.units(cubins.Arithmetic))
    for unit in sorted(units, key=lambda unit: (unit not in own, unit.bytes)):
        full = launcher.full_rows(unit)
        sizes = TINY if tiny else sorted({*BATCHES, *(full * waves for waves in (1, 2, 3) if full * waves <= 32768)})
        batch = PrivateBatch(launcher, unit, max(sizes), (8 * unit.bytes,))
        batch.make_pairs()
        for rows in sizes:
            report.progress(f"{unit}, batches of {rows}", total)
            times = measure_batch(launcher, batch, rows, 1 if tiny else None)
            kernel, latency = [kernel for _, kernel, _ in times], [sum(parts) for parts in times]
            ok = bool(batch.ok[:rows].all())
            report.sample(
                Sweep(
                    variant=str(unit), bits=8 * unit.bytes, rows=rows,
                    kernel_seconds=kernel, latency_seconds=latency, ok=ok,
                )
            )  # fmt: skip
            if statistics.median(latency) > LATENCY_ENOUGH:
                break
        launcher.free_all()


def measure_batch(launcher: Launcher, batch: PrivateBatch, rows: int, repeats: int | None) -> list[list[float]]:
    """For each repetition the seconds of the copy to the device, of the kernel, and of the copy back."""
    steps = [partial(step, rows) for step in (batch.upload, batch.launch, batch.download)]
    batch.ok.fill(0)
    once = sum(launcher.seconds(*steps))
    if repeats is None:
        repeats = min(max(REPEATS[0], int(SECONDS / once)), REPEATS[1])
    return [launcher.seconds(*steps) for _ in range(repeats)]
