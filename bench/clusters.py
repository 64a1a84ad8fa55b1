"""RSA-2048 private operations by the recipes for Dask and Ray, on this machine: with one worker process, and with two.

Each worker has half of the processors. The rows travel to the workers and back, which is counted in.
"""

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from numpy.typing import NDArray

from gpu_provider import BatchingProvider, Key, ProviderConfig, kernels

from .harness import Bench, BenchError
from .report import Result, Target

BITS, LIMBS = 2048, 32
BLOCK = 512
"""Rows that a worker gets at a time."""
THREADS = max(1, len(os.sched_getaffinity(0)) // 2)
CONFIG = ProviderConfig(backend="cpu", threads=THREADS)
TWO_TO_ONE = 1.8
"""The goal: times the rows per second."""
ONE, TWO = "one worker", "two workers"

Rows = NDArray[np.uint64]


def measure(bench: Bench, *, rounds: int, rows: int, advance: Callable[[str, int], None]) -> Result:
    """``rows``: how many a round computes."""
    engines = {name: start for name, start in ENGINES.items() if importlib.util.find_spec(name.lower())}
    if not engines:
        raise BenchError("neither Dask nor Ray is installed: pip install 'gpu-provider[dask,ray]'")
    result = Result(
        "clusters",
        f"RSA-{BITS} private operations on worker processes",
        {"rounds": rounds, "rows": rows, "block": BLOCK, "threads": THREADS, "isa": kernels.isa().name},
    )
    for name in ENGINES.keys() - engines.keys():
        result.notes.append(f"{name} is not installed: pip install 'gpu-provider[{name.lower()}]'")
    private_key = rsa.generate_private_key(65537, BITS)
    path = bench.directory / "key.pem"
    path.write_bytes(private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    array = np.arange(rows * LIMBS, dtype=np.uint64).reshape(rows, LIMBS)
    for name, start in engines.items():
        for workers in (1, 2):
            with start(workers, path) as compute:
                check(private_key.public_key().public_numbers(), array, compute(array))
                for turn in range(rounds):
                    advance(f"{name}, {workers}", 2 * rounds * len(engines))
                    began = time.perf_counter()
                    compute(array)
                    rate = rows / (time.perf_counter() - began)
                    result.samples.append({"round": turn, "engine": name, "workers": workers, "rate": rate})
        one, two = (result.values("rate", engine=name, workers=workers) for workers in (1, 2))
        result.add_row(name, TWO, "rows/s", two, to=(ONE, one), target=Target(TWO_TO_ONE, at_most=False, goal=True))
        result.add_row(name, ONE, "rows/s", one)
    return result


def check(public: rsa.RSAPublicNumbers, array: Rows, powers: Rows) -> None:
    for row, power in zip(array[::BLOCK], powers[::BLOCK], strict=True):
        x, y = (int.from_bytes(numbers.astype("<u8").tobytes(), "little") for numbers in (row, power))
        if pow(y, public.e, public.n) != x:
            raise BenchError("a result is wrong")


def private_op(provider: BatchingProvider, keys: Mapping[str, Key], rows: Rows) -> Rows:
    return provider.private_op(keys["key"], rows)


@contextlib.contextmanager
def on_dask(workers: int, key: Path) -> Iterator[Callable[[Rows], Rows]]:
    import dask.array as da  # noqa: PLC0415 (an extra)
    from distributed import Client, LocalCluster  # noqa: PLC0415

    from gpu_provider.clusters.dask import ProviderPlugin, map_blocks  # noqa: PLC0415

    def compute(array: Rows) -> Rows:
        powers: Rows = map_blocks(private_op, da.from_array(array, chunks=(BLOCK, LIMBS))).compute()
        return powers

    with (
        LocalCluster(n_workers=workers, threads_per_worker=THREADS, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(ProviderPlugin({"key": key}, CONFIG))
        yield compute


@contextlib.contextmanager
def on_ray(workers: int, key: Path) -> Iterator[Callable[[Rows], Rows]]:
    import ray  # noqa: PLC0415 (an extra)

    from gpu_provider.clusters.ray import provider_pool  # noqa: PLC0415

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        pool = provider_pool(workers, {"key": key}, CONFIG)

        def compute(array: Rows) -> Rows:
            blocks = np.split(array, range(BLOCK, len(array), BLOCK))
            return np.concatenate(list(pool.map(lambda actor, rows: actor.run.remote(private_op, rows), blocks)))

        yield compute
    finally:
        ray.shutdown()


ENGINES: dict[str, Callable[[int, Path], contextlib.AbstractContextManager[Callable[[Rows], Rows]]]] = {
    "Dask": on_dask,
    "Ray": on_ray,
}
