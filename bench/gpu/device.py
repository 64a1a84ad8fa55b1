"""What the GPU suite launches kernels on: a GPU by way of CuPy, or the processor with the kernels' host build.

Apart from the CUDA backend's devices, because it measures kernels that the backend would not choose.
"""

import ctypes
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpu_provider.backends.cuda import devices
from gpu_provider.backends.cuda.cupy_device import allow_table
from gpu_provider.errors import BackendError
from gpu_provider.kernels import cubins, nvrtc, warp
from gpu_provider.kernels.cubin_cache import CubinCache
from gpu_provider.kernels.warp import Operation

WINDOWS = (3, 4, 5)
ENTRIES = {
    Operation.PRIVATE: "gpk_private",
    Operation.MAKE_PAIRS: "gpk_make_pairs",
    Operation.MODEXP: "gpk_modexp",
}
ARITHMETIC = {arithmetic.radix_bits: arithmetic for arithmetic in cubins.Arithmetic}
WARP = 32


@dataclasses.dataclass(frozen=True, order=True)
class Variant:
    """Kernels that differ in what they compute alone."""

    arithmetic: cubins.Arithmetic
    class_bytes: int
    threads: int
    """Of a row."""
    window: int

    @property
    def rows(self) -> int:
        """Of a warp."""
        return WARP // self.threads

    @property
    def bits(self) -> int:
        return 8 * self.class_bytes

    def __str__(self) -> str:
        return f"{self.arithmetic}-{self.bits}-t{self.threads}-w{self.window}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Bytes of what kernels of one arithmetic and class read."""

    key: int
    pair: int
    modulus: int


def layouts() -> dict[tuple[cubins.Arithmetic, int], Layout]:
    """The host build has every arithmetic and class, and its layouts are the device's."""
    sizes = {
        (ARITHMETIC[kernel.radix_bits], kernel.class_bytes, kernel.operation): kernel for kernel in warp.host_kernels()
    }
    return {
        (arithmetic, size): Layout(
            kernel.record_bytes, kernel.pair_bytes, sizes[arithmetic, size, Operation.MODEXP].record_bytes
        )
        for (arithmetic, size, operation), kernel in sizes.items()
        if operation is Operation.PRIVATE
    }


