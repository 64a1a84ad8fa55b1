"""The keys' constants in a device's memory: a table for each size class, and which record of it has which key."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.client import u8, u64
from gpu_provider.errors import BackendError
from gpu_provider.kernels.launch import key_record_address
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from _cffi_backend import FFI
    from numpy.typing import NDArray

    from gpu_provider.backends.cuda.device import Device
    from gpu_provider.client import Client

__all__ = ["DeviceKeys"]

_FIRST_RECORDS = 16


class _Memory:
    """The memory of one table. A table that grows leaves it behind for the batches that still read it."""

    def __init__(self, address: int, records: int) -> None:
        self.address = address
        self.records = records
        self.users = 0


class _Table:
    """The records of one size class."""

    def __init__(self, class_bytes: int, record_bytes: int) -> None:
        self.class_bytes = class_bytes
        self.record_bytes = record_bytes
        self.memory = _Memory(0, 0)
        self.left_behind: list[_Memory] = []
        self.unused: list[int] = []
        self.records: dict[int, int] = {}
        """Numbers of records, by key handle; GP_NO_RECORD for a key that the kernels don't support."""


class DeviceKeys:
    """The keys' records in the device's memory. Any thread; those that change the tables wait for one another, and for
    the device.

    A key's numbers go from OpenSSL's memory to the device through pinned memory that is wiped at once; none of them is
    ever a Python object.
    """

    def __init__(self, device: Device, client: Client, radix_bits: int, record_bytes: Mapping[int, int]) -> None:
        """``record_bytes``: by bytes of the kernels' rows, which are a table's class."""
        self._device = device
        self._client = client
        self._radix_bits = radix_bits
        self._fill = ffi.cast("gp_key_record_writer *", key_record_address())
        self._tables = {class_bytes: _Table(class_bytes, size) for class_bytes, size in record_bytes.items()}
        self._stream = device.stream()
        self._record = device.allocate_pinned(max(record_bytes.values()))
        self._lock = threading.Lock()
        pointer = lib.gp_records_new()
        if pointer == ffi.NULL:
            raise BackendError("no memory for the table of keys")
        self.pointer: FFI.CData = ffi.gc(pointer, lib.gp_records_free)
        """What ``gp_stage`` reads."""

    def add(self, class_bytes: int, handles: Sequence[int]) -> None:
        """Gives records to keys that have none yet. Raises DeviceMemoryError if the table can't grow, DeviceError."""
        with self._lock:
            table = self._tables[class_bytes]
            for handle in dict.fromkeys(handles):
                if handle not in table.records:
                    self._add(table, handle)

    @contextlib.contextmanager
    def in_use(self, class_bytes: int) -> Iterator[int]:
        """The address of a class's records, which stay there in the meantime."""
        table = self._tables[class_bytes]
        with self._lock:
            memory = table.memory
            memory.users += 1
        try:
            yield memory.address
        finally:
            with self._lock:
                memory.users -= 1
                if not memory.users and memory is not table.memory:
                    self._give_up(table, memory)

    def capacity(self, class_bytes: int) -> int:
        """How many records a class has room for now."""
        return self._tables[class_bytes].memory.records

    @contextlib.contextmanager
    def remove_gone(self) -> Iterator[NDArray[np.uint64]]:
        """Wipes the records of keys that have left the provider's key table. The block gets their handles, and forgets
        whatever else belongs to these records: other keys are given them when it has ended. Raises DeviceError."""
        removed: list[tuple[_Table, int]] = []
        with self._lock:
            handles = np.fromiter((handle for table in self._tables.values() for handle in table.records), np.uint64)
            gone = np.zeros(len(handles), np.uint8)
            if len(handles):
                lib.gp_key_table_find_removed(self._client.keys, len(handles), u64(handles), u8(gone))
            handles = handles[gone != 0]
            for table in self._tables.values():
                removed += [
                    (table, self._remove(table, handle)) for handle in handles.tolist() if handle in table.records
                ]
            self._stream.wait()
        yield handles
        with self._lock:
            for table, number in removed:
                if number != lib.GP_NO_RECORD:
                    table.unused.append(number)

    def close(self) -> None:
        """Wipes every record, while no batch is in flight. Raises DeviceError."""
        with self._lock:
            self._record.fill(0)
            for table in self._tables.values():
                for memory in (table.memory, *table.left_behind):
                    if memory.records:
                        self._stream.clear(memory.address, memory.records * table.record_bytes)
            self._stream.wait()

    # ---- with the lock ----

    def _add(self, table: _Table, handle: int) -> None:
        record: Any = ffi.new("struct gp_key_record *")
        record.number = lib.GP_NO_RECORD  # also if it is gone: forgotten by the next remove_gone()
        address = u8(self._record)
        status = lib.gp_key_record_fill(
            self._client.keys, handle, self._fill, self._radix_bits, table.class_bytes, address, record
        )
        if status == lib.GPK_OK:
            try:
                record.number = self._upload(table)
            finally:
                self._record.fill(0)
        table.records[handle] = record.number
        lib.gp_records_set(self.pointer, handle, record)

    def _upload(self, table: _Table) -> int:
        if not table.unused:
            self._grow(table)
        number = table.unused.pop()
        try:
            size = table.record_bytes
            self._stream.upload(table.memory.address + number * size, self._record[:size])
            self._stream.wait()
        except BackendError:
            table.unused.append(number)
            raise
        return number

    def _grow(self, table: _Table) -> None:
        old, size = table.memory, table.record_bytes
        records = max(_FIRST_RECORDS, 2 * old.records)
        new = _Memory(self._device.allocate(records * size), records)
        if old.records:
            self._stream.copy(new.address, old.address, old.records * size)
            self._stream.wait()
        table.memory = new
        table.unused.extend(reversed(range(old.records, records)))
        table.left_behind.append(old)
        if not old.users:
            self._give_up(table, old)

    def _give_up(self, table: _Table, memory: _Memory) -> None:
        if memory.records:
            self._stream.clear(memory.address, memory.records * table.record_bytes)
            self._stream.wait()
            self._device.free(memory.address)
        table.left_behind.remove(memory)

    def _remove(self, table: _Table, handle: int) -> int:
        number = table.records.pop(handle)
        lib.gp_records_remove(self.pointer, handle)
        if number != lib.GP_NO_RECORD:
            self._stream.clear(table.memory.address + number * table.record_bytes, table.record_bytes)
        return number
