"""``gpu-provider devices``: what there is to compute on, what is compiled for it, and how fast it is."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gpu_provider.backends.cuda.cupy_device import CupyDevice
from gpu_provider.backends.cuda.devices import find_devices
from gpu_provider.commands.rates import measure_device, measure_processor
from gpu_provider.config import ProviderConfig
from gpu_provider.errors import BackendError, ConfigError
from gpu_provider.kernels import cubins, nvrtc
from gpu_provider.kernels.cubin_cache import CubinCache, default_directory
from gpu_provider.settings import load_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from rich.status import Status

    from gpu_provider.backends.cuda.devices import Gpu
    from gpu_provider.commands.rates import Rate

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
List the GPUs, the arithmetic that each would use, and the kernels that are compiled for it. With --measure, compile
what is missing and measure the private operations per second of each, and of the processor, for some seconds. With
--precompile, compile what is missing into the cache: in a container's build, where there is no GPU, name the
architectures with --arch."""

_MEASURED_ROWS = 8192
"""More than the GPUs of today compute at a time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--measure", action="store_true", help="measure how fast GPUs and the processor are")
    parser.add_argument("--precompile", action="store_true", help="compile the kernels that the cache lacks")
    parser.add_argument(
        "--arch",
        nargs="+",
        action="extend",
        default=[],
        metavar="SM",
        help="with --precompile: compile for these, such as sm_90 (default: those of the devices here)",
    )
    parser.add_argument(
        "--kernel-cache",
        metavar="DIRECTORY",
        help="where compiled kernels are kept; also GPU_PROVIDER_KERNEL_CACHE (default: gpu-provider/cubins in "
        "$XDG_CACHE_HOME or ~/.cache)",
    )
    parser.add_argument(
        "--output",
        choices=("auto", "table", "json"),
        default="auto",
        help="a table, or one JSON object per line (default: a table on a terminal, JSON into a pipe)",
    )


def run(args: argparse.Namespace) -> int:
    """0 also where there is no device. Raises ConfigError, and BackendError if something can't be compiled."""
    if args.arch and not args.precompile:
        raise ConfigError("--arch says what to compile for: it needs --precompile")
    if args.measure and args.precompile:
        raise ConfigError("--measure compiles what is missing: it does not go with --precompile")
    config = load_config(ProviderConfig, environ=os.environ, overrides={"kernel_cache": args.kernel_cache})
    cache = CubinCache(config.kernel_cache or default_directory(os.environ))
    report = _Report(args.output, args.measure)
    if args.precompile:
        _precompile(args.arch, cache, report)
        return 0
    found = _list(cache, report)
    if args.measure:
        if found:
            _precompile([], cache, report)
        return _measure(found, cache, config, report)
    return 0


def _precompile(names: Sequence[str], cache: CubinCache, report: _Report) -> None:
    known = nvrtc.architectures()
    for name in names:
        if name not in known:
            raise ConfigError(f"--arch {name}: NVRTC {nvrtc.version()} compiles for {' '.join(known)}")
    wanted = dict.fromkeys(names or [_architecture(device) for device in _devices_to_compile_for()])
    todo = [(name, cubins.units(cubins.arithmetics(name))) for name in wanted]

    def fail(error: OSError) -> None:
        reason = str(error) if error.strerror is None else f"{error.filename or cache.directory}: {error.strerror}"
        raise ConfigError(f"the kernel cache can't be used: {reason}") from error

    with report.progress(sum(len(units) for _, units in todo)) as bar:
        for name, units in todo:

            def loaded(unit: cubins.Unit, cached: bool, name: str = name) -> None:
                bar.update(bar.task_ids[0], advance=1, description=f"{name} {unit}")
                report.event("kernels", architecture=name, unit=str(unit), was_cached=cached)

            cubins.load_cubins(units, name, cache, loaded=loaded, cache_failed=fail)
    report.precompiled([(name, len(units)) for name, units in todo], cache.directory)


def _devices_to_compile_for() -> list[Gpu]:
    try:
        return find_devices()
    except nvrtc.CompilerMissingError:
        raise
    except BackendError as error:
        raise ConfigError(f"name the architectures to compile for, such as --arch sm_90: {error}") from None


def _architecture(device: Gpu) -> str:
    return cubins.architecture_for(device.major, device.minor)


@dataclass(frozen=True)
class _Listed:
    """What is told of one device."""

    device: Gpu
    architecture: str
    arithmetics: tuple[cubins.Arithmetic, ...]
    units: int
    compiled: int
    problem: str | None
    """The reason why there can't be kernels for it."""


def _list(cache: CubinCache, report: _Report) -> list[Gpu]:
    try:
        found = find_devices()
    except BackendError as error:
        report.listed([], str(error), cache.directory)
        return []
    report.listed([_listed(device, cache) for device in found], None, cache.directory)
    return found


