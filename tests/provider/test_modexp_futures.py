"""submit_modexp(): exponentiations as futures. Hazard: work that nobody waits for any more is done all the same."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest
from limb_arrays import limbs, numbers

from gpu_provider import BatchingProvider, InputError, ProviderClosedError, ProviderConfig

if TYPE_CHECKING:
    from gpu_provider.testing import HeldBackend

M = (1 << 127) - 1


def test_agrees_with_the_call_that_waits() -> None:
    with BatchingProvider() as provider:
        assert provider.submit_modexp(2, 5, 7).result(10) == 4
        assert provider.submit_modexp(b"\x02", 5, 7).result(10) == b"\x04"
        assert provider.submit_modexp([2, 3], [5, -5], 7).result(10) == [4, pow(3, -5, 7)]
        assert provider.submit_modexp([], 5, 7).result(10) == []
        assert numbers(provider.submit_modexp(limbs([2, 3], 1), 5, 8).result(10)) == [0, 3]
        futures = [provider.submit_modexp(x, 65537, M, public_exponents=True) for x in range(200)]
        assert [future.result(10) for future in futures] == [pow(x, 65537, M) for x in range(200)]
        with pytest.raises(InputError, match="the modulus is 0"):
            provider.submit_modexp(2, 5, 0)
    with pytest.raises(ProviderClosedError):
        provider.submit_modexp(2, 5, 7)


def test_what_is_cancelled_is_not_computed(held_backend: HeldBackend) -> None:
    with BatchingProvider(ProviderConfig(max_delay=3600, backend_timeout=50), backends=[held_backend]) as provider:
        first = provider.submit_modexp(3, 5, 7)
        held_backend.wait_for_batch()
        cancelled, kept = provider.submit_modexp([3] * 1000, 5, 7), provider.submit_modexp(3, 5, 7)
        assert cancelled.cancel()
        with pytest.raises(CancelledError):
            cancelled.result(0)
        held_backend.release_all()
        assert first.result(10) == kept.result(10) == 5
        assert provider.stats().by_backend == {"held": 2}


def test_calls_of_many_threads_that_wait_are_computed_together(held_backend: HeldBackend) -> None:
    config = ProviderConfig(max_delay=3600, backend_timeout=50)
    with BatchingProvider(config, backends=[held_backend]) as provider, ThreadPoolExecutor(64) as pool:
        first = provider.submit_modexp(3, 5, M)
        held_backend.wait_for_batch()
        others = list(pool.map(lambda x: provider.submit_modexp(x, 65537, M), range(64)))
        held_backend.release_all()
        assert first.result(30) == pow(3, 5, M)
        assert [call.result(30) for call in others] == [pow(x, 65537, M) for x in range(64)]
        assert held_backend.wait_for_batch().requests == 64


def test_a_callback_may_submit_more() -> None:
    with BatchingProvider() as provider:
        following: SimpleQueue[Future[int]] = SimpleQueue()
        first = provider.submit_modexp(2, 10, M)
        first.add_done_callback(lambda done: following.put(provider.submit_modexp(done.result(), 2, M)))
        assert following.get(timeout=30).result(30) == 1 << 20


def test_futures_end_when_the_provider_is_closed(held_backend: HeldBackend) -> None:
    with BatchingProvider(
        ProviderConfig(max_delay=3600, backend_timeout=50, max_batch=1), backends=[held_backend]
    ) as provider:
        begun = provider.submit_modexp(3, 5, 7)
        held_backend.wait_for_batch()
        waiting = provider.submit_modexp([3] * 1000, 5, 7)
        waiting.add_done_callback(lambda _: held_backend.release_all())
    assert begun.result(0) == 5
    with pytest.raises(ProviderClosedError):
        waiting.result(0)
