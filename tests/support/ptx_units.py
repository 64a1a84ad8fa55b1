"""The units of CUDA kernels, compiled to PTX, in a machine that executes it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from ptx_machine import Machine

from gpu_provider.kernels import cubins, nvrtc
from gpu_provider.kernels.nvrtc import CompilerMissingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gpu_provider.kernels.cubins import Unit


compiler: Any = None
missing = ""
try:  # now, because some tests put another CuPy in place of this one
    nvrtc.version()
    from cupy.cuda import nvrtc as compiler
except CompilerMissingError as error:
    missing = str(error)


def skip_without_compiler() -> None:
    if compiler is None:
        pytest.skip(missing)


@cache
def machine_of(unit: Unit) -> Machine:
    skip_without_compiler()
    (name, source), *headers = nvrtc.source_files(cubins.SOURCE).items()
    program = compiler.createProgram(
        source, name, [text.encode() for _, text in headers], [header.encode() for header, _ in headers]
    )
    try:
        compiler.compileProgram(program, ("--gpu-architecture=compute_90", *unit.options))
        return Machine(compiler.getPTX(program).decode())
    finally:
        compiler.destroyProgram(program)


def run(unit: Unit, entry: str, launch: bytes, warps: int, buffers: Sequence[NDArray[Any]]) -> None:
    """One block per warp, as the backend launches them."""
    machine_of(unit).run(entry, launch, warps, unit.table_bytes, buffers)
