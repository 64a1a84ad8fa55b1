"""Writes what the type checker is told of the cffi extensions, from the extensions themselves.

usage: extension_stubs.py DIRECTORY     (the package's, in which the stubs are written)
"""

import sys
from pathlib import Path
from typing import Any

from gpu_provider.kernels import _kernels
from gpu_provider.native import _core
from gpu_provider.tls import _ssl

STUB = """from collections.abc import Callable
from typing import Any
from _cffi_backend import FFI

class _FFI(FFI):
    def string(self, cdata: FFI.CData, maxlen: int = ...) -> bytes: ...
    def unpack(self, cdata: FFI.CData, length: int) -> Any: ...

ffi: _FFI

class _Lib:
    {}

lib: _Lib
"""
TYPES = {"void": "None", "primitive": "int", "enum": "int", "struct": "dict[str, object]"}
TAKE_BYTES = {"char *", "unsigned char *", "uint8_t *", "void *"}


def python_type(about: Any) -> str:
    return TYPES.get(about.kind, "FFI.CData")


def member(extension: Any, name: str) -> str:
    value = getattr(extension.lib, name)
    if isinstance(value, int):
        return f"{name}: int"
    about = extension.ffi.typeof(value)
    given = (python_type(each) + (" | bytes" if each.cname in TAKE_BYTES else "") for each in about.args)
    arguments = "..." if about.ellipsis else f"[{', '.join(given)}]"
    return f"{name}: Callable[{arguments}, {python_type(about.result)}]"


for extension in (_core, _kernels, _ssl):
    stub = Path(sys.argv[1], *extension.__name__.split(".")[1:]).with_suffix(".pyi")
    stub.write_text(STUB.format("\n    ".join(member(extension, name) for name in dir(extension.lib))))
