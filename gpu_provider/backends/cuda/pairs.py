"""The blinding pairs of one worker and size class: a block of them for each key, which grows with its rows in a batch.

A block that its key no longer needs is wiped before another key gets it. No two rows in flight share a pair, because a
worker has one batch at a time and each row of a key another pair of its block.

Pairs are renewed behind a batch rather than before one (``gp_stage_worn``): once a pair has been used up, all the worn
ones of the worker are made in one launch, and no batch of this worker needs another for a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.client import u16, u32, u64
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.cuda.device import Device, Stream

__all__ = ["DevicePairs"]

_FIRST_PAIRS = 1024


class DevicePairs:
    """The blinding pairs of one worker and size class. The worker's thread only."""

    def __init__(self, device: Device, stream: Stream, pair_bytes: int) -> None:
        self._device = device
        self._stream = stream
        self._pair_bytes = pair_bytes
        self.address = 0
        """The address of the first pair; changes as pairs are added."""
        self._owner = np.empty(0, np.uint64)
        self._first, self._count, self._wanted, self._prime_bits = (np.empty(0, np.uint32) for _ in range(4))
        self._e = np.empty(0, np.uint64)
        self._uses = np.empty(0, np.uint16)
        self._taken = 0  # pairs that belong to a block, or to one of the spare ones
        self._spare: dict[int, list[int]] = {}  # first pairs of blocks that are not used, by size
        self.struct: Any = ffi.new("struct gp_pairs *")
        """What ``gp_stage`` works on."""

    def make_room(self, records: int) -> None:
        """Makes room for as many records; the new ones have no pairs yet."""
        more = records - len(self._owner)
        if more > 0:
            self._owner, self._e = (np.append(array, np.zeros(more, np.uint64)) for array in (self._owner, self._e))
            self._first, self._count, self._wanted, self._prime_bits = (
                np.append(array, np.zeros(more, np.uint32))
                for array in (self._first, self._count, self._wanted, self._prime_bits)
            )
            self._describe()

    def extend(self, record: int, handle: int, wanted: int) -> None:
        """Gives the key in a record a block of at least ``wanted`` pairs, all still to be made. Raises DeviceError."""
        size = 1 << (wanted - 1).bit_length()
        spare = self._spare.get(size)
        first = spare.pop() if spare else self._take(size)
        self._give_up(record)
        self._owner[record], self._first[record], self._count[record] = handle, first, size
        self._uses[first : first + size] = lib.GP_PAIR_USES

    def forget(self, handles: NDArray[np.uint64]) -> None:
        """Has the device wipe the pairs of these keys."""
        for record in np.flatnonzero(np.isin(self._owner, handles)).tolist():
            self._give_up(record)

    def clear(self) -> None:
        """Has the device wipe all of them."""
        if len(self._uses):
            self._stream.clear(self.address, len(self._uses) * self._pair_bytes)

    def _give_up(self, record: int) -> None:
        first, size = int(self._first[record]), int(self._count[record])
        if size:
            self._stream.clear(self.address + first * self._pair_bytes, size * self._pair_bytes)
            self._spare.setdefault(size, []).append(first)
        self._owner[record] = self._count[record] = 0

    def _take(self, pairs: int) -> int:
        first, capacity = self._taken, len(self._uses)
        if first + pairs > capacity:
            self._grow(max(_FIRST_PAIRS, 2 * capacity, 1 << (first + pairs - 1).bit_length()))
        self._taken += pairs
        return first

    def _grow(self, pairs: int) -> None:
        address = self._device.allocate(pairs * self._pair_bytes)
        if self._taken:
            self._stream.copy(address, self.address, self._taken * self._pair_bytes)
            self.clear()
            self._stream.wait()
            self._device.free(self.address)
        self.address = address
        self._uses = np.concatenate([self._uses, np.full(pairs - len(self._uses), lib.GP_PAIR_USES, np.uint16)])
        self._describe()

    def _describe(self) -> None:
        self.struct.records = len(self._owner)
        self.struct.owner, self.struct.e = map(u64, (self._owner, self._e))
        self.struct.first, self.struct.count, self.struct.wanted = map(u32, (self._first, self._count, self._wanted))
        self.struct.prime_bits = u32(self._prime_bits)
        self.struct.uses = u16(self._uses)
