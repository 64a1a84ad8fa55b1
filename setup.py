"""Builds the three cffi extensions, and the provider module that other programs load.

What two of them share, what needs flags of its own, and what takes long to compile are static libraries.
"""

import os
import platform
import re
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise SystemExit(
        "gpu-provider can't be built for a free-threaded Python: that lacks the limited API, which the extensions use, "
        "and the Python code relies on the GIL. Use an ordinary Python of the same version."
    )

NATIVE = "gpu_provider/native"
INCLUDE_DIRS = [NATIVE, "kernels"]
CORE_SOURCES = sorted(str(path) for path in Path(NATIVE).rglob("*.c") if path.name != "module.c")
HEADERS = sorted(str(path) for directory in INCLUDE_DIRS for path in Path(directory).rglob("*.h"))
CORES = len(os.sched_getaffinity(0))
FLAGS = dict(re.findall(r"^(\w+) = (.*)$", Path("flags.mk").read_text(), re.MULTILINE))


def flags(name: str) -> list[str]:
    return f"{FLAGS.get(name, '')} {FLAGS.get(f'{name}_{platform.machine()}', '')}".split()


# Warnings become errors with CFLAGS=-Werror, as CI has it; a user's newer compiler must not fail on them.
C_FLAGS = flags("C_STANDARD") + flags("WARNINGS") + flags("OPTIMIZED")
CXX_FLAGS = flags("CXX_STANDARD") + flags("WARNINGS") + flags("OPTIMIZED")
KERNEL_FLAGS = CXX_FLAGS + flags("NO_CXX_RUNTIME")


def library(cflags: list[str], *sources: str) -> dict[str, object]:
    return {"sources": sources, "cflags": cflags, "include_dirs": INCLUDE_DIRS, "obj_deps": {"": HEADERS}}


class BuildLibraries(build_clib):
    """Builds the libraries side by side."""

    def build_libraries(self, libraries: list[tuple[str, dict[str, object]]]) -> None:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(super().build_libraries, ([library] for library in libraries)))


class BuildExtensions(build_ext):
    """Builds the extensions side by side, with our flags."""

    def build_extensions(self) -> None:
        self.parallel = CORES
        for extension in self.extensions:
            extension.extra_compile_args = CXX_FLAGS if extension.language == "c++" else C_FLAGS
            extension.extra_link_args += ["-Wl,-z,relro", "-Wl,-z,now"]
        super().build_extensions()

    def get_ext_filename(self, fullname: str) -> str:
        # OpenSSL looks for gpu_provider.so. An editable build asks by the last part of the name when it copies.
        if fullname.rpartition(".")[2] == "gpu_provider":
            return fullname.replace(".", "/") + ".so"
        return super().get_ext_filename(fullname)


setup(
    cmdclass={"build_clib": BuildLibraries, "build_ext": BuildExtensions},
    libraries=[
        ("kernels", library(KERNEL_FLAGS, *(f"kernels/cpu/{name}.cpp" for name in ("kernels", "key", "memory")))),
        ("batch_ifma", library(KERNEL_FLAGS + flags("IFMA"), "kernels/cpu/batch_ifma.cpp")),
        ("batch_portable", library(KERNEL_FLAGS, "kernels/cpu/batch_portable.cpp")),
        ("core", library(C_FLAGS, *CORE_SOURCES)),
    ],
    cffi_modules=[f"{NATIVE}/core_build.py:ffi", "tls/ssl_build.py:ffi", "kernels/kernels_build.py:ffi"],
    ext_modules=[
        Extension(
            "gpu_provider.native.gpu_provider",
            [f"{NATIVE}/provider/module.c"],
            include_dirs=INCLUDE_DIRS,
            depends=[*CORE_SOURCES, *HEADERS],
            libraries=["core", "kernels", "batch_ifma", "batch_portable", "crypto"],
            # Other programs load it: nothing may be left to be found in Python. Once loaded it stays, like libcrypto:
            # each time it would make another library context, which is never freed.
            extra_link_args=["-Wl,-z,defs", "-Wl,-z,nodelete"],
        )
    ],
)
