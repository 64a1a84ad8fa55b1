"""A Dask cluster of two worker processes on this machine computes what one process does, also when a worker dies."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from limb_arrays import limbs, numbers
from rsa_keys import private_key

distributed = pytest.importorskip("distributed", reason="Dask comes with the [dask] extra")

import dask.array as da  # noqa: E402

from gpu_provider import BatchingProvider, InputError, KeyLoadError, ProviderClosedError  # noqa: E402
from gpu_provider.clusters.dask import ProviderPlugin, map_blocks, run  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

PUBLIC = private_key(2048).public_key().public_numbers()
INPUTS = range(3, 203)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Any, pem: Path) -> Iterator[Any]:
    with distributed.Client(cluster) as client:
        client.register_plugin(ProviderPlugin({"signing": pem}))
        yield client


def rows_of(values: range) -> da.Array:
    return da.from_array(limbs(values, 32), chunks=(20, 32))


def check(powers: np.ndarray) -> None:
    assert [pow(power, PUBLIC.e, PUBLIC.n) for power in numbers(powers)] == list(INPUTS)


def test_each_process_has_one_provider_with_its_share_of_threads(client: Any) -> None:
    def look(provider: BatchingProvider, keys: Any, _: int) -> tuple[int, int, int, int | None]:
        return os.getpid(), id(provider), id(keys["signing"]), provider.config.threads

    workers = list(client.scheduler_info()["workers"])
    seen = {
        one
        for worker in workers * 3
        for one in client.gather(client.map(functools.partial(run, look), range(3), workers=[worker], pure=False))
    }
    assert len(seen) == len({pid for pid, *_ in seen}) == 2
    assert {threads for *_, threads in seen} == {2}
    assert os.getpid() not in {pid for pid, *_ in seen}


def test_an_array_is_computed_on_the_workers(client: Any) -> None:
    powers = map_blocks(lambda provider, keys, rows: provider.private_op(keys["signing"], rows), rows_of(INPUTS))
    assert (powers.shape, powers.chunks[0], powers.dtype) == ((200, 32), (20,) * 10, np.uint64)
    check(powers.compute())
    cubes = map_blocks(lambda provider, _, rows: provider.modexp(rows, 3, 2**61 - 1), rows_of(INPUTS)[:, :1], limbs=1)
    assert numbers(cubes.compute()) == [x**3 for x in INPUTS]


def test_a_worker_that_is_killed_in_the_middle_changes_no_result(client: Any, tmp_path: Path) -> None:
    doomed = tmp_path / "doomed"
    doomed.touch()

    def private_op(provider: BatchingProvider, keys: Any, rows: Any) -> Any:
        powers = provider.private_op(keys["signing"], rows)
        with contextlib.suppress(FileNotFoundError):
            doomed.unlink()  # by one of them alone
            os.kill(os.getpid(), signal.SIGKILL)
        return powers

    before = set(client.run(os.getpid).values())
    check(map_blocks(private_op, rows_of(INPUTS)).compute())
    assert not doomed.exists()
    client.wait_for_workers(2, timeout=30)
    after = set(client.run(os.getpid).values())
    assert len(before & after) == 1
    for worker in client.scheduler_info()["workers"]:
        loaded = client.submit(run, lambda _, keys, name: keys[name].n, "signing", workers=[worker], pure=False)
        assert loaded.result() == PUBLIC.n


def test_a_mistake_reaches_the_caller_and_nobody_else(client: Any) -> None:
    def private_op(provider: BatchingProvider, keys: Any, rows: Any) -> Any:
        return provider.private_op(keys["signing"], rows)

    wrong = da.from_array(limbs([PUBLIC.n], 32))
    right = map_blocks(private_op, rows_of(INPUTS)).persist()
    with pytest.raises(InputError, match="modulus"):
        map_blocks(private_op, wrong).compute()
    check(right.compute())
    with pytest.raises(InputError, match=r"returned \(20, 32\), not \(20, 16\).*limbs="):
        map_blocks(private_op, rows_of(INPUTS), limbs=16).compute()
    with pytest.raises(InputError, match="rechunk"):
        map_blocks(private_op, rows_of(INPUTS).rechunk({1: 16}))
    with pytest.raises(ProviderClosedError, match=r"compute with a distributed\.Client"):
        map_blocks(private_op, rows_of(INPUTS)).compute(scheduler="threads")


def test_keys_do_not_travel(client: Any, pem: Path) -> None:
    with pytest.raises(InputError, match="keys are not sent"):
        ProviderPlugin({"signing": pem.read_bytes()})
    with BatchingProvider() as provider:
        key = provider.load_key(pem.read_bytes())
        with pytest.raises(TypeError, match="Could not serialize"):  # the log says that the key is why
            client.submit(run, lambda provider, _, x: provider.private_op(key, x), 2)
    with pytest.raises(TypeError, match="load it in the other process"):
        client.submit(run, lambda _, keys, name: keys[name], "signing").result()


def test_who_lacks_the_key_is_told_when_the_plugin_is_registered(client: Any, pem: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyLoadError, match=r"key 'signing' can't be read on .*none\.pem"):
        client.register_plugin(ProviderPlugin({"signing": tmp_path / "none.pem"}))
    with pytest.raises(ProviderClosedError, match="register a ProviderPlugin"):
        client.submit(run, lambda _, keys, name: keys[name].n, "signing", pure=False).result()
    client.register_plugin(ProviderPlugin({"signing": pem.read_bytes}))  # a function that runs there
    assert client.submit(run, lambda _, keys, name: keys[name].n, "signing", pure=False).result() == PUBLIC.n


def test_the_commands_shown_start_workers_with_a_gpu_each(client: Any) -> None:
    document = (Path(__file__).resolve().parents[2] / "docs" / "library.md").read_text()
    (commands,) = re.findall(r"^(?:CUDA_VISIBLE_DEVICES=.* dask worker .*\n)+", document, re.MULTILINE)
    commands = commands.replace("tcp://scheduler:8786", f"{client.scheduler.address} --nthreads 3") + "wait\n"
    others = set(client.scheduler_info()["workers"])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["sh", "-ec", commands], env={**os.environ, "PATH": path}, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        client.wait_for_workers(4, timeout=30)
        shown = set(client.scheduler_info()["workers"]) - others
        seen = {
            client.submit(
                run,
                lambda provider, _, name: (os.environ[name], provider.config.threads),
                "CUDA_VISIBLE_DEVICES",
                workers=[worker],
                pure=False,
            ).result()
            for worker in shown
        }
        assert seen == {("0", 3), ("1", 3)}
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(30)
