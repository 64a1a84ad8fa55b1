"""CUDA functions that work on the processor: names, order and number of the arguments are CuPy's; the kernels are the
host build."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import ptx_units

from bench.gpu.host_device import host_kernels, run_on_host
from gpu_provider.backends.cuda.devices import Gpu
from gpu_provider.kernels import cubins
from gpu_provider.kernels.cubins import Arithmetic
from gpu_provider.kernels.launch import MODEXP_LAUNCH, PRIVATE_LAUNCH, Operation

if TYPE_CHECKING:
    import pytest

GPU = Gpu(
    index=1, name="Test GPU", major=9, minor=0, multiprocessors=4, memory_bytes=1 << 30, pci_bus_id="0000:3b:00.0"
)
HOST = {(kernel.operation, kernel.radix_bits, kernel.class_bytes): kernel for kernel in host_kernels()}


class CudaError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError{status}")
        self.status = status


class CupyArray:
    """What ``cupy.empty()`` returns."""

    def __init__(self, array: Any, stream: int | None = None) -> None:
        self.array = array
        self._stream = stream

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__array_interface__, "version": 3, "stream": self._stream}


class Cuda:
    """``cupy.cuda.runtime`` and ``cupy.cuda.driver`` in one. A cubin is the unit's name, a function its entry's."""

    hostAllocPortable, eventBlockingSync, eventDisableTiming, streamNonBlocking = 1, 1, 2, 1  # noqa: N815
    memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice = 1, 2, 3  # noqa: N815
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 8, 9
    CU_FUNC_ATTRIBUTE_NUM_REGS = 4

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.modules: list[str] = []
        self.functions: list[tuple[str, str]] = []
        self.fail: dict[str, int] = {}
        self.stuck = False
        """As after a kernel's fault: every call returns its error."""
        self.on_ptx = False
        """Executes what NVRTC made of the kernels, slowly, and not their host build."""
        self.asked = 0
        self.shared: dict[int, int] = {}
        self.most_shared = 227 << 10
        self.streams: set[int] = set()
        self.events: set[int] = set()
        self.arrays: list[CupyArray] = []
        self.waited_for: list[int] = []
        self.current = threading.local()
        """The device of each thread; 0 until it chooses one."""
        self.chosen: Counter[int] = Counter()
        """How often each thread did so."""
        self.recorded: dict[int, int] = {}
        """When each event was: the milliseconds are events that were recorded before it."""

    def empty(self, shape: tuple[int, int], dtype: Any) -> CupyArray:
        self._call("empty")
        self.arrays.append(CupyArray(np.full(shape, 0xA5, dtype)))
        return self.arrays[-1]

    def pointerGetAttributes(self, address: int) -> SimpleNamespace:  # noqa: N802
        if any(array.array.ctypes.data == address for array in self.arrays):
            return SimpleNamespace(device=GPU.index, devicePointer=address)
        raise CudaError(1)

    def streamSynchronize(self, stream: int) -> None:  # noqa: N802
        self._call("streamSynchronize")
        self.waited_for.append(stream)

    def memcpy2DAsync(self, to: int, to_pitch: int, *rest: int) -> None:  # noqa: N802
        source, source_pitch, size, rows, kind, stream = rest
        assert kind == self.memcpyDeviceToDevice
        assert stream in self.streams
        for row in range(rows):
            ctypes.memmove(to + row * to_pitch, source + row * source_pitch, size)

    def _call(self, name: str) -> None:
        if self.stuck:
            raise CudaError(700)
        if name in self.fail:
            raise CudaError(self.fail[name])

    def getDevice(self) -> int:  # noqa: N802
        self._call("getDevice")
        return getattr(self.current, "device", 0)

    def setDevice(self, device: int) -> None:  # noqa: N802
        self.chosen[threading.get_ident()] += 1
        self.current.device = device

    def deviceSynchronize(self) -> None:  # noqa: N802
        self.asked += 1
        self._call("deviceSynchronize")

    def malloc(self, size: int) -> int:
        self._call("malloc")
        array = np.full(size + 16, 0xA5, np.uint8)
        start = -array.ctypes.data % 16
        self.memory[array.ctypes.data + start] = array[start : start + size]
        return array.ctypes.data + start

    def free(self, address: int) -> None:
        self._call("free")
        del self.memory[address]

    def hostAlloc(self, size: int, flags: int) -> int:  # noqa: N802
        assert flags == self.hostAllocPortable
        return self.malloc(size)

    def freeHost(self, address: int) -> None:  # noqa: N802
        self.free(address)

    def streamCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        assert flags == self.streamNonBlocking
        self._call("streamCreateWithFlags")
        self.streams.add(1000 + len(self.streams))
        return max(self.streams)

    def streamDestroy(self, stream: int) -> None:  # noqa: N802
        self.streams.remove(stream)

    def eventCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        assert flags == self.eventBlockingSync | self.eventDisableTiming
        self.events.add(2000 + len(self.events))
        return max(self.events)

    def eventCreate(self) -> int:  # noqa: N802
        return self.eventCreateWithFlags(self.eventBlockingSync | self.eventDisableTiming)

    def eventElapsedTime(self, start: int, end: int) -> float:  # noqa: N802
        return float(self.recorded[end] - self.recorded[start])

    def eventDestroy(self, event: int) -> None:  # noqa: N802
        self.events.remove(event)

    def eventRecord(self, event: int, stream: int) -> None:  # noqa: N802
        assert event in self.events
        assert stream in self.streams
        self.recorded[event] = max(self.recorded.values(), default=0) + 1

    def eventSynchronize(self, event: int) -> None:  # noqa: N802
        self._call("eventSynchronize")
        assert event in self.events

    def memcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
        self._call("memcpyAsync")
        assert kind in {1, 2, 3}
        assert stream in self.streams
        ctypes.memmove(to, source, size)

    def memsetAsync(self, address: int, value: int, size: int, stream: int) -> None:  # noqa: N802
        assert stream in self.streams
        ctypes.memset(address, value, size)

    def moduleLoadData(self, image: bytes) -> int:  # noqa: N802
        self.modules.append(image.decode())
        return len(self.modules) - 1

    def moduleUnload(self, module: int) -> None:  # noqa: N802
        self.modules[module] = ""

    def moduleGetFunction(self, module: int, name: str) -> int:  # noqa: N802
        self.functions.append((self.modules[module], name))
        return len(self.functions) - 1

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:  # noqa: N802
        if attribute == self.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
            if value > self.most_shared:
                raise CudaError(1)
            self.shared[function] = value
        else:
            assert (attribute, value) == (self.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)

    def funcGetAttribute(self, attribute: int, _function: int) -> int:  # noqa: N802
        assert attribute == self.CU_FUNC_ATTRIBUTE_NUM_REGS
        return 96

    def occupancyMaxActiveBlocksPerMultiprocessor(self, _function: int, threads: int, _shared: int) -> int:  # noqa: N802
        assert threads == 32
        return 1

    def getDeviceProperties(self, _device: int) -> dict[str, Any]:  # noqa: N802
        return {"sharedMemPerMultiprocessor": 228 << 10}

    def driverGetVersion(self) -> int:  # noqa: N802
        return 13000

    runtimeGetVersion = driverGetVersion  # noqa: N815

    def launchKernel(self, function: int, *rest: int) -> None:  # noqa: N802
        self._call("launchKernel")
        assert self.current.device == GPU.index
        blocks, grid_y, grid_z, threads, block_y, block_z, shared, stream, parameters, extra = rest
        assert (grid_y, grid_z, threads, block_y, block_z, extra) == (1, 1, 32, 1, 1, 0)
        assert shared == self.shared[function]
        assert stream in self.streams
        address = ctypes.c_uint64.from_address(parameters).value
        unit, name = self.functions[function]
        (found,) = [one for one in cubins.units(Arithmetic, int(unit.rpartition("-w")[2])) if str(one) == unit]
        assert blocks == -(-ctypes.c_uint32.from_address(address).value // found.rows)
        if self.on_ptx:
            size = MODEXP_LAUNCH.itemsize if name == "gpk_modexp" else PRIVATE_LAUNCH.itemsize
            ptx_units.run(found, name, ctypes.string_at(address, size), blocks, list(self.memory.values()))
        else:
            (operation,) = (one for one in Operation if one.entry == name)
            run_on_host(HOST[operation, found.arithmetic.radix_bits, found.bytes], address)


def install(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """In place of CuPy and of what compiles the kernels."""
    cuda = Cuda()
    module = SimpleNamespace(
        runtime=cuda,
        driver=cuda,
        Device=lambda index: contextlib.nullcontext(cuda.setDevice(index)),
        get_current_stream=lambda: SimpleNamespace(synchronize=lambda: cuda.streamSynchronize(0)),
        memory=SimpleNamespace(OutOfMemoryError=MemoryError),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=module, empty=cuda.empty, __version__="0.1"))
    monkeypatch.setitem(sys.modules, "cupy.cuda", module)
    monkeypatch.setattr(cubins, "architecture_for", lambda major, minor: f"sm_{major}{minor}")
    monkeypatch.setattr(cubins, "load_cubins", lambda units, *_, **__: {unit: str(unit).encode() for unit in units})
    return cuda
