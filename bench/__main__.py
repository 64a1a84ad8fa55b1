"""``python -m bench``: takes the measurements, prints them against their targets, saves JSON and plots."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from . import clusters, groups, modexp, plot, queue_overhead, report, scheduling, tokens, transport, waiting
from .harness import Bench, BenchError
from .kernels import speed
from .servers import connections, flood, latency, module, service, throughput

# What takes each measurement, and its sizes: of the full run, and of the quick one, which is only a hint.
MEASUREMENTS: dict[str, tuple[Callable[..., report.Result], dict[str, Any], dict[str, Any]]] = {
    "connections": (
        connections.measure,
        {"rounds": 7, "connections": {2048: 2000, 4096: 800}},
        {"rounds": 2, "connections": {2048: 250, 4096: 100}},
    ),
    "module": (
        module.measure,
        {"rounds": 5, "connections": {2048: 2000, 3072: 1200, 4096: 800}},
        {"rounds": 1, "connections": {2048: 250, 3072: 150, 4096: 100}},
    ),
    "service": (
        service.measure,
        {"rounds": 5, "connections": {2048: 2000, 3072: 1200, 4096: 800}},
        {"rounds": 1, "connections": {2048: 250, 3072: 150, 4096: 100}},
    ),
    "transport": (transport.measure, {"rounds": 9, "requests": 50_000}, {"rounds": 3, "requests": 10_000}),
    "groups": (
        groups.measure,
        {"rounds": 3, "seconds": 2.0},
        {"rounds": 1, "seconds": 0.5, "cases": groups.CASES[::4]},
    ),
    "kernels": (speed.measure, {"rounds": 15, "seconds": 0.08}, {"rounds": 3, "seconds": 0.02}),
    "tokens": (
        tokens.measure,
        {"rounds": 9, "tokens": {2048: 10_000, 3072: 4000, 4096: 2000}},
        {"rounds": 3, "tokens": {2048: 2000, 3072: 500, 4096: 250}},
    ),
    "modexp": (modexp.measure, {"rounds": 5, "seconds": 0.3}, {"rounds": 1, "seconds": 0.02, "paillier_bits": (2048,)}),
    "clusters": (clusters.measure, {"rounds": 9, "rows": 1 << 14}, {"rounds": 3, "rows": 1 << 12}),
    "queue": (queue_overhead.measure, {"rounds": 9, "requests": 50_000}, {"rounds": 3, "requests": 10_000}),
    "throughput": (throughput.measure, {"rounds": 7, "size": 1 << 30}, {"rounds": 2, "size": 1 << 27}),
    "latency": (latency.measure, {"rounds": 40, "connections": 50}, {"rounds": 8, "connections": 25}),
    "flood": (
        flood.measure,
        {"rounds": 3, "seconds": 30.0, "connections": 2000},
        {"rounds": 1, "seconds": 10.0, "connections": 400},
    ),
    "scheduling": (
        scheduling.measure,
        {"requests": 3000, "connections": 20_000},
        {"rates": (100, 100_000), "requests": 1000, "cases": waiting.CASES[::9], "connections": 4000},
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="|".join(MEASUREMENTS), help="measurements to take (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument(
        "--before",
        type=lambda path: Path(path).resolve(),
        metavar="CHECKOUT",
        help="another checkout, after its `make .venv/ready-bench`: connections measures its terminator too",
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIRECTORY")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(MEASUREMENTS):
        parser.error(f"no measurement {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}")
    names = arguments.what or list(MEASUREMENTS)
    if arguments.before and "connections" not in names:
        parser.error("--before is for connections")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(names, arguments.quick, arguments.output, arguments.before)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run(names: list[str], quick: bool, output: Path, before: Path | None) -> int:
    errors = Console(stderr=True)
    code = 0
    load = os.getloadavg()[0]  # before our own
    for name in names:
        measure, full_sizes, quick_sizes = MEASUREMENTS[name]
        arguments = (quick_sizes if quick else full_sizes) | ({"before": before} if name == "connections" else {})
        with report.progress_on(errors, prefix=f"{name}: ") as progress:
            task = progress.add_task("starting", total=None)

            def advance(what: str, total: int, progress: Progress = progress, task: TaskID = task) -> None:
                progress.update(task, description=what, total=total, advance=1)

            try:
                with Bench() as bench:
                    result = measure(bench, **arguments, advance=advance)
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