class Device(Protocol):
    """One thread. Addresses are the device's; memory is freed with it."""

    @property
    def name(self) -> str: ...

    @property
    def parallel_threads(self) -> int:
        """How many it runs at full speed."""
        ...

    def describe(self) -> dict[str, Any]:
        """As JSON can hold it."""
        ...

    def describe_kernels(self) -> dict[str, Any]:
        """The same, of the kernels that are loaded."""
        ...

    def variants(self) -> list[Variant]:
        """Whose kernels are loaded."""
        ...

    def missing(self) -> dict[str, str]:
        """Variants that can't be launched, and why."""
        ...

    def has(self, variant: Variant, operation: Operation) -> bool: ...

    def full_rows(self, variant: Variant) -> int:
        """Rows that are computed at the same time."""
        ...

    def host_array(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """Of memory that the device can copy to and from by itself."""
        ...

    def allocate(self, size: int) -> int: ...

    def free_all(self) -> None: ...

    def upload(self, to: int, array: NDArray[Any]) -> None:
        """Like :meth:`download` and :meth:`launch`, begins when what was given before is done."""
        ...

    def download(self, array: NDArray[Any], source: int) -> None: ...

    def launch(self, variant: Variant, operation: Operation, arguments: NDArray[np.void]) -> None: ...

    def wait(self) -> None:
        """Until all of it is done. Raises what the device raises."""
        ...

    def seconds(self, *steps: Callable[[], None]) -> list[float]:
        """Has the device do the steps one after the other; what each took there. Waits for them."""
        ...


class HostDevice:
    """The processor; one window to a kernel, and not every number of threads."""

    name = "host"
    parallel_threads = 32

    def __init__(self) -> None:
        self._kernels = {
            (
                Variant(ARITHMETIC[kernel.radix_bits], kernel.class_bytes, kernel.threads, kernel.window),
                kernel.operation,
            ): kernel
            for kernel in warp.host_kernels()
        }
        self._memory: dict[int, NDArray[np.uint8]] = {}

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def describe_kernels(self) -> dict[str, Any]:
        return {}

    def variants(self) -> list[Variant]:
        return sorted({variant for variant, operation in self._kernels if operation is Operation.PRIVATE})

    def missing(self) -> dict[str, str]:
        return {}

    def has(self, variant: Variant, operation: Operation) -> bool:
        return (variant, operation) in self._kernels

    def full_rows(self, variant: Variant) -> int:
        return variant.rows

    def host_array(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    def allocate(self, size: int) -> int:
        memory = np.zeros(size + 16, np.uint8)
        address = memory.ctypes.data + -memory.ctypes.data % 16
        self._memory[address] = memory
        return address

    def free_all(self) -> None:
        self._memory.clear()

    def upload(self, to: int, array: NDArray[Any]) -> None:
        ctypes.memmove(to, array.ctypes.data, array.nbytes)

    def download(self, array: NDArray[Any], source: int) -> None:
        ctypes.memmove(array.ctypes.data, source, array.nbytes)

    def launch(self, variant: Variant, operation: Operation, arguments: NDArray[np.void]) -> None:
        warp.launch(self._kernels[variant, operation], arguments.ctypes.data)

    def wait(self) -> None:
        pass

    def seconds(self, *steps: Callable[[], None]) -> list[float]:
        taken = []
        for step in steps:
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
        return taken


class CudaDevice:
    """A GPU. Warps have nothing to do with one another, so each is a block of its own."""

    def __init__(self, index: int, cache: CubinCache, units: Sequence[cubins.Unit]) -> None:
        """Loads what the cache has of these units. Raises BackendError where there is no CuPy, and for a cache that
        can't be used."""
        self._index = index
        self._cupy = nvrtc.import_cupy()
        self._cupy.cuda.runtime.setDevice(index)
        self._properties = self._cupy.cuda.runtime.getDeviceProperties(index)
        self.name: str = self._properties["name"].decode()
        self.architecture = cubins.architecture_for(self._properties["major"], self._properties["minor"])
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._functions: dict[tuple[Variant, Operation], Any] = {}
        self._units: dict[Variant, cubins.Unit] = {}
        self._missing: dict[str, str] = {}
        self._memory: list[Any] = []
        try:
            found = cubins.cached_cubins(units, self.architecture, cache)
        except OSError as error:
            raise BackendError(f"the kernel cache can't be used: {error}") from None
        for unit in units:
            if unit in found:
                self._load(unit, found[unit])
            else:
                self._missing[str(unit)] = "not compiled"

    def _load(self, unit: cubins.Unit, cubin: bytes) -> None:
        driver = self._cupy.cuda.driver
        variant = Variant(unit.arithmetic, unit.bytes, unit.threads, unit.window)
        module = self._cupy.cuda.function.Module()
        functions = {}
        try:
            module.load(cubin)
            for operation, entry in ENTRIES.items():
                if entry in unit.entries:
                    functions[variant, operation] = function = module.get_function(entry)
                    allow_table(driver, function.ptr, unit.table_bytes)
        except driver.CUDADriverError as error:
            self._missing[str(unit)] = f"{error} ({unit.table_bytes} bytes of shared memory a warp)"
            return
        self._functions |= functions
        self._units[variant] = unit

    @property
    def multiprocessors(self) -> int:
        return int(self._properties["multiProcessorCount"])

    @property
    def parallel_threads(self) -> int:
        return 512 * self.multiprocessors

    def function(self, cubin: bytes, name: str) -> tuple[Any, Any]:
        """A kernel that is none of ours, and the stream to launch it on."""
        module = self._cupy.cuda.function.Module()
        module.load(cubin)
        return module.get_function(name), self._stream

    def describe(self) -> dict[str, Any]:
        runtime = self._cupy.cuda.runtime
        return {
            "name": self.name,
            "architecture": self.architecture,
            "multiprocessors": self.multiprocessors,
            "memory_bytes": int(self._properties["totalGlobalMem"]),
            "shared_bytes": int(self._properties["sharedMemPerMultiprocessor"]),
            "pci_bus_id": runtime.deviceGetPCIBusId(self._index),
            "cuda_driver": runtime.driverGetVersion(),
            "cuda_runtime": runtime.runtimeGetVersion(),
            "cupy": self._cupy.__version__,
            "nvrtc": nvrtc.version(),
        }

    def describe_kernels(self) -> dict[str, Any]:
        return {
            "registers": {
                f"{variant} {operation.name.lower()}": self._cupy.cuda.driver.funcGetAttribute(
                    self._cupy.cuda.driver.CU_FUNC_ATTRIBUTE_NUM_REGS, function.ptr
                )
                for (variant, operation), function in self._functions.items()
            },
            "full_rows": {str(variant): self.full_rows(variant) for variant in self.variants()},
        }

    def variants(self) -> list[Variant]:
        return list(self._units)

    def missing(self) -> dict[str, str]:
        return self._missing

    def has(self, variant: Variant, operation: Operation) -> bool:
        return (variant, operation) in self._functions

    def full_rows(self, variant: Variant) -> int:
        warps = self._cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
            self._functions[variant, Operation.PRIVATE].ptr, WARP, self._units[variant].table_bytes
        )
        return int(warps) * self.multiprocessors * variant.rows

    def host_array(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self._cupy.cuda.alloc_pinned_memory(max(1, size))
        array: NDArray[Any] = np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)
        return array

    def allocate(self, size: int) -> int:
        self._memory.append(self._cupy.cuda.Memory(max(1, size)))
        return int(self._memory[-1].ptr)

    def free_all(self) -> None:
        self.wait()
        self._memory.clear()

    def upload(self, to: int, array: NDArray[Any]) -> None:
        runtime = self._cupy.cuda.runtime
        runtime.memcpyAsync(to, array.ctypes.data, array.nbytes, runtime.memcpyHostToDevice, self._stream.ptr)

    def download(self, array: NDArray[Any], source: int) -> None:
        runtime = self._cupy.cuda.runtime
        runtime.memcpyAsync(array.ctypes.data, source, array.nbytes, runtime.memcpyDeviceToHost, self._stream.ptr)

    def launch(self, variant: Variant, operation: Operation, arguments: NDArray[np.void]) -> None:
        warps = -(-int(arguments[0]["count"]) // variant.rows)
        shared = self._units[variant].table_bytes
        self._functions[variant, operation]((warps,), (WARP,), (arguments,), shared, self._stream)

    def wait(self) -> None:
        self._stream.synchronize()

    def seconds(self, *steps: Callable[[], None]) -> list[float]:
        events = [self._cupy.cuda.Event() for _ in range(len(steps) + 1)]
        events[0].record(self._stream)
        for step, event in zip(steps, events[1:], strict=True):
            step()
            event.record(self._stream)
        events[-1].synchronize()
        between = self._cupy.cuda.get_elapsed_time
        return [between(first, second) / 1e3 for first, second in itertools.pairwise(events)]


def find_device(number: str) -> devices.Device:
    """Raises BackendError if CUDA has no device of that number."""
    found = {str(device.index): device for device in devices.find_devices()}
    if number not in found:
        raise BackendError(f"--device {number}: CUDA has {', '.join(found)}")
    return found[number]


def all_units() -> list[cubins.Unit]:
    """Both arithmetics, whatever the GPU, and every window: to compare them is the point. The backend's come first."""
    others = (unit for window in WINDOWS for unit in cubins.units(cubins.Arithmetic, window))
    return list(dict.fromkeys([*cubins.units(cubins.Arithmetic), *others]))
