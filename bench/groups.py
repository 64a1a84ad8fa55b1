"""The provider module's policy on emulated programs: event loops with async jobs, as HAProxy's, and threads that sleep,
as Apache's. Operations only spend the processor time that they are said to cost, so it runs on any processor."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .harness import DIES_WITH_US, Bench, BenchError, interleave
from .report import Curve, Result, Spread, Target

NATIVE = Path(__file__).parents[1] / "gpu_provider" / "native"
KERNELS = Path(__file__).parents[1] / "kernels"
WITH, WITHOUT = "with the module", "without"
JOBS, THREADS = "event loops", "threads"
PROCESSORS = 2  # and event loops

# Microseconds of an operation by OpenSSL 3.0 and of a group of eight, on a Zen 5.
COSTS = {2048: (215, 487), 3072: (1370, 1680), 4096: (3150, 3950)}
OTHER_US = 335  # of a connection
THINK_US = 300
CLIENTS = {JOBS: (1, 2, 4, 8, 64, 200), THREADS: (1, 4, 25)}

CPU_LIMITS = {
    (JOBS, 8): {2048: 0.80, 3072: 0.42, 4096: 0.30},
    (JOBS, 64): {2048: 0.78, 3072: 0.35, 4096: 0.25},
    (JOBS, 200): {2048: 0.78, 3072: 0.35, 4096: 0.25},
    (THREADS, 25): {2048: 0.90, 3072: 0.50, 4096: 0.40},
}
NO_LOSS = 1.03
UNITS = {
    "cpu_us": "µs of CPU",
    "mean_us": "µs, mean latency",
    "median_us": "µs, median latency",
    "p99_us": "µs, 99th percentile",
    "group_size": "requests per group",
    "singles": "share of singles",
}


@dataclass(frozen=True)
class Case:
    kind: str
    clients: int
    bits: int

    def __str__(self) -> str:
        return f"{self.kind}, RSA-{self.bits}, {self.clients} clients"


CASES = [Case(kind, clients, bits) for kind, numbers in CLIENTS.items() for bits in COSTS for clients in numbers]


def measure(
    bench: Bench,
    *,
    rounds: int,
    seconds: float,
    cases: Sequence[Case] = CASES,
    advance: Callable[[str, int], None],
) -> Result:
    """``seconds``: of each run. ``advance(what, total)`` is called before each of the ``total`` runs."""
    parameters = {"rounds": rounds, "seconds": seconds, "costs_us": COSTS, "other_us": OTHER_US, "think_us": THINK_US}
    result = Result("groups", "Emulated programs with the provider module and without", parameters, draw_rows=False)
    sources = [str(path) for path in NATIVE.rglob("*.c") if path.name != "module.c"]
    program = bench.compile("emulated_program", f"-I{NATIVE}", f"-I{KERNELS}", *sources, "-pthread", "-lcrypto")
    subjects = [(case, name) for case in cases for name in (WITH, WITHOUT)]
    for turn, (case, name) in interleave(rounds, subjects):
        advance(f"{case}, {name}", rounds * len(subjects))
        result.samples.append({"round": turn, "name": name} | asdict(case) | run(program, case, name, seconds))
    for case in cases:
        add_rows(result, case)
    for bits in COSTS:
        add_curves(result, bits, cases)
    return result


def run(program: Path, case: Case, name: str, seconds: float) -> dict[str, float]:
    single, group = COSTS[case.bits]
    kind = "jobs" if case.kind == JOBS else "threads"
    numbers = (PROCESSORS, case.clients, case.bits, single, group, OTHER_US, THINK_US, seconds)
    command = [str(program), kind, *map(str, numbers), "module" if name == WITH else "none"]
    # On as many processors, whatever the machine has.
    done = subprocess.run(
        [*DIES_WITH_US, "taskset", "--cpu-list", f"0-{PROCESSORS - 1}", *command],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"{case}: {done.stderr.strip()}")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def add_rows(result: Result, case: Case) -> None:
    for key, unit in UNITS.items():
        values = result.values(key, name=WITH, **asdict(case))
        if key in ("group_size", "singles"):
            result.add_row(str(case), WITH, unit, values)
            continue
        without = result.values(key, name=WITHOUT, **asdict(case))
        result.add_row(str(case), WITH, unit, values, to=(WITHOUT, without), target=target(key, case))


def target(key: str, case: Case) -> Target:
    if key == "cpu_us":
        return Target(CPU_LIMITS.get((case.kind, case.clients), {}).get(case.bits, NO_LOSS))
    return Target(1.0 if case.clients >= 8 else NO_LOSS)


def add_curves(result: Result, bits: int, cases: Sequence[Case]) -> None:
    for name in (WITH, WITHOUT):
        points: list[tuple[float, Spread]] = []
        for case in cases:
            if (case.kind, case.bits) == (JOBS, bits):
                values: list[Any] = result.values("cpu_us", name=name, **asdict(case))
                points.append((float(case.clients), Spread.of(values)))
        if points:
            y = "µs of CPU per connection"
            result.curves.append(Curve(f"RSA-{bits} {name}", "clients of event loops", y, points, logarithmic=True))
