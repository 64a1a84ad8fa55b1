"""Hazards: a backend raises, hangs, refuses or returns a wrong number. A wrong result never leaves, nobody waits for
ever, and afterwards everything works."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import evp
import pytest
from rsa_keys import private_der, private_key

from gpu_provider import (
    BackendError,
    BatchingProvider,
    OperationError,
    ProviderClosedError,
    ProviderConfig,
)
from gpu_provider.backends.libcrypto import LibcryptoBackend
from gpu_provider.client import CLASSES
from gpu_provider.costs import CostCurve, CostCurves
from gpu_provider.engine import jobs, launcher
from gpu_provider.engine.health import BackendState, Health
from gpu_provider.engine.jobs import RsaJob
from gpu_provider.testing import HeldBackend

if TYPE_CHECKING:
    from gpu_provider.backends.base import Batch
    from gpu_provider.client import Client
    from gpu_provider.library.keys import Key

NUMBERS = private_key(2048).private_numbers()
N, D = NUMBERS.public_numbers.n, NUMBERS.d

Fault = Callable[[HeldBackend], None]
FAULTS = {
    "raises": HeldBackend.fail_next,
    "returns a wrong number": HeldBackend.lie_next,
    "hangs": HeldBackend.hang_next,
}


@pytest.fixture
def key(held_provider: BatchingProvider) -> Key:
    return held_provider.load_key(private_key(2048))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.gpu_provider(backend_timeout=0.5)
def test_the_requests_are_computed_again_and_the_next_ones_too(
    held_provider: BatchingProvider, held_backend: HeldBackend, key: Key, fault: str
) -> None:
    held_backend.release_all()
    held_provider.private_op(key, 2)
    FAULTS[fault](held_backend)
    futures = [held_provider.submit(key, x) for x in range(20)]
    assert [future.result(timeout=30) for future in futures] == [pow(x, D, N) for x in range(20)]
    stats = held_provider.stats()
    assert stats.fallbacks >= 1
    assert stats.failed == 0
    assert stats.backend == "libcrypto"
    assert held_provider.private_op(key, 3) == pow(3, D, N)


@pytest.mark.parametrize("fault", ["raises", "returns a wrong number"])
def test_a_whole_batch_falls_back(
    held_provider: BatchingProvider, held_backend: HeldBackend, key: Key, fault: str
) -> None:
    plug = held_provider.submit(key, 2)
    held_backend.wait_for_batch()
    futures = [held_provider.submit(key, x) for x in range(50)]
    held_backend.release()
    held_backend.wait_for_batch()
    FAULTS[fault](held_backend)
    held_backend.release()
    assert [future.result(timeout=30) for future in futures] == [pow(x, D, N) for x in range(50)]
    assert plug.result(timeout=30) == pow(2, D, N)
    # The other results of the batch with one wrong number were verified and are used.
    assert held_provider.stats().fallbacks == (50 if fault == "raises" else 1)


def test_a_large_batch_after_a_small_one_that_was_computed_again(held_backend: HeldBackend) -> None:
    """The arrays of the small one must not serve the large one."""
    config = ProviderConfig(threads=1, max_delay=3600, backend_retry=3600)
    with BatchingProvider(config, backends=[held_backend]) as provider:
        key = provider.load_key(private_key(2048))
        held_backend.release_all()
        held_backend.fail_next()
        for _ in range(3):
            assert provider.private_op(key, 2) == pow(2, D, N)
        with ThreadPoolExecutor(32) as pool:
            results = list(pool.map(lambda x: provider.private_op(key, x), range(64)))
        assert results == [pow(x, D, N) for x in range(64)]


def test_a_wrong_number_never_leaves(held_provider: BatchingProvider, held_backend: HeldBackend, key: Key) -> None:
    held_backend.release_all()
    held_backend.lie_next()
    assert held_provider.private_op(key, 12345) == pow(12345, D, N)


@pytest.mark.gpu_provider(backend_timeout=0.2)
def test_the_late_result_of_a_hung_call_reaches_nobody(
    held_provider: BatchingProvider, held_backend: HeldBackend, key: Key
) -> None:
    held_backend.release_all()
    held_backend.hang_next()
    assert held_provider.private_op(key, 2) == pow(2, D, N)
    others = [held_provider.submit(key, x) for x in range(3, 10)]
    held_backend.end_hang()
    assert [future.result(timeout=30) for future in others] == [pow(x, D, N) for x in range(3, 10)]
    held_provider.close()
    assert held_provider.stats().completed == 8


@pytest.mark.gpu_provider(backend_retry=0.001, backend_timeout=0.2)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_backend_comes_back_and_each_change_is_one_line_in_the_log(
    held_provider: BatchingProvider,
    held_backend: HeldBackend,
    key: Key,
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    held_backend.release_all()
    FAULTS[fault](held_backend)
    with caplog.at_level(logging.WARNING, "gpu_provider"):
        held_provider.private_op(key, 2)
        held_backend.end_hang()
        while held_provider.stats().backend != "held":
            assert held_provider.private_op(key, 5) == pow(5, D, N)
    lost, back = [record.getMessage() for record in caplog.records]
    assert lost.startswith("backend held is out of use (")
    assert back == "backend held works again and is back in use"


class _Refusing(HeldBackend):
    """Computes every row but the first."""

    def private_op(self, batch: Batch) -> None:
        super().private_op(batch)
        batch.ok[0] = 0


class _Broken(LibcryptoBackend):
    """The last resort itself fails."""

    def private_op(self, batch: Batch) -> None:
        super().private_op(batch)
        raise MemoryError("out of memory")


class _Unopenable(HeldBackend):
    def open(self, client: Client) -> None:
        raise BackendError("held: no device")


class _Scribbling(HeldBackend):
    """Uses its inputs as scratch space, so that wrong results would be verified against wrong inputs."""

    def private_op(self, batch: Batch) -> None:
        batch.inputs[:] = 0


def test_refused_rows_are_computed_on_libcrypto_and_the_backend_stays() -> None:
    backend = _Refusing()
    backend.release_all()
    with BatchingProvider(ProviderConfig(), backends=[backend]) as provider:
        key = provider.load_key(private_key(2048))
        assert provider.private_op(key, 7) == pow(7, D, N)
        stats = provider.stats()
        assert (stats.fallbacks, stats.backend) == (1, "held")


def test_a_backend_that_writes_over_its_inputs_is_caught() -> None:
    with BatchingProvider(ProviderConfig(), backends=[_Scribbling()]) as provider:
        key = provider.load_key(private_key(2048))
        assert provider.private_op(key, 7) == pow(7, D, N)
        assert provider.stats().fallbacks == 1


def test_only_if_libcrypto_fails_too_does_the_request_fail(held_backend: HeldBackend) -> None:
    held_backend.release_all()
    held_backend.fail_next()
    with BatchingProvider(ProviderConfig(), backends=[held_backend, _Broken(1)]) as provider:
        key = provider.load_key(private_key(2048))
        with pytest.raises(OperationError):
            provider.private_op(key, 2)
        assert provider.stats().failed == 1


def test_a_backend_that_cannot_be_opened_is_named_at_start() -> None:
    before, first = threading.active_count(), HeldBackend()
    provider = BatchingProvider(ProviderConfig(), backends=[first, _Unopenable()])
    with pytest.raises(BackendError, match="no device"):
        provider.start()
    assert first._libcrypto._client is None  # closed again
    assert threading.active_count() == before
    provider.close()


@pytest.mark.parametrize("fault", ["raises", "hangs"])
@pytest.mark.gpu_provider(backend_timeout=0.2)
def test_modexp_is_computed_again_too(held_provider: BatchingProvider, held_backend: HeldBackend, fault: str) -> None:
    held_backend.release_all()
    FAULTS[fault](held_backend)
    assert held_provider.modexp([3] * 50, 5, 7) == [5] * 50
    assert held_provider.stats().fallbacks == 50


def test_modexp_fails_only_if_libcrypto_does() -> None:
    class NoModexp(LibcryptoBackend):
        def modexp(self, *_: object) -> None:
            raise BackendError("libcrypto: out of memory")

    with BatchingProvider(ProviderConfig(), backends=[NoModexp(2)]) as provider:
        with pytest.raises(OperationError):
            provider.modexp([3] * 50, 5, 7)
        assert provider.private_op(provider.load_key(private_key(2048)), 2) == pow(2, D, N)


@pytest.mark.gpu_provider(backend_timeout=0.3)
def test_libcrypto_serves_while_a_call_hangs(
    held_provider: BatchingProvider, held_backend: HeldBackend, key: Key
) -> None:
    held_backend.release_all()
    held_backend.hang_next()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda x: held_provider.private_op(key, x), range(40))) == [
            pow(x, D, N) for x in range(40)
        ]


def test_a_failure_of_the_batching_thread_leaves_nobody_waiting(
    held_provider: BatchingProvider,
    held_backend: HeldBackend,
    key: Key,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as a bug in the scheduler."""
    openssl_key = evp.Key.load(held_provider.library_context.pointer, private_der(private_key(2048)))
    running = held_provider.submit(key, 2)
    held_backend.wait_for_batch()
    waiting = [held_provider.submit(key, 3) for _ in range(200)]
    monkeypatch.setattr(launcher, "decide", None)
    held_backend.release_all()
    assert running.result(timeout=30) == pow(2, D, N)
    for future in waiting:
        with pytest.raises(OperationError):
            future.result(timeout=30)
    assert openssl_key.digest_sign("SHA256", b"message", {})
    with pytest.raises(ProviderClosedError):
        held_provider.private_op(key, 2)
    held_provider.close()
    assert "the batching thread failed" in caplog.text
    assert (held_provider.failure or "").startswith("the batching thread failed: TypeError")
    assert held_provider.stats().in_use == 0


