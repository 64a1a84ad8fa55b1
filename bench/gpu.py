"""``python -m bench.gpu``: correctness and speed of the CUDA kernels and their backend on this machine's GPU.

Needs the wheel, CuPy with NVRTC, and this directory alone: no compiler and no network. Each section runs in a process
of its own and is ended when its time is over, so that one which fails or hangs costs its own results and no others.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gpu_provider.errors import BackendError
from gpu_provider.kernels import cubins
from gpu_provider.kernels.cubin_cache import default_directory
from gpu_provider.nvml import GpuFigures, Nvml

from . import environment, report
from .gpu_device import find_device
from .gpu_report import read_line
from .gpu_section import Options
from .gpu_summary import summarise

TOTAL_SECONDS = 470.0
# Of each section at most; the sum may be more than there is, for few will take all.
SECTIONS = {
    "compile": 170.0,
    "device": 40.0,
    "correctness": 110.0,
    "sweep": 130.0,
    "pipes": 40.0,
    "end-to-end": 70.0,
}
WATCH_SECONDS = 0.25
SANITIZERS = {"memcheck": 50.0, "racecheck": 50.0, "synccheck": 50.0}
SANITIZED = [str(unit) for unit in cubins.units(cubins.Arithmetic) if unit.bytes == 256]
SANITIZED_ROWS = 9
SANITIZER_FOUND_ERRORS = 66
CUDA = Path("/usr/local/cuda/bin")


@dataclass(frozen=True)
class Outcome:
    """How a section ended."""

    status: str
    """"done", "failed", "out of time" or "not run"."""
    seconds: float = 0.0
    reason: str | None = None


class Suite:
    """The sections of one run, and what they have found."""

    def __init__(self, options: Options, seconds: float, progress: Progress) -> None:
        self.device: dict[str, Any] = {}
        self.mismatches: list[dict[str, Any]] = []
        self.outcomes: dict[str, Outcome] = {}
        self.watched: dict[str, dict[str, dict[str, float]]] = {}
        self._nvml = Nvml()
        self.result = report.Result("gpu", "", {"tiny": options.tiny})
        self._options = options
        self._end = time.monotonic() + seconds
        self._progress = progress

    def run(self, name: str, limit: float, options: Options | None = None, before: tuple[str, ...] = ()) -> Outcome:
        """Runs a section to its end. ``before``: the program that runs it, and its arguments."""
        started = time.monotonic()
        seconds = min(limit, self._end - started)
        if seconds <= 0:
            return Outcome("not run", reason="no time was left")
        given = json.dumps(asdict(replace(options or self._options, seconds=seconds)))
        command = [*before, sys.executable, "-m", "bench.gpu_section", name, given]
        task = self._progress.add_task(name, total=None)

        def advance(step: dict[str, Any]) -> None:
            self._progress.update(task, description=f"{name}: {step['what']}", total=step["total"], advance=1)

        readers: dict[str, Callable[[Any], None]] = {
            "progress": advance,
            "sample": self.result.samples.append,
            "note": self.result.notes.append,
            "device": self.device.update,
            "mismatch": self.mismatches.append,
        }
        with (
            tempfile.TemporaryFile("w+") as errors,
            self._watched(name),
            _started(command, errors) as process,
        ):
            late = threading.Event()
            timer = threading.Timer(seconds, _end_late, (process, late))
            timer.start()
            try:
                assert process.stdout is not None  # noqa: S101 - for the type checker
                for line in process.stdout:
                    read_line(line, readers)
                code = process.wait()
            finally:
                timer.cancel()
                self._progress.remove_task(task)
            errors.seek(0)
            said = errors.read().strip().splitlines()
        taken = time.monotonic() - started
        if late.is_set():
            return Outcome("out of time", taken, f"ended after {seconds:.0f} s: what it had found by then counts")
        if code:
            return Outcome("failed", taken, said[-1] if said else f"ended with {code}")
        return Outcome("done", taken)

    @contextlib.contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """Notes the GPU's figures meanwhile: a GPU that is too hot, or has too little power, lowers its clock."""
        figures: list[GpuFigures] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(WATCH_SECONDS):
                bus_id = self.device.get("pci_bus_id")  # which a section tells
                if bus_id is not None and (now := self._nvml.read(bus_id)):
                    figures.append(now)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            if figures:
                self.watched[name] = _spreads(figures)

    def run_all(self, names: list[str]) -> None:
        for name, limit in SECTIONS.items():
            if name in names:
                self.outcomes[name] = self.run(name, limit)
        for tool, limit in SANITIZERS.items():
            if "sanitizer" in names:
                self.outcomes[f"sanitizer {tool}"] = self._sanitize(tool, limit)

    def _sanitize(self, tool: str, limit: float) -> Outcome:
        program = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', os.defpath)}:{CUDA}")
        if self._options.device == "host":
            return Outcome("not run", reason="the host device has none; make sanitize has others")
        if program is None:
            return Outcome("not run", reason=f"compute-sanitizer is neither on the PATH nor in {CUDA}")
        options = replace(self._options, names=SANITIZED, rows=SANITIZED_ROWS)
        with tempfile.NamedTemporaryFile("r", errors="replace") as log:
            found = ["--error-exitcode", str(SANITIZER_FOUND_ERRORS), "--log-file", log.name]
            samples = len(self.result.samples)
            outcome = self.run("correctness", limit, options, (program, "--tool", tool, *found))
            del self.result.samples[samples:]  # they are none of full batches
            if outcome.status == "failed":
                lines = [line for line in log.read().splitlines() if line.strip("= ")]
                return replace(outcome, reason=" | ".join([outcome.reason or "", *lines[:20]]))
        return outcome

    def finish(self, commit: str | None) -> report.Result:
        result = self.result
        name = self.device.get("name", f"device {self._options.device}")
        result.what = "gpu-" + "-".join(name.lower().split())
        result.title = f"CUDA kernels and backend on {name}"
        result.parameters |= {
            "device": self.device,
            "sections": {name: asdict(outcome) for name, outcome in self.outcomes.items()},
            "mismatches": self.mismatches,
            "nvml": self.watched,
            "driver": self._nvml.driver_version(),
            "commit": commit,
        }
        for name, outcome in self.outcomes.items():
            if outcome.status != "done":
                result.notes.append(f"{name}: {outcome.status}: {outcome.reason}")
        for mismatch in self.mismatches:
            result.notes.append(f"WRONG: {mismatch['kernel']}, row {mismatch['row']}: the numbers are in the file")
        summarise(result, self.device)
        return result