def _measure(found: Sequence[Gpu], cache: CubinCache, config: ProviderConfig, report: _Report) -> int:
    """1 if a device can't be measured; the others are, and the processor."""
    arithmetic = None if config.arithmetic == "auto" else cubins.Arithmetic(config.arithmetic)
    failures, measured = [], []
    with report.status() as status:
        for device in found:
            name = f"{device.index} {device.name}"
            status.update(f"measuring {name}")
            try:
                rates = measure_device(CupyDevice(device, cache, arithmetic), _MEASURED_ROWS)
            except BackendError as error:
                failures.append(str(error))
                continue
            for rate in rates:
                report.rate(device.index, name, rate)
                measured.append((name, rate))
        status.update("measuring the processor")
        for rate in measure_processor(config):
            report.rate(None, "processor", rate)
            measured.append(("processor", rate))
    report.rates(measured)
    for failure in failures:
        print(f"gpu-provider devices: error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _listed(device: Gpu, cache: CubinCache) -> _Listed:
    architecture = f"sm_{device.major}{device.minor}"
    arithmetics = cubins.arithmetics(architecture)
    units = cubins.units(arithmetics)
    try:
        compiled, problem = len(cubins.cached_cubins(units, _architecture(device), cache)), None
    except (BackendError, OSError) as error:
        compiled, problem = 0, str(error)
    return _Listed(device, architecture, arithmetics, len(units), compiled, problem)


class _Report:
    """A table for people, JSON lines for programs."""

    def __init__(self, output: str, measure: bool) -> None:
        self._measure = measure
        self._console = Console()
        self._as_table = output == "table" or (output == "auto" and self._console.is_terminal)

    def event(self, event: str, /, **values: object) -> None:
        if not self._as_table:
            print(json.dumps({"event": event, **values}), file=sys.stdout, flush=True)

    def progress(self, total: int) -> Progress:
        bar = Progress(
            TextColumn("compiling {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not (self._as_table and self._console.is_terminal),
        )
        bar.add_task("", total=total)
        return bar

    def precompiled(self, architectures: Sequence[tuple[str, int]], directory: Path) -> None:
        for name, units in architectures:
            self.event("precompiled", architecture=name, units=units, kernel_cache=str(directory))
            if self._as_table:
                self._console.print(f"{name}: {units} units of kernels in {directory}", markup=False, soft_wrap=True)

    def status(self) -> Status:
        """A line that says what is going on, at a terminal."""
        console = self._console if self._as_table else Console(quiet=True)
        return console.status("")

    def rate(self, index: int | None, name: str, rate: Rate) -> None:
        """``index`` None: the processor."""
        self.event("rate", index=index, name=name, **asdict(rate))

    def rates(self, measured: Sequence[tuple[str, Rate]]) -> None:
        if not self._as_table:
            return
        table = Table(
            "", "key", "ops/s", "at a time", "which takes", "one alone",
            title="Private operations, blinded and verified",
        )  # fmt: skip
        for name, rate in measured:
            table.add_row(
                name,
                f"RSA-{rate.bits}",
                f"{rate.per_second:,.0f}",
                f"{rate.batch:,}",
                f"{1e3 * rate.batch_seconds:.2f} ms",
                f"{1e3 * rate.single_seconds:.2f} ms",
            )
        self._console.print(table)

    def listed(self, rows: Sequence[_Listed], none_because: str | None, directory: Path) -> None:
        compiler = _compiler()
        for row in rows:
            self.event(
                "device",
                index=row.device.index,
                name=row.device.name,
                architecture=row.architecture,
                multiprocessors=row.device.multiprocessors,
                memory_bytes=row.device.memory_bytes,
                arithmetic=row.arithmetics,
                units=row.units,
                units_compiled=row.compiled,
                problem=row.problem,
            )
        self.event(
            "devices", count=len(rows), none_because=none_because, compiler=compiler, kernel_cache=str(directory)
        )
        if self._as_table:
            self._print(rows, none_because, compiler, directory)

    def _print(self, rows: Sequence[_Listed], none_because: str | None, compiler: str | None, directory: Path) -> None:
        if rows:
            table = Table("", "device", "architecture", "SMs", "memory", "arithmetic", "kernels compiled")
            for row in rows:
                table.add_row(
                    str(row.device.index),
                    row.device.name,
                    row.architecture,
                    str(row.device.multiprocessors),
                    f"{row.device.memory_bytes / 2**30:.0f} GiB",
                    ", ".join(row.arithmetics),
                    row.problem or f"{row.compiled} of {row.units} units",
                )
            self._console.print(table)
        else:
            self._console.print(f"no device: {none_because}", markup=False, soft_wrap=True)
        self._console.print(f"compiler: {compiler or 'none'}", markup=False)
        self._console.print(f"kernel cache: {directory}", markup=False, soft_wrap=True)
        if not self._measure:
            self._console.print("--measure says how fast they are")


def _compiler() -> str | None:
    try:
        return f"NVRTC {nvrtc.version()}"
    except BackendError:
        return None
