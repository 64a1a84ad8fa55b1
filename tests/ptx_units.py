"""The units of CUDA kernels, compiled to PTX, in a machine that executes it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from ptx_machine import Machine

from gpu_provider.kernels import cubins, nvrtc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gpu_provider.kernels.cubins import Unit


@cache
def machine_of(unit: Unit) -> Machine:
    """Skips the test where there is no CuPy: it has the compiler."""
    compiler = pytest.importorskip("cupy.cuda", reason="CuPy is not installed").nvrtc
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
