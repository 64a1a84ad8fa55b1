"""Simulated backends, which take as long as the recorded curves in ``curves/`` say, and what the simulations share."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpu_provider.costs import CostCurve
from gpu_provider.engine.scheduler import BackendView, Limits
from gpu_provider.kinds import Kind

HERE = Path(__file__).parent
PROCESSOR = HERE / "curves" / "processor.json"
GPU = HERE / "curves" / "gpu-estimate.json"
KINDS = tuple(map(Kind, ("2048", "3072", "4096")))
MIXED = (0.8, 0.15, 0.05)
"""Shares of ``KINDS``."""
IN_FLIGHT = 3
LIMITS = Limits(max_batch=4096, max_delay=0.010)
SMALL_BATCH = 8
SMALL_BATCH_SECONDS = 0.001
DECIDING_SECONDS = 20e-6  # of the batching thread
LAUNCHING_SECONDS = 40e-6

Cost = Callable[[int], float]


@dataclass
class Hardware:
    """A simulated backend: what a batch truly takes, and the points and granules of its first curves."""

    workers: int
    pipelined: bool
    curves: dict[Kind, Cost]
    points: dict[Kind, list[tuple[int, float]]]
    granules: dict[Kind, int]


@dataclass
class Backend:
    """Hardware in one run."""

    hardware: Hardware
    costs: dict[Kind, CostCurve]
    busy: list[float] = field(default_factory=list)  # when each batch should be done
    last_end: float = 0.0
    free_at: float = 0.0  # the device, if it is one

    def view(self, index: int, now: float) -> BackendView:
        busy = [abs(expected - now) for expected in self.busy]
        return BackendView(index, self.hardware.workers - len(busy), self.costs, busy, self.hardware.pipelined)

    def launch(self, kind: Kind, count: int, now: float, noise: float) -> tuple[float, float]:
        """Returns when the batch should be done, and when it will be."""
        curve, alone = self.costs[kind], self.hardware.curves[kind](count) * noise
        if not self.hardware.pipelined:
            expected, end = now + curve.seconds(count), now + alone
        else:
            expected = now + curve.seconds_pipelined(count, 1, max((e - now for e in self.busy), default=0.0))
            # What does not fill the device leaves room for the batches that follow.
            filled = min(1.0, count / self.hardware.granules[kind])
            self.free_at = max(self.free_at, now) + alone * filled
            end = max(now + alone, self.free_at)
        self.busy.append(expected)
        return expected, end

    def finish(self, kind: Kind, count: int, start: float, expected: float, end: float) -> None:
        self.busy.remove(expected)
        if self.hardware.pipelined:
            self.costs[kind].observe_pipelined(count, end - start, end - max(start, self.last_end))
            self.last_end = max(self.last_end, end)
        else:
            self.costs[kind].observe(count, end - start)


def processor(cores: int) -> Hardware:
    """A processor as measured. Our kernels compute whole groups of eight; the faster of them and OpenSSL, the rest."""
    measured = json.loads(PROCESSOR.read_text())["kinds"]
    curves: dict[Kind, Cost] = {}
    for kind in KINDS:
        single, group = float(measured[kind.label]["single"]), float(measured[kind.label]["group"])

        def curve(count: int, single: float = single, group: float = group) -> float:
            return count // 8 * group + min(count % 8 * single, group)

        curves[kind] = curve
    points = {kind: [(count, curve(count)) for count in (1, 2, 4, 8)] for kind, curve in curves.items()}
    return Hardware(cores, False, curves, points, dict.fromkeys(KINDS, 8))


def gpu() -> Hardware:
    """A device that takes the same time for anything up to a full group, and beyond that in proportion."""
    measured = json.loads(GPU.read_text())["kinds"]
    curves: dict[Kind, Cost] = {}
    points = {
        kind: [(int(count), float(seconds)) for count, seconds in measured[kind.label]["points"]] for kind in KINDS
    }
    for kind in KINDS:
        counts, seconds = zip(*points[kind], strict=True)

        def curve(count: int, counts: tuple[int, ...] = counts, seconds: tuple[float, ...] = seconds) -> float:
            return float(np.interp(count, counts, seconds))

        curves[kind] = curve
    granules = {kind: int(measured[kind.label]["granule"]) for kind in KINDS}
    return Hardware(IN_FLIGHT, True, curves, points, granules)
