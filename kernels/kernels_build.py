"""cffi builder of ``gpu_provider.kernels._kernels``: the arithmetic over batches.

What Python sees of the kernels is declared in their headers, between ``/* cffi: */`` and ``/* :cffi */``.
"""

import re
from pathlib import Path

from cffi import FFI

KERNELS = Path("kernels")
HEADERS = ("kernels.h", "gpu/launch.h", "records.h")


def declarations(header: str) -> str:
    return "\n".join(re.findall(r"/\* cffi: \*/\n(.*?)/\* :cffi \*/", (KERNELS / header).read_text(), re.DOTALL))


CPU_FILES = list(KERNELS.glob("cpu/*.cpp"))
LIBRARIES = ["kernels", "batch_ifma", "batch_portable"]  # setup.py's

ffi = FFI()
ffi.cdef("".join(map(declarations, HEADERS)))
ffi.set_source(
    "gpu_provider.kernels._kernels",
    '#include "records.h"\n',
    source_extension=".cpp",
    sources=["kernels/records.cpp"],
    include_dirs=["kernels"],
    depends=sorted(str(path) for path in (*CPU_FILES, *KERNELS.rglob("*.h"))),
    libraries=LIBRARIES,
    language="c++",
)
