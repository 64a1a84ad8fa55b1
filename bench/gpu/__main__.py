"""``python -m bench.gpu``: everything worth knowing about this machine's GPU, the most valuable first, in a given time.

It measures correctness and speed of the CUDA kernels and their backend. Each section runs in a process of its own,
which is killed when its time is over, so a section that fails or hangs costs nothing but its own results. The results
are saved after each section. It needs the wheel, CuPy with NVRTC, and this directory: no compiler and no network.
"""

import argparse
import asyncio
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from gpu_provider.errors import BackendError
from gpu_provider.kernels.cubin_cache import default_directory

from .. import report
from ..environment import ROOT
from . import plan
from .files import Files
from .process import run_process
from .section import Options
from .suite import Suite

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BAD = {"failed", "out of time", "skipped"}


def main(arguments: list[str] | None = None) -> int:
    started = time.monotonic()
    names = [section.name for section in plan.PLAN]
    listed = "\n".join(f"  {section.name:12} {section.what}" for section in plan.PLAN)
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        epilog=f"sections, in their order:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="what to run (default: all)")
    parser.add_argument("--device", default="0", metavar="N", help="CUDA's number of the GPU, or host (default: 0)")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to see that everything runs")
    parser.add_argument(
        "--seconds",
        type=float,
        default=plan.DEFAULT_SECONDS,
        metavar="N",
        help=f"seconds after which everything is over and saved (default: {plan.DEFAULT_SECONDS:g})",
    )
    parser.add_argument(
        "--kernel-cache", metavar="DIRECTORY", help="cache of compiled kernels (default: gpu-provider's)"
    )
    parser.add_argument("--commit", help="what this was built from, where git can't say")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results", metavar="DIRECTORY")
    given = parser.parse_args(arguments)
    if unknown := set(given.sections) - set(names):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if given.device != "host" and not given.device.isdecimal():
        parser.error(f"--device {given.device}: the number of a GPU, or host")
    if not given.seconds > 0:
        parser.error(f"--seconds {given.seconds:g}: more than 0")
    try:
        cache = given.kernel_cache or str(default_directory(os.environ))
        files = Files(given.output.resolve())
    except (BackendError, OSError) as error:
        parser.error(str(error))
    options = Options(given.device, str(Path(cache).resolve()), given.tiny)
    try:
        return asyncio.run(run(given, options, files, started + given.seconds))
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1


async def run(given: argparse.Namespace, options: Options, files: Files, end: float) -> int:
    """0 if every section was done, or is not possible here, and no result was wrong; 128 plus the signal's number if
    one stopped it. Raises BackendError without the device."""
    errors = Console(stderr=True)
    with report.progress_on(errors) as progress:
        suite = Suite(options, given.commit, end, files, progress)
        stopped = await _until_a_signal(suite, given.sections or [section.name for section in plan.PLAN])
    result = suite.result()
    report.show(result, Console())
    if suite.unsaved is None:
        errors.print(f"saved {files.path('.json')}", markup=False, soft_wrap=True)
    for mismatch in suite.mismatches:
        wrong = f"WRONG RESULT: {mismatch.get('kernel')}, row {mismatch.get('row')}"
        errors.print(wrong, style="red", markup=False)
    if stopped is not None:
        errors.print(f"stopped by {stopped.name}: not everything was run", style="red", markup=False)
        return 128 + stopped
    if suite.unsaved is None and result.rows and importlib.util.find_spec("matplotlib"):
        await _plot(files.path(".json"), end - time.monotonic(), errors)
    bad = any(outcome.status in BAD for outcome in suite.outcomes.values())
    return 1 if bad or suite.mismatches or suite.unsaved else 0


async def _until_a_signal(suite: Suite, names: list[str]) -> signal.Signals | None:
    """Runs the suite; the signal that stopped it, if one did."""
    loop = asyncio.get_running_loop()
    running = loop.create_task(suite.run(names))
    stopped: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if not stopped:
            running.cancel()
        stopped.append(number)

    # nohup has SIGHUP ignored.
    handled = [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    for number in handled:
        loop.add_signal_handler(number, stop, number)
    try:
        await asyncio.wait([running])
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
            if stopped:  # once is enough, as little is left to do
                signal.signal(number, signal.SIG_IGN)
    if running.cancelled():
        return stopped[0]
    running.result()
    return None


async def _plot(path: Path, seconds: float, errors: Console) -> None:
    """Draws in a process of its own, because that takes seconds, and must not take more than are left."""
    said: list[str] = []
    command = [sys.executable, "-m", "bench.plot", str(path)]
    try:
        outcome = await run_process(command, max(0.0, seconds - 1), lambda _line: True, said.append)
    except OSError as error:
        errors.print(f"no plot: {error}", markup=False)
        return
    if outcome.status != "done":
        errors.print(f"no plot: {said[-1] if said else 'no time was left'}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
