"""How many private operations a second a device or the processor computes, measured here and now."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa

from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.client import Client
from gpu_provider.config import ProviderConfig
from gpu_provider.provider import BatchingProvider

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpu_provider.backends.cuda.device import Device
    from gpu_provider.library.keys import Key

__all__ = ["SIZES", "Rate", "measure_device", "measure_processor"]

SIZES = (2048, 3072, 4096)
_FIRST_ROWS = 64
_LEAST_SECONDS = 0.3
_SINGLES = 5


@dataclass(frozen=True, slots=True)
class Rate:
    """Private operations of one key size, blinded and verified."""

    bits: int
    per_second: float
    """The best rate of any batch."""
    batch: int
    """The operations of a batch that reaches it."""
    batch_seconds: float
    """The time that such a batch takes."""
    single_seconds: float
    """The time that one operation alone takes."""


def measure_device(device: Device, largest: int) -> list[Rate]:
    """Measures batches of 1, 2, 4, … rows up to ``largest``, one at a time, copies included. Compiles what the kernel
    cache lacks. Raises BackendError."""
    backend = CudaBackend(device, workers=1, measured=largest)
    backend.open(Client(1))
    try:
        return [_rate(8 * width, points) for width, points in sorted(backend.measurements.items())]
    finally:
        backend.close()


def _rate(bits: int, points: list[tuple[int, float]]) -> Rate:
    batch, seconds = max(points, key=lambda point: point[0] / point[1])
    return Rate(bits, batch / seconds, batch, seconds, points[0][1])


def measure_processor(config: ProviderConfig) -> Iterator[Rate]:
    """Measures calls of many rows with the backend ``cpu``, one size after the other."""
    cpu = ProviderConfig(backend="cpu", threads=config.threads)
    with BatchingProvider(cpu) as provider:
        for bits in SIZES:
            key = provider.load_key(rsa.generate_private_key(65537, bits))
            single = min(_seconds(provider, key, 1) for _ in range(_SINGLES))
            rows = _FIRST_ROWS
            while (seconds := _seconds(provider, key, rows)) < _LEAST_SECONDS:
                rows *= 2
            yield Rate(bits, rows / seconds, rows, seconds, single)


def _seconds(provider: BatchingProvider, key: Key, rows: int) -> float:
    limbs = key.bytes // 8
    x = np.arange(rows * limbs, dtype=np.uint64).reshape(rows, limbs)  # below the modulus
    started = time.perf_counter()
    provider.private_op(key, x)
    return time.perf_counter() - started
