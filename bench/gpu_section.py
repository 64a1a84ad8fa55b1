"""One section of the GPU suite in a process of its own, so that a kernel that fails or hangs spoils no other section.

What it finds it prints at once, one JSON object per line, so that what came before a failure counts.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from gpu_provider.backends.device_kernels import KernelChoice
from gpu_provider.errors import BackendError
from gpu_provider.kernels import cubins
from gpu_provider.kernels.cubin_cache import CubinCache
from gpu_provider.kernels.warp import Operation

from . import gpu_correctness, gpu_end_to_end, gpu_pipes, gpu_sweep
from .gpu_device import ARITHMETIC, CudaDevice, Device, HostDevice, Variant, all_units, find_device
from .gpu_report import Report


@dataclass(frozen=True)
class Options:
    """Of every section, as JSON in its command line."""

    device: str
    """"host", or the number of a GPU."""
    cache: str
    """Directory of compiled kernels."""
    tiny: bool
    """To see that everything runs: the smallest kernels and batches."""
    seconds: float
    """That the section has before it is ended."""
    names: list[str] = field(default_factory=list)
    """Of the only variants that count; all, if empty."""
    rows: int | None = None
    """In a batch of the correctness section, instead of a full one."""


def compile_kernels(options: Options, report: Report) -> None:
    """Into the cache: what the backend takes first, in case there is no time for all."""
    if options.device != "host":
        device = find_device(options.device)
        architecture = cubins.architecture_for(device.major, device.minor)
        units, cache = all_units(), CubinCache(Path(options.cache))
        backends = len(cubins.units(cubins.Arithmetic))
        for some in (units[:backends], units[backends:]):
            cubins.load_cubins(
                some,
                architecture,
                cache,
                loaded=lambda unit, _cached: report.progress(f"compiling {unit}", len(units)),
                cache_failed=_fail,
            )


def _fail(error: OSError) -> None:
    raise BackendError(f"the kernel cache can't be used: {error}; name another by --kernel-cache")


def open_device(options: Options) -> Device:
    if options.device == "host":
        return HostDevice()
    return CudaDevice(int(options.device), CubinCache(Path(options.cache)))


def chosen(options: Options, device: Device) -> list[Variant]:
    variants = [variant for variant in device.variants() if not options.names or str(variant) in options.names]
    if options.tiny:
        variants = [variant for variant in variants if variant.bits == 2048 and variant.threads == 8]
    return variants


def defaults(options: Options) -> dict[str, str]:
    """The variant that the CUDA backend takes for each size of key and batch, "bits/rows" of the sweep, by its rule.
    (When it is opened, it measures by itself which number of threads is the fastest, not so arithmetic and window.)"""
    backend_device = gpu_end_to_end.open_device(options.device, options.cache)
    try:
        choice = KernelChoice(backend_device.open(), backend_device.parallel_threads)
        kernels = {
            f"{bits}/{rows}": choice.choose(Operation.PRIVATE, bits // 8, rows)
            for bits in gpu_end_to_end.SIZES
            for rows in gpu_sweep.BATCHES
        }
        return {
            case: str(Variant(ARITHMETIC[kernel.radix_bits], kernel.class_bytes, kernel.threads, kernel.window))
            for case, kernel in kernels.items()
        }
    finally:
        backend_device.close()


def run(name: str, options: Options, report: Report) -> None:
    if name == "compile":
        compile_kernels(options, report)
        return
    device = open_device(options)
    variants = chosen(options, device)
    if name == "device":
        report.describe({**device.describe(), "missing_kernels": device.missing()})
        report.describe({"defaults": defaults(options)})
    elif name == "pipes":
        gpu_pipes.measure(device, report)
    elif name == "correctness":
        gpu_correctness.check(device, variants, options.rows, options.tiny, report)
    elif name == "sweep":
        gpu_sweep.measure(device, variants, options.tiny, report)
    elif name == "end-to-end":
        gpu_end_to_end.measure(options.device, options.cache, options.tiny, report)


def main() -> int:
    name, options = sys.argv[1], Options(**json.loads(sys.argv[2]))
    # Only the report may write to what the suite reads.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as pipe:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            run(name, options, Report(pipe))
        except BackendError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
