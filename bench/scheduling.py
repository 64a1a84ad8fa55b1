"""The scheduler on simulated hardware: latency and throughput over the offered load for the processor alone, GPUs
alone, and both together (``python -m bench scheduling``, which also takes the measurement of ``waiting.py``).

The scheduler and its cost curves are the real ones; the clock and the backends are simulated, so the result says
nothing about the machine that it runs on. What a batch truly takes comes from the recorded curves in ``curves/``. The
curves that the scheduler uses start out wrong by up to a fifth, and learn from measurements with noise and outliers.

The target: together, mean latency and throughput are never more than 5 % worse than those of the better of the two
alone.
"""

import heapq
import json
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_provider.costs import CostCurve
from gpu_provider.engine.scheduler import Launch, Waiting, decide
from gpu_provider.kinds import Kind

from . import waiting
from .harness import Bench
from .report import Curve, Result, Row, Spread, Target
from .simulated_hardware import (
    DECIDING_SECONDS,
    GPU,
    IN_FLIGHT,
    KINDS,
    LAUNCHING_SECONDS,
    LIMITS,
    MIXED,
    SMALL_BATCH,
    SMALL_BATCH_SECONDS,
    Backend,
    Hardware,
    gpu,
    processor,
)

CORES = 8
RATES = (10, 100, 1_000, 3_000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000)
SUBJECTS = ("CPU", "GPU", "CPU and GPU")

Arrivals = dict[Kind, NDArray[np.float64]]
"""Times in seconds, sorted."""


@dataclass(frozen=True)
class Outcome:
    latency: float
    """Mean, in seconds."""
    throughput: float
    """Requests per second until 99 % of them are done: the last batches may be outliers."""
    batches: int


