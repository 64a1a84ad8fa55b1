"""Builds the three cffi extensions, and the provider module that other programs load, from one set of C sources."""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODULE = "gpu_provider.native.gpu_provider"
NATIVE = "gpu_provider/native"
PROVIDER_SOURCES = sorted(str(path) for path in Path(NATIVE).rglob("*.c") if path.name != "_core.c")

# For all objects. Warnings become errors with CFLAGS=-Werror, as CI has it; a user's newer compiler must not.
COMPILE_ARGS = [
    "-O2",
    "-Wall",
    "-Wextra",
    "-fvisibility=hidden",
    "-fstack-protector-strong",
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=2",
]
STANDARDS = {".c": "-std=c11", ".cpp": "-std=c++17"}
# The kernels for AVX-512 are compiled apart, and run only where the processor has it. The compiler's own vectors stay
# out of that file, so that a test can tell from its instructions that no secret leaves vector registers for an address.
IFMA_ARGS = ["-mavx512f", "-mavx512dq", "-mavx512ifma", "-fno-tree-vectorize", "-fno-tree-slp-vectorize"]
# The multi-thread kernels on a processor: a warp's 32 elements in vectors, and rounding toward zero.
WARP_ARGS = [*(["-mavx2", "-mfma"] if platform.machine() == "x86_64" else []), "-ffp-contract=off", "-frounding-math"]
FILE_ARGS = {
    "batch_ifma.cpp": IFMA_ARGS if platform.machine() == "x86_64" else [],
    "threads32.cpp": WARP_ARGS,
    "threads52.cpp": WARP_ARGS,
}
LINK_ARGS = ["-Wl,-z,relro", "-Wl,-z,now"]


class BuildExt(build_ext):
    """Compiles all with the same flags, and names the provider module as OpenSSL looks it up: ``gpu_provider.so``."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            extension.extra_compile_args = [*COMPILE_ARGS, *extension.extra_compile_args]
            extension.extra_link_args = [*LINK_ARGS, *extension.extra_link_args]
        compile_one = self.compiler._compile  # setuptools has no other place for flags by file

        def compile_by_name(obj: str, src: str, ext: str, cc_args: list[str], *rest: list[str]) -> None:
            extra, preprocessor = rest
            flags = [STANDARDS[ext], *extra, *FILE_ARGS.get(Path(src).name, [])]
            compile_one(obj, src, ext, cc_args, flags, preprocessor)

        # One file after another would take minutes for the kernels.
        compile_all, pending = self.compiler.compile, []
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:

            def compile_side_by_side(*args: object, **keywords: object) -> list[str]:
                objects = compile_all(*args, **keywords)
                while pending:
                    pending.pop().result()
                return objects

            self.compiler._compile = lambda *args: pending.append(pool.submit(compile_by_name, *args))
            self.compiler.compile = compile_side_by_side
            super().build_extensions()

    def get_ext_filename(self, fullname: str) -> str:
        # build_ext asks by full name when it builds and by last part when it copies an editable build in place.
        if fullname == MODULE:
            return str(Path(*fullname.split(".")).with_suffix(".so"))
        if fullname == MODULE.rpartition(".")[2]:
            return f"{fullname}.so"
        return super().get_ext_filename(fullname)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return [] if ext.name == MODULE else super().get_export_symbols(ext)


setup(
    cmdclass={"build_ext": BuildExt},
    cffi_modules=[f"{NATIVE}/core_build.py:ffi", "tls/ssl_build.py:ffi", "kernels/kernels_build.py:ffi"],
    ext_modules=[
        Extension(
            MODULE,
            PROVIDER_SOURCES,
            include_dirs=[NATIVE, "kernels"],
            depends=[str(path) for path in Path(NATIVE).rglob("*.h")],
            libraries=["crypto"],
            # Other programs load it: nothing may be left to be found in Python. Once loaded it stays, like libcrypto:
            # each time it would make another library context, which is never freed.
            extra_link_args=["-Wl,-z,defs", "-Wl,-z,nodelete"],
        )
    ],
)
