"""Requests through the batching provider with the CUDA backend.

Where there is a compiler, the C feeder of queue_overhead stands for thousands of connections. Without one, futures do;
under load, most of what they measure is their own cost in Python.
"""

import statistics
import time
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa

from gpu_provider import BatchingProvider, Key, ProviderConfig
from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.device import Device
from gpu_provider.errors import BackendError
from gpu_provider.library.device_arrays import locate

from ..harness import RSA_BITS, Bench, BenchError
from ..queue_overhead import FEEDER, Feeder, compile_feeder, operation_of
from .backend import CHECKED, check_rows
from .report import EndToEnd, Report

CUDA = "cuda"
IN_FLIGHT = (64, 4096, 16384)
STEPS = 3


def measure(device: Device, tiny: bool, report: Report) -> None:
    depth = 16 if tiny else 32768
    config = ProviderConfig(queue_depth=depth, max_batch=min(depth, 8192), backend_timeout=30)
    backend = CudaBackend(device, name=CUDA, measured=0 if tiny else config.max_batch)
    with BatchingProvider(config, backends=[backend]) as provider:
        key = provider.load_key(rsa.generate_private_key(65537, RSA_BITS))
        provider.private_op(key, 2)  # compiles, if anything is left to be compiled, and uploads the key
        futures(provider, key, 4 if tiny else 4096, report)
        report.progress("arrays", STEPS)
        arrays(provider, backend, key, 8 if tiny else 65536, report)
        report.progress("requests by the C feeder", STEPS)
        try:
            feed(provider, key, (4,) if tiny else IN_FLIGHT, 8 if tiny else 200_000, report)
        except (BenchError, OSError) as error:  # OSError: the feeder does not find its libcrypto
            report.note(f"end to end: by futures alone, without the C feeder: {error}")
        if others := {name: count for name, count in provider.stats().by_backend.items() if name != CUDA}:
            report.note(f"end to end: not all was computed by the CUDA backend: {others} requests by others")


def futures(provider: BatchingProvider, key: Key, requests: int, report: Report) -> None:
    """One Python thread submits everything at once."""
    report.progress("requests by futures", STEPS)
    taken: SimpleQueue[float] = SimpleQueue()

    def submit() -> Future[int]:
        at = time.perf_counter()
        future = provider.submit(key, 2)
        future.add_done_callback(lambda _: taken.put(time.perf_counter() - at))
        return future

    started = time.perf_counter()
    submitted = [submit() for _ in range(requests)]
    latencies = [taken.get() for _ in submitted]  # not wait(), which returns before the last call-back
    seconds = time.perf_counter() - started
    if any(pow(future.result(), key.e, key.n) != 2 for future in submitted[:CHECKED]):
        raise BackendError("a result of the batching provider is wrong")
    report.sample(EndToEnd(by="futures", in_flight=requests, rate=requests / seconds, **percentiles(latencies)))


def arrays(provider: BatchingProvider, backend: CudaBackend, key: Key, rows: int, report: Report) -> None:
    """One call of private_op() for an array on the host, and one for an array that stays on the device."""
    on_host = np.arange(rows * key.bytes // 8, dtype=np.uint64).reshape(rows, -1)  # below the modulus
    on_device = backend.device.new_array(rows, on_host.shape[1])
    placed, _ = locate(on_device, "input")
    backend.write(placed, on_host.view(np.uint8))
    for by, array in (("a NumPy array", on_host), ("an array on the device", on_device)):
        started = time.perf_counter()
        result: Any = provider.private_op(key, array)
        seconds = time.perf_counter() - started
        outputs = backend.read(locate(result, "result")[0]) if array is on_device else result.view(np.uint8)
        check_rows(key, on_host.view(np.uint8), outputs, by)
        report.sample(EndToEnd(by=by, in_flight=rows, rate=rows / seconds))


def feed(provider: BatchingProvider, key: Key, in_flight: tuple[int, ...], requests: int, report: Report) -> None:
    """ASYNC jobs in C keep so many in flight."""
    with Bench() as bench:
        library: Any = FEEDER.dlopen(str(compile_feeder(bench)))
        operation = operation_of(key)
        for size in in_flight:
            feeder = Feeder(library, operation, size)
            feeder.run(size)
            before, started = provider.stats(), time.perf_counter()
            feeder.run(requests)
            rate = requests / (time.perf_counter() - started)
            batches = provider.stats().batches - before.batches
            # Little's law: what is in flight, over the rate.
            report.sample(
                EndToEnd(
                    by="feeder", in_flight=size, rate=rate, mean_batch=requests / batches, mean_seconds=size / rate
                )
            )  # fmt: skip


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}
