"""The CUDA backend with several batches in flight; the cost of wiping and of renewed blinding pairs; a long load."""

import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor, wait

from gpu_provider import Key
from gpu_provider.backends.base import Batch
from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.device import Device
from gpu_provider.observe.nvml import Nvml

from .backend import MOST_IN_FLIGHT, SIZES, compute_checked, make_batch, opened, run_in_flight, unwiped
from .report import InFlight, Pairs, Report, Sustained

BATCHES = (1024, 2048, 4096)
TINY = 2
SECONDS = 1.0
WARM_UP_SECONDS = 0.3
VARIED_BATCHES = 40
PAIRS_SECONDS = 5.0
SUSTAINED_SECONDS = 15.0
WATCH_SECONDS = 0.5


def measure_in_flight(device: Device, tiny: bool, report: Report) -> None:
    """The largest batches first."""
    sizes, lengths = (SIZES[:1], (TINY,)) if tiny else (SIZES, BATCHES[::-1])
    total = MOST_IN_FLIGHT * len(sizes) * len(lengths) + 2
    seconds = 0 if tiny else SECONDS
    with opened(device, 0 if tiny else max(lengths)) as (backend, new_key):
        for bits in sizes:
            key = new_key(bits)
            for rows in lengths:
                batches = _checked_batches(backend, key, rows)
                if not tiny:
                    run_in_flight(backend, batches, WARM_UP_SECONDS, [])
                for count in range(1, MOST_IN_FLIGHT + 1):
                    report.progress(f"RSA-{bits}, {count} batches of {rows} in flight", total)
                    _measure(backend, batches[:count], seconds, True, report)
    with opened(unwiped(device), 0 if tiny else max(lengths)) as (backend, new_key):
        batches = _checked_batches(backend, new_key(SIZES[0]), max(lengths))
        for count in (1, MOST_IN_FLIGHT):
            report.progress(f"{count} batches in flight, without wiping", total)
            _measure(backend, batches[:count], seconds, False, report)


def _checked_batches(backend: CudaBackend, key: Key, rows: int) -> list[Batch]:
    """MOST_IN_FLIGHT batches, each computed once. Raises BackendError if a row is wrong."""
    batches = [make_batch(key, rows) for _ in range(MOST_IN_FLIGHT)]
    for batch in batches:
        compute_checked(backend, key, batch)
    return batches


def _measure(backend: CudaBackend, batches: list[Batch], seconds: float, wiped: bool, report: Report) -> None:
    latencies: list[float] = []
    rate = run_in_flight(backend, batches, seconds, latencies)
    bits, rows = 8 * batches[0].class_bytes, len(batches[0])
    report.sample(
        InFlight(bits=bits, rows=rows, in_flight=len(batches), wiped=wiped, rate=rate, latency_seconds=latencies)
    )


def measure_pairs(device: Device, tiny: bool, report: Report) -> None:
    """One batch at a time. The second half of the latencies counts, when there are pairs of all ages."""
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
        batches = _checked_batches(backend, new_key(SIZES[0]), rows)
        report.progress(f"{seconds:g} s of batches of {rows}", 1)
        started = time.perf_counter()
        load = pool.submit(run_in_flight, backend, batches, seconds, latencies)
        running = True
        while running:  # also once after the end: a short load has ended before the first look
            running = bool(wait([load], WATCH_SECONDS).not_done)
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
