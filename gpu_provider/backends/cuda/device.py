"""What the CUDA backend asks of a device: memory, streams, copies and launches, and nothing that knows of RSA.

Two implementations: ``cupy_device.py``, a GPU, and ``host_device.py``, the same kernels on the processor. A device
address is an int, and so is what a kernel's arguments hold (``kernels/launch.h``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from gpu_provider.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gpu_provider.kernels.warp import Kernel

__all__ = [
    "MODEXP_LAUNCH",
    "PRIVATE_LAUNCH",
    "CudaArray",
    "Device",
    "DeviceError",
    "DeviceMemoryError",
    "DeviceRows",
    "Event",
    "Stream",
]

PRIVATE_LAUNCH = np.dtype(
    [
        ("count", np.uint32),
        ("exponent_bits", np.uint32),
        ("any_e", np.uint64),
        ("record_of_row", np.uint64),
        ("pair_of_row", np.uint64),
        ("records", np.uint64),
        ("pairs", np.uint64),
        ("inputs", np.uint64),
        ("outputs", np.uint64),
        ("ok", np.uint64),
    ]
)
"""``struct gpk_private_launch``."""
MODEXP_LAUNCH = np.dtype(
    [
        ("count", np.uint32),
        ("exponent_bits", np.uint32),
        ("exponent_stride", np.uint32),
        ("unused", np.uint32),
        ("modulus_of_row", np.uint64),
        ("moduli", np.uint64),
        ("bases", np.uint64),
        ("exponents", np.uint64),
        ("outputs", np.uint64),
    ]
)
"""``struct gpk_modexp_launch``."""


class DeviceError(BackendError):
    """A call of a device failed. The message names the device and the call."""


class DeviceMemoryError(DeviceError):
    """The device, or the host, has no memory of the kind that was asked for. The device works on."""


@runtime_checkable
class CudaArray(Protocol):
    """An array in a device's memory, of whichever library: CuPy, Numba, PyTorch (the CUDA Array Interface of Numba's
    manual, version 3)."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """Numbers in a device's memory that belongs to the caller: 64-bit limbs, the least significant first."""

    address: int
    rows: int
    limbs: int
    pitch: int
    """Bytes from one row to the next."""
    owner: CudaArray
    """Kept alive as long as somebody knows the address."""

    @property
    def bytes(self) -> int:
        """Of a row's limbs."""
        return 8 * self.limbs

    def part(self, start: int, stop: int) -> DeviceRows:
        """The rows from ``start`` to before ``stop``, or to the last one."""
        first = self.address + start * self.pitch
        return DeviceRows(first, min(stop, self.rows) - start, self.limbs, self.pitch, self.owner)


class Event(Protocol):
    """A place in the work of a stream. One thread at a time. Raises DeviceError like the stream."""

    def record(self) -> None:
        """Puts it behind the work that the stream was given so far."""
        ...

    def wait(self) -> None:
        """Sleeps, without the GIL and without polling, until the work before it is done."""
        ...


class Stream(Protocol):
    """Work that a device does in the order in which it was given. One thread at a time; calls return at once.

    What is copied must stay as it is until the copy is done. Every method raises DeviceError, also for work that was
    given before.
    """

    def upload(self, to: int, data: NDArray[np.uint8]) -> None:
        """Copies pinned memory to the device."""
        ...

    def download(self, to: NDArray[np.uint8], source: int) -> None:
        """Fills pinned memory from the device."""
        ...

    def copy(self, to: int, source: int, size: int) -> None:
        """From the device's memory to the device's memory."""
        ...

    def copy_rows(self, to: tuple[int, int], source: tuple[int, int], size: int, rows: int) -> None:
        """The same for ``rows`` rows of ``size`` bytes each. ``to``, ``source``: where the first one begins, and how
        many bytes after it the next one does."""
        ...

    def clear(self, address: int, size: int) -> None:
        """Zeroes memory of the device."""
        ...

    def launch(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        """``arguments``: one element of PRIVATE_LAUNCH or MODEXP_LAUNCH, which may change once this has returned."""
        ...

    def event(self) -> Event:
        """A new one, which lives as long as the stream."""
        ...

    def wait(self) -> None:
        """Sleeps like an event, until all work is done that it was given."""
        ...


class Device(Protocol):
    """One device. Any thread, but :meth:`open` and :meth:`close` by one at a time, with no other call running."""

    @property
    def name(self) -> str:
        """For messages and logs."""
        ...

    @property
    def pci_bus_id(self) -> str | None:
        """By which NVML knows it; None if it is no GPU."""
        ...

    @property
    def parallel_threads(self) -> int:
        """How many threads it runs at full speed: what a batch must have to keep it busy."""
        ...

    def open(self) -> Sequence[Kernel]:
        """Makes it usable. If it was open, it starts over: nothing that was allocated before is left. It is then
        the device of the calling thread. Returns its kernels, of one radix. Raises DeviceError, or another BackendError
        that says what is missing."""
        ...

    def close(self) -> None:
        """Gives back all that is left, also of a device that has failed. Raises nothing."""
        ...

    def allocate(self, size: int) -> int:
        """The address of new memory, aligned to 16 bytes. Raises DeviceMemoryError."""
        ...

    def free(self, address: int) -> None:
        """No work that uses it may be left."""
        ...

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        """Zeroed memory of the host that the device can copy to and from by itself. Raises DeviceMemoryError."""
        ...

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        """Of :meth:`allocate_pinned`; no work that uses it may be left."""
        ...

    def stream(self) -> Stream:
        """A new one, which lives until the device is closed or opened again."""
        ...

    def use(self) -> None:
        """Makes it the device of the calling thread, as each thread must before it calls anything else here."""
        ...

    # ---- the callers' own arrays: on the caller's thread, whose device stays what it is ----

    def owns(self, address: int) -> bool:
        """Whether this is an address in the device's memory."""
        ...

    def new_array(self, rows: int, limbs: int) -> CudaArray:
        """A C-contiguous uint64 array [rows, limbs] for the caller. Raises DeviceMemoryError."""
        ...

    def settle(self, stream: int | None) -> None:
        """Sleeps until all is done that the calling thread has given to its own stream, and what is in ``stream``, by
        its number in the CUDA Array Interface. Raises DeviceError."""
        ...
