"""What the CUDA backend asks of a device: memory, streams, copies and launches, and nothing that knows of RSA.

``cupy_device.py`` is a GPU; tests and bench have a device that runs the same kernels on the processor. A device's
address is an int, as in a kernel's arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gpu_provider.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import TypeIs

    from gpu_provider.kernels.launch import Kernel

__all__ = [
    "CudaArray",
    "Device",
    "DeviceError",
    "DeviceMemoryError",
    "DeviceRows",
    "Event",
    "Stream",
    "is_cuda_array",
]


class DeviceError(BackendError):
    """A call of a device failed. The message names the device and the call."""


class DeviceMemoryError(DeviceError):
    """The device or the host has no such memory left. The device keeps working."""


class CudaArray(Protocol):
    """An array in a device's memory, of any library (CuPy, Numba, PyTorch): version 3 of the CUDA Array Interface, as
    Numba's manual has it."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


def is_cuda_array(operand: object) -> TypeIs[CudaArray]:
    """Not by isinstance(): of a Protocol, that takes longer than reading all operands of a call."""
    return hasattr(operand, "__cuda_array_interface__")


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """Numbers in the caller's array on a device: 64-bit limbs, the least significant first."""

    address: int
    rows: int
    limbs: int
    pitch: int
    """Bytes from one row to the next."""
    owner: CudaArray
    """Keeps the memory alive as long as somebody knows the address."""

    @property
    def bytes(self) -> int:
        """The size of a row's limbs, without what follows them up to the pitch."""
        return 8 * self.limbs

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows, and the bytes of each: what ``Rows`` have as their shape."""
        return self.rows, self.bytes

    def part(self, start: int, stop: int) -> DeviceRows:
        """The rows from ``start`` to before ``stop``, or to the last one."""
        first = self.address + start * self.pitch
        return DeviceRows(first, min(stop, self.rows) - start, self.limbs, self.pitch, self.owner)


class Event(Protocol):
    """A place in the work of a stream, for one thread at a time. Raises DeviceError like the stream."""

    def record(self) -> None:
        """Puts the event behind all work that the stream has been given so far."""

    def wait(self) -> None:
        """Sleeps, without the GIL and without polling, until the work before it is done."""


class Stream(Protocol):
    """Work that a device does in the order in which it was given. For one thread at a time; calls return at once.

    What is copied must not change until the copy is done. Every method raises DeviceError, also for earlier work.
    """

    def upload(self, to: int, data: NDArray[np.uint8]) -> None:
        """Copies pinned memory to the device."""

    def download(self, to: NDArray[np.uint8], source: int) -> None:
        """Fills pinned memory from the device."""

    def copy(self, to: int, source: int, size: int) -> None:
        """Copies within the device's memory."""

    def copy_rows(self, to: tuple[int, int], source: tuple[int, int], size: int, rows: int) -> None:
        """Copies ``rows`` rows of ``size`` bytes each. ``to``, ``source``: where the first one begins, and how many
        bytes after it the next one does."""

    def clear(self, address: int, size: int) -> None:
        """Zeroes memory of the device."""

    def launch(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        """``arguments``: one element of ``PRIVATE_LAUNCH`` or ``MODEXP_LAUNCH`` (``kernels/launch.py``), which may
        change once this has returned."""

    def event(self) -> Event:
        """A new event, which lives as long as the stream."""

    def wait(self) -> None:
        """Sleeps like an event until all its work is done."""


class Device(Protocol):
    """One device, for any thread; but :meth:`open` and :meth:`close` by one at a time, while no other call runs."""

    @property
    def name(self) -> str:
        """What messages and logs call it."""

    @property
    def pci_bus_id(self) -> str | None:
        """NVML's name for it; None if it is no GPU."""

    @property
    def parallel_threads(self) -> int:
        """The threads that it runs at full speed: as many as a batch must have to keep it busy."""

    def open(self) -> Sequence[Kernel]:
        """Makes it usable, and the device of the calling thread. If it was open, it starts over: nothing that was
        allocated before is left. Returns its kernels, of one radix. Raises DeviceError, or another BackendError that
        says what is missing."""

    def close(self) -> None:
        """Gives back everything that is left, even of a device that has failed. Raises nothing."""

    def allocate(self, size: int) -> int:
        """The address of new memory, aligned to 16 bytes. Raises DeviceMemoryError."""

    def free(self, address: int) -> None:
        """Frees memory that no work uses any more."""

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        """Zeroed memory of the host that the device can copy to and from by itself. Raises DeviceMemoryError."""

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        """Frees memory of :meth:`allocate_pinned` that no work uses any more."""

    def stream(self) -> Stream:
        """A new stream, which lives until the device is closed or opened again."""

    def use(self) -> None:
        """Makes it the device of the calling thread, as each thread must before it calls anything else here."""

    # ---- the callers' own arrays: on the caller's thread, whose device stays what it is ----

    def owns(self, address: int) -> bool:
        """Whether this is an address in the device's memory."""

    def new_array(self, rows: int, limbs: int) -> CudaArray:
        """A C-contiguous uint64 array [rows, limbs] for the caller. Raises DeviceMemoryError."""

    def settle(self, stream: int | None) -> None:
        """Sleeps until everything is done in the calling thread's own stream and in ``stream``, a number of the CUDA
        Array Interface. Raises DeviceError."""
