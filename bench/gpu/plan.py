"""The GPU suite's sections, the most valuable first, and how long each may take."""

import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_provider.kernels import cubins

DEFAULT_SECONDS = 560.0
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SANITIZED_ROWS = 9
"""These fill more than one warp, and leave one partly empty."""
NCU_SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "SchedulerStats",
    "WarpStateStats",
    "InstructionStats",
    "Occupancy",
)
TOOL_PLACES = ("usr/local/cuda/bin", "usr/local/cuda/compute-sanitizer", "opt/nvidia/nsight-compute/*")


@dataclass(frozen=True)
class Section:
    """One part of the suite."""

    name: str
    least: float
    """Seconds without which it is not started, and which earlier sections leave it."""
    most: float
    what: str
    """One line for the help."""
    needs: str | None = None
    """The section that compiles its kernels."""


PLAN = (
    Section("machine", 3, 40, "the GPU, its driver, the processor, versions and tools; always runs"),
    Section("compile", 5, 150, "the kernels that the backend can use here"),
    Section("smoke", 10, 60, "each key size against pow(); ends the run if it fails", "compile"),
    Section("in-flight", 15, 75, "1 to 3 batches in flight through the backend; with and without wiping", "compile"),
    Section("pairs", 10, 30, "renewed blinding pairs, in batches of one size and of varied sizes", "compile"),
    Section("sustained", 10, 30, "a long load, with clock, power and temperature", "compile"),
    Section("compile-all", 5, 150, "every kernel that there is: both arithmetics, all windows"),
    Section("kernels", 5, 30, "registers and occupancy of each, and which the backend chooses", "compile-all"),
    Section("correctness", 20, 110, "every kernel at full batches, checked on the processor", "compile-all"),
    Section("pipes", 5, 30, "what a multiprocessor issues per clock"),
    Section("sweep", 20, 120, "every kernel by batch size", "compile-all"),
    Section("end-to-end", 15, 60, "requests through the batching provider", "compile"),
    Section("ncu", 15, 60, "Nsight Compute on the default RSA-2048 kernel", "compile"),
    *(Section(tool, 15, 50, f"compute-sanitizer's {tool} on the RSA-2048 kernels", "compile") for tool in SANITIZERS),
)


def chosen(names: Collection[str]) -> list[Section]:
    """The named sections, those that they need, and the machine, in the plan's order."""
    wanted = {"machine", *names} | {section.needs for section in PLAN if section.name in names}
    return [section for section in PLAN if section.name in wanted]


def time_for(section: Section, later: Sequence[Section], left: float) -> float | None:
    """How many of the seconds left a section gets: all but the least of the later ones, up to its own most; but at
    least its own least. None if fewer than that are left."""
    if left < section.least:
        return None
    return min(section.most, max(section.least, left - sum(other.least for other in later)))


def sanitized_units(architecture: str | None) -> list[str]:
    """The backend's kernels for RSA-2048: larger keys run the same code with more limbs."""
    return [str(unit) for unit in cubins.units(cubins.arithmetics(architecture or "")) if unit.bytes == 256]


def default_unit(architecture: str | None) -> str:
    """The unit that the backend uses for full batches of RSA-2048: the one with the fewest threads per row."""
    preferred = cubins.units(cubins.arithmetics(architecture or "")[:1])
    return str(min((unit for unit in preferred if unit.bytes == 256), key=lambda unit: unit.threads))


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, on the PATH or where its installers put it."""
    places = [str(directory) for place in TOOL_PLACES for directory in sorted(Path("/").glob(place))]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *places]))
