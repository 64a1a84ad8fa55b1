"""The CUDA kernels as machine code, compiled or from the cache.

Each unit is compiled in a process of its own: NVRTC compiles only one program at a time in a process, and needs some
hundred megabytes, which the process's end frees.
"""

from __future__ import annotations

import concurrent.futures
import enum
import hashlib
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any

from gpu_provider.errors import BackendError
from gpu_provider.kernels import nvrtc
from gpu_provider.kernels._kernels import lib
from gpu_provider.kernels.launch import Kernel, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gpu_provider.kernels.cubin_cache import CubinCache

__all__ = [
    "Arithmetic",
    "Unit",
    "architecture_for",
    "arithmetics",
    "cache_names",
    "cached_cubins",
    "load_cubins",
    "units",
]

_log = logging.getLogger(__name__)

SOURCE = "gpu/kernels.cu"
# -default-device: every unmarked function is a device function, so that the headers are the same for every compiler.
_OPTIONS = ("--std=c++17", "-default-device")
_COMPILE_SECONDS = 600.0
_WARP = 32


class Arithmetic(enum.StrEnum):
    """How numbers are multiplied."""

    FP64 = "fp64"
    """Radix 2^52 by floating-point multiply-adds, for data-centre GPUs."""
    INT32 = "int32"
    """Radix 2^32 by carry chains, for every GPU."""

    @property
    def radix_bits(self) -> int:
        return 52 if self is Arithmetic.FP64 else 32

    @property
    def limb_bytes(self) -> int:
        return 8 if self is Arithmetic.FP64 else 4


# Chosen by bench/kernels/check_cubins.py's estimates. An A100's multiprocessor has half the FP64 units of an H100's.
_ARITHMETICS = {
    "sm_80": (Arithmetic.INT32, Arithmetic.FP64),
    "sm_90": (Arithmetic.FP64, Arithmetic.INT32),
    "sm_100": (Arithmetic.FP64, Arithmetic.INT32),
    # A B300 runs code for sm_100, but has a thirtieth of a B200's FP64 throughput: 1.25 TFLOP/s.
    "sm_103": (Arithmetic.INT32,),
}


@dataclass(frozen=True, order=True, slots=True)
class Unit:
    """Kernels that are compiled together, one for each operation."""

    arithmetic: Arithmetic
    bytes: int
    """Width of a row, and of the longest modulus that it takes."""
    threads: int
    """The threads that work on one row."""
    limbs: int
    """The limbs that each thread has."""
    window: int
    """Bits of an exponent's digit."""
    key_bytes: int
    """Size of a key's record."""
    pair_bytes: int
    """Size of a blinding pair."""
    modulus_bytes: int
    """Size of a modulus's record."""

    @classmethod
    def of(cls, about: Any, window: int | None = None) -> Unit:
        """``about``: ``struct gpk_unit``. ``window``: in place of its own."""
        return cls(
            Arithmetic.FP64 if about.radix_bits == Arithmetic.FP64.radix_bits else Arithmetic.INT32,
            about.class_bytes,
            about.threads,
            about.limbs,
            window or about.window,
            about.key_bytes,
            about.pair_bytes,
            about.modulus_bytes,
        )

    def __str__(self) -> str:
        return f"{self.arithmetic}-{8 * self.bytes}-t{self.threads}-w{self.window}"

    @property
    def rows(self) -> int:
        """The rows that a warp computes."""
        return _WARP // self.threads

    @property
    def table_bytes(self) -> int:
        """Dynamic shared memory that a warp needs."""
        return (self.limbs << self.window) * _WARP * self.arithmetic.limb_bytes

    @property
    def options(self) -> tuple[str, ...]:
        """What NVRTC is told."""
        return (
            *_OPTIONS,
            f"-DGPK_CUDA_RADIX={self.arithmetic.radix_bits}",
            f"-DGPK_CUDA_CLASS={self.bytes}",
            f"-DGPK_CUDA_LIMBS={self.limbs}",
            f"-DGPK_CUDA_THREADS={self.threads}",
            f"-DGPK_CUDA_WINDOW={self.window}",
        )

    def kernel(self, operation: Operation, index: int) -> Kernel:
        modexp = operation is Operation.MODEXP
        return Kernel(
            index=index,
            name=f"{operation.entry} of {self}",
            operation=operation,
            radix_bits=self.arithmetic.radix_bits,
            class_bytes=self.bytes,
            threads=self.threads,
            window=self.window,
            rows=self.rows,
            table_bytes=self.table_bytes,
            record_bytes=self.modulus_bytes if modexp else self.key_bytes,
            pair_bytes=0 if modexp else self.pair_bytes,
        )


