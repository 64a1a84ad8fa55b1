"""Two Ray actors on this machine compute what one process does, also when one dies."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from limb_arrays import limbs, numbers
from rsa_keys import private_key

ray = pytest.importorskip("ray", reason="Ray comes with the [ray] extra; `make clusters` installs it")

from gpu_provider import BatchingProvider, InputError  # noqa: E402
from gpu_provider.clusters.ray import provider_pool  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PUBLIC = private_key(2048).public_key().public_numbers()
INPUTS = range(3, 203)
BLOCKS = [limbs(INPUTS[start : start + 20], 32) for start in range(0, 200, 20)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def check(powers: list[Any]) -> None:
    given = [number for block in powers for number in numbers(block)]
    assert [pow(power, PUBLIC.e, PUBLIC.n) for power in given] == list(INPUTS)


def test_each_actor_has_one_provider_with_its_share_of_the_machine(pem: Path) -> None:
    def look(provider: BatchingProvider, keys: Any, _: int) -> tuple[int, int, int, int | None, str | None]:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return os.getpid(), id(provider), id(keys["signing"]), provider.config.threads, visible

    pool = provider_pool(2, {"signing": pem}, num_gpus=1)
    seen = set(pool.map(lambda actor, number: actor.run.remote(look, number), range(20)))
    assert len(seen) == 2
    assert {(threads, visible) for *_, threads, visible in seen} == {(1, "0"), (1, "1")}


def test_an_actor_that_is_killed_in_the_middle_changes_no_result(pem: Path, tmp_path: Path) -> None:
    doomed = tmp_path / "doomed"
    doomed.touch()

    def private_op(provider: BatchingProvider, keys: Any, rows: Any) -> tuple[int, Any]:
        powers = provider.private_op(keys["signing"], rows)
        with contextlib.suppress(FileNotFoundError):
            doomed.unlink()  # by one of them alone
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid(), powers

    pool = provider_pool(2, {"signing": pem})
    before = set(pool.map(lambda actor, _: actor.run.remote(lambda *_: os.getpid(), None), range(10)))
    results = list(pool.map(lambda actor, rows: actor.run.remote(private_op, rows), BLOCKS))
    assert not doomed.exists()
    check([powers for _, powers in results])
    after = set(pool.map(lambda actor, _: actor.run.remote(lambda *_: os.getpid(), None), range(10)))
    assert len(before & after) == 1
    assert len(after) == 2


def test_a_block_that_kills_every_actor_ends_in_an_error() -> None:
    pool = provider_pool(1, {})
    pool.submit(lambda actor, number: actor.run.remote(lambda *_: os.kill(os.getpid(), signal.SIGKILL), number), 1)
    with pytest.raises(ray.exceptions.RayActorError):
        pool.get_next()


def test_a_mistake_reaches_the_caller_and_nobody_else(pem: Path) -> None:
    def private_op(provider: BatchingProvider, keys: Any, rows: Any) -> Any:
        return provider.private_op(keys["signing"], rows)

    pool = provider_pool(2, {"signing": pem.read_bytes})  # a function that runs there
    actor = pool.pop_idle()
    with pytest.raises(InputError, match="modulus"):
        ray.get(actor.run.remote(private_op, limbs([PUBLIC.n], 32)))
    pool.push(actor)
    check(list(pool.map(lambda actor, rows: actor.run.remote(private_op, rows), BLOCKS)))


def test_keys_do_not_travel(pem: Path) -> None:
    with pytest.raises(InputError, match="keys are not sent"):
        provider_pool(1, {"signing": pem.read_bytes()})
    pool = provider_pool(1, {"signing": pem})
    with BatchingProvider() as provider:
        key = provider.load_key(pem.read_bytes())
        with pytest.raises(TypeError, match="load it in the other process"):
            pool.submit(lambda actor, x: actor.run.remote(lambda provider, _, x: provider.private_op(key, x), x), 2)
    pool = provider_pool(1, {"signing": pem})
    pool.submit(lambda actor, name: actor.run.remote(lambda _, keys, name: keys[name], name), "signing")
    with pytest.raises(TypeError, match="load it in the other process"):
        pool.get_next()


def test_who_lacks_the_key_is_told_with_the_first_result(tmp_path: Path) -> None:
    pool = provider_pool(1, {"signing": tmp_path / "none.pem"})
    pool.submit(lambda actor, x: actor.run.remote(lambda *_: None, x), 2)
    with pytest.raises(ray.exceptions.ActorDiedError, match=r"key 'signing' can't be read on .*none\.pem"):
        pool.get_next()
