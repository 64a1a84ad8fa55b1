"""Launches single kernels on a device of the CUDA backend: every one that there is, chosen by whoever measures it."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_provider.backends.cuda import devices
from gpu_provider.backends.cuda.cupy_device import CupyDevice
from gpu_provider.backends.cuda.device import Device, DeviceError, Stream
from gpu_provider.errors import BackendError
from gpu_provider.kernels import cubins, nvrtc
from gpu_provider.kernels.cubin_cache import CubinCache
from gpu_provider.kernels.cubins import Unit
from gpu_provider.kernels.launch import Kernel, Operation

from ..kernels.units import unit_of
from .host_device import HostDevice, HostKernels

_WARP = 32


class Launcher:
    """Kernels of a device, and one stream. One thread."""

    def __init__(self, device: Device, kernels: Sequence[Kernel], stream: Stream) -> None:
        self.kernels = {(unit_of(kernel), kernel.operation): kernel for kernel in kernels}
        self.missing: dict[str, str] = {}
        """Units whose kernels can't be launched, and why."""
        self._device = device
        self._stream = stream
        self._memory: list[int] = []
        self._pinned: list[NDArray[np.uint8]] = []

    def units(self) -> list[Unit]:
        return [unit for unit, operation in self.kernels if operation is Operation.PRIVATE]

    def describe(self) -> dict[str, Any]:
        """The device, as JSON can hold it."""
        return {"name": self._device.name}

    def describe_kernels(self) -> dict[str, Any]:
        return {}

    def full_rows(self, unit: Unit) -> int:
        """Rows that are computed at the same time."""
        return self.kernels[unit, Operation.PRIVATE].rows

    def host_array(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """Allocates an array in memory that the device can copy to and from by itself."""
        self._pinned.append(self._device.allocate_pinned(int(np.prod(shape)) * np.dtype(dtype).itemsize))
        return self._pinned[-1].view(dtype).reshape(shape)

    def allocate(self, size: int) -> int:
        self._memory.append(self._device.allocate(size))
        return self._memory[-1]

    def free_all(self) -> None:
        self.wait()
        for address in self._memory:
            self._device.free(address)
        for array in self._pinned:
            self._device.free_pinned(array)
        self._memory.clear()
        self._pinned.clear()

    def upload(self, to: int, array: NDArray[Any]) -> None:
        """Like :meth:`download` and :meth:`launch`, begins when what was given before is done."""
        self._stream.upload(to, array.reshape(-1).view(np.uint8))

    def put(self, array: NDArray[Any]) -> int:
        """Uploads it, and waits for that. Returns its address on the device."""
        address = self.allocate(array.nbytes)
        self.upload(address, array)
        self.wait()
        return address

    def download(self, array: NDArray[Any], source: int) -> None:
        self._stream.download(array.reshape(-1).view(np.uint8), source)

    def launch(self, unit: Unit, operation: Operation, arguments: NDArray[np.void]) -> None:
        self._stream.launch(self.kernels[unit, operation], arguments)

    def wait(self) -> None:
        """Until all of it is done. Raises DeviceError."""
        self._stream.wait()

    def seconds(self, *steps: Callable[[], None]) -> list[float]:
        """Has the device do the steps one after the other, and waits for them. Returns what each took there."""
        taken = []
        for step in steps:
            started = time.perf_counter()
            step()
            self.wait()
            taken.append(time.perf_counter() - started)
        return taken


class HostLauncher(Launcher):
    """The processor in place of a GPU, with one window to a kernel, and not every number of threads."""

    def __init__(self) -> None:
        device = HostDevice(HostKernels(radix_bits=None))
        super().__init__(device, device.open(), device.stream())


class GpuLauncher(Launcher):
    def __init__(self, found: devices.Gpu, cache: CubinCache, units: Sequence[Unit]) -> None:
        """Loads what the cache has of these units. Raises BackendError where there is no CuPy, and for a cache that
        can't be used."""
        self.architecture = cubins.architecture_for(found.major, found.minor)
        self.multiprocessors = found.multiprocessors
        try:
            compiled = cubins.cached_cubins(units, self.architecture, cache)
        except OSError as error:
            raise BackendError(f"the kernel cache can't be used: {error}") from None
        device = CupyDevice(found, cache)
        device.open_without_kernels()
        kernels: list[Kernel] = []
        missing: dict[str, str] = {}
        for unit in units:
            try:
                if unit in compiled:
                    kernels += device.load(unit, compiled[unit])
                else:
                    missing[str(unit)] = "not compiled"
            except DeviceError as error:
                missing[str(unit)] = f"{error} ({unit.table_bytes} bytes of shared memory a warp)"
        stream = device.stream()
        super().__init__(device, kernels, stream)
        self.missing = missing
        self._found = found
        self._cuda = nvrtc.import_cupy().cuda
        self._function, self._handle = device.function, stream.handle

    def describe(self) -> dict[str, Any]:
        runtime = self._cuda.runtime
        return {
            "name": self._found.name,
            "architecture": self.architecture,
            "multiprocessors": self.multiprocessors,
            "memory_bytes": self._found.memory_bytes,
            "shared_bytes": int(runtime.getDeviceProperties(self._found.index)["sharedMemPerMultiprocessor"]),
            "pci_bus_id": self._found.pci_bus_id,
            "cuda_driver": runtime.driverGetVersion(),
            "cuda_runtime": runtime.runtimeGetVersion(),
            "cupy": nvrtc.import_cupy().__version__,
        }

    def describe_kernels(self) -> dict[str, Any]:
        driver = self._cuda.driver
        return {
            "registers": {
                f"{unit} {operation.name.lower()}": driver.funcGetAttribute(
                    driver.CU_FUNC_ATTRIBUTE_NUM_REGS, self._function(kernel)
                )
                for (unit, operation), kernel in self.kernels.items()
            },
            "full_rows": {str(unit): self.full_rows(unit) for unit in self.units()},
        }

    def full_rows(self, unit: Unit) -> int:
        kernel = self.kernels[unit, Operation.PRIVATE]
        warps = self._cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
            self._function(kernel), _WARP, kernel.table_bytes
        )
        return int(warps) * self.multiprocessors * kernel.rows

    def seconds(self, *steps: Callable[[], None]) -> list[float]:
        runtime = self._cuda.runtime
        events = [runtime.eventCreate() for _ in range(len(steps) + 1)]
        try:
            runtime.eventRecord(events[0], self._handle)
            for step, event in zip(steps, events[1:], strict=True):
                step()
                runtime.eventRecord(event, self._handle)
            runtime.eventSynchronize(events[-1])
            return [runtime.eventElapsedTime(*both) / 1e3 for both in itertools.pairwise(events)]
        finally:
            for event in events:
                runtime.eventDestroy(event)

    def load_other(self, cubin: bytes, name: str) -> Callable[[int, int, tuple[np.generic, ...]], None]:
        """A kernel that is none of ours. Returns what launches it: blocks, threads of each, arguments."""
        module = self._cuda.function.Module()
        module.load(cubin)
        function, stream = module.get_function(name), self._cuda.ExternalStream(self._handle)
        return lambda blocks, threads, arguments: function((blocks,), (threads,), arguments, 0, stream)


def find_device(number: str) -> devices.Gpu:
    """Raises BackendError if CUDA has no device of that number."""
    found = {str(device.index): device for device in devices.find_devices()}
    if number not in found:
        raise BackendError(f"--device {number}: CUDA has {', '.join(found)}")
    return found[number]
