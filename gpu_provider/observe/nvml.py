"""What NVIDIA's management library (NVML) reports of a GPU: power, clocks, load, memory, temperature.

Only for observation, so nothing here raises: without ``nvidia-ml-py`` or a driver there are no figures, and a figure
that a GPU doesn't report is None.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["GpuFigures", "Nvml"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """One GPU now. None: this GPU, or its driver, doesn't report it."""

    power_watts: float | None
    sm_clock_hertz: float | None
    memory_clock_hertz: float | None
    utilization: float | None
    """Share of the last sample period (up to a second) in which a kernel ran."""
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    temperature_celsius: float | None


class Nvml:
    """Any thread. The first call loads the library, which stays loaded until the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._module: ModuleType | None = None
        self._told = False

    def read(self, pci_bus_id: str) -> GpuFigures | None:
        """None if there is no NVML, or it doesn't know the GPU. ``pci_bus_id``: such as ``0000:3b:00.0``."""
        nvml = self._open()
        if nvml is None:
            return None
        try:
            gpu = nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        except nvml.NVMLError as error:
            self._tell(f"NVML does not find the GPU {pci_bus_id}: {error}")
            return None

        def figure(read: Callable[[], Any], unit: float = 1.0) -> float | None:
            try:
                return float(read()) * unit
            except nvml.NVMLError:
                return None

        return GpuFigures(
            power_watts=figure(lambda: nvml.nvmlDeviceGetPowerUsage(gpu), 1e-3),
            sm_clock_hertz=figure(lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM), 1e6),
            memory_clock_hertz=figure(lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM), 1e6),
            utilization=figure(lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu, 1e-2),
            memory_used_bytes=figure(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
            memory_total_bytes=figure(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
            temperature_celsius=figure(lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
        )

    def driver_version(self) -> str | None:
        nvml = self._open()
        if nvml is None:
            return None
        try:
            return str(nvml.nvmlSystemGetDriverVersion())
        except nvml.NVMLError:
            return None

    def _open(self) -> ModuleType | None:
        with self._lock:
            if self._module is None:
                try:
                    import pynvml  # noqa: PLC0415 - optional
                except ImportError as error:
                    self._tell(f"nvidia-ml-py is not installed ({error}): pip install nvidia-ml-py")
                    return None
                try:
                    pynvml.nvmlInit()
                except pynvml.NVMLError as error:
                    self._tell(f"NVML can't be used: {error}")
                    return None
                self._module = pynvml
            return self._module

    def _tell(self, why: str) -> None:
        """Logs only once, not at every scrape."""
        if not self._told:
            self._told = True
            _log.info("no power, clocks and load of GPUs in the metrics: %s", why)
