"""One batch in flight on a device: its stream, its staging on both sides, its blinding pairs.

    gp_stage → upload → make_pairs, where any are due → private → download → wait → gp_unstage

Inputs, records and pairs go up in one copy, results and verdicts come down in one. What is per row is done in C
(``native/staging.c``).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.backends.device import MODEXP_LAUNCH, PRIVATE_LAUNCH, DeviceError, DeviceMemoryError
from gpu_provider.backends.device_pairs import DevicePairs
from gpu_provider.client import MAX_BYTES, u8, u32, u64
from gpu_provider.kernels import warp
from gpu_provider.kernels.warp import Operation
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.base import Batch
    from gpu_provider.backends.device import Device
    from gpu_provider.backends.device_kernels import KernelChoice
    from gpu_provider.backends.device_keys import DeviceKeys
    from gpu_provider.kernels.warp import Kernel

__all__ = ["DeviceLane"]

_log = logging.getLogger(__name__)
_FIRST_ROWS = 64
_INDEX_BYTES = 4
_UPLOAD_BYTES = MAX_BYTES + 2 * _INDEX_BYTES
_ROWS_PER_MODULUS = 8
_MEASUREMENTS = 2  # the first one loads the kernel


def _aligned(count: int) -> int:
    """32-bit numbers of an array, so that the next one begins at a multiple of 16 bytes."""
    return (count + 3) & ~3


def _distinct(moduli: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.intp] | int]:
    """The different rows, and which of them each row is."""
    if (moduli == moduli[0]).all():
        return moduli[:1], 0
    return np.unique(moduli, axis=0, return_inverse=True)


def _fill_rows(to: NDArray[np.uint8], rows: NDArray[np.uint8]) -> None:
    """Copies rows into wider ones, which end in zeros."""
    wide = to.reshape(len(rows), -1)
    wide[:, : rows.shape[1]] = rows
    wide[:, rows.shape[1] :] = 0


class DeviceLane:
    """One thread at a time."""

    def __init__(self, device: Device, keys: DeviceKeys, kernels: KernelChoice) -> None:
        self._device = device
        self._keys = keys
        self._kernels = kernels
        self._stream = device.stream()
        self._pairs = {width: DevicePairs(device, self._stream, size) for width, size in kernels.pair_bytes.items()}
        self._launch = np.zeros(1, PRIVATE_LAUNCH)
        self._staging: Any = ffi.new("struct gp_staging *")
        self._rows = 0
        self._pinned: list[NDArray[np.uint8]] = []
        self._memory: list[int] = []

    def private_op(self, batch: Batch) -> None:
        """``Backend.private_op``. Rows of keys that the kernels do not take stay undone, and all rows if the device has
        no memory for further keys or pairs. Raises DeviceError, also for results that fail the device's own check."""
        stride = batch.class_bytes
        width = self._kernels.width(Operation.PRIVATE, stride)
        if width is None:
            return
        pairs = self._pairs[width]
        try:
            self._reserve(len(batch))
            self._stage(batch, width, pairs)
        except DeviceMemoryError as error:
            if not self._rows:
                raise
            _log.warning("%s; the processor computes %d operations in its place", error, len(batch))
            return
        count = self._staging.count
        if not count:
            return
        with self._keys.in_use(width) as records:
            self._start(width, records, pairs)
            self._stream.wait()
        failed = lib.gp_unstage(self._staging, pairs.struct, u8(batch.outputs), u8(batch.ok), stride, width)
        if failed:
            raise DeviceError(f"device {self._device.name}: {failed} of {count} results are wrong")

    def modexp(
        self,
        bases: NDArray[np.uint8],
        exponents: NDArray[np.uint8],
        moduli: NDArray[np.uint8],
        outputs: NDArray[np.uint8],
    ) -> bool:
        """``Backend.modexp``. False if these are better computed elsewhere: numbers that are too wide, or so many
        moduli that preparing them would cost more than it saves. Raises DeviceError."""
        count, stride = bases.shape
        width = self._kernels.width(Operation.MODEXP, stride)
        if width is None or exponents.shape[1] > MAX_BYTES:
            return False
        distinct, modulus_of_row = _distinct(moduli)
        if len(distinct) > max(1, count // _ROWS_PER_MODULUS):
            return False
        kernel = self._kernels.choose(Operation.MODEXP, width, count)
        exponent_bytes = -(-exponents.shape[1] // 16) * 16
        index_bytes = _aligned(count) * _INDEX_BYTES
        sizes = (count * width, count * exponent_bytes, index_bytes, len(distinct) * kernel.record_bytes)
        self._reserve(-(-sum(sizes) // _UPLOAD_BYTES))
        (up, down, _), (inputs, results, _) = self._pinned, self._memory
        ends = np.cumsum(sizes).tolist()
        up_bases, up_exponents, up_index, up_records = np.split(up[: ends[-1]], ends[:-1])
        _fill_rows(up_bases, bases)
        _fill_rows(up_exponents, exponents)
        up_index.view(np.uint32)[:count] = modulus_of_row
        for record, modulus in zip(up_records.reshape(len(distinct), kernel.record_bytes), distinct, strict=True):
            warp.modulus_record(record, kernel.radix_bits, width, int.from_bytes(modulus.tobytes(), "little"))

        launch = np.zeros(1, MODEXP_LAUNCH)
        launch[0] = (
            *(count, 8 * exponents.shape[1], exponent_bytes, 0),
            *(inputs + ends[1], inputs + ends[2], inputs, inputs + ends[0], results),
        )
        self._stream.upload(inputs, up[: ends[-1]])
        self._stream.launch(kernel, launch)
        self._stream.download(down[: count * width], results)
        self._stream.clear(inputs, ends[1])
        self._stream.clear(results, count * width)
        self._stream.wait()
        outputs[:] = down[: count * width].reshape(count, width)[:, :stride]
        up[: ends[1]] = 0
        down[: count * width] = 0
        return True

    def measure(self, kernel: Kernel, rows: int) -> float:
        """The seconds that private operations of so many rows take, copies and all. No key is needed: what the kernel
        does is the same for every number, zeros too."""
        width = kernel.class_bytes
        self._reserve(rows)
        records = self._device.allocate(kernel.record_bytes)
        pairs = self._device.allocate(rows * kernel.pair_bytes)
        self._stream.clear(records, kernel.record_bytes)
        self._stream.clear(pairs, rows * kernel.pair_bytes)
        (up, down, _), (inputs, outputs, _) = self._pinned, self._memory
        index_bytes = _aligned(rows) * _INDEX_BYTES
        size = rows * width + 2 * index_bytes
        up[:size] = 0
        up[size - index_bytes : size].view(np.uint32)[:rows] = np.arange(rows)
        index, ok = inputs + rows * width, outputs + rows * width
        self._launch[0] = (rows, 4 * width, 65537, index, index + index_bytes, records, pairs, inputs, outputs, ok)
        took = float("inf")
        for _ in range(_MEASUREMENTS):
            started = time.perf_counter()
            self._stream.upload(inputs, up[:size])
            self._stream.launch(kernel, self._launch)
            self._stream.download(down[: rows * (width + 1)], outputs)
            self._stream.wait()
            took = min(took, time.perf_counter() - started)
        for address in (records, pairs):
            self._device.free(address)
        return took

    def close(self) -> None:
        """Wipes the device's side and the staging. Raises DeviceError."""
        for pairs in self._pairs.values():
            pairs.clear()
        for address, array in zip(self._memory, self._pinned, strict=True):
            self._stream.clear(address, len(array))
        self._stream.wait()
        for array in self._pinned:
            array.fill(0)

    def _stage(self, batch: Batch, width: int, pairs: DevicePairs) -> None:
        staging, stride = self._staging, batch.class_bytes
        keys, inputs = u64(batch.keys), u8(batch.inputs)
        while True:
            lacks = lib.gp_stage(staging, self._keys.pointer, pairs.struct, len(batch), keys, inputs, stride, width)
            if lacks == lib.GP_STAGED:
                return
            if lacks == lib.GP_LACKS_RECORDS:
                self._keys.add(width, list(staging.lacking[0 : staging.lacking_count]))
            elif lacks == lib.GP_LACKS_ROOM:
                pairs.make_room(self._keys.capacity(width))
            else:
                for i in range(staging.lacking_count):
                    pairs.extend(staging.lacking_record[i], staging.lacking[i], staging.lacking_pairs[i])

    def _start(self, width: int, records: int, pairs: DevicePairs) -> None:
        """Hands all of it to the stream."""
        staging, stream, launch = self._staging, self._stream, self._launch
        (up, down, fresh), (inputs, outputs, randoms) = self._pinned, self._memory
        rows, count, made = staging.rows, staging.count, staging.fresh_count
        common = (staging.prime_bits, staging.any_e)
        if made:
            if not lib.gp_stage_fresh(staging, width):
                raise DeviceError("the system gives no random numbers")
            index = randoms + made * width
            index_bytes = _aligned(made) * _INDEX_BYTES
            stream.upload(randoms, fresh[: made * width + 2 * index_bytes])
            launch[0] = (made, *common, index, index + index_bytes, records, pairs.address, randoms, 0, 0)
            stream.launch(self._kernels.choose(Operation.MAKE_PAIRS, width, made), launch)
            stream.clear(randoms, made * width)
        index = inputs + rows * width
        index_bytes = _aligned(rows) * _INDEX_BYTES
        ok = outputs + count * width
        stream.upload(inputs, up[: rows * width + 2 * index_bytes])
        launch[0] = (count, *common, index, index + index_bytes, records, pairs.address, inputs, outputs, ok)
        stream.launch(self._kernels.choose(Operation.PRIVATE, width, count), launch)
        size = count * (width + 1)
        stream.download(down[:size], outputs)
        stream.clear(inputs, rows * width)
        stream.clear(outputs, size)  # may be decrypted secrets

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
        self._free(self._pinned, self._memory)
        self._pinned, self._memory, self._rows = pinned, memory, rows
        self._host = [np.zeros(rows, np.uint32) for _ in range(4)]
        self._lacking = np.zeros(rows, np.uint64)
        staging = self._staging
        staging.upload, staging.download, staging.fresh = map(u8, pinned)
        staging.row, staging.fresh_place, staging.lacking_record, staging.lacking_pairs = map(u32, self._host)
        staging.lacking = u64(self._lacking)

    def _free(self, pinned: list[NDArray[np.uint8]], memory: list[int]) -> None:
        for array in pinned:
            self._device.free_pinned(array)
        for address in memory:
            self._device.free(address)
