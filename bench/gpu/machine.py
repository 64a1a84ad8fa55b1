"""What the GPU suite's figures depend on: the GPU, its driver, and the rest of the machine."""

import ctypes
import os
import platform
from collections.abc import Sequence
from typing import Any

from gpu_provider.errors import BackendError
from gpu_provider.kernels import nvrtc
from gpu_provider.observe.nvml import Nvml

from ..environment import first_line, package_version
from .plan import find_tool

NVIDIA_SMI = "name,driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu,mig.mode.current,ecc.mode.current"
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "cc")
LIBRARIES = ("libcrypto.so.3", "libssl.so.3", "libcrypto.so.4", "libssl.so.4")
PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "nvidia-ml-py", "pip")


def describe() -> dict[str, Any]:
    """The machine, as JSON can hold it. None stands for what is not here."""
    return {
        "nvidia_smi": first_line("nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader"),
        "driver": Nvml().driver_version(),
        "nvrtc": _nvrtc_version(),
        "processor_features": _processor_features(("avx2", "fma", "avx512ifma")),
        "system": _system(),
        "libc": " ".join(platform.libc_ver()),
        "tools": {name: find_tool(name) for name in TOOLS},
        "libraries": [name for name in LIBRARIES if _loads(name)],
        "packages": {name: package_version(name) for name in PACKAGES},
        "user": os.geteuid(),
    }


def _system() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _nvrtc_version() -> str | None:
    try:
        return nvrtc.version()
    except BackendError:
        return None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _processor_features(wanted: Sequence[str]) -> list[str]:
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    return [name for name in wanted if name in flags]
