"""Batches of random numbers, to find out how long a device takes for them. No key is needed."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import numpy as np

from gpu_provider.backends.cuda.device import PRIVATE_LAUNCH
from gpu_provider.kernels import warp
from gpu_provider.kernels.warp import Operation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.cuda.device import Device
    from gpu_provider.backends.cuda.kernels import KernelChoice
    from gpu_provider.kernels.warp import Kernel

__all__ = ["Trial"]

_E = 65537
_INDEX_BYTES = 4


class Trial:
    """Computes private operations of any width, copies and all, with moduli that are products of random odd numbers.

    What a kernel executes is the same for every number, but a multiplier draws less power for zeros, and so keeps a
    clock that it would not have with real numbers. One thread at a time.
    """

    def __init__(self, device: Device, kernels: KernelChoice, largest: int) -> None:
        """``largest``: rows of a batch. Raises DeviceError."""
        self._device = device
        self._kernels = kernels
        self._stream = device.stream()
        self._largest = largest
        self._launch = np.zeros(1, PRIVATE_LAUNCH)
        self._memory: dict[int, tuple[int, int]] = {}  # by width: the key's record, and the blinding pairs
        row_bytes = max(kernels.record_bytes) + 2 * _INDEX_BYTES
        self._up = device.allocate_pinned(largest * row_bytes)
        self._down = device.allocate_pinned(largest * row_bytes)
        self._inputs = device.allocate(largest * row_bytes)
        self._outputs = device.allocate(largest * row_bytes)
        index = self._up[: 2 * largest * _INDEX_BYTES].view(np.uint32)
        index[largest:] = np.arange(largest)  # records come first: all rows have the only one
        self._numbers = 2 * largest * _INDEX_BYTES

    def compute(self, kernel: Kernel, rows: int) -> None:
        """Returns when it is done. Raises DeviceError."""
        if kernel.class_bytes not in self._memory:
            self._make_operands(kernel.class_bytes)
        self._run(kernel, rows)

    def close(self) -> None:
        """Raises DeviceError."""
        for address in (self._inputs, self._outputs, *(each for both in self._memory.values() for each in both)):
            self._device.free(address)
        for array in (self._up, self._down):
            self._device.free_pinned(array)

    def _run(self, kernel: Kernel, rows: int) -> None:
        width, numbers = kernel.class_bytes, self._inputs + self._numbers
        records, pairs = self._memory[width]
        index = (self._inputs, self._inputs + self._largest * _INDEX_BYTES)
        addresses = (*index, records, pairs, numbers, self._outputs, self._outputs + rows * width)
        self._launch[0] = (rows, 4 * width, _E, *addresses)
        self._stream.upload(self._inputs, self._up[: self._numbers + rows * width])
        self._stream.launch(kernel, self._launch)
        self._stream.download(self._down[: rows * (width + 1)], self._outputs)
        self._stream.wait()

    def _make_operands(self, width: int) -> None:
        """A key, blinding pairs of it, and inputs below its modulus."""
        numbers = self._up[self._numbers : self._numbers + self._largest * width].reshape(self._largest, width)
        size = self._kernels.record_bytes[width]
        record = self._device.allocate_pinned(size)
        _fill_record(record, self._kernels.radix_bits, width)
        pairs = self._device.allocate(self._largest * self._kernels.pair_bytes[width])
        self._memory[width] = (self._device.allocate(size), pairs)
        self._stream.upload(self._memory[width][0], record)
        numbers[:] = np.frombuffer(secrets.token_bytes(numbers.size), np.uint8).reshape(numbers.shape)
        numbers[:, -1] = 0
        self._run(self._kernels.choose(Operation.MAKE_PAIRS, width, self._largest), self._largest)
        self._device.free_pinned(record)


def _fill_record(record: NDArray[np.uint8], radix_bits: int, width: int) -> None:
    p, q, dp, dq = (secrets.randbits(4 * width) | 3 << (4 * width - 2) | 1 for _ in range(4))
    warp.key_record(record, radix_bits, width, n=p * q, e=_E, p=p, q=q, dp=dp, dq=dq, qinv=secrets.randbelow(p))
