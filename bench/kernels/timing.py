"""Whether the kernels' time tells keys or inputs apart: ``python -m bench.kernels.timing`` (dudect's method).

Reparaz, Balasch, Verbauwhede, "Dude, is my code constant time?", 2017: private operations of two classes, fixed and
random, run in random order. Welch's t compares their times, over all samples and over those below several percentiles,
which leave out interrupts. Below 4.5 it shows no difference. Two things are compared:

- inputs: one number with few ones, and random numbers, with the same key;
- keys: 64 copies of one key, and 64 different keys, with random inputs. Copies, so that the caches see no difference.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa
from numpy.typing import NDArray

from gpu_provider import kernels

from .operations import private_key, random_rows

KEYS = 64
PERCENTILES = (100, 99, 95, 90, 75, 50, 25)


def welch(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    spread = np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    return float((first.mean() - second.mean()) / spread)


def measure(operation: Callable[[int], None], samples: int) -> dict[str, float]:
    """Welch's t by percentile, from ``operation(0)`` and ``operation(1)`` in random order."""
    order = np.array([random.getrandbits(1) for _ in range(samples)])
    times = np.empty(samples)
    for i, chosen in enumerate(order):
        start = time.perf_counter_ns()
        operation(int(chosen))
        times[i] = time.perf_counter_ns() - start
    result = {}
    for percentile in PERCENTILES:
        kept = times <= np.percentile(times, percentile)
        result[str(percentile)] = welch(times[kept & (order == 0)], times[kept & (order == 1)])
    return result


def operations(bits: int, count: int) -> dict[str, Callable[[int], None]]:
    size = bits // 8
    made = [rsa.generate_private_key(65537, bits) for _ in range(KEYS)]
    copies, different = [private_key(made[0]) for _ in range(KEYS)], [private_key(key) for key in made]
    inputs = np.zeros((count, size), np.uint8)
    outputs, fixed, ok = np.zeros_like(inputs), np.zeros_like(inputs), np.zeros(count, np.uint8)
    fixed[:, 0] = 2

    def run(keys: list[kernels.PrivateKey], rows: NDArray[np.uint8]) -> None:
        inputs[:] = rows
        kernels.private_op(keys, inputs, outputs, ok)

    def by_input(chosen: int) -> None:
        rows = random_rows(count, size)
        run(copies[:count], rows if chosen else fixed)

    def by_key(chosen: int) -> None:
        start = random.randrange(KEYS)  # noqa: S311
        pool = different if chosen else copies
        run([pool[(start + i) % KEYS] for i in range(count)], random_rows(count, size))

    for chosen in (0, 1):
        for _ in range(KEYS):
            by_key(chosen)
    return {"inputs": by_input, "keys": by_key}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--bits", type=int, default=2048)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    results = {}
    for name, operation in operations(arguments.bits, kernels.lanes()).items():
        results[name] = measure(operation, arguments.samples)
        largest = max(abs(t) for t in results[name].values())
        by_percentile = "  ".join(f"{percentile}%: {t:+.2f}" for percentile, t in results[name].items())
        print(f"RSA-{arguments.bits}, fixed against random {name}: largest |t| {largest:.2f}   {by_percentile}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"samples": arguments.samples, "t": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
