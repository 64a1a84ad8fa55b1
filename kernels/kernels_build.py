"""cffi builder of ``gpu_provider.kernels._kernels``: the arithmetic over batches."""

from pathlib import Path

from cffi import FFI

KERNELS = Path("kernels")
HEADERS = ("kernels.h", "gpu/launch.h", "host/threads.h")


def for_python(header: str) -> str:
    """The declarations between the two comments that mark them."""
    _, begun, text = (KERNELS / header).read_text().partition("kernels_build.py reads it ---- */")
    declarations, ended, _ = text.partition("/* ---- end of what Python calls")
    if not begun or not ended:
        raise ValueError(f"{header} does not mark what Python calls")
    return declarations


CPP_FILES = list(Path("kernels").rglob("*.cpp"))
LIBRARIES = ["batch_ifma", "batch_portable", "threads32", "threads52"]  # setup.py's, each of the file of that name

ffi = FFI()
ffi.cdef("".join(map(for_python, HEADERS)))
ffi.set_source(
    "gpu_provider.kernels._kernels",
    '#include "host/threads.h"\n',
    source_extension=".cpp",
    sources=sorted(str(path) for path in CPP_FILES if path.stem not in {"_kernels", *LIBRARIES}),
    include_dirs=["kernels"],
    depends=sorted(str(path) for path in (*CPP_FILES, *KERNELS.rglob("*.h"))),
    libraries=LIBRARIES,
    language="c++",
)
