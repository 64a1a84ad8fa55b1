"""What it brings that requests wait for company: the same connections on the same simulated hosts, with the wait and
without (a part of ``python -m bench scheduling``).

The targets: the latency of whole connections does not show the wait, and where clients keep the processors busy, a
private operation takes hardly more of their time than in a full group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .report import Curve, Row, Spread, Target
from .shared_host import CONNECTION_SECONDS, Host, Outcome
from .simulated_hardware import KINDS, MIXED, processor

MIXES = {"RSA-2048": (1.0, 0.0, 0.0), "RSA-4096": (0.0, 0.0, 1.0), "mixed sizes": MIXED}
CLIENTS = (1, 2, 4, 8, 16, 64, 256, 1024, 4096)
LOADS = (0.1, 0.5, 0.8, 0.95)
GROUP = 8
BURST_SECONDS = 0.001
ROUNDS = 8
"""At least so often each client of a closed loop connects."""
SEED = 1
MEAN_LATENCY, HIGH_LATENCY, OPERATION = Target(1.03), Target(1.10), Target(1.15)


@dataclass(frozen=True)
class Machine:
    processors: int
    gpus: int = 0

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else ""
        return f"{self.processors} processor{'s' * (self.processors > 1)}{gpus}"


MACHINES = (Machine(1), Machine(2), Machine(8), Machine(64), Machine(64, 1), Machine(64, 8))
DRAWN = Machine(2)


@dataclass(frozen=True)
class Case:
    """A closed loop of clients, which connect again as soon as they are served, or arrivals that wait for nobody."""

    machine: Machine
    keys: str
    """Of ``MIXES``."""
    clients: int = 0
    load: float = 0.0
    """Of arrivals: the share of what the processors can do, if each computes in full groups."""
    burst: int = 1
    """Of arrivals: how many come at once on average."""

    def __str__(self) -> str:
        if self.clients:
            return f"{self.keys}, {self.clients:,} client{'s' * (self.clients > 1)}"
        return f"{self.keys}, {'Poisson' if self.burst == 1 else 'bursts'} at {self.load:.0%}"

    def serve(self, connections: int, *, waits: bool) -> Outcome:
        mix = {kind: share for kind, share in zip(KINDS, MIXES[self.keys], strict=True) if share}
        host = Host(self.machine.processors, self.machine.gpus, mix, waits=waits, seed=SEED)
        if self.clients:
            return host.serve_clients(self.clients, max(connections, ROUNDS * self.clients))
        rate = self.load * self.machine.processors / (CONNECTION_SECONDS + seconds_in_group(self.keys))
        return host.serve_arrivals(arrival_times(rate, self.burst, connections))


CASES = tuple(
    case
    for machine in MACHINES
    for keys in MIXES
    for case in (
        *(Case(machine, keys, clients) for clients in CLIENTS),
        # A burst could fill a group on each processor.
        *(Case(machine, keys, 0, load, burst) for burst in (1, GROUP * machine.processors) for load in LOADS),
    )
)


@dataclass(frozen=True)
class Comparison:
    case: Case
    at_once: Outcome
    """With the policy that lets no request wait for company."""
    waiting: Outcome

    def mean_latency(self) -> float:
        return self.waiting.mean_latency / self.at_once.mean_latency

    def high_latency(self) -> float:
        return self.waiting.high_latency / self.at_once.high_latency

    def operation(self) -> float:
        return self.waiting.operation / seconds_in_group(self.case.keys)

    def operation_at_once(self) -> float:
        return self.at_once.operation / seconds_in_group(self.case.keys)


def compare(case: Case, connections: int) -> Comparison:
    return Comparison(case, case.serve(connections, waits=False), case.serve(connections, waits=True))


def seconds_in_group(keys: str) -> float:
    """Of a processor, for a private operation in a full group."""
    curves = processor(1).curves
    return sum(share * curves[kind](GROUP) / GROUP for kind, share in zip(KINDS, MIXES[keys], strict=True))


def arrival_times(rate: float, burst: int, connections: int) -> NDArray[np.float64]:
    """Poisson arrivals of single connections, or of bursts of geometric size, each within ``BURST_SECONDS``."""
    random = np.random.default_rng(SEED)
    if burst == 1:
        return np.cumsum(random.exponential(1 / rate, connections))
    sizes = random.geometric(1 / burst, connections // burst + 1)
    starts = np.cumsum(random.exponential(burst / rate, len(sizes)))
    return np.sort(np.repeat(starts, sizes) + random.uniform(0, BURST_SECONDS, int(sizes.sum())))


def rows_of(comparisons: Sequence[Comparison]) -> list[Row]:
    """The highest ratios of the closed loops, and of the arrivals, on each machine; each row says where it was."""
    rows = []

    def add(
        case: str, chosen: Sequence[Comparison], value: Callable[[Comparison], float], unit: str, target: Target
    ) -> None:
        if chosen:
            highest = max(chosen, key=value)
            values = list(map(value, chosen))
            rows.append(
                Row(case, str(highest.case), unit, Spread(max(values), min(values), max(values)), target=target)
            )

    for machine in dict.fromkeys(comparison.case.machine for comparison in comparisons):
        here = [comparison for comparison in comparisons if comparison.case.machine == machine]
        loops = [comparison for comparison in here if comparison.case.clients]
        arrivals = [comparison for comparison in here if not comparison.case.clients]
        for name, chosen in (("closed loops", loops), ("arrivals", arrivals)):
            case, unit = f"{name}, {machine}", "times that without waiting, highest"
            add(case, chosen, Comparison.mean_latency, f"mean latency, {unit}", MEAN_LATENCY)
            add(case, chosen, Comparison.high_latency, f"99th percentile, {unit}", HIGH_LATENCY)
        if machine.gpus:  # they compute without the processors
            continue
        for least, what in (
            (GROUP, f"{GROUP} clients"),
            (GROUP * machine.processors, f"{GROUP} clients per processor"),
        ):
            case, unit = (
                f"closed loops from {what}, {machine}",
                "processor time per operation, times that in full groups",
            )
            chosen = [comparison for comparison in loops if comparison.case.clients >= least]
            add(case, chosen, Comparison.operation, f"{unit}, highest", OPERATION)
    return rows


def curves_of(comparisons: Sequence[Comparison]) -> list[Curve]:
    """Closed loops on one machine."""
    curves = []

    def add(subject: str, y: str, keys: str, value: Callable[[Comparison], float]) -> None:
        points = [
            (float(comparison.case.clients), Spread.of([value(comparison)]))
            for comparison in comparisons
            if (comparison.case.machine, comparison.case.keys) == (DRAWN, keys) and comparison.case.clients
        ]
        if points:
            curves.append(Curve(subject, f"clients ({DRAWN})", y, points, logarithmic=True))

    latency = "mean latency of a connection in ms: RSA-4096"
    add("without waiting", latency, "RSA-4096", lambda comparison: comparison.at_once.mean_latency * 1000)
    add("waiting for company", latency, "RSA-4096", lambda comparison: comparison.waiting.mean_latency * 1000)
    for keys in ("RSA-2048", "RSA-4096"):
        time = "processor time per operation, times that in full groups"
        add(f"{keys}, without waiting", time, keys, Comparison.operation_at_once)
        add(f"{keys}, waiting for company", time, keys, Comparison.operation)
    return curves
