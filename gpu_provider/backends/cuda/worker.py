"""One batch in flight on a device: its stream, its staging on both sides, its blinding pairs.

    gp_stage → upload → make_pairs, where a row has none → private → download ; wipe, renew worn pairs
                  └ wipe the upload here                              └ gp_unstage, results

Inputs, records and pairs go up in one copy, results and verdicts come down in one. What is per row is done in C
(``native/staging.c``). Nobody waits for what stands after the semicolon: the device does it while the results are on
their way, in any case before this worker's next batch.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.backends.cuda.device import MODEXP_LAUNCH, PRIVATE_LAUNCH, DeviceError, DeviceMemoryError
from gpu_provider.backends.cuda.pairs import DevicePairs
from gpu_provider.client import MAX_BYTES, u8, u32, u64
from gpu_provider.kernels import warp
from gpu_provider.kernels.warp import Operation
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _cffi_backend import FFI
    from numpy.typing import NDArray

    from gpu_provider.backends.base import Batch
    from gpu_provider.backends.cuda.device import Device, DeviceRows
    from gpu_provider.backends.cuda.kernels import KernelChoice
    from gpu_provider.backends.cuda.keys import DeviceKeys
    from gpu_provider.kernels.warp import Kernel

__all__ = ["DeviceWorker"]

_log = logging.getLogger(__name__)
_FIRST_ROWS = 64
_INDEX_BYTES = 4
_UPLOAD_BYTES = MAX_BYTES + 2 * _INDEX_BYTES
_ROWS_PER_MODULUS = 8


def _aligned(count: int) -> int:
    """32-bit numbers of an array, so that the next one begins at a multiple of 16 bytes."""
    return (count + 3) & ~3


def _distinct(moduli: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.intp] | int]:
    """The different rows, and which of them each row is."""
    if (moduli == moduli[0]).all():
        return moduli[:1], 0
    return np.unique(moduli, axis=0, return_inverse=True)


def _shape(rows: NDArray[np.uint8] | DeviceRows) -> tuple[int, int]:
    """Rows, and bytes of each."""
    if isinstance(rows, np.ndarray):
        return rows.shape[0], rows.shape[1]
    return rows.rows, rows.bytes


def _fill_rows(to: NDArray[np.uint8], rows: NDArray[np.uint8]) -> None:
    """Copies rows into wider ones, which end in zeros."""
    wide = to.reshape(len(rows), -1)
    wide[:, : rows.shape[1]] = rows
    wide[:, rows.shape[1] :] = 0


class DeviceWorker:
    """One thread at a time: the one that holds ``lock``."""

    def __init__(self, device: Device, keys: DeviceKeys, kernels: KernelChoice) -> None:
        self.lock = threading.Lock()
        self._device = device
        self._keys = keys
        self._kernels = kernels
        self._stream = device.stream()
        self._uploaded, self._downloaded = self._stream.event(), self._stream.event()
        self._pairs = {width: DevicePairs(device, self._stream, size) for width, size in kernels.pair_bytes.items()}
        self._launch = np.zeros(1, PRIVATE_LAUNCH)
        self._staging: Any = ffi.new("struct gp_staging *")
        self._rows = 0
        self._pinned: list[NDArray[np.uint8]] = []
        self._memory: list[int] = []
        self._behind = contextlib.ExitStack()  # holds the records that the renewal behind the last batch reads

    def private_op(self, batch: Batch) -> None:
        """``Backend.private_op``. Rows of keys that the kernels do not take stay undone, and all rows if the device has
        no memory for further keys or pairs. Raises DeviceError, also for results that fail the device's own check."""
        stride = batch.class_bytes
        width = self._kernels.width(Operation.PRIVATE, stride)
        if width is None:
            return
        try:
            self._reserve(len(batch))
            self._stage(batch.keys, u8(batch.inputs), stride, width)
        except DeviceMemoryError as error:
            if not self._rows:
                raise
            _log.warning("%s; the processor computes %d operations in its place", error, len(batch))
            return
        count = self._staging.count
        if not count:
            return
        failed = self._compute(width, stride, u8(batch.outputs), u8(batch.ok))
        if failed:
            raise DeviceError(f"device {self._device.name}: {failed} of {count} results are wrong")

    def private_rows(
        self, keys: NDArray[np.uint64], sizes: tuple[int, int], inputs: DeviceRows, outputs: DeviceRows
    ) -> NDArray[np.uint8] | None:
        """Private operations over arrays on the device: ``keys`` [n] handles, ``sizes`` the bytes of the shortest and
        the longest modulus among them. Returns [n], 1 where ``outputs`` has a result, 0 where it has zeros: the input
        is not below its modulus, or the result did not pass the device's check. None if not all of it can be done at
        once here: keys of several widths, or one that the kernels do not take. Raises DeviceError."""
        count = len(keys)
        width, other = (self._kernels.width(Operation.PRIVATE, size) for size in sizes)
        if width is None or width != other or max(inputs.bytes, outputs.bytes) > width:
            return None
        self._reserve(count)
        self._stage(keys, ffi.NULL, width, width)
        ok = np.zeros(count, np.uint8)
        if self._staging.count < count:
            # There are no verdicts: the pairs that were to be made count as missing again.
            lib.gp_unstage(self._staging, self._pairs[width].struct, ffi.NULL, u8(ok), width, width)
            return None
        self._compute(width, width, ffi.NULL, u8(ok), source=inputs, target=outputs)
        return ok

    def modexp(
        self,
        bases: NDArray[np.uint8] | DeviceRows,
        exponents: NDArray[np.uint8] | DeviceRows,
        moduli: NDArray[np.uint8],
        outputs: NDArray[np.uint8] | DeviceRows,
    ) -> bool:
        """``Backend.modexp``, also for arrays on the device; one row of exponents or moduli serves all. False if these
        are better computed elsewhere: numbers that are too wide, or so many moduli that preparing them would cost more
        than it saves. Raises DeviceError."""
        stride = moduli.shape[1]
        (count, base_bytes), (_, exponent_bytes) = _shape(bases), _shape(exponents)
        width = self._kernels.width(Operation.MODEXP, max(stride, base_bytes))
        if width is None or exponent_bytes > MAX_BYTES:
            return False
        distinct, modulus_of_row = _distinct(moduli)
        if len(distinct) > max(1, count // _ROWS_PER_MODULUS):
            return False
        with self._kernels.in_flight(count) as together:
            kernel = self._kernels.choose(Operation.MODEXP, width, together)
            self._modexp(kernel, bases, exponents, (distinct, modulus_of_row), outputs)
        return True

    def _modexp(
        self,
        kernel: Kernel,
        bases: NDArray[np.uint8] | DeviceRows,
        exponents: NDArray[np.uint8] | DeviceRows,
        moduli: tuple[NDArray[np.uint8], NDArray[np.intp] | int],
        outputs: NDArray[np.uint8] | DeviceRows,
    ) -> None:
        """``moduli``: the different ones, and which of them each row has."""
        distinct, modulus_of_row = moduli
        count, (exponent_rows, exponent_bytes), width = _shape(bases)[0], _shape(exponents), kernel.class_bytes
        exponent_width = -(-exponent_bytes // 16) * 16
        index_bytes = _aligned(count) * _INDEX_BYTES
        sizes = (count * width, exponent_rows * exponent_width, index_bytes, len(distinct) * kernel.record_bytes)
        self._reserve(-(-sum(sizes) // _UPLOAD_BYTES))
        (up, down, _), (inputs, results, _), stream = self._pinned, self._memory, self._stream
        ends = np.cumsum(sizes).tolist()
        up_index, up_records = np.split(up[ends[1] : ends[3]], [index_bytes])
        up_index.view(np.uint32)[:count] = modulus_of_row
        for record, modulus in zip(up_records.reshape(len(distinct), kernel.record_bytes), distinct, strict=True):
            warp.modulus_record(record, kernel.radix_bits, width, int.from_bytes(modulus.tobytes(), "little"))

        launch = np.zeros(1, MODEXP_LAUNCH)
        launch[0] = (
            *(count, 8 * exponent_bytes, exponent_width if exponent_rows > 1 else 0, 0),
            *(inputs + ends[1], inputs + ends[2], inputs, inputs + ends[0], results),
        )
        for operand, start, stop, wide in ((bases, 0, ends[0], width), (exponents, ends[0], ends[1], exponent_width)):
            if isinstance(operand, np.ndarray):
                _fill_rows(up[start:stop], operand)
                stream.upload(inputs + start, up[start:stop])
            else:
                self._copy_in(inputs + start, wide, operand)
        stream.upload(inputs + ends[1], up[ends[1] : ends[3]])
        self._uploaded.record()
        stream.launch(kernel, launch)
        if isinstance(outputs, np.ndarray):
            stream.download(down[: count * width], results)
        else:
            stream.copy_rows((outputs.address, outputs.pitch), (results, width), outputs.bytes, count)
        self._downloaded.record()
        stream.clear(inputs, ends[1])
        stream.clear(results, count * width)
        self._uploaded.wait()
        up[: ends[1]] = 0
        self._downloaded.wait()
        if isinstance(outputs, np.ndarray):
            outputs[:] = down[: count * width].reshape(count, width)[:, : outputs.shape[1]]
            down[: count * width] = 0

    def read(self, rows: DeviceRows) -> NDArray[np.uint8]:
        """The caller's array, [rows, bytes], least significant byte first. Raises DeviceError."""
        array = np.empty((rows.rows, rows.bytes), np.uint8)
        for start, part in self._parts(rows):
            down, memory = self._pinned[1], self._memory[1]
            size = part.rows * rows.bytes
            self._stream.copy_rows((memory, rows.bytes), (part.address, part.pitch), rows.bytes, part.rows)
            self._stream.download(down[:size], memory)
            self._downloaded.record()
            self._stream.clear(memory, size)
            self._downloaded.wait()
            array[start : start + part.rows] = down[:size].reshape(part.rows, rows.bytes)
            down[:size] = 0
        return array

    def write(self, rows: DeviceRows, array: NDArray[np.uint8]) -> None:
        """The other way. Raises DeviceError."""
        for start, part in self._parts(rows):
            up, memory = self._pinned[0], self._memory[0]
            size = part.rows * rows.bytes
            _fill_rows(up[:size], array[start : start + part.rows])
            self._stream.upload(memory, up[:size])
            self._stream.copy_rows((part.address, part.pitch), (memory, rows.bytes), rows.bytes, part.rows)
            self._downloaded.record()
            self._stream.clear(memory, size)
            self._downloaded.wait()
            up[:size] = 0

    def _parts(self, rows: DeviceRows) -> Iterator[tuple[int, DeviceRows]]:
        """Where each begins, and as much as the staging takes."""
        self._reserve(_FIRST_ROWS)
        step = max(1, self._rows * MAX_BYTES // rows.bytes)
        for start in range(0, rows.rows, step):
            yield start, rows.part(start, start + step)

    def forget(self, handles: NDArray[np.uint64]) -> None:
        """Wipes what is here of keys that no request will use again: their blinding pairs. Raises DeviceError."""
        for pairs in self._pairs.values():
            pairs.forget(handles)
        self._stream.wait()
        self._behind.close()

    def close(self) -> None:
        """Wipes the device's side and the staging. Raises DeviceError; the staging is wiped all the same."""
        try:
            for pairs in self._pairs.values():
                pairs.clear()
            for address, array in zip(self._memory, self._pinned, strict=True):
                self._stream.clear(address, len(array))
            self._stream.wait()
            self._behind.close()
        finally:
            for array in self._pinned:
                array.fill(0)

    def _stage(self, keys: NDArray[np.uint64], inputs: FFI.CData, stride: int, width: int) -> None:
        """``inputs`` NULL: they are on the device."""
        staging, pairs, handles = self._staging, self._pairs[width], u64(keys)
        while True:
            lacks = lib.gp_stage(staging, self._keys.pointer, pairs.struct, len(keys), handles, inputs, stride, width)
            if lacks == lib.GP_STAGED:
                return
            if lacks == lib.GP_LACKS_RECORDS:
                self._keys.add(width, list(staging.lacking[0 : staging.lacking_count]))
            elif lacks == lib.GP_LACKS_ROOM:
                pairs.make_room(self._keys.capacity(width))
            else:
                for i in range(staging.lacking_count):
                    pairs.extend(staging.lacking_record[i], staging.lacking[i], staging.lacking_pairs[i])

    def _compute(
        self,
        width: int,
        stride: int,
        outputs: FFI.CData,
        ok: FFI.CData,
        *,
        source: DeviceRows | None = None,
        target: DeviceRows | None = None,
    ) -> int:
        """Computes what is staged. Returns how many rows failed. ``source``, ``target``: where the inputs and outputs
        are if not on the host."""
        staging, pairs = self._staging, self._pairs[width].struct
        up, _, fresh = self._pinned
        with self._kernels.in_flight(staging.count) as together, contextlib.ExitStack() as reading:
            records = reading.enter_context(self._keys.in_use(width))
            self._start(width, records, together, source, target)
            self._uploaded.wait()
            if source is None:
                up[: staging.rows * width] = 0
            fresh[: staging.fresh_count * width] = 0
            renewed = lib.gp_stage_worn(staging, pairs)
            if renewed:
                self._upload_randoms(width)
                self._uploaded.record()
                self._make_pairs(width, records, together)
                self._clear_randoms(width)
            self._downloaded.wait()
            failed: int = lib.gp_unstage(staging, pairs, outputs, ok, stride, width)
            self._behind.close()  # whatever came before this batch is done
            if renewed:
                self._uploaded.wait()
                fresh[: renewed * width] = 0
                self._behind = reading.pop_all()
        return failed

    def _start(
        self, width: int, records: int, together: int, source: DeviceRows | None, target: DeviceRows | None
    ) -> None:
        """Hands the batch to the stream, and what wipes it. ``together``: rows in flight, of all workers."""
        staging, stream, launch = self._staging, self._stream, self._launch
        (up, down, _), (inputs, outputs, _) = self._pinned, self._memory
        rows, count, made_first = staging.rows, staging.count, staging.fresh_count
        numbers = rows * width
        index = inputs + numbers
        index_bytes = _aligned(rows) * _INDEX_BYTES
        ok = outputs + count * width
        if made_first:
            self._upload_randoms(width)
        if source is None:
            stream.upload(inputs, up[: numbers + 2 * index_bytes])
        else:
            stream.upload(index, up[numbers : numbers + 2 * index_bytes])
            self._copy_in(inputs, width, source)
        self._uploaded.record()
        if made_first:
            self._make_pairs(width, records, together)
        addresses = (index, index + index_bytes, records, self._pairs[width].address, inputs, outputs, ok)
        launch[0] = (count, staging.prime_bits, staging.any_e, *addresses)
        stream.launch(self._kernels.choose(Operation.PRIVATE, width, together), launch)
        size = count * (width + 1)
        if target is None:
            stream.download(down[:size], outputs)
        else:
            stream.copy_rows((target.address, target.pitch), (outputs, width), target.bytes, count)
            stream.download(down[count * width : size], ok)
        self._downloaded.record()
        stream.clear(inputs, numbers)
        stream.clear(outputs, size)  # may be decrypted secrets
        if made_first:
            self._clear_randoms(width)

    def _upload_randoms(self, width: int) -> None:
        """For the pairs that are listed as fresh."""
        staging, made = self._staging, self._staging.fresh_count
        if not lib.gp_stage_fresh(staging, self._pairs[width].struct, width):
            raise DeviceError("the system gives no random numbers")
        size = made * width + 2 * _aligned(made) * _INDEX_BYTES
        self._stream.upload(self._memory[2], self._pinned[2][:size])

    def _make_pairs(self, width: int, records: int, together: int) -> None:
        staging, made, randoms = self._staging, self._staging.fresh_count, self._memory[2]
        index = randoms + made * width
        addresses = (index, index + _aligned(made) * _INDEX_BYTES, records, self._pairs[width].address, randoms, 0, 0)
        self._launch[0] = (made, staging.fresh_prime_bits, staging.fresh_any_e, *addresses)
        rows = made + together - staging.count
        self._stream.launch(self._kernels.choose(Operation.MAKE_PAIRS, width, rows), self._launch)

    def _clear_randoms(self, width: int) -> None:
        self._stream.clear(self._memory[2], self._staging.fresh_count * width)

    def _copy_in(self, to: int, width: int, source: DeviceRows) -> None:
        """Into rows of ``width`` bytes, which end in zeros."""
        if source.bytes < width:
            self._stream.clear(to, source.rows * width)
        self._stream.copy_rows((to, width), (source.address, source.pitch), source.bytes, source.rows)

    def _reserve(self, rows: int) -> None:
        """Staging for so many rows of any class, on both sides. Raises DeviceMemoryError; then it is as before."""
        if rows <= self._rows:
            return
        rows = max(_FIRST_ROWS, 1 << (rows - 1).bit_length())
        sizes = (rows * _UPLOAD_BYTES, rows * (MAX_BYTES + 1), rows * _UPLOAD_BYTES)
        pinned: list[NDArray[np.uint8]] = []
        memory: list[int] = []
        try:
            for size in sizes:
                pinned.append(self._device.allocate_pinned(size))
                memory.append(self._device.allocate(size))
        except DeviceMemoryError:
            self._free(pinned, memory)
            raise
        self._stream.wait()
        self._free(self._pinned, self._memory)
        self._pinned, self._memory, self._rows = pinned, memory, rows
        self._host = [np.zeros(rows, np.uint32) for _ in range(5)]
        self._lacking = np.zeros(rows, np.uint64)
        staging = self._staging
        staging.upload, staging.download, staging.fresh = map(u8, pinned)
        staging.row, staging.fresh_record, staging.fresh_pair = map(u32, self._host[:3])
        staging.lacking_record, staging.lacking_pairs = map(u32, self._host[3:])
        staging.lacking = u64(self._lacking)
        staging.room = rows

    def _free(self, pinned: list[NDArray[np.uint8]], memory: list[int]) -> None:
        for array in pinned:
            self._device.free_pinned(array)
        for address in memory:
            self._device.free(address)
