"""The NVIDIA GPUs of this machine, as CUDA lists them (``CUDA_VISIBLE_DEVICES`` counts)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpu_provider.errors import BackendError
from gpu_provider.kernels.nvrtc import import_cupy

__all__ = ["Device", "find_devices"]


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU."""

    index: int
    """CUDA's number for it."""
    name: str
    major: int
    """Of the compute capability, as ``minor``."""
    minor: int
    multiprocessors: int
    memory: int
    """Bytes."""
    pci_bus_id: str
    """Such as ``0000:3b:00.0``."""


def find_devices() -> list[Device]:
    """At least one device. Raises BackendError that says why there is none. Starts CUDA in this process: no fork after
    it."""
    runtime = import_cupy().cuda.runtime
    try:
        return [_device(index, runtime) for index in range(runtime.getDeviceCount())]
    except runtime.CUDARuntimeError as error:
        if runtime.driverGetVersion() == 0:
            raise BackendError("there is no NVIDIA driver on this machine, or none in this container") from None
        raise BackendError(f"CUDA lists no device: {error}") from None


def _device(index: int, runtime: Any) -> Device:
    properties = runtime.getDeviceProperties(index)
    return Device(
        index=index,
        name=properties["name"].decode(),
        major=properties["major"],
        minor=properties["minor"],
        multiprocessors=properties["multiProcessorCount"],
        memory=properties["totalGlobalMem"],
        pci_bus_id=runtime.deviceGetPCIBusId(index),
    )
