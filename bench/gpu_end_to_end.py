"""Requests through the batching provider with the CUDA backend, and batches through that backend alone.

The C feeder of queue_overhead stands for thousands of connections where there is a compiler; without one, futures do,
whose own cost in Python is most of what they measure under load.
"""

import secrets
import statistics
import threading
import time
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa

from gpu_provider import BatchingProvider, Key, ProviderConfig
from gpu_provider.backends.base import Batch
from gpu_provider.backends.cuda import CudaBackend
from gpu_provider.backends.cupy_device import CupyDevice
from gpu_provider.backends.device import Device
from gpu_provider.backends.host_device import HostDevice
from gpu_provider.client import Client
from gpu_provider.device_arrays import locate
from gpu_provider.errors import BackendError
from gpu_provider.kernels.cubin_cache import CubinCache
from gpu_provider.keys import load
from gpu_provider.native import ffi, lib
from gpu_provider.operands import limbs_of

from .gpu_batches import to_rows
from .gpu_device import find_device
from .gpu_report import Report
from .queue_overhead import FEEDER, Feeder
from .servers import Bench, BenchError

SIZES = (2048, 3072, 4096)
BATCHES = (1024, 2048, 4096)
CUDA = "cuda"
LANES = 3
IN_FLIGHT = (64, 4096, 16384)
SECONDS = 1.5
CHECKED = 16


def open_device(device: str, cache: str) -> Device:
    """What the CUDA backend runs on."""
    if device == "host":
        return HostDevice()
    return CupyDevice(find_device(device), CubinCache(Path(cache)))


def measure(device: str, cache: str, tiny: bool, report: Report) -> None:
    sizes, batches = (SIZES[:1], (2,)) if tiny else (SIZES, BATCHES)
    total = len(sizes) * len(batches) + 1 + 2
    backend_alone(device, cache, sizes, batches, report, seconds=0 if tiny else SECONDS, total=total)
    depth = 16 if tiny else 32768
    config = ProviderConfig(queue_depth=depth, max_batch=min(depth, 8192), backend_timeout=30)
    backend = CudaBackend(open_device(device, cache), name=CUDA, measured=0 if tiny else config.max_batch)
    with BatchingProvider(config, backends=[backend]) as provider:
        key = provider.load_key(rsa.generate_private_key(65537, SIZES[0]))
        provider.private_op(key, 2)  # compiles, if anything is left to be compiled, and uploads the key
        futures(provider, key, 4 if tiny else 4096, total, report)
        arrays(provider, backend, key, 8 if tiny else 65536, report)
        report.progress("requests by the C feeder", total)
        try:
            feed(provider, key, (4,) if tiny else IN_FLIGHT, 8 if tiny else 200_000, report)
        except BenchError as error:
            report.note(f"end to end: by futures alone, without the C feeder: {error}")
        if others := {name: count for name, count in provider.stats().by_backend.items() if name != CUDA}:
            report.note(f"end to end: not all was computed by the CUDA backend: {others} requests by others")


def backend_alone(
    device: str,
    cache: str,
    sizes: tuple[int, ...],
    batches: tuple[int, ...],
    report: Report,
    *,
    seconds: float,
    total: int,
) -> None:
    """Batches in flight on every lane, as long as that: staging, copies and kernels, without the queue."""
    client = Client(16)
    backend = CudaBackend(open_device(device, cache), lanes=LANES, measured=int(seconds > 0) * max(batches))
    backend.open(client)
    try:
        for bits in sizes:
            key = load(client, rsa.generate_private_key(65537, bits))
            for rows in batches:
                report.progress(f"RSA-{bits}, batches of {rows} on {LANES} lanes", total)
                lanes = [make_batch(key, rows) for _ in range(LANES)]
                for batch in lanes:
                    backend.private_op(batch)
                    check(key, batch)
                rate, latencies = run_lanes(backend, lanes, seconds)
                report.sample(section="backend", bits=bits, rows=rows, rate=rate, latency_seconds=latencies)
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