def test_a_result_whose_verification_failed_never_leaves(
    held_provider: BatchingProvider, held_backend: HeldBackend, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_client: Client, _batch: Batch) -> int:
        raise MemoryError

    monkeypatch.setattr(jobs, "libcrypto_verify", failing)
    held_backend.release_all()
    held_backend.lie_next()
    assert held_provider.private_op(key, 2) == pow(2, D, N)
    assert held_provider.stats().fallbacks == 1


def test_without_memory_to_compute_again_a_batch_ends_with_an_error_and_the_next_one_works(
    held_provider: BatchingProvider, held_backend: HeldBackend, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_job: RsaJob, _largest: int, _whole: bool) -> list[RsaJob]:
        raise MemoryError

    held_backend.release_all()
    with monkeypatch.context() as patch:
        patch.setattr(RsaJob, "split_off_failed", failing)
        held_backend.fail_next()
        with pytest.raises(OperationError):
            held_provider.private_op(key, 2)
    assert held_provider.private_op(key, 3) == pow(3, D, N)
    assert held_provider.failure is None
    held_provider.close()


def test_requests_that_are_taken_without_memory_to_hold_them_end_with_an_error(
    held_provider: BatchingProvider, held_backend: HeldBackend, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard: they have left the queue, and nobody else knows of them."""

    def failing(**_arrays: object) -> None:
        raise MemoryError

    held_backend.release_all()
    monkeypatch.setattr(jobs, "Batch", failing)
    with pytest.raises(OperationError):
        held_provider.submit(key, 2).result(timeout=10)
    assert held_provider.failure is not None
    held_provider.close()


class PromisingBackend(HeldBackend):
    """Claims to be much faster than the processor."""

    def cost_curves(self) -> CostCurves:
        *private, modexp = (CostCurve([(1, 1e-6)]) for _ in range(CLASSES + 1))
        return CostCurves(private, modexp)


def test_what_waits_for_a_backend_that_is_late_is_computed_by_another() -> None:
    """Long before the watchdog acts. What waits for a busy backend beside a free one must not wait for ever because
    nothing else happens."""
    promising = PromisingBackend()
    config = ProviderConfig(backend_timeout=3600)
    with BatchingProvider(config, backends=[promising, LibcryptoBackend(1)]) as provider:
        key = provider.load_key(private_key(2048))
        first = provider.submit(key, 2)
        promising.wait_for_batch()
        futures = [provider.submit(key, x) for x in range(20)]
        assert [future.result(timeout=30) for future in futures] == [pow(x, D, N) for x in range(20)]
        assert not first.done()
        promising.release_all()
        assert first.result(timeout=30) == pow(2, D, N)
        assert provider.stats().fallbacks == 0


def usable_workers(health: Health, hung: int, now: float) -> int:
    """How many of four."""
    health.end_pause(now, hung)
    return health.usable_workers(4)


class TestHealth:
    """The pauses, with a clock of the test's own."""

    def test_pauses_double_up_to_a_limit_and_start_over_after_a_success(self) -> None:
        health, now, pauses = Health("x", 1.0, "libcrypto"), 0.0, []
        for _ in range(9):
            health.failed("because", now)
            start = now
            while not usable_workers(health, 0, now):
                now += 0.5
            pauses.append(now - start)
        assert pauses == [1, 2, 4, 8, 16, 32, 64, 64, 64]
        health.succeeded()
        assert health.state is BackendState.IN_USE
        health.failed("because", now)
        assert not usable_workers(health, 0, now + 0.9)
        assert usable_workers(health, 0, now + 1.0)

    def test_one_worker_is_tried_first(self) -> None:
        health = Health("x", 1.0, "libcrypto")
        assert usable_workers(health, 0, 0) == 4
        health.failed("because", 0)
        assert usable_workers(health, 0, 2) == 1
        health.succeeded()
        assert usable_workers(health, 0, 2) == 4

    def test_it_stays_out_while_a_call_hangs(self) -> None:
        health = Health("x", 1.0, "libcrypto")
        health.failed("because", 0)
        assert usable_workers(health, 1, 1000) == 0
        assert usable_workers(health, 0, 1000) == 1

    def test_batches_that_fail_together_count_once(self, caplog: pytest.LogCaptureFixture) -> None:
        health = Health("x", 1.0, "libcrypto")
        for _ in range(4):
            health.failed("because", 0)
        assert usable_workers(health, 0, 1.0) == 1
        assert len(caplog.records) == 1
