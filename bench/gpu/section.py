"""One section of the GPU suite in a process of its own, so that a kernel that fails or hangs spoils no other section.

It prints what it finds at once, one JSON object per line, so that everything before a failure counts.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gpu_provider.backends.cuda.device import Device
from gpu_provider.backends.cuda.kernels import KernelChoice
from gpu_provider.errors import BackendError
from gpu_provider.kernels import cubins, nvrtc
from gpu_provider.kernels.cubin_cache import CubinCache
from gpu_provider.kernels.launch import Operation

from ..kernels.units import all_units, unit_of
from . import backend, correctness, in_flight, machine, pipes, smoke, sweep
from .batches import PrivateBatch
from .launcher import GpuLauncher, HostLauncher, Launcher, find_device
from .report import Compiled, Report

NO_DEVICE = 69  # EX_UNAVAILABLE: there is no such device
PROFILED_BATCHES = 3


@dataclass(frozen=True)
class Options:
    """What every section is told, as JSON in its command line."""

    device: str
    """"host", or the number of a GPU."""
    cache: str
    """The directory of compiled kernels."""
    tiny: bool
    """Whether it only shows that everything runs, with the smallest kernels and batches."""
    names: list[str] = field(default_factory=list)
    """The units to load; all of them if empty."""
    rows: int | None = None
    """The size of the correctness section's batches; None for full ones."""


def describe_machine(options: Options, report: Report) -> None:
    """Raises BackendError if the device is not there."""
    launcher = open_launcher(options, [])
    report.describe({**launcher.describe(), **machine.describe()})


def compile_kernels(options: Options, report: Report, *, everything: bool) -> None:
    """Compiles into the cache what the CUDA backend can load on this device, or everything that there is."""
    if options.device == "host":
        return
    found = find_device(options.device)
    architecture, cached, started = cubins.architecture_for(found.major, found.minor), 0, time.monotonic()
    units = all_units() if everything else cubins.units(cubins.arithmetics(architecture))

    def loaded(unit: cubins.Unit, was_cached: bool) -> None:
        nonlocal cached
        cached += was_cached
        report.progress(f"compiling {unit}", len(units))

    cubins.load_cubins(units, architecture, CubinCache(Path(options.cache)), loaded=loaded, cache_failed=_fail)
    seconds = time.monotonic() - started
    report.sample(Compiled(nvrtc=nvrtc.version(), units=len(units), cached=cached, seconds=seconds))


def _fail(error: OSError) -> None:
    raise BackendError(f"the kernel cache can't be used: {error}; name another by --kernel-cache")


def open_launcher(options: Options, units: Sequence[cubins.Unit]) -> Launcher:
    """Opens the device, a GPU with the kernels of these units."""
    if options.device == "host":
        return HostLauncher()
    return GpuLauncher(find_device(options.device), CubinCache(Path(options.cache)), units)


def open_units(options: Options) -> tuple[Launcher, list[cubins.Unit]]:
    """The kernels that the options name. Raises BackendError if none of them can be loaded."""
    launcher = open_launcher(options, [unit for unit in all_units() if not options.names or str(unit) in options.names])
    units = [unit for unit in launcher.units() if not options.names or str(unit) in options.names]
    if options.tiny and not options.names:
        units = [unit for unit in units if unit.bytes == 256 and unit.threads == 8]
    if not units:
        reasons = "; ".join(f"{unit}: {reason}" for unit, reason in launcher.missing.items())
        raise BackendError(f"no kernel can be loaded: {reasons or options.names}")
    return launcher, units


def describe_kernels(options: Options, report: Report) -> None:
    launcher, _ = open_units(options)
    report.describe({**launcher.describe_kernels(), "missing_kernels": launcher.missing})
    report.describe({"defaults": defaults(options)})


def defaults(options: Options) -> dict[str, str]:
    """The unit that the CUDA backend chooses by its rule for each size of key and batch, "bits/rows" of the sweep.
    (When it is opened, it measures which number of threads is the fastest, but takes arithmetic and window as
    given.)"""
    device = backend.open_device(options.device, options.cache)
    try:
        choice = KernelChoice(device.open(), device.parallel_threads)
        kernels = {
            f"{bits}/{rows}": choice.choose(Operation.PRIVATE, bits // 8, rows)
            for bits in backend.SIZES
            for rows in sweep.BATCHES
        }
        return {case: str(unit_of(kernel)) for case, kernel in kernels.items()}
    finally:
        device.close()


def launch_for_profiler(options: Options) -> None:
    """Launches full batches of one kernel."""
    launcher, units = open_units(options)
    rows = launcher.full_rows(units[0])
    batch = PrivateBatch(launcher, units[0], rows, (8 * units[0].bytes,))
    batch.make_pairs()
    for _ in range(PROFILED_BATCHES):
        batch.upload(rows)
        batch.launch(rows)
        batch.download(rows)
        launcher.wait()


def measure_end_to_end(device: Device, tiny: bool, report: Report) -> None:
    from . import end_to_end  # noqa: PLC0415 - the batching provider, which every other section would import too

    end_to_end.measure(device, tiny, report)


def _on_backend(measure: Callable[[Device, bool, Report], None]) -> Callable[[Options, Report], None]:
    return lambda options, report: measure(backend.open_device(options.device, options.cache), options.tiny, report)


RUN: dict[str, Callable[[Options, Report], None]] = {
    "machine": describe_machine,
    "compile": partial(compile_kernels, everything=False),
    "smoke": _on_backend(smoke.check),
    "in-flight": _on_backend(in_flight.measure_in_flight),
    "pairs": _on_backend(in_flight.measure_pairs),
    "sustained": _on_backend(in_flight.measure_sustained),
    "compile-all": partial(compile_kernels, everything=True),
    "kernels": describe_kernels,
    "correctness": lambda options, report: correctness.check(*open_units(options), options.rows, options.tiny, report),
    "pipes": lambda options, report: pipes.measure(open_launcher(options, []), report),
    "sweep": lambda options, report: sweep.measure(*open_units(options), options.tiny, report),
    "end-to-end": _on_backend(measure_end_to_end),
    "profile": lambda options, _report: launch_for_profiler(options),
}


def main() -> int:
    name, options = sys.argv[1], Options(**json.loads(sys.argv[2]))
    # Only the report may write to what the suite reads.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as pipe:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            RUN[name](options, Report(pipe))
        except BackendError as error:
            print(error, file=sys.stderr)
            return NO_DEVICE if name == "machine" else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
