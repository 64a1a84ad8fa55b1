"""First contact: does the CUDA backend open on this device, and is each key size computed right?"""

import time

from gpu_provider.backends.cuda.device import Device

from .backend import SIZES, compute_checked, make_batch, opened
from .report import Opened, Report, Smoke

BATCHES = (1, 9, 1000, 4096)


def check(device: Device, tiny: bool, report: Report) -> None:
    """Raises BackendError on the first wrong row."""
    sizes, batches = (SIZES[:1], (1, 2)) if tiny else (SIZES, BATCHES)
    started = time.perf_counter()
    report.progress("opening the backend", 1 + len(sizes) * len(batches))
    with opened(device, 0 if tiny else max(batches)) as (backend, new_key):
        curves = {str(8 * width): points for width, points in backend.measurements.items()}
        report.sample(Opened(seconds=time.perf_counter() - started, curves=curves))
        for bits in sizes:
            key = new_key(bits)
            for rows in batches:
                report.progress(f"RSA-{bits}, {rows} rows", 1 + len(sizes) * len(batches))
                batch = make_batch(key, rows)
                first, again = (compute_checked(backend, key, batch) for _ in range(2))
                report.sample(Smoke(bits=bits, rows=rows, first_seconds=first, again_seconds=again))
