"""NVIDIA's run-time compiler, through CuPy. Compiling to machine code needs neither a GPU nor a driver."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gpu_provider.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

__all__ = [
    "CompileError",
    "CompilerMissingError",
    "architectures",
    "compile_cubin",
    "import_cupy",
    "source_files",
    "version",
]

DIRECTORY = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
_EXTRAS = "pip install 'gpu-provider[cuda13]' (driver 580 or later) or 'gpu-provider[cuda12]' (driver 525 or later)"


class CompilerMissingError(BackendError):
    """CuPy or NVRTC is not installed. The message names what to install."""


class CompileError(BackendError):
    """NVRTC does not support the architecture, or rejects the source."""


def import_cupy() -> Any:
    """CuPy, which is optional and takes half a second to import. Raises CompilerMissingError if it is not installed,
    BackendError if it is broken or does not support this NumPy."""
    try:
        import cupy  # noqa: PLC0415
    except ImportError as error:
        raise CompilerMissingError(f"CuPy is not installed ({error}): {_EXTRAS}") from None
    except (AttributeError, OSError, RuntimeError, ValueError) as error:
        raise BackendError(f"CuPy can't be imported: {error}") from None
    return cupy


@cache
def _nvrtc() -> ModuleType:
    nvrtc: ModuleType = import_cupy().cuda.nvrtc
    try:
        nvrtc.getVersion()  # CuPy looks for the library only now
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise CompilerMissingError(f"CuPy finds no NVRTC ({reason}): {_EXTRAS}") from None
    return nvrtc


def version() -> str:
    """NVRTC's version, such as "13.2". Raises CompilerMissingError."""
    return ".".join(map(str, _nvrtc().getVersion()))


def architectures() -> tuple[str, ...]:
    """The architectures that NVRTC supports, such as "sm_90", in ascending order. Raises CompilerMissingError."""
    return tuple(f"sm_{number}" for number in sorted(_nvrtc().getSupportedArchs()))


def source_files(name: str) -> dict[str, str]:
    """The text of a file of this directory and of all that it includes, by name: ``name`` first, then in the order of
    inclusion."""
    files: dict[str, str] = {}

    def add(name: str) -> None:
        if name not in files:
            files[name] = (DIRECTORY / name).read_text(encoding="utf-8")
            for included in _INCLUDE.findall(files[name]):
                add(included)

    add(name)
    return files


def compile_cubin(files: Mapping[str, str], options: tuple[str, ...], architecture: str) -> bytes:
    """The machine code of the first file, which includes the others. NVRTC compiles only one program at a time in a
    process. Raises CompileError, CompilerMissingError."""
    nvrtc = _nvrtc()
    if architecture not in architectures():
        _refuse(architecture)
    (name, source), *headers = files.items()
    program = nvrtc.createProgram(
        source, name, [text.encode() for _, text in headers], [header.encode() for header, _ in headers]
    )
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}", *options))
        cubin: bytes = nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).strip()
        raise CompileError(f"{name} with {' '.join(options)} for {architecture}: {error}\n{log}") from None
    finally:
        nvrtc.destroyProgram(program)
    return _whole(cubin)


def _refuse(architecture: str) -> NoReturn:
    known = " ".join(architectures())
    raise CompileError(f"NVRTC {version()} does not compile for {architecture!r}; it knows {known}")


def _whole(cubin: bytes) -> bytes:
    """Restores the last byte, which CuPy cuts off as if it ended a string. It is the highest byte of a small number:
    zero."""
    program_headers, size, count = (
        int.from_bytes(cubin[at : at + length], "little") for at, length in ((32, 8), (54, 2), (56, 2))
    )
    return cubin.ljust(program_headers + size * count, b"\0")
