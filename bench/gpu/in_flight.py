"""The CUDA backend with several batches in flight; the cost of wiping and of renewed blinding pairs; a long load."""

import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor, wait

from gpu_provider.backends.base import Batch
from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.device import Device
from gpu_provider.observe.nvml import Nvml

from .backend import MOST_WORKERS, SIZES, compute_checked, make_batch, opened, run_workers, unwiped
from .report import Pairs, Report, Sustained, Workers

BATCHES = (1024, 2048, 4096)
TINY = 2
SECONDS = 1.0
WARM_UP_SECONDS = 0.3
VARIED_BATCHES = 40
PAIRS_SECONDS = 5.0
SUSTAINED_SECONDS = 15.0
WATCH_SECONDS = 0.5


def measure_workers(device: Device, tiny: bool, report: Report) -> None:
    """The largest batches first."""
    sizes, batches = (SIZES[:1], (TINY,)) if tiny else (SIZES, BATCHES[::-1])
    total = MOST_WORKERS * len(sizes) * len(batches) + 2
    seconds = 0 if tiny else SECONDS
    with opened(device, 0 if tiny else max(batches)) as (backend, new_key):
        for bits in sizes:
            key = new_key(bits)
            for rows in batches:
                workers = [make_batch(key, rows) for _ in range(MOST_WORKERS)]
                for batch in workers:
                    compute_checked(backend, key, batch)
                if not tiny:
                    run_workers(backend, workers, WARM_UP_SECONDS, [])
                for count in range(1, MOST_WORKERS + 1):
                    report.progress(f"RSA-{bits}, {count} batches of {rows} in flight", total)
                    _measure(backend, workers[:count], seconds, True, report)
    with opened(unwiped(device), 0 if tiny else max(batches)) as (backend, new_key):
        key = new_key(SIZES[0])
        workers = [make_batch(key, max(batches)) for _ in range(MOST_WORKERS)]
        for batch in workers:
            compute_checked(backend, key, batch)
        for count in (1, MOST_WORKERS):
            report.progress(f"{count} batches in flight, without wiping", total)
            _measure(backend, workers[:count], seconds, False, report)


def _measure(backend: CudaBackend, workers: list[Batch], seconds: float, wiped: bool, report: Report) -> None:
    latencies: list[float] = []
    rate = run_workers(backend, workers, seconds, latencies)
    bits, rows = 8 * workers[0].class_bytes, len(workers[0])
    report.sample(
        Workers(bits=bits, rows=rows, workers=len(workers), wiped=wiped, rate=rate, latency_seconds=latencies)
    )


def measure_pairs(device: Device, tiny: bool, report: Report) -> None:
    """One batch at a time. Of the latencies the second half counts, when there are pairs of all ages."""
    full = TINY if tiny else max(BATCHES)
    seconds = 0 if tiny else PAIRS_SECONDS
    sizes = [random.randint(2, full) for _ in range(VARIED_BATCHES)]  # noqa: S311 - no secret
    with opened(device, 0 if tiny else full) as (backend, new_key):
        key = new_key(SIZES[0])
        varied, uniform = [make_batch(key, rows) for rows in sizes], [make_batch(key, full)]
        for name, batches in (("one size", uniform), ("varied sizes", varied), ("one size, after those", uniform)):
            report.progress(f"batches of {name}", 3)
            latencies: list[float] = []
            rows, started = 0, time.perf_counter()
            for batch in itertools.cycle(batches):
                at = time.perf_counter()
                backend.private_op(batch)
                latencies.append(time.perf_counter() - at)
                rows += len(batch)
                if time.perf_counter() - started >= seconds:
                    break
            rate = rows / (time.perf_counter() - started)
            report.sample(Pairs(sizes=name, rate=rate, latency_seconds=latencies[len(latencies) // 2 :]))


def measure_sustained(device: Device, tiny: bool, report: Report) -> None:
    """A GPU lowers its clock when it becomes too hot or draws too much power."""
    rows, seconds = (TINY, 0.0) if tiny else (max(BATCHES), SUSTAINED_SECONDS)
    nvml = Nvml()
    latencies: list[float] = []
    seen, at = 0, 0.0
    with opened(device, 0 if tiny else rows) as (backend, new_key), ThreadPoolExecutor(1) as pool:
        key = new_key(SIZES[0])
        workers = [make_batch(key, rows) for _ in range(MOST_WORKERS)]
        for batch in workers:
            compute_checked(backend, key, batch)
        report.progress(f"{seconds:g} s of batches of {rows}", 1)
        started = time.perf_counter()
        load = pool.submit(run_workers, backend, workers, seconds, latencies)
        while not load.done():
            wait([load], WATCH_SECONDS)
            before, at = at, time.perf_counter() - started
            new, seen = len(latencies) - seen, len(latencies)
            figures = nvml.read(device.pci_bus_id) if device.pci_bus_id else None
            report.sample(
                Sustained(
                    at_seconds=at,
                    rate=new * rows / (at - before),
                    power_watts=figures.power_watts if figures else None,
                    sm_clock_hertz=figures.sm_clock_hertz if figures else None,
                    temperature_celsius=figures.temperature_celsius if figures else None,
                )
            )
        load.result()
