"""An NVIDIA GPU behind the device interface, through CuPy's bindings of the CUDA runtime and driver.

Memory, streams and launches are ours alone, without CuPy's pools, which may keep what is freed. CuPy is imported when a
device is opened, not before.

A kernel that faults (an illegal address), memory that fails (ECC) or a GPU that falls off the bus leaves an error that
every later call in this process returns: CUDA's manual says to restart the process. Destroying the process's context on
that GPU might help too, but the context is everybody's: the arrays of the application and of other libraries would go
with it, and what CuPy keeps (memory pools, modules) would point nowhere. So nothing is reset. The device stays out of
use, and each new try begins by asking it whether it works. What could not be wiped is out of reach, even of this
process, until the driver takes the memory back when the process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.backends.cuda.device import DeviceError, DeviceMemoryError
from gpu_provider.kernels import cubins
from gpu_provider.kernels.launch import Operation
from gpu_provider.kernels.nvrtc import import_cupy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gpu_provider.backends.cuda.device import CudaArray
    from gpu_provider.backends.cuda.devices import Gpu
    from gpu_provider.kernels.cubin_cache import CubinCache
    from gpu_provider.kernels.cubins import Arithmetic, Unit
    from gpu_provider.kernels.launch import Kernel

__all__ = ["CupyDevice"]

_log = logging.getLogger(__name__)
_WARP = 32
_WARPS_PER_PROCESSOR = 4
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_ALL_PERCENT = 100


def _error(device: str, call: str, error: Exception) -> DeviceError:
    return DeviceError(f"device {device}: {call}: {error}")


def _call(device: str, call: str, function: Any, *arguments: object) -> Any:
    """What a function of CuPy's returns. ``call``: what the error calls it. Raises DeviceError."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        raise _error(device, call, error) from None


def _allocation_error(device: str, call: str, error: Exception) -> DeviceError:
    if getattr(error, "status", None) == _OUT_OF_MEMORY:
        return DeviceMemoryError(f"device {device}: {call}: {error}")
    return _error(device, call, error)


