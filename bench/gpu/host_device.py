"""The processor in place of a GPU: the same kernels, built for the host, behind the CUDA backend's device interface.

For tests and benches where there is no GPU. It is slow. Every stream has a thread, so batches are really in flight at
the same time, and copies really happen later.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from itertools import count, takewhile
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.backends.cuda.device import DeviceError, DeviceMemoryError
from gpu_provider.kernels._kernels import ffi, lib
from gpu_provider.kernels.cubins import Unit
from gpu_provider.kernels.launch import Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gpu_provider.kernels.launch import Kernel

__all__ = ["HostArray", "HostDevice", "HostKernels", "host_kernels", "run_on_host"]

_ALIGNMENT = 16


@functools.cache
def _library() -> ctypes.CDLL:
    """What the Makefile builds of ``kernels/host``."""
    library = ctypes.CDLL(str(Path(__file__).with_name("host_kernels.so")))
    library.gpk_host_unit_at.restype = ctypes.c_void_p
    library.gpk_host_run.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    return library


def host_kernels() -> list[Kernel]:
    """The kernels of the host build: none where an x86-64 processor lacks AVX2 or FMA."""
    addresses = takewhile(bool, map(_library().gpk_host_unit_at, count()))
    units = [Unit.of(ffi.cast("struct gpk_unit *", address)) for address in addresses]
    return [unit.kernel(operation, index) for index, unit in enumerate(units) for operation in Operation]


def run_on_host(kernel: Kernel, arguments: int) -> None:
    """Computes all rows. ``arguments``: the address of the kernel's launch structure, in which nothing is checked.

    Releases the GIL, and may be called from any number of threads at once, as long as no two share a blinding pair.
    """
    if _library().gpk_host_run(kernel.index, kernel.operation, arguments) != lib.GPK_OK:
        raise MemoryError("no memory for the kernels' workspace")


class HostKernels:
    """The kernels' host build."""

    def __init__(self, radix_bits: int | None = 52) -> None:
        """``radix_bits``: 52, 32, or None for both. Raises DeviceError where the processor can't run them."""
        self.kernels = [kernel for kernel in host_kernels() if radix_bits in {kernel.radix_bits, None}]
        if not self.kernels:
            raise DeviceError("this processor lacks AVX2 or FMA, which the host build of the kernels needs")

    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        """Computes all rows on this thread."""
        try:
            run_on_host(kernel, arguments.ctypes.data)
        except MemoryError as error:
            raise DeviceMemoryError(str(error)) from None


def _nothing(call: str) -> None:
    """Happens before a call, unless a test wants something else."""


class HostArray:
    """A caller's array in the memory of a :class:`HostDevice`."""

    def __init__(self, array: NDArray[np.uint64]) -> None:
        self.array = array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__array_interface__, "version": 3, "stream": None}