def check(key: Key, batch: Batch) -> None:
    for row in range(0, len(batch), max(1, len(batch) // CHECKED)):
        x, result = (int.from_bytes(rows[row].tobytes(), "little") for rows in (batch.inputs, batch.outputs))
        if not batch.ok[row] or pow(result, key.e, key.n) != x:
            raise BackendError(f"row {row} of a batch of {len(batch)}, RSA-{key.bits}, is wrong")


def run_lanes(backend: CudaBackend, lanes: list[Batch], seconds: float) -> tuple[float, list[float]]:
    """Operations per second, and what each batch took."""
    latencies: list[float] = []
    failures: list[BackendError] = []
    end = time.perf_counter() + seconds

    def run(batch: Batch) -> None:
        try:
            while True:
                started = time.perf_counter()
                backend.private_op(batch)
                latencies.append(time.perf_counter() - started)
                if time.perf_counter() >= end:
                    return
        except BackendError as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(batch,)) for batch in lanes]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return len(latencies) * len(lanes[0]) / (time.perf_counter() - started), latencies


def futures(provider: BatchingProvider, key: Key, requests: int, total: int, report: Report) -> None:
    """One thread of Python submits all at once."""
    report.progress("requests by futures", total)
    taken: list[float] = []
    submitted = []
    started = time.perf_counter()
    for _ in range(requests):
        at = time.perf_counter()
        future = provider.submit(key, 2)
        future.add_done_callback(partial(note_end, taken, at))
        submitted.append(future)
    wait(submitted)
    seconds = time.perf_counter() - started
    if any(pow(int(future.result()), key.e, key.n) != 2 for future in submitted[:CHECKED]):
        raise BackendError("a result of the batching provider is wrong")
    report.sample(
        section="end-to-end", by="futures", in_flight=requests, rate=requests / seconds, **percentiles(taken)
    )  # fmt: skip


def arrays(provider: BatchingProvider, backend: CudaBackend, key: Key, rows: int, report: Report) -> None:
    """One call of private_op() over an array: of the host, and of the device, where it stays."""
    on_host = np.arange(rows * key.bytes // 8, dtype=np.uint64).reshape(rows, -1)  # below the modulus
    on_device = backend.device.new_array(rows, on_host.shape[1])
    placed, _ = locate(on_device, "input")
    backend.write(placed, on_host.view(np.uint8))
    for by, array in (("a NumPy array", on_host), ("an array on the device", on_device)):
        started = time.perf_counter()
        result: Any = provider.private_op(key, array)
        seconds = time.perf_counter() - started
        if by == "an array on the device":
            result = limbs_of(backend.read(locate(result, "result")[0]))
        for row in range(0, rows, max(1, rows // CHECKED)):
            x, y = (int.from_bytes(numbers[row].tobytes(), "little") for numbers in (on_host, result))
            if pow(y, key.e, key.n) != x:
                raise BackendError(f"row {row} of {by} is wrong")
        report.sample(section="end-to-end", by=by, in_flight=rows, rate=rows / seconds)


def note_end(taken: list[float], since: float, _future: object) -> None:
    taken.append(time.perf_counter() - since)


def feed(provider: BatchingProvider, key: Key, in_flight: tuple[int, ...], requests: int, report: Report) -> None:
    """Always so many in flight, from ASYNC jobs in C."""
    with Bench() as bench:
        library: Any = FEEDER.dlopen(str(bench.compile("queue_jobs", "-shared", "-fPIC", "-lcrypto")))
        core: Any = lib
        pointer = key.client.pointer
        native_key = ffi.gc(core.gp_client_get_key(pointer, key.handle), core.gp_key_free)
        operation = (ffi.addressof(core, "gp_client_private_op"), pointer, native_key, key.handle)
        for size in in_flight:
            feeder = Feeder(library, operation, size)
            feeder.run(size)
            before, started = provider.stats(), time.perf_counter()
            feeder.run(requests)
            rate = requests / (time.perf_counter() - started)
            batches = provider.stats().batches - before.batches
            # Little's law: what is in flight, over the rate.
            report.sample(
                section="end-to-end", by="feeder", in_flight=size, rate=rate, mean_batch=requests / batches,
                mean_seconds=size / rate,
            )  # fmt: skip


def percentiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"p50": values[0], "p99": values[0]}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}