def _spreads(figures: Sequence[GpuFigures]) -> dict[str, dict[str, float]]:
    columns = {name: [asdict(now)[name] for now in figures] for name in asdict(figures[0])}
    return {name: asdict(report.Spread.of(values)) for name, values in columns.items() if None not in values}


@contextlib.contextmanager
def _started(command: list[str], errors: Any) -> Iterator[subprocess.Popen[str]]:
    """In a group of its own, which has ended behind it."""
    with subprocess.Popen(
        command,
        cwd=environment.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            _end(process)


def _end_late(process: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    names = [*SECTIONS, "sanitizer"]
    parser.add_argument("sections", nargs="*", metavar="|".join(names), help="sections to run (default: all)")
    parser.add_argument("--device", default="0", metavar="N", help="CUDA's number of the GPU, or host (default: 0)")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to see that everything runs")
    parser.add_argument("--kernel-cache", metavar="DIRECTORY", help="of compiled kernels (default: as gpu-provider's)")
    parser.add_argument("--commit", help="what this was built from, where git can't say")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIRECTORY")
    given = parser.parse_args(arguments)
    if unknown := set(given.sections) - set(names):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if given.device != "host" and not given.device.isdecimal():
        parser.error(f"--device {given.device}: the number of a GPU, or host")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(given, given.sections or names)
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run(given: argparse.Namespace, names: list[str]) -> int:
    """0 if every section ran to its end, or was not possible here, and no result was wrong. Raises
    BackendError without the device."""
    if given.device != "host":
        find_device(given.device)
    cache = given.kernel_cache or str(default_directory(os.environ))
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        suite = Suite(Options(given.device, cache, given.tiny, 0.0), TOTAL_SECONDS, progress)
        suite.run_all(names)
    result = suite.finish(given.commit)
    report.show(result, Console())
    errors.print(f"saved {report.save(result, given.output)}", markup=False, soft_wrap=True)
    for mismatch in suite.mismatches:
        errors.print(f"WRONG RESULT: {mismatch['kernel']}, row {mismatch['row']}", style="red", markup=False)
    failed = any(outcome.status in {"failed", "out of time"} for outcome in suite.outcomes.values())
    return 1 if failed or suite.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
