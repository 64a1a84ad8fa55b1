"""BatchingProvider as a library: results against Python's pow, every way to call it, lifetime, statistics."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
import weakref
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rsa_keys import private_key

from gpu_provider import (
    BatchingProvider,
    InputError,
    Key,
    ProviderClosedError,
    ProviderConfig,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from gpu_provider.testing import HeldBackend

KEYS: list[tuple[int] | tuple[int, Literal[3]]] = [
    (2048,),
    (2048, 3),
    (2056,),
    (3000,),
    (3000, 3),
    (3072,),
    (4096, 3),
    (4096,),
]


@pytest.fixture(scope="module")
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider(ProviderConfig(backend="cpu")) as provider:
        yield provider


@pytest.fixture(scope="module")
def loaded(provider: BatchingProvider) -> list[tuple[Key, int]]:
    """Keys, each with its private exponent."""
    return [(provider.load_key(private_key(*which)), private_key(*which).private_numbers().d) for which in KEYS]


@pytest.fixture(scope="module")
def key(loaded: list[tuple[Key, int]]) -> Key:
    return loaded[0][0]


D = private_key(2048).private_numbers().d


def to_the_e(key: Key, result: int | bytes) -> int:
    """x if ``result`` is x^d, and only then; quicker than x^d in Python."""
    assert isinstance(result, int)
    return pow(result, key.e, key.n)


class TestResults:
    @settings(deadline=None, max_examples=25)
    @given(data=st.data())
    def test_every_key_and_number_agrees_with_pow(
        self, provider: BatchingProvider, loaded: list[tuple[Key, int]], data: st.DataObject
    ) -> None:
        key, d = data.draw(st.sampled_from(loaded))
        x = data.draw(st.integers(0, key.n - 1))
        assert provider.private_op(key, x) == pow(x, d, key.n)

    @pytest.mark.parametrize("which", range(len(KEYS)))
    def test_edges(self, provider: BatchingProvider, loaded: list[tuple[Key, int]], which: int) -> None:
        key, _ = loaded[which]
        assert [provider.private_op(key, x) for x in (0, 1, key.n - 1)] == [0, 1, key.n - 1]

    def test_bytes_in_bytes_out_as_long_as_the_modulus(self, provider: BatchingProvider, key: Key) -> None:
        for x in (b"", b"\x02", bytes(254) + b"\x01\x02", bytearray(b"\x03"), memoryview(b"\x04")):
            expected = pow(int.from_bytes(x, "big"), D, key.n).to_bytes(256, "big")
            assert provider.private_op(key, x) == expected

    def test_integers_of_other_libraries(self, provider: BatchingProvider, key: Key) -> None:
        for two in (np.uint64(2), np.int32(2)):
            result = provider.private_op(key, two)
            assert type(result) is int
            assert result == provider.submit(key, two).result(timeout=30) == pow(2, D, key.n)

    def test_a_batch_mixes_keys_and_sizes(self, provider: BatchingProvider, loaded: list[tuple[Key, int]]) -> None:
        source = random.Random(1)  # noqa: S311 (test data)
        requests = [(key, source.randrange(key.n)) for key, _ in loaded * 4]
        futures = [provider.submit(key, x) for key, x in requests]
        for (key, x), future in zip(requests, futures, strict=True):
            assert to_the_e(key, future.result(timeout=30)) == x


class TestInputs:
    @pytest.mark.parametrize(
        ("x", "reason"),
        [
            (-1, "negative"),
            (bytes(257), "257 bytes long, but the key takes at most 256"),
            (b"\xff" * 256, "not less than"),
            ("2", "not str"),
            (2.0, "not float"),
            (True, "not bool"),
            (None, "not NoneType"),
            (np.float64(2), "not float64"),
            (memoryview(bytes(8)).cast("Q"), "it must be of bytes in one dimension"),
        ],
    )
    def test_nonsense_is_refused(self, provider: BatchingProvider, key: Key, x: object, reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            provider.private_op(key, x)  # type: ignore[call-overload]

    def test_the_modulus_is_refused_without_being_shown(self, provider: BatchingProvider, key: Key) -> None:
        for x in (key.n, key.n + 1):
            with pytest.raises(InputError, match="not less than the key's 2048-bit modulus") as caught:
                provider.submit(key, x)
            assert str(x) not in str(caught.value)


class TestAsync:
    async def test_gathered(self, provider: BatchingProvider, key: Key) -> None:
        results = await asyncio.gather(*(provider.private_op_async(key, x) for x in range(50)))
        assert [to_the_e(key, result) for result in results] == list(range(50))

    async def test_cancelling_harms_nobody(self, held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
        key = held_provider.load_key(private_key(2048))
        tasks = [asyncio.ensure_future(held_provider.private_op_async(key, x)) for x in range(8)]
        await asyncio.to_thread(held_backend.wait_for_batch)
        for task in tasks[::2]:
            task.cancel()
        held_backend.release_all()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False] * 4
        assert results[1::2] == [pow(x, D, key.n) for x in range(1, 8, 2)]
        assert held_provider.stats().completed == 8

    def test_a_future_can_be_cancelled(self, held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
        key = held_provider.load_key(private_key(2048))
        first, second = held_provider.submit(key, 2), held_provider.submit(key, 3)
        held_backend.wait_for_batch()
        assert first.cancel()
        held_backend.release_all()
        assert second.result(timeout=10) == pow(3, D, key.n)
        assert first.cancelled()


class TestLifetime:
    def test_no_thread_before_start(self) -> None:
        before = threading.active_count()
        provider = BatchingProvider()
        assert threading.active_count() == before
        provider.close()

    def test_threads_are_gone_after_close(self) -> None:
        before = threading.active_count()
        with BatchingProvider():
            assert threading.active_count() > before
        assert threading.active_count() == before

    def test_not_started_says_so(self) -> None:
        provider = BatchingProvider()
        key = provider.load_key(private_key(2048))
        for use in (
            lambda: provider.private_op(key, 2),
            lambda: provider.submit(key, 2),
            lambda: provider.modexp(2, 3, 5),
            lambda: provider.library_context,
        ):
            with pytest.raises(ProviderClosedError, match="not started"):
                use()

    def test_starting_twice_is_once(self) -> None:
        with BatchingProvider() as provider:
            before = threading.active_count()
            provider.start()
            assert threading.active_count() == before

    def test_a_forgotten_provider_ends_its_threads(self) -> None:
        before = set(threading.enumerate())
        provider = BatchingProvider()
        provider.start()
        reference = weakref.ref(provider)
        threads = set(threading.enumerate()) - before
        del provider
        gc.collect()
        assert reference() is None
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()

    def test_the_library_context_outlives_the_provider(self) -> None:
        with BatchingProvider() as provider:
            context = provider.library_context
            assert provider.library_context is context
            assert context.pointer
        del provider
        gc.collect()
        assert context.pointer


class TestStats:
    def test_counts(self) -> None:
        with BatchingProvider(ProviderConfig(queue_depth=64)) as provider:
            key = provider.load_key(private_key(2048))
            futures: list[Future[int | bytes]] = [provider.submit(key, x) for x in range(20)]
            for future in futures:
                future.result(timeout=10)
            provider.modexp([2] * 5, 3, 7)
            stats = provider.stats()
        assert (stats.submitted, stats.completed, stats.failed, stats.retries) == (20, 20, 0, 0)
        assert (stats.in_use, stats.in_line, stats.fallbacks, stats.direct) == (0, 0, 0, 0)
        assert stats.by_backend == {"cpu": 25}
        assert stats.backend == "cpu"
        assert stats.mean_batch == pytest.approx(25 / stats.batches)
        assert 1 <= stats.largest_batch <= 20


def test_auto_says_once_what_computes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gpu_provider"), BatchingProvider(ProviderConfig(backend="auto")) as provider:
        provider.start()
    (record,) = caplog.records
    assert record.message.startswith('backend "auto": computing with cpu')


def test_cpu_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gpu_provider"), BatchingProvider(ProviderConfig(backend="cpu")):
        pass
    assert not caplog.records


def test_a_lone_request_does_not_wait_for_company(held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
    key = held_provider.load_key(private_key(2048))
    held_provider.submit(key, 2)
    assert held_backend.wait_for_batch().requests == 1


def test_what_waits_while_the_worker_is_busy_goes_in_one_batch(
    held_provider: BatchingProvider, held_backend: HeldBackend
) -> None:
    key = held_provider.load_key(private_key(2048))
    held_provider.submit(key, 2)
    held_backend.wait_for_batch()
    futures = [held_provider.submit(key, x) for x in range(100)]
    held_backend.release()
    batch = held_backend.wait_for_batch()
    assert (batch.requests, batch.bits) == (100, 2048)
    held_backend.release()
    assert [to_the_e(key, future.result(timeout=10)) for future in futures] == list(range(100))


def test_sizes_do_not_mix_in_a_batch(held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
    keys = [held_provider.load_key(private_key(bits)) for bits in (2048, 2056, 3072)]
    held_provider.submit(keys[0], 2)
    held_backend.wait_for_batch()
    for _ in range(3):
        for key in keys:
            held_provider.submit(key, 2)
    held_backend.release_all()
    batches = [held_backend.wait_for_batch() for _ in keys]
    assert sorted((batch.bits, batch.requests) for batch in batches) == [(2048, 3), (2560, 3), (3072, 3)]
