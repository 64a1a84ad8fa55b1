"""What the queue and the batching provider cost by themselves: an idle backend, fed from ASYNC jobs in C."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from cffi import FFI
from cryptography.hazmat.primitives.asymmetric import rsa
from numpy.typing import NDArray

from gpu_provider import BatchingProvider, Key, ProviderConfig
from gpu_provider.backends.base import Backend, Batch
from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.client import CLASSES, Client
from gpu_provider.costs import CostCurve, CostCurves
from gpu_provider.native import ffi, lib

from .gpu.host_device import HostDevice
from .harness import RSA_BITS, Bench, BenchError
from .report import Result, Target

IN_FLIGHT = (1, 64, 1024, 4096)
ROWS_OF_A_CALL = 8  # few, because the cost of a row is not what is measured
CALLS = 1000
WITH_TARGET = (64, 1024, 4096)  # a request alone pays for waking three threads: shown, not judged
DEPTH = 16384

FEEDER = FFI()
FEEDER.cdef("""
    typedef struct feeder feeder;
    feeder *feeder_new(void *private_op, void *client, void *key, uint64_t handle, const uint8_t *input, uint32_t size);
    void feeder_free(feeder *feeder);
    uint64_t feeder_run(feeder *feeder, uint64_t requests);
    void feeder_fill(feeder *feeder);
    uint64_t feeder_await_all(feeder *feeder);
    uint64_t feeder_finish(feeder *feeder);
""")


class NullBackend:
    """Says that every result is there and right. While ``gate`` is clear, it holds its batch."""

    name = "null"
    workers = 1
    pipelined = False
    verifies = True

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def open(self, client: Client) -> None:
        pass

    def cost_curves(self) -> CostCurves:
        *private, modexp = (CostCurve([(1, 0.0)]) for _ in range(CLASSES + 1))
        return CostCurves(private, modexp)

    def private_op(self, batch: Batch) -> None:
        self.gate.wait()
        batch.ok[:] = 1

    def modexp(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class NothingStream:
    """Costs nothing, and says that every result is there and right. While ``gate`` is clear, it is not done. It is its
    own event."""

    def __init__(self, gate: threading.Event) -> None:
        self._gate = gate

    def nothing(self, *_: Any) -> None:
        pass

    upload = copy = copy_rows = clear = launch = record = nothing

    def download(self, to: NDArray[np.uint8], source: int) -> None:
        to[-(to.size // (RSA_BITS // 8 + 1)) :] = 1  # the verdicts lie behind the results

    def event(self) -> Self:
        return self

    def wait(self) -> None:
        self._gate.wait()


class NothingDevice(HostDevice):
    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def stream(self) -> NothingStream:  # type: ignore[override]
        return NothingStream(self.gate)


def compile_feeder(bench: Bench) -> Path:
    """The library that a :class:`Feeder` needs. Raises BenchError."""
    return bench.compile("queue_jobs", "-shared", "-fPIC", "-lcrypto")


class Feeder:
    """``queue_jobs.c``: runs ASYNC jobs on the calling thread, without the GIL."""

    def __init__(self, library: Any, operation: tuple[Any, Any, Any, int], size: int) -> None:
        """``operation``: gp_request_private_op or NULL, the client, the key and its handle."""
        self._library = library
        self._input = FEEDER.new("uint8_t[512]")  # zero, which is less than any modulus
        pointers = [FEEDER.cast("void *", int(ffi.cast("uintptr_t", pointer))) for pointer in operation[:3]]
        self._feeder = FEEDER.gc(library.feeder_new(*pointers, operation[3], self._input, size), library.feeder_free)

    def run(self, requests: int) -> None:
        failed = self._library.feeder_run(self._feeder, requests)
        if failed:
            raise BenchError(f"{failed} of {requests} requests failed")

    def fill(self) -> None:
        self._library.feeder_fill(self._feeder)

    def await_all(self) -> int:
        return int(self._library.feeder_await_all(self._feeder))

    def finish(self) -> None:
        failed = self._library.feeder_finish(self._feeder)
        if failed:
            raise BenchError(f"{failed} requests failed")


def measure(bench: Bench, *, rounds: int, requests: int, advance: Callable[[str, int], None]) -> Result:
    result = Result(
        "queue",
        "Queue and batching provider with a backend that does nothing",
        {"rounds": rounds, "requests": requests, "in_flight": IN_FLIGHT, "depth": DEPTH, "rsa_bits": RSA_BITS},
    )
    steps = rounds * len(IN_FLIGHT) + 2 * (rounds + 1) + rounds
    library: Any = FEEDER.dlopen(str(compile_feeder(bench)))
    backend = NullBackend()
    with provider_with(backend) as (provider, key, threads):
        names = sorted(thread.name for thread in threads)
        operation = operation_of(key)
        nothing = (ffi.NULL, *operation[1:])
        for size in IN_FLIGHT:
            requesting, idle = (Feeder(library, what, size) for what in (operation, nothing))
            count = requests if size > 1 else requests // 10
            requesting.run(count // 4)
            idle.run(count // 4)
            for turn in range(rounds):
                advance(f"{size} in flight", steps)
                batches = provider.stats().batches
                started = time.monotonic()
                full = cpu_of(requesting, count)
                wall = time.monotonic() - started
                batches = provider.stats().batches - batches
                sample = {"round": turn, "in_flight": size, "cpu_us": (full - cpu_of(idle, count)) / count * 1e6}
                result.samples.append({**sample, "rate": count / wall, "mean_batch": count / batches})
        feeder = Feeder(library, operation, DEPTH)
        for turn in range(rounds + 1):
            advance("full batches", steps)
            sample = burst(backend.gate, feeder, threads)
            if turn > 0:  # the first one touches every page for the first time
                result.samples.append({"round": turn - 1, **sample})
    result.samples += samples_of_device(library, rounds, lambda what: advance(what, steps))
    for size in IN_FLIGHT:
        cpu = result.values("cpu_us", in_flight=size)
        target = Target(5.0) if size in WITH_TARGET else None
        result.add_row(f"{size} in flight", "submission to completion", "µs of CPU", cpu, target=target)
    rates = result.values("burst_rate", burst=True)
    result.add_row("full batches", "batching thread", "requests/s", rates, target=Target(1e6, at_most=False))
    rates = result.values("device_rate", device=True)
    result.add_row("full batches", "CUDA backend, idle device", "requests/s", rates, target=Target(2e6, at_most=False))
    case, cpu = f"a batch of {ROWS_OF_A_CALL}", result.values("call_us", calls=True)
    result.add_row(case, "CUDA backend's call, idle device", "µs of CPU", cpu, target=Target(60.0))
    cpu = result.values("threads_us", calls=True)
    result.add_row(case, "all threads of the provider, idle device", "µs of CPU", cpu)
    for thread in names:
        cpu = result.values(thread, burst=True)
        if max(cpu) > 0:
            result.add_row("full batches", f"thread {thread}", "µs of CPU", cpu)
    return result


@contextlib.contextmanager
def provider_with(backend: Backend) -> Iterator[tuple[BatchingProvider, Key, set[threading.Thread]]]:
    """A provider with this backend alone, a key, and the provider's threads."""
    before = set(threading.enumerate())
    with BatchingProvider(ProviderConfig(queue_depth=DEPTH), backends=[backend]) as provider:
        threads = set(threading.enumerate()) - before
        yield provider, provider.load_key(rsa.generate_private_key(65537, RSA_BITS)), threads


