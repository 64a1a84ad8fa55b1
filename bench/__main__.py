"""``python -m bench``: takes the measurements, prints them against their targets, saves JSON and plots."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from . import plot, queue_overhead, report, scheduling
from .harness import Bench, BenchError
from .kernels import speed
from .servers import connections, key_sizes, latency, throughput

Measure = Callable[..., report.Result]

# The full run takes about twenty minutes, the quick one about one; the quick one's figures are only a hint.
FULL: dict[str, Measure] = {
    "connections": partial(connections.measure, rounds=9, connections=600),
    "key-sizes": partial(key_sizes.measure, rounds=5, connections=600),
    "kernels": partial(speed.measure, rounds=15, seconds=0.08),
    "queue": partial(queue_overhead.measure, rounds=9, requests=50_000),
    "throughput": partial(throughput.measure, rounds=7, size=throughput.GIB),
    "latency": partial(latency.measure, rounds=40, connections=50),
    "scheduling": partial(scheduling.measure, requests=3000),
}
QUICK: dict[str, Measure] = {
    "connections": partial(connections.measure, rounds=3, connections=100),
    "key-sizes": partial(key_sizes.measure, rounds=2, connections=60),
    "kernels": partial(speed.measure, rounds=3, seconds=0.02),
    "queue": partial(queue_overhead.measure, rounds=3, requests=10_000),
    "throughput": partial(throughput.measure, rounds=2, size=128 * throughput.MIB),
    "latency": partial(latency.measure, rounds=8, connections=25),
    "scheduling": partial(scheduling.measure, rates=(100, 100_000), requests=1000),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="|".join(FULL), help="measurements to take (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIRECTORY")
    arguments = parser.parse_args()
    unknown = set(arguments.what) - set(FULL)
    if unknown:
        parser.error(f"no measurement {', '.join(sorted(unknown))}; there are {', '.join(FULL)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(arguments.what or list(FULL), QUICK if arguments.quick else FULL, arguments.output)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run(names: list[str], measurements: dict[str, Measure], output: Path) -> int:
    errors = Console(stderr=True)
    code = 0
    load = os.getloadavg()[0]  # before our own
    for name in names:
        with Progress(
            TextColumn(f"{name}: {{task.description}}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=errors, transient=True,
        ) as progress:  # fmt: skip
            task = progress.add_task("starting", total=None)

            def advance(what: str, total: int, progress: Progress = progress, task: TaskID = task) -> None:
                progress.update(task, description=what, total=total, advance=1)

            try:
                with Bench() as bench:
                    result = measurements[name](bench, advance=advance)
            except BenchError as error:
                errors.print(f"{name}: {error}", style="red", markup=False)
                code = 1
                continue
        result.parameters["load_average_before"] = load
        if load > 0.5:
            result.notes.append(f"the machine was busy before the first measurement (load {load:.1f}): only a hint")
        report.show(result, Console())
        path = report.save(result, output)
        errors.print(f"saved {path} and {plot.draw(path)}", markup=False, soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
