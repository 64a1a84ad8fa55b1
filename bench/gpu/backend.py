"""The CUDA backend without the queue: opened on a GPU or the processor, and given batches from several threads."""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa
from numpy.typing import NDArray

from gpu_provider import Key
from gpu_provider.backends.base import Batch
from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.cupy_device import CupyDevice
from gpu_provider.backends.cuda.device import Device
from gpu_provider.client import Client
from gpu_provider.errors import BackendError
from gpu_provider.kernels.cubin_cache import CubinCache
from gpu_provider.library.keys import load

from .batches import to_rows
from .host_device import HostDevice
from .launcher import find_device

SIZES = (2048, 3072, 4096)
MOST_IN_FLIGHT = 3
CHECKED = 16


def open_device(device: str, cache: str) -> Device:
    """What the CUDA backend runs on."""
    if device == "host":
        return HostDevice()
    return CupyDevice(find_device(device), CubinCache(Path(cache)))


@contextlib.contextmanager
def opened(device: Device, measured: int) -> Iterator[tuple[CudaBackend, Callable[[int], Key]]]:
    """The backend, and a function that makes a new key of so many bits. ``measured``: as for the backend."""
    client = Client(16)
    backend = CudaBackend(device, workers=MOST_IN_FLIGHT, measured=measured)
    backend.open(client)
    try:
        yield backend, lambda bits: load(client, rsa.generate_private_key(65537, bits))
    finally:
        backend.close()


def make_batch(key: Key, rows: int) -> Batch:
    return Batch(
        class_bytes=key.bytes,
        keys=np.full(rows, key.handle, np.uint64),
        inputs=to_rows([secrets.randbelow(key.n) for _ in range(rows)], key.bytes),
        outputs=np.zeros((rows, key.bytes), np.uint8),
        ok=np.zeros(rows, np.uint8),
    )


def compute_checked(backend: CudaBackend, key: Key, batch: Batch) -> float:
    """The seconds that it took. Raises BackendError for a wrong row, where :func:`check_rows` looks."""
    batch.outputs.fill(0)
    started = time.perf_counter()
    backend.private_op(batch)
    seconds = time.perf_counter() - started
    check_rows(key, batch.inputs, batch.outputs, f"a batch of {len(batch)}, RSA-{key.bits},")
    if not batch.ok.all():
        raise BackendError(f"row {batch.ok.argmin()} of a batch of {len(batch)}, RSA-{key.bits}, was not verified")
    return seconds


def check_rows(key: Key, inputs: NDArray[np.uint8], outputs: NDArray[np.uint8], what: str) -> None:
    """Checks some of the private operations by Python's pow(). Raises BackendError if one is wrong."""
    for row in range(0, len(inputs), max(1, len(inputs) // CHECKED)):
        x, result = (int.from_bytes(rows[row].tobytes(), "little") for rows in (inputs, outputs))
        if pow(result, key.e, key.n) != x:
            raise BackendError(f"row {row} of {what} is wrong")


def run_in_flight(backend: CudaBackend, batches: Sequence[Batch], seconds: float, latencies: list[float]) -> float:
    """Computes each batch again and again, at least once, on a thread of its own. Returns operations per second, and
    appends what each batch took."""
    end = time.perf_counter() + seconds

    def run(batch: Batch) -> None:
        while True:
            started = time.perf_counter()
            backend.private_op(batch)
            latencies.append(time.perf_counter() - started)
            if time.perf_counter() >= end:
                return

    before, started = len(latencies), time.perf_counter()
    with ThreadPoolExecutor(len(batches)) as pool:
        list(pool.map(run, batches))
    return (len(latencies) - before) * len(batches[0]) / (time.perf_counter() - started)


class _Unwiped:
    """A device or one of its streams."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def stream(self) -> "_Unwiped":
        return _Unwiped(self._wrapped.stream())

    def clear(self, address: int, size: int) -> None:
        pass


def unwiped(device: Device) -> Device:
    """The device, but it wipes nothing, to measure what wiping costs. Only for keys and inputs that were made for this,
    and for batches of the kernels' own widths, which need no zeros beside them."""
    return cast("Device", _Unwiped(device))
