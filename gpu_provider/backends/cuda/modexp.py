"""Exponentiations on a device: operands on the host or on the device, and one launch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpu_provider.backends.cuda.staging import INDEX_BYTES
from gpu_provider.client import MAX_BYTES
from gpu_provider.kernels.launch import MODEXP_LAUNCH, Operation, modulus_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.base import Rows
    from gpu_provider.backends.cuda.device import DeviceRows
    from gpu_provider.backends.cuda.kernels import KernelChoice
    from gpu_provider.backends.cuda.staging import Staging
    from gpu_provider.kernels.launch import Kernel

__all__ = ["DeviceModexp"]

_ROWS_PER_MODULUS = 8


def _distinct(moduli: Rows) -> tuple[Rows, NDArray[np.intp] | int]:
    """The different rows, and which of them each row is."""
    if (moduli == moduli[0]).all():
        return moduli[:1], 0
    return np.unique(moduli, axis=0, return_inverse=True)


class DeviceModexp:
    """Exponentiations through a worker's staging, on the worker's thread."""

    def __init__(self, staging: Staging, kernels: KernelChoice) -> None:
        self._staging = staging
        self._kernels = kernels

    def compute(
        self,
        bases: Rows | DeviceRows,
        exponents: Rows | DeviceRows,
        moduli: Rows,
        outputs: Rows | DeviceRows,
    ) -> bool:
        """``Backend.modexp``, also for arrays on the device; one row of exponents or moduli serves all. False if these
        are better computed elsewhere: numbers that are too wide, or so many moduli that preparing them would cost more
        than the device saves. Raises DeviceError."""
        (count, base_bytes), (_, exponent_bytes) = bases.shape, exponents.shape
        width = self._kernels.width(Operation.MODEXP, max(moduli.shape[1], base_bytes))
        if width is None or exponent_bytes > MAX_BYTES:
            return False
        distinct, modulus_of_row = _distinct(moduli)
        if len(distinct) > max(1, count // _ROWS_PER_MODULUS):
            return False
        with self._kernels.in_flight(count) as together:
            kernel = self._kernels.choose(Operation.MODEXP, width, together)
            self._compute(kernel, bases, exponents, (distinct, modulus_of_row), outputs)
        return True

    def _compute(
        self,
        kernel: Kernel,
        bases: Rows | DeviceRows,
        exponents: Rows | DeviceRows,
        moduli: tuple[Rows, NDArray[np.intp] | int],
        outputs: Rows | DeviceRows,
    ) -> None:
        """``moduli``: the different ones, and which of them each row has."""
        distinct, modulus_of_row = moduli
        staging, stream, width = self._staging, self._staging.stream, kernel.class_bytes
        (count, _), (exponent_rows, exponent_bytes) = bases.shape, exponents.shape
        exponent_width = -(-exponent_bytes // 16) * 16
        sizes = [
            count * width,
            exponent_rows * exponent_width,
            count * INDEX_BYTES,
            len(distinct) * kernel.record_bytes,
        ]
        staging.reserve_bytes(sizes, count * width)
        up_bases, up_exponents, index, records = staging.up.lay_out(*sizes)
        (results,) = staging.down.lay_out(count * width)
        index.host.view(np.uint32)[:] = modulus_of_row
        for record, modulus in zip(records.host.reshape(len(distinct), kernel.record_bytes), distinct, strict=True):
            modulus_record(record, kernel.radix_bits, width, int.from_bytes(modulus.tobytes(), "little"))
        launch = np.zeros(1, MODEXP_LAUNCH)
        launch[0] = (
            *(count, 8 * exponent_bytes, exponent_width if exponent_rows > 1 else 0, 0),
            *(part.address for part in (index, records, up_bases, up_exponents, results)),
        )
        up_bases.fill(stream, bases, width)
        up_exponents.fill(stream, exponents, exponent_width)
        index.through(records).upload(stream)
        staging.uploaded.record()
        stream.launch(kernel, launch)
        if isinstance(outputs, np.ndarray):
            results.download(stream)
        else:
            results.copy_to(stream, outputs, width)
        staging.downloaded.record()
        operands = up_bases.through(up_exponents)
        operands.clear(stream)
        results.clear(stream)
        staging.uploaded.wait()
        operands.wipe()
        staging.downloaded.wait()
        if isinstance(outputs, np.ndarray):
            outputs[:] = results.host.reshape(count, width)[:, : outputs.shape[1]]
            results.wipe()