class CupyDevice:
    """One GPU."""

    def __init__(self, gpu: Gpu, cache: CubinCache, arithmetic: Arithmetic | None = None) -> None:
        """``arithmetic``: None for the one that the GPU is good at."""
        self.name = f"{gpu.name} ({gpu.index})"
        self.parallel_threads = gpu.multiprocessors * _WARPS_PER_PROCESSOR * _WARP
        self.pci_bus_id = gpu.pci_bus_id
        self._gpu = gpu
        self._cache = cache
        self._arithmetic = arithmetic
        self._cupy: Any = None
        self._runtime: Any = None
        self._driver: Any = None
        self._told = False  # that it does not work any more
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._modules: list[int] = []
        self._functions: list[int] = []
        self._memory: set[int] = set()
        self._pinned: dict[int, NDArray[np.uint8]] = {}
        self._streams: list[_CupyStream] = []

    def open(self) -> Sequence[Kernel]:
        self.open_without_kernels()
        architecture = cubins.architecture_for(self._gpu.major, self._gpu.minor)
        own = f"sm_{self._gpu.major}{self._gpu.minor}"
        arithmetic = self._arithmetic or cubins.arithmetics(own)[0]
        compiled = cubins.load_cubins(cubins.units([arithmetic]), architecture, self._cache, loaded=self._tell)
        return [kernel for unit, cubin in compiled.items() for kernel in self.load(unit, cubin)]

    def open_without_kernels(self) -> None:
        """The first part of :meth:`open`."""
        self._import()
        self.close()
        self._check_that_it_works()

    def load(self, unit: Unit, cubin: bytes) -> list[Kernel]:
        """Loads kernels beside those that are loaded. Raises DeviceError."""
        try:
            module = self._driver.moduleLoadData(cubin)
            self._modules.append(module)
            return [self._load(module, unit, operation) for operation in Operation]
        except RuntimeError as error:
            raise _error(self.name, "loading the kernels", error) from None
        except (AttributeError, TypeError) as error:
            version = self._cupy.__version__
            raise DeviceError(f"device {self.name}: CuPy {version} is not one that this works with: {error}") from None

    def function(self, kernel: Kernel) -> int:
        """The driver's handle of a loaded kernel."""
        return self._functions[kernel.index]

    def close(self) -> None:
        if self._runtime is None:
            return
        self._attempt(self._runtime.setDevice, self._gpu.index)
        for stream in self._streams:
            self._attempt(stream.destroy)
        for address in self._memory:
            self._attempt(self._runtime.free, address)
        for address, array in self._pinned.items():
            array.fill(0)
            self._attempt(self._runtime.freeHost, address)
        for module in self._modules:
            self._attempt(self._driver.moduleUnload, module)
        for left in (self._streams, self._memory, self._pinned, self._modules, self._functions):
            left.clear()

    def allocate(self, size: int) -> int:
        try:
            address: int = self._runtime.malloc(size)
        except RuntimeError as error:
            raise _allocation_error(self.name, f"allocating {size} bytes", error) from None
        with self._lock:
            self._memory.add(address)
        return address

    def free(self, address: int) -> None:
        with self._lock:
            self._memory.remove(address)
        _call(self.name, "free", self._runtime.free, address)

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        try:
            address: int = self._runtime.hostAlloc(size, self._runtime.hostAllocPortable)
        except RuntimeError as error:
            raise _allocation_error(self.name, f"allocating {size} pinned bytes", error) from None
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array.fill(0)
        with self._lock:
            self._pinned[address] = array
        return array

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        address = array.ctypes.data
        with self._lock:
            del self._pinned[address]
        _call(self.name, "free of pinned memory", self._runtime.freeHost, address)

    def stream(self) -> _CupyStream:
        stream = _CupyStream(self.name, self._runtime, self._driver, self._functions)
        with self._lock:
            self._streams.append(stream)
        return stream

    def use(self) -> None:
        # CuPy holds the GIL in setDevice(), which goes to the driver, and may wait there for a device that hangs. The
        # question which device the thread has is answered at once; other code on the thread may have changed it.
        self._import()
        try:
            if not (hasattr(self._thread, "used") and self._runtime.getDevice() == self._gpu.index):
                self._runtime.setDevice(self._gpu.index)
                self._thread.used = True
        except RuntimeError as error:
            raise _error(self.name, "choosing the device", error) from None

    def owns(self, address: int) -> bool:
        self._import()
        try:
            attributes = self._runtime.pointerGetAttributes(address)
        except RuntimeError:  # memory that CUDA does not know
            return False
        return bool(attributes.devicePointer and attributes.device == self._gpu.index)

    def new_array(self, rows: int, limbs: int) -> CudaArray:
        cupy = self._cupy
        try:
            with cupy.cuda.Device(self._gpu.index):
                array: CudaArray = cupy.empty((rows, limbs), np.uint64)
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise DeviceMemoryError(f"device {self.name}: an array of {rows} rows: {error}") from None
        except RuntimeError as error:
            raise _error(self.name, f"an array of {rows} rows", error) from None
        return array

    def settle(self, stream: int | None) -> None:
        # CuPy gives memory that was freed to the next array of the same stream, where earlier work may still use it.
        try:
            with self._cupy.cuda.Device(self._gpu.index):
                self._cupy.cuda.get_current_stream().synchronize()
                if stream is not None:
                    self._runtime.streamSynchronize(stream)
        except RuntimeError as error:
            raise _error(self.name, "waiting for the caller's stream", error) from None

    def _import(self) -> None:
        if self._runtime is None:
            self._cupy = import_cupy()
            self._driver, self._runtime = self._cupy.cuda.driver, self._cupy.cuda.runtime

    def _check_that_it_works(self) -> None:
        try:
            self._runtime.setDevice(self._gpu.index)
            self._runtime.deviceSynchronize()
        except RuntimeError as error:
            if not self._told:
                _log.error(
                    "device %s does not work in this process: %s. If that comes from a kernel's fault, an ECC error "
                    "or a lost GPU, only a restart of the process ends it",
                    *(self.name, error),
                )
            self._told = True
            raise _error(self.name, "it does not work in this process", error) from None
        self._told = False

    def _load(self, module: int, unit: Unit, operation: Operation) -> Kernel:
        driver = self._driver
        function = driver.moduleGetFunction(module, operation.entry)
        # The kernel's window table is in shared memory. All that a multiprocessor has is to be that, so that as many
        # blocks as possible run at a time: the driver might leave part of it to the L1 cache. And so for every kernel,
        # because a multiprocessor has to be idle to change it.
        driver.funcSetAttribute(function, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, unit.table_bytes)
        driver.funcSetAttribute(function, driver.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, _ALL_PERCENT)
        self._functions.append(function)
        return unit.kernel(operation, len(self._functions) - 1)

    def _tell(self, unit: Unit, cached: bool) -> None:
        if not cached:
            _log.info("device %s: compiled the kernels %s", self.name, unit)

    def _attempt(self, call: Any, *arguments: object) -> None:
        # What a device that has failed does not free goes when its context does.
        with contextlib.suppress(RuntimeError):
            call(*arguments)


