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
from typing import TYPE_CHECKING

import numpy as np

from gpu_provider.backends.cuda.device import DeviceError, DeviceMemoryError
from gpu_provider.backends.cuda.modexp import DeviceModexp
from gpu_provider.backends.cuda.pairs import DevicePairs
from gpu_provider.backends.cuda.staging import INDEX_BYTES, Staging
from gpu_provider.client import MAX_BYTES, u8, u64
from gpu_provider.kernels.launch import PRIVATE_LAUNCH, Operation
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _cffi_backend import FFI
    from numpy.typing import NDArray

    from gpu_provider.backends.base import Batch, Rows
    from gpu_provider.backends.cuda.device import Device, DeviceRows
    from gpu_provider.backends.cuda.kernels import KernelChoice
    from gpu_provider.backends.cuda.keys import DeviceKeys
    from gpu_provider.backends.cuda.staging import Part

__all__ = ["DeviceWorker"]

_log = logging.getLogger(__name__)


class DeviceWorker:
    """What one worker needs of the device. One thread at a time uses it: the one that holds ``lock``."""

    def __init__(self, device: Device, keys: DeviceKeys, kernels: KernelChoice) -> None:
        self.lock = threading.Lock()
        self._device_name = device.name
        self._keys = keys
        self._kernels = kernels
        self._staging = Staging(device)
        self._stream = self._staging.stream
        self._pairs = {width: DevicePairs(device, self._stream, size) for width, size in kernels.pair_bytes.items()}
        self.modexp = DeviceModexp(self._staging, kernels).compute
        self._launch = np.zeros(1, PRIVATE_LAUNCH)
        self._behind = contextlib.ExitStack()  # holds the records that the renewal behind the last batch reads

    def private_op(self, batch: Batch) -> None:
        """``Backend.private_op``. Rows of keys that the kernels don't support stay undone, and so do all rows if the
        device has no memory for more keys or pairs. Raises DeviceError, also for results that fail the device's own
        check."""
        stride = batch.class_bytes
        width = self._kernels.width(Operation.PRIVATE, stride)
        if width is None:
            return
        try:
            self._staging.reserve(len(batch))
            self._stage(batch.keys, u8(batch.inputs), stride, width)
        except DeviceMemoryError as error:
            if not self._staging.rows:
                raise
            _log.warning("%s; the processor computes %d operations in its place", error, len(batch))
            return
        count = self._staging.struct.count
        if not count:
            return
        failed = self._compute(width, stride, u8(batch.outputs), u8(batch.ok))
        if failed:
            raise DeviceError(f"device {self._device_name}: {failed} of {count} results are wrong")

    def private_rows(
        self, keys: NDArray[np.uint64], sizes: tuple[int, int], inputs: DeviceRows, outputs: DeviceRows
    ) -> NDArray[np.uint8] | None:
        """Private operations over arrays on the device: ``keys`` [n] handles, ``sizes`` the bytes of the shortest and
        the longest modulus among them. Returns [n], 1 where ``outputs`` has a result, 0 where it has zeros: the input
        is not below its modulus, or the result did not pass the device's check. None if the device can't do all of it
        in one batch: keys of several widths, or one that the kernels don't support. Raises DeviceError."""
        count = len(keys)
        width, other = (self._kernels.width(Operation.PRIVATE, size) for size in sizes)
        if width is None or width != other or max(inputs.bytes, outputs.bytes) > width:
            return None
        self._staging.reserve(count)
        self._stage(keys, ffi.NULL, width, width)
        ok = np.zeros(count, np.uint8)
        if self._staging.struct.count < count:
            # There are no verdicts: the pairs that were to be made count as missing again.
            lib.gp_unstage(self._staging.struct, self._pairs[width].struct, ffi.NULL, u8(ok), width, width)
            return None
        self._compute(width, width, ffi.NULL, u8(ok), source=inputs, target=outputs)
        return ok

    def read(self, rows: DeviceRows) -> Rows:
        """The caller's array. Raises DeviceError."""
        array = np.empty(rows.shape, np.uint8)
        for start, some in self._pieces(rows):
            (part,) = self._staging.down.lay_out(some.rows * some.bytes)
            part.fill(self._stream, some, some.bytes)
            part.download(self._stream)
            self._finish(part)
            array[start : start + some.rows] = part.host.reshape(some.shape)
            part.wipe()
        return array

    def write(self, rows: DeviceRows, array: Rows) -> None:
        """Fills the caller's array. Raises DeviceError."""
        for start, some in self._pieces(rows):
            (part,) = self._staging.up.lay_out(some.rows * some.bytes)
            part.fill(self._stream, array[start : start + some.rows], some.bytes)
            part.copy_to(self._stream, some, some.bytes)
            self._finish(part)
            part.wipe()

    def _pieces(self, rows: DeviceRows) -> Iterator[tuple[int, DeviceRows]]:
        """Where each begins, and as much as the staging takes."""
        self._staging.reserve(1)
        step = max(1, self._staging.rows * MAX_BYTES // rows.bytes)
        for start in range(0, rows.rows, step):
            yield start, rows.part(start, start + step)

    def _finish(self, part: Part) -> None:
        """Waits until the device is done with a part, which is wiped there."""
        self._staging.downloaded.record()
        part.clear(self._stream)
        self._staging.downloaded.wait()

    def forget(self, handles: NDArray[np.uint64]) -> None:
        """Wipes the blinding pairs of keys that no request will use again. Raises DeviceError."""
        for pairs in self._pairs.values():
            pairs.forget(handles)
        self._stream.wait()
        self._behind.close()

    def close(self) -> None:
        """Wipes the device's side and the staging. Raises DeviceError; the staging is wiped all the same."""
        try:
            for pairs in self._pairs.values():
                pairs.clear()
            self._staging.clear()
            self._stream.wait()
            self._behind.close()
        finally:
            self._staging.wipe()

    def _stage(self, keys: NDArray[np.uint64], inputs: FFI.CData, stride: int, width: int) -> None:
        """``inputs`` NULL: they are on the device."""
        staging, pairs, handles = self._staging.struct, self._pairs[width], u64(keys)
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
        """Computes what is staged. Returns how many rows failed. ``source``, ``target``: the callers' arrays for inputs
        and outputs that are not on the host."""
        staging, pairs, uploaded = self._staging.struct, self._pairs[width].struct, self._staging.uploaded
        with self._kernels.in_flight(staging.count) as together, contextlib.ExitStack() as reading:
            records = reading.enter_context(self._keys.in_use(width))
            secrets = self._start(width, records, together, source, target)
            uploaded.wait()
            for part in secrets:
                part.wipe()
            renewed = None
            if lib.gp_stage_worn(staging, pairs):
                renewed = self._upload_fresh(width)
                uploaded.record()
                self._make_pairs(width, renewed, records, together)
                renewed[0].clear(self._stream)
            self._staging.downloaded.wait()
            failed: int = lib.gp_unstage(staging, pairs, outputs, ok, stride, width)
            self._behind.close()  # whatever came before this batch is done
            if renewed:
                uploaded.wait()
                renewed[0].wipe()
                self._behind = reading.pop_all()
        return failed

    def _start(
        self, width: int, records: int, together: int, source: DeviceRows | None, target: DeviceRows | None
    ) -> list[Part]:
        """Hands the batch to the stream, and what wipes it there. ``together``: rows in flight, of all workers. Returns
        what is to be wiped on the host once it was uploaded."""
        staging, stream, struct = self._staging, self._stream, self._staging.struct
        rows, count = struct.rows, struct.count
        inputs, record_of_row, pair_of_row = staging.up.lay_out(rows * width, rows * INDEX_BYTES, rows * INDEX_BYTES)
        results, ok = staging.down.lay_out(count * width, count)
        secrets = []
        fresh = self._upload_fresh(width) if struct.fresh_count else []
        if source is None:
            inputs.through(pair_of_row).upload(stream)
            secrets.append(inputs)
        else:
            record_of_row.through(pair_of_row).upload(stream)
            inputs.fill(stream, source, width)
        staging.uploaded.record()
        if fresh:
            self._make_pairs(width, fresh, records, together)
            secrets.append(fresh[0])
        indices = (record_of_row.address, pair_of_row.address)
        numbers = (inputs.address, results.address, ok.address)
        self._launch[0] = (
            *(count, struct.prime_bits, struct.any_e),
            *(*indices, records, self._pairs[width].address, *numbers),
        )
        stream.launch(self._kernels.choose(Operation.PRIVATE, width, together), self._launch)
        if target is None:
            results.through(ok).download(stream)
        else:
            results.copy_to(stream, target, width)
            ok.download(stream)
        staging.downloaded.record()
        inputs.clear(stream)
        results.through(ok).clear(stream)  # may be decrypted secrets
        if fresh:
            fresh[0].clear(stream)
        return secrets

    def _upload_fresh(self, width: int) -> list[Part]:
        """Uploads what the pairs that are listed as fresh need, and returns it: random numbers, records and places."""
        staging, made = self._staging, self._staging.struct.fresh_count
        if not lib.gp_stage_fresh(staging.struct, self._pairs[width].struct, width):
            raise DeviceError("the system gives no random numbers")
        fresh = staging.fresh.lay_out(made * width, made * INDEX_BYTES, made * INDEX_BYTES)
        fresh[0].through(fresh[-1]).upload(self._stream)
        return fresh

    def _make_pairs(self, width: int, fresh: list[Part], records: int, together: int) -> None:
        struct, made = self._staging.struct, self._staging.struct.fresh_count
        randoms, record_of_pair, place = (part.address for part in fresh)
        addresses = (record_of_pair, place, records, self._pairs[width].address, randoms, 0, 0)
        self._launch[0] = (made, struct.fresh_prime_bits, struct.fresh_any_e, *addresses)
        rows = made + together - struct.count
        self._stream.launch(self._kernels.choose(Operation.MAKE_PAIRS, width, rows), self._launch)
