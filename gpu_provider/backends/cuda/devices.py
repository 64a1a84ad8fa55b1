"""The NVIDIA GPUs of this machine, as CUDA lists them (``CUDA_VISIBLE_DEVICES`` counts)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpu_provider.errors import BackendError
from gpu_provider.kernels.nvrtc import import_cupy

__all__ = ["Gpu", "find_devices"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, of compute capability ``major.minor``."""

    index: int
    """CUDA's number for it."""
    name: str
    major: int
    minor: int
    multiprocessors: int
    memory_bytes: int
    pci_bus_id: str
    """The address, such as ``0000:3b:00.0``."""


def find_devices() -> list[Gpu]:
    """At least one GPU. Raises BackendError, which says why there is none. Starts CUDA in this process, which must not
    fork after that."""
    runtime = import_cupy().cuda.runtime
    try:
        return [_gpu(index, runtime) for index in range(runtime.getDeviceCount())]
    except runtime.CUDARuntimeError as error:
        if runtime.driverGetVersion() == 0:
            raise BackendError("there is no NVIDIA driver on this machine, or none in this container") from None
        raise BackendError(f"CUDA lists no device: {error}") from None


def _gpu(index: int, runtime: Any) -> Gpu:
    properties = runtime.getDeviceProperties(index)
    return Gpu(
        index=index,
        name=properties["name"].decode(),
        major=properties["major"],
        minor=properties["minor"],
        multiprocessors=properties["multiProcessorCount"],
        memory_bytes=properties["totalGlobalMem"],
        pci_bus_id=runtime.deviceGetPCIBusId(index),
    )