def samples_of_device(library: Any, rounds: int, advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """The CUDA backend on a device that costs nothing: full batches through the queue, then calls of the backend."""
    samples: list[dict[str, Any]] = []
    device = NothingDevice()
    cuda = CudaBackend(device)
    with provider_with(cuda) as (provider, key, threads):
        feeder = Feeder(library, operation_of(key), DEPTH)
        for turn in range(rounds + 1):
            advance("full batches, device")
            sample = burst(device.gate, feeder, threads)
            if turn > 0:
                samples.append({"round": turn - 1, "device": True, "device_rate": sample["burst_rate"]})
        few = Feeder(library, operation_of(key), ROWS_OF_A_CALL)
        for turn in range(rounds):
            advance("calls of the CUDA backend")
            sample = {"call_us": call_of(cuda, key), "threads_us": threads_of(provider, few, threads)}
            samples.append({"round": turn, "calls": True, **sample})
    return samples


def operation_of(key: Key) -> tuple[Any, Any, Any, int]:
    """Returns what a feeder calls; the key must outlive it."""
    core: Any = lib
    native_key = ffi.gc(core.gp_key_table_get(key.client.keys, key.handle), core.gp_key_free)
    return (ffi.addressof(core, "gp_request_private_op"), key.client.pointer, native_key, key.handle)


def cpu_of(feeder: Feeder, requests: int) -> float:
    before = time.process_time()
    feeder.run(requests)
    return time.process_time() - before


def burst(gate: threading.Event, feeder: Feeder, threads: set[threading.Thread]) -> dict[str, Any]:
    """Fills the queue while the backend holds its first batches, then lets go; times how long until the last
    callback."""
    gate.clear()
    feeder.fill()
    before = {thread.name: thread_cpu(thread) for thread in threads}
    started = time.monotonic_ns()
    gate.set()
    ended = feeder.await_all()
    used = {thread.name: (thread_cpu(thread) - before[thread.name]) / DEPTH * 1e6 for thread in threads}
    feeder.finish()
    return {"burst": True, "burst_rate": DEPTH / ((ended - started) / 1e9), **used}


def call_of(backend: CudaBackend, key: Key) -> float:
    """Microseconds of CPU time that the backend takes for a small batch on this thread, nearly all of it in Python."""
    size = RSA_BITS // 8
    inputs = np.zeros((ROWS_OF_A_CALL, size), np.uint8)
    handles = np.full(ROWS_OF_A_CALL, key.handle, np.uint64)
    batch = Batch(size, handles, inputs, np.empty_like(inputs), np.zeros(ROWS_OF_A_CALL, np.uint8))
    before = time.thread_time()
    for _ in range(CALLS):
        backend.private_op(batch)
    return (time.thread_time() - before) / CALLS * 1e6


def threads_of(provider: BatchingProvider, feeder: Feeder, threads: set[threading.Thread]) -> float:
    """Microseconds of CPU time that the provider's threads take for a small batch, from its submission to its
    callbacks: Python, the C core, and the system's part in waking three threads."""
    before, batches = sum(map(thread_cpu, threads)), provider.stats().batches
    for _ in range(CALLS):
        feeder.fill()
        feeder.await_all()
        feeder.finish()
    return (sum(map(thread_cpu, threads)) - before) / (provider.stats().batches - batches) * 1e6


def thread_cpu(thread: threading.Thread) -> float:
    if thread.ident is None:
        raise BenchError(f"thread {thread.name} has not started")
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