class Simulation:
    """One run. As in the engine, the batching thread decides, launches, and computes small batches itself."""

    def __init__(self, machine: Sequence[Hardware], arrivals: Arrivals, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._backends = [
            Backend(hardware, {kind: self._first_curve(hardware, kind) for kind in arrivals}) for hardware in machine
        ]
        self._inline = next((backend for backend in self._backends if not backend.hardware.pipelined), None)
        self._arrivals = arrivals
        self._sums = {kind: np.concatenate(([0.0], np.cumsum(times))) for kind, times in arrivals.items()}
        self._arrived = dict.fromkeys(arrivals, 0)
        self._taken = dict.fromkeys(arrivals, 0)
        self._running: list[tuple[float, int, Backend, Kind, int, float, float]] = []
        self._launched = 0
        self._waited = 0.0
        self._ends: list[tuple[float, int]] = []

    def _first_curve(self, hardware: Hardware, kind: Kind) -> CostCurve:
        error = self._random.uniform(0.8, 1.2)
        return CostCurve([(n, seconds * error) for n, seconds in hardware.points[kind]], hardware.granules[kind])

    def run(self) -> Outcome:
        total = sum(map(len, self._arrivals.values()))
        now = 0.0
        while (upcoming := self._next_event()) is not None:
            now = max(now, upcoming)
            while self._running and self._running[0][0] <= now:
                end, _, backend, kind, count, start, expected = heapq.heappop(self._running)
                backend.finish(kind, count, start, expected, end)
            waiting = self._waiting(now)
            if not waiting:
                continue
            inline = self._small(waiting)
            if inline is not None:
                now = inline.hardware.curves[waiting[0].kind](waiting[0].count) * self._noise() + now
                self._take(waiting[0].kind, waiting[0].count, now)
                continue
            now += DECIDING_SECONDS
            for launch in decide(
                waiting, [backend.view(i, now) for i, backend in enumerate(self._backends)], LIMITS, int(now * 1e9)
            ).launches:
                now += LAUNCHING_SECONDS
                self._launch(launch, now)
        return Outcome(float(self._waited) / total, self._throughput(0.99 * total), self._launched)

    def _throughput(self, most: float) -> float:
        done = 0
        for end, count in sorted(self._ends):
            done += count
            if done >= most:
                return done / float(end)
        raise ValueError(f"only {done} of {most:.0f} requests were done")

    def _next_event(self) -> float | None:
        upcoming = [self._running[0][0]] if self._running else []
        if any(len(backend.busy) < backend.hardware.workers for backend in self._backends):
            upcoming += [
                times[self._arrived[kind]] for kind, times in self._arrivals.items() if self._arrived[kind] < len(times)
            ]
        return min(upcoming, default=None)

    def _waiting(self, now: float) -> list[Waiting]:
        waiting = []
        for kind, times in self._arrivals.items():
            self._arrived[kind] = max(self._arrived[kind], int(np.searchsorted(times, now, "right")))
            if count := self._arrived[kind] - self._taken[kind]:
                waiting.append(Waiting(kind, count, int(times[self._taken[kind]] * 1e9)))
        return waiting

    def _small(self, waiting: list[Waiting]) -> Backend | None:
        """The backend in whose place the batching thread computes what waits, if it does."""
        if self._inline is None or self._running or len(waiting) > 1 or waiting[0].count > SMALL_BATCH:
            return None
        seconds = self._inline.costs[waiting[0].kind].seconds(waiting[0].count)
        others = [b.costs[waiting[0].kind].seconds(1) for b in self._backends if b is not self._inline]
        return self._inline if seconds <= min([SMALL_BATCH_SECONDS, *others]) else None

    def _launch(self, launch: Launch, now: float) -> None:
        backend = self._backends[launch.backend]
        expected, end = backend.launch(launch.kind, launch.count, now, self._noise())
        self._launched += 1
        entry = (end, self._launched, backend, launch.kind, launch.count, now, expected)
        heapq.heappush(self._running, entry)
        self._take(launch.kind, launch.count, end)

    def _take(self, kind: Kind, count: int, end: float) -> None:
        first = self._taken[kind]
        self._taken[kind] += count
        sums = self._sums[kind]
        self._waited += count * end - float(sums[first + count] - sums[first])
        self._ends.append((end, count))

    def _noise(self) -> float:
        """A batch takes up to a tenth longer, and one in two hundred takes five times as long."""
        noise = 1 + 0.1 * self._random.random()
        return 5 * noise if self._random.random() < 0.005 else noise


@dataclass(frozen=True)
class Scenario:
    name: str
    devices: int
    mix: tuple[float, float, float]
    """Shares of RSA-2048, -3072 and -4096."""
    burst: int
    """Mean size of the bursts; 1: none."""


ONE_SIZE = (1.0, 0.0, 0.0)
SCENARIOS = tuple(
    Scenario(f"{how}, {what}, {devices} GPU{'s' * (devices > 1)}", devices, mix, burst)
    for how, burst in (("Poisson", 1), ("bursts", 500))
    for what, mix in (("RSA-2048", ONE_SIZE), ("mixed sizes", MIXED))
    for devices in (1, 8)
)
DRAWN = SCENARIOS[2]


def arrivals_of(scenario: Scenario, rate: float, requests: int, bursts: int, seed: int) -> Arrivals:
    """Poisson arrivals of at least ``requests``, or of at least ``bursts`` of geometric size, each within 1 ms."""
    random = np.random.default_rng(seed)
    if scenario.burst == 1:
        times = np.cumsum(random.exponential(1 / rate, requests))
    else:
        sizes = random.geometric(1 / scenario.burst, max(bursts, requests // scenario.burst))
        starts = np.cumsum(random.exponential(scenario.burst / rate, len(sizes)))
        times = np.sort(np.repeat(starts, sizes) + random.uniform(0, 0.001, int(sizes.sum())))
    places = random.choice(len(KINDS), len(times), p=scenario.mix)
    return {kind: times[places == place] for place, kind in enumerate(KINDS)}


def compare(scenario: Scenario, rate: float, requests: int, bursts: int = 200, seed: int = 1) -> dict[str, Outcome]:
    """The same arrivals on the processor alone, on the GPUs alone, and on both."""
    arrivals = arrivals_of(scenario, rate, max(requests, int(rate * 0.3)), bursts, seed)
    cpu, gpus = [processor(CORES)], [gpu() for _ in range(scenario.devices)]
    machines = zip(SUBJECTS, (cpu, gpus, [*gpus, *cpu]), strict=True)
    return {subject: Simulation(machine, arrivals, seed).run() for subject, machine in machines}


Outcomes = dict[tuple[Scenario, int], dict[str, Outcome]]
"""By scenario and rate, then by subject."""


def samples_of(outcomes: Outcomes) -> list[dict[str, Any]]:
    return [
        {
            "case": scenario.name,
            "rate": rate,
            "outcomes": {subject: asdict(outcome) for subject, outcome in by_subject.items()},
        }
        for (scenario, rate), by_subject in outcomes.items()
    ]


def rows_of(outcomes: Outcomes) -> list[Row]:
    """The worst ratios of all rates in each scenario."""
    rows = []
    for scenario in dict.fromkeys(scenario for scenario, _rate in outcomes):
        of_rates = [ratios(by_subject) for (of, _rate), by_subject in outcomes.items() if of is scenario]
        latencies, throughputs = zip(*of_rates, strict=True)
        for values, unit, target in (
            (latencies, "mean latency, highest of all rates", Target(1.05)),
            (throughputs, "throughput, lowest of all rates", Target(0.95, at_most=False)),
        ):
            worst = max(values) if target.at_most else min(values)
            spread = Spread(worst, min(values), max(values))
            rows.append(Row(scenario.name, SUBJECTS[2], f"times the better alone: {unit}", spread, target=target))
    return rows


def curves_of(outcomes: Outcomes) -> list[Curve]:
    x, y = "offered requests in 1/s", f"mean latency of a request in ms: {DRAWN.name}"
    drawn = [(float(rate), by_subject) for (scenario, rate), by_subject in outcomes.items() if scenario == DRAWN]
    return [
        Curve(subject, x, y, [(rate, Spread.of([by[subject].latency * 1000])) for rate, by in drawn], logarithmic=True)
        for subject in SUBJECTS
        if drawn
    ]


def ratios(outcomes: dict[str, Outcome]) -> tuple[float, float]:
    """Mean latency and throughput of both together, relative to the better alone."""
    cpu, gpus, both = (outcomes[subject] for subject in SUBJECTS)
    return both.latency / min(cpu.latency, gpus.latency), both.throughput / max(cpu.throughput, gpus.throughput)


def measure(
    bench: Bench,
    *,
    scenarios: Sequence[Scenario] = SCENARIOS,
    rates: Sequence[int] = RATES,
    requests: int,
    cases: Sequence[waiting.Case] = waiting.CASES,
    connections: int,
    advance: Callable[[str, int], None],
) -> Result:
    gpu_curves = json.loads(GPU.read_text())["label"]
    result = Result(
        "scheduling",
        "Simulated: processor, GPUs, and both, by the scheduler; with and without waiting for company",
        {
            "cores": CORES,
            "in_flight": IN_FLIGHT,
            "max_batch": LIMITS.max_batch,
            "max_delay": LIMITS.max_delay,
            "requests": requests,
            "connections": connections,
            "gpu_curves": gpu_curves,
        },
        notes=[
            "simulated, whatever machine it ran on; before the brackets stands the worst of all rates or cases",
            f"the GPU's curves are {gpu_curves}",
        ],
        draw_rows=False,
    )
    steps = len(scenarios) * len(rates) + len(cases)
    offers = [(scenario, rate) for scenario in scenarios for rate in rates]
    # Ctrl-C reaches them too; this process ends them.
    with ProcessPoolExecutor(
        mp_context=get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        outcomes: Outcomes = {}
        compared = pool.map(
            partial(compare, requests=requests), [scenario for scenario, _ in offers], [rate for _, rate in offers]
        )
        for (scenario, rate), by_subject in zip(offers, compared, strict=True):
            advance(f"{scenario.name}, {rate:,}/s", steps)
            outcomes[scenario, rate] = by_subject
        comparisons = []
        for comparison in pool.map(partial(waiting.compare, connections=connections), cases):
            advance(f"{comparison.case.machine}, {comparison.case}", steps)
            comparisons.append(comparison)
    result.samples = samples_of(outcomes) + [asdict(comparison) for comparison in comparisons]
    result.rows = rows_of(outcomes) + waiting.rows_of(comparisons)
    result.curves = waiting.curves_of(comparisons) + curves_of(outcomes)
    return result
