"""Batches of random numbers, which show how long a device takes without any key."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import numpy as np

from gpu_provider.backends.cuda.staging import INDEX_BYTES, Arena
from gpu_provider.kernels.launch import PRIVATE_LAUNCH, Operation, key_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.cuda.device import Device
    from gpu_provider.backends.cuda.kernels import KernelChoice
    from gpu_provider.backends.cuda.staging import Part
    from gpu_provider.kernels.launch import Kernel

__all__ = ["Trial"]

_E = 65537


class Trial:
    """Computes private operations of any width, copies and all, with moduli that are products of random odd numbers.

    A kernel executes the same for every number, but a multiplier draws less power for zeros, so the GPU would keep a
    higher clock than with real numbers. For one thread at a time.
    """

    def __init__(self, device: Device, kernels: KernelChoice, largest: int) -> None:
        """``largest``: rows of a batch. Raises DeviceError."""
        self._device = device
        self._kernels = kernels
        self._stream = device.stream()
        self._largest = largest
        self._launch = np.zeros(1, PRIVATE_LAUNCH)
        self._memory: dict[int, tuple[int, int]] = {}  # by width: the key's record, and the blinding pairs
        widest = largest * max(kernels.record_bytes)
        self._up = Arena(device, largest * INDEX_BYTES, largest * INDEX_BYTES, widest)
        self._down = Arena(device, widest, largest)
        _, pair_of_row, _ = self._lay_out(0)  # all rows have the only record
        pair_of_row.host.view(np.uint32)[:] = np.arange(largest)

    def compute(self, kernel: Kernel, rows: int) -> None:
        """Returns when it is done. Raises DeviceError."""
        if kernel.class_bytes not in self._memory:
            self._make_operands(kernel.class_bytes)
        self._run(kernel, rows)

    def close(self) -> None:
        """Raises DeviceError."""
        for address in (each for both in self._memory.values() for each in both):
            self._device.free(address)
        self._up.free()
        self._down.free()

    def _lay_out(self, numbers_bytes: int) -> list[Part]:
        """The record and the pair of each row, and numbers."""
        return self._up.lay_out(self._largest * INDEX_BYTES, self._largest * INDEX_BYTES, numbers_bytes)

    def _run(self, kernel: Kernel, rows: int) -> None:
        width = kernel.class_bytes
        records, pairs = self._memory[width]
        record_of_row, pair_of_row, inputs = self._lay_out(rows * width)
        outputs, ok = self._down.lay_out(rows * width, rows)
        indices, numbers = (record_of_row.address, pair_of_row.address), (inputs.address, outputs.address, ok.address)
        self._launch[0] = (rows, 4 * width, _E, *indices, records, pairs, *numbers)
        record_of_row.through(inputs).upload(self._stream)
        self._stream.launch(kernel, self._launch)
        outputs.through(ok).download(self._stream)
        self._stream.wait()

    def _make_operands(self, width: int) -> None:
        """A key, blinding pairs of it, and inputs below its modulus."""
        size = self._kernels.record_bytes[width]
        record = self._device.allocate_pinned(size)
        _fill_record(record, self._kernels.radix_bits, width)
        pairs = self._device.allocate(self._largest * self._kernels.pair_bytes[width])
        self._memory[width] = (self._device.allocate(size), pairs)
        self._stream.upload(self._memory[width][0], record)
        *_, inputs = self._lay_out(self._largest * width)
        numbers = inputs.host.reshape(self._largest, width)
        numbers[:] = np.frombuffer(secrets.token_bytes(numbers.size), np.uint8).reshape(numbers.shape)
        numbers[:, -1] = 0
        self._run(self._kernels.choose(Operation.MAKE_PAIRS, width, self._largest), self._largest)
        self._device.free_pinned(record)


def _fill_record(record: NDArray[np.uint8], radix_bits: int, width: int) -> None:
    p, q, dp, dq = (secrets.randbits(4 * width) | 3 << (4 * width - 2) | 1 for _ in range(4))
    key_record(record, radix_bits, width, n=p * q, e=_E, p=p, q=q, dp=dp, dq=dq, qinv=secrets.randbelow(p))