class HostDevice:
    """A device whose memory is the host's."""

    parallel_threads = 32
    pci_bus_id = None

    def __init__(
        self,
        kernels: HostKernels | None = None,
        *,
        name: str = "host",
        limit: int = 1 << 30,
        before: Callable[[str], None] = _nothing,
    ) -> None:
        """``kernels``: None for those in radix 2^52. ``limit``: bytes that can be allocated on the device.
        ``before(call)`` runs before each call of the device or of one of its streams, on the caller's thread, and may
        raise or wait."""
        self.name = name
        self.memory: dict[int, NDArray[np.uint8]] = {}
        """The device's memory, by address."""
        self.pinned: dict[int, NDArray[np.uint8]] = {}
        """The pinned memory, by address."""
        self._kernels = kernels or HostKernels()
        self.limit = limit
        self._before = before
        self._streams: list[_HostStream] = []
        self._arrays: weakref.WeakSet[HostArray] = weakref.WeakSet()
        self._lock = threading.Lock()

    def open(self) -> Sequence[Kernel]:
        self._before("open")
        self.close()
        return self._kernels.kernels

    def close(self) -> None:
        for stream in self._streams:
            stream.end()
        self._streams.clear()
        self.memory.clear()
        self.pinned.clear()

    def allocate(self, size: int) -> int:
        self._before("allocate")
        with self._lock:
            if sum(len(array) for array in self.memory.values()) + size > self.limit:
                raise DeviceMemoryError(f"device {self.name}: no memory for {size} bytes more")
            return _add(self.memory, size)

    def free(self, address: int) -> None:
        self._before("free")
        with self._lock:
            del self.memory[address]

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        self._before("allocate_pinned")
        with self._lock:
            return self.pinned[_add(self.pinned, size)]

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        self._before("free_pinned")
        with self._lock:
            del self.pinned[array.ctypes.data]

    def stream(self) -> _HostStream:
        self._before("stream")
        stream = _HostStream(self.name, self._kernels, self._before)
        self._streams.append(stream)
        return stream

    def use(self) -> None:
        self._before("use")

    def owns(self, address: int) -> bool:
        held = (array.array for array in self._arrays)
        return any(array.ctypes.data <= address < array.ctypes.data + array.nbytes for array in held)

    def new_array(self, rows: int, limbs: int) -> HostArray:
        self._before("new_array")
        array = HostArray(np.zeros((rows, limbs), np.uint64))
        self._arrays.add(array)
        return array

    def settle(self, stream: int | None) -> None:
        self._before("settle")


def _add(arrays: dict[int, NDArray[np.uint8]], size: int) -> int:
    array = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -array.ctypes.data % _ALIGNMENT
    address = array.ctypes.data + start
    arrays[address] = array[start : start + size]
    return address


class _HostEvent:
    def __init__(self, stream: _HostStream) -> None:
        self._stream = stream
        self._done = threading.Event()

    def record(self) -> None:
        self._done = threading.Event()
        self._stream.record(self._done)

    def wait(self) -> None:
        self._stream.wait_for(self._done)


class _HostStream:
    def __init__(self, device: str, kernels: HostKernels, before: Callable[[str], None]) -> None:
        self._device = device
        self._kernels = kernels
        self._before = before
        self._error: DeviceError | None = None
        self._ended = False
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"gpu-provider-{device}-stream", daemon=True)
        self._thread.start()

    def upload(self, to: int, data: NDArray[np.uint8]) -> None:
        self._give("upload", lambda: ctypes.memmove(to, data.ctypes.data, data.size))

    def download(self, to: NDArray[np.uint8], source: int) -> None:
        self._give("download", lambda: ctypes.memmove(to.ctypes.data, source, to.size))

    def copy(self, to: int, source: int, size: int) -> None:
        self._give("copy", lambda: ctypes.memmove(to, source, size))

    def copy_rows(self, to: tuple[int, int], source: tuple[int, int], size: int, rows: int) -> None:
        def copy() -> None:
            for row in range(rows):
                ctypes.memmove(to[0] + row * to[1], source[0] + row * source[1], size)

        self._give("copy_rows", copy)

    def clear(self, address: int, size: int) -> None:
        self._give("clear", lambda: ctypes.memset(address, 0, size))

    def launch(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        now = arguments.copy()
        self._give("launch", lambda: self._kernels.run(kernel, now))

    def event(self) -> _HostEvent:
        return _HostEvent(self)

    def wait(self) -> None:
        event = self.event()
        event.record()
        event.wait()

    def record(self, done: threading.Event) -> None:
        self._give("record", done.set)

    def wait_for(self, done: threading.Event) -> None:
        self._before("wait")
        done.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Ends the stream when its work is done."""
        self._ended = True
        self._work.put(None)
        self._thread.join()

    def _give(self, call: str, work: Callable[[], object]) -> None:
        self._before(call)
        if self._ended:
            raise DeviceError(f"device {self._device}: {call}: the stream is closed")
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except DeviceError as error:
                self._error = error