class _CupyEvent:
    """One on which a thread sleeps."""

    def __init__(self, device: str, runtime: Any, stream: int) -> None:
        self._device = device
        self._runtime = runtime
        self._stream = stream
        flags = runtime.eventBlockingSync | runtime.eventDisableTiming
        self._event = _call(device, "making an event", runtime.eventCreateWithFlags, flags)

    def record(self) -> None:
        _call(self._device, "recording an event", self._runtime.eventRecord, self._event, self._stream)

    def wait(self) -> None:
        _call(self._device, "waiting for the device", self._runtime.eventSynchronize, self._event)

    def destroy(self) -> None:
        self._runtime.eventDestroy(self._event)


class _CupyStream:
    """A stream that does not wait for the legacy default stream."""

    def __init__(self, device: str, runtime: Any, driver: Any, functions: Sequence[int]) -> None:
        self._device = device
        self._runtime = runtime
        self._driver = driver
        self._functions = functions
        self.handle: int = _call(device, "making a stream", runtime.streamCreateWithFlags, runtime.streamNonBlocking)
        self._events: list[_CupyEvent] = []
        try:
            self._last = self.event()
        except DeviceError:
            runtime.streamDestroy(self.handle)
            raise
        self._parameters = np.zeros(1, np.uint64)
        self._parameters_address = self._parameters.ctypes.data

    def upload(self, to: int, data: NDArray[np.uint8]) -> None:
        self._copy("copying to the device", to, data.ctypes.data, data.size, self._runtime.memcpyHostToDevice)

    def download(self, to: NDArray[np.uint8], source: int) -> None:
        self._copy("copying from the device", to.ctypes.data, source, to.size, self._runtime.memcpyDeviceToHost)

    def copy(self, to: int, source: int, size: int) -> None:
        self._copy("copying on the device", to, source, size, self._runtime.memcpyDeviceToDevice)

    def copy_rows(self, to: tuple[int, int], source: tuple[int, int], size: int, rows: int) -> None:
        arguments = (*to, *source, size, rows, self._runtime.memcpyDeviceToDevice, self.handle)
        _call(self._device, "copying rows on the device", self._runtime.memcpy2DAsync, *arguments)

    def _copy(self, call: str, to: int, source: int, size: int, kind: int) -> None:
        _call(self._device, call, self._runtime.memcpyAsync, to, source, size, kind, self.handle)

    def clear(self, address: int, size: int) -> None:
        _call(self._device, "clearing memory", self._runtime.memsetAsync, address, 0, size, self.handle)

    def launch(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        # One warp to a block: what limits how many run at a time is the shared memory of their tables, and small
        # blocks leave least of it unused.
        self._parameters[0] = arguments.ctypes.data
        blocks = -(-int(arguments[0]["count"]) // kernel.rows)
        shape = (self._functions[kernel.index], blocks, 1, 1, _WARP, 1, 1, kernel.table_bytes)
        launch = self._driver.launchKernel
        _call(self._device, f"launching {kernel.name}", launch, *shape, self.handle, self._parameters_address, 0)

    def event(self) -> _CupyEvent:
        event = _CupyEvent(self._device, self._runtime, self.handle)
        self._events.append(event)
        return event

    def wait(self) -> None:
        self._last.record()  # not streamSynchronize(), which polls
        self._last.wait()

    def destroy(self) -> None:
        try:
            for event in self._events:
                event.destroy()
        finally:
            self._runtime.streamDestroy(self.handle)