def arithmetics(architecture: str) -> tuple[Arithmetic, ...]:
    """What is compiled by default for an architecture such as "sm_90", the preferred one first. Ask for the device's
    own architecture, which need not be that of its code (:func:`architecture_for`)."""
    return _ARITHMETICS.get(architecture, (Arithmetic.INT32,))


def units(wanted: Iterable[Arithmetic], window: int | None = None) -> list[Unit]:
    """All units of these arithmetics. ``window``: of all of them, in place of their own."""
    listed = [Unit.of(about, window) for about in takewhile(bool, map(lib.gpk_unit_at, count()))]
    return [unit for unit in listed if unit.arithmetic in set(wanted)]


def architecture_for(major: int, minor: int) -> str:
    """The architecture to compile for, for a device of this compute capability: machine code also runs on later devices
    of the same major version. Raises CompileError if NVRTC supports none, CompilerMissingError."""
    known = {int(name.removeprefix("sm_")) for name in nvrtc.architectures()}
    fitting = [number for number in known if 10 * major <= number <= 10 * major + minor]
    if not fitting:
        raise nvrtc.CompileError(
            f"NVRTC {nvrtc.version()} does not compile for compute capability {major}.{minor}: "
            f"it knows {' '.join(nvrtc.architectures())}"
        )
    return f"sm_{max(fitting)}"


def load_cubins(
    wanted: Iterable[Unit],
    architecture: str,
    cache: CubinCache,
    *,
    loaded: Callable[[Unit, bool], None] = lambda _unit, _cached: None,
    cache_failed: Callable[[OSError], None] | None = None,
) -> dict[Unit, bytes]:
    """The units' machine code, from the cache, or compiled and put there. As many compile at a time as there are
    processors.

    Calls ``loaded(unit, cached)`` in this thread as each becomes ready. If the cache can't be used, calls
    ``cache_failed`` once, by default to log a warning, and goes on unless it raises. Raises CompileError,
    CompilerMissingError.
    """
    report = _once(cache_failed or _warn)
    names = cache_names(wanted, architecture)
    try:
        cubins = cached_cubins(names, architecture, cache)
    except OSError as error:
        report(error)
        cubins = {}
    for unit in cubins:
        loaded(unit, True)
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        compiling = {pool.submit(_compile_apart, unit, architecture): unit for unit in names if unit not in cubins}
        try:
            for done in concurrent.futures.as_completed(compiling):
                unit = compiling[done]
                cubins[unit] = done.result()
                try:
                    cache.write(names[unit], cubins[unit])
                except OSError as error:
                    report(error)
                loaded(unit, False)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return {unit: cubins[unit] for unit in names}


def cached_cubins(wanted: Iterable[Unit], architecture: str, cache: CubinCache) -> dict[Unit, bytes]:
    """The units that the cache has. Raises OSError if it can't be used, CompilerMissingError."""
    found = {unit: cache.read(name) for unit, name in cache_names(wanted, architecture).items()}
    return {unit: cubin for unit, cubin in found.items() if cubin is not None}


def cache_names(wanted: Iterable[Unit], architecture: str) -> dict[Unit, str]:
    """Names that contain a hash of everything that the machine code depends on."""
    files = [part for file in nvrtc.source_files(SOURCE).items() for part in file]
    names = {}
    for unit in wanted:
        digest = hashlib.sha256()
        for part in (nvrtc.version(), architecture, *unit.options, *files):
            text = part.encode()
            digest.update(len(text).to_bytes(8, "little") + text)
        names[unit] = f"{architecture}-{unit}-{digest.hexdigest()[:32]}.cubin"
    return names


def _warn(error: OSError) -> None:
    _log.warning("the cache of compiled kernels can't be used, so they are compiled at each start: %s", error)


def _once(report: Callable[[OSError], None]) -> Callable[[OSError], None]:
    reported = False

    def report_once(error: OSError) -> None:
        nonlocal reported
        if not reported:
            reported = True
            report(error)

    return report_once


def _compile_apart(unit: Unit, architecture: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603 - this module itself, with our own names
            [sys.executable, "-P", "-m", __name__, architecture, str(unit)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMPILE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise nvrtc.CompileError(f"{unit} for {architecture}: not compiled in {_COMPILE_SECONDS:g} s") from None
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()
        raise nvrtc.CompileError(f"{unit} for {architecture}: {reason or f'the compiler ended with {done.returncode}'}")
    return done.stdout


def _main() -> int:
    """``python -m gpu_provider.kernels.cubins ARCHITECTURE UNIT`` writes the machine code to standard output."""
    architecture, name = sys.argv[1:]
    (unit,) = (unit for unit in units(Arithmetic, int(name.rpartition("-w")[2])) if str(unit) == name)
    try:
        cubin = nvrtc.compile_cubin(nvrtc.source_files(SOURCE), unit.options, architecture)
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(cubin)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
