"""A worker's stream, and its memory on the host and on the device: both sides lie alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.backends.cuda.device import DeviceMemoryError
from gpu_provider.client import MAX_BYTES, u8, u32, u64
from gpu_provider.native import ffi

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.base import Rows
    from gpu_provider.backends.cuda.device import Device, DeviceRows, Stream

__all__ = ["INDEX_BYTES", "Arena", "Part", "Staging"]

INDEX_BYTES = 4
_FIRST_ROWS = 64
_ALIGNMENT = 16
_UP_BYTES = MAX_BYTES + 2 * INDEX_BYTES
_DOWN_BYTES = MAX_BYTES + 1


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT


class Part:
    """Some bytes of an arena."""

    __slots__ = ("_arena", "_start", "_stop")

    def __init__(self, arena: Arena, start: int, stop: int) -> None:
        self._arena, self._start, self._stop = arena, start, stop

    @property
    def host(self) -> NDArray[np.uint8]:
        return self._arena.host[self._start : self._stop]

    @property
    def address(self) -> int:
        return self._arena.address + self._start

    def through(self, last: Part) -> Part:
        """The memory from the beginning of this part to the end of a later one."""
        return Part(self._arena, self._start, last._stop)

    def upload(self, stream: Stream) -> None:
        stream.upload(self.address, self.host)

    def download(self, stream: Stream) -> None:
        stream.download(self.host, self.address)

    def clear(self, stream: Stream) -> None:
        """Wipes the device's side."""
        stream.clear(self.address, self._stop - self._start)

    def wipe(self) -> None:
        """Wipes the host's side."""
        self.host.fill(0)

    def fill(self, stream: Stream, rows: Rows | DeviceRows, width: int) -> None:
        """Fills the device's side with numbers from the host or the device, as rows of ``width`` bytes."""
        if isinstance(rows, np.ndarray):
            wide = self.host.reshape(len(rows), width)
            wide[:, : rows.shape[1]] = rows
            wide[:, rows.shape[1] :] = 0
            self.upload(stream)
            return
        if rows.bytes < width:
            self.clear(stream)
        stream.copy_rows((self.address, width), (rows.address, rows.pitch), rows.bytes, rows.rows)

    def copy_to(self, stream: Stream, rows: DeviceRows, width: int) -> None:
        """Copies rows of ``width`` bytes from the device's side to the caller's array."""
        stream.copy_rows((rows.address, rows.pitch), (self.address, width), rows.bytes, rows.rows)


class Arena:
    """Pinned memory of the host, and as much of the device's."""

    def __init__(self, device: Device, *sizes: int) -> None:
        """Makes room for parts of these sizes. Raises DeviceMemoryError."""
        self._device = device
        size = sum(map(_aligned, sizes))
        self.host = device.allocate_pinned(size)
        try:
            self.address = device.allocate(size)
        except DeviceMemoryError:
            device.free_pinned(self.host)
            raise

    def lay_out(self, *sizes: int) -> list[Part]:
        """Parts of these sizes from the beginning, each aligned as ``staging.c`` and the kernels have it."""
        parts, stop = [], 0
        for size in sizes:
            start = stop + -stop % _ALIGNMENT
            stop = start + size
            parts.append(Part(self, start, stop))
        if stop > len(self.host):
            raise ValueError(f"parts of {sizes} bytes in an arena of {len(self.host)}")
        return parts

    def free(self) -> None:
        self._device.free_pinned(self.host)
        self._device.free(self.address)


class Staging:
    """A worker's memory for its batches, which grows with them. The worker's thread only."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.stream = device.stream()
        self.uploaded, self.downloaded = self.stream.event(), self.stream.event()
        self.up: Arena
        self.down: Arena
        self.fresh: Arena
        """What blinding pairs are made of."""
        self._arenas: list[Arena] = []
        self.rows = 0
        """There is room for so many rows of any size class."""
        self.struct: Any = ffi.new("struct gp_staging *")
        """What ``gp_stage`` works on."""

    def reserve_bytes(self, up: list[int], down: int) -> None:
        """Makes room for parts of these sizes. Raises DeviceMemoryError; then all is as before."""
        self.reserve(max(-(-sum(map(_aligned, up)) // _UP_BYTES), -(-down // _DOWN_BYTES)))

    def reserve(self, rows: int) -> None:
        """Makes room for so many rows of any size class. Raises DeviceMemoryError; then all is as before."""
        if rows <= self.rows:
            return
        rows = max(_FIRST_ROWS, 1 << (rows - 1).bit_length())
        arenas: list[Arena] = []
        try:
            for row_bytes in (_UP_BYTES, _DOWN_BYTES, _UP_BYTES):
                arena = Arena(self._device, rows * row_bytes)
                arenas.append(arena)
        except DeviceMemoryError:
            for arena in arenas:
                arena.free()
            raise
        self.stream.wait()
        for arena in self._arenas:
            arena.free()
        self._arenas, self.rows = arenas, rows
        self.up, self.down, self.fresh = arenas
        self._indices = [np.zeros(rows, np.uint32) for _ in range(5)]
        self._lacking = np.zeros(rows, np.uint64)
        struct = self.struct
        struct.upload, struct.download, struct.fresh = (u8(arena.host) for arena in arenas)
        struct.row, struct.fresh_record, struct.fresh_pair = map(u32, self._indices[:3])
        struct.lacking_record, struct.lacking_pairs = map(u32, self._indices[3:])
        struct.lacking = u64(self._lacking)
        struct.room = rows

    def clear(self) -> None:
        """Has the device wipe its side."""
        for arena in self._arenas:
            self.stream.clear(arena.address, len(arena.host))

    def wipe(self) -> None:
        """Wipes the host's side."""
        for arena in self._arenas:
            arena.host.fill(0)
