"""The metrics as a scraper reads them."""

from __future__ import annotations

from typing import Any

import evp
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rsa_keys import private_der, private_key
from tls_peers import Peer, accept, finish, server_context

from gpu_provider import BatchingProvider, ProviderConfig, QueueFullError
from gpu_provider.testing import HeldBackend, fill_queue


def scrape(registry: CollectorRegistry) -> dict[tuple[str, tuple[str, ...]], Any]:
    """Values by name and sorted label values."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_requests_batches_and_times() -> None:
    registry = CollectorRegistry()
    with BatchingProvider(ProviderConfig(queue_depth=100), registry=registry) as provider:
        loaded = [provider.load_key(private_key(bits)) for bits in (2048, 2048, 3000)]
        for key in loaded:
            provider.private_op(key, 2)
        provider.modexp([2, 3, 4], 5, 7)
        values = scrape(registry)
    assert values["gpu_provider_requests_total", ("ok", "2048")] == 2
    assert values["gpu_provider_requests_total", ("ok", "3072")] == 1
    assert values["gpu_provider_requests_total", ("ok", "modexp")] == 3
    assert values["gpu_provider_submitted_total", ()] == 3
    assert values["gpu_provider_queue_seconds_count", ("2048",)] == 2
    assert values["gpu_provider_execute_seconds_count", ("cpu", "2048")] == 2
    assert values["gpu_provider_execute_seconds_sum", ("cpu", "2048")] > 0
    assert values["gpu_provider_batch_size_sum", ("cpu",)] == 6
    assert values["gpu_provider_rows_total", ("cpu", "2048")] == 2
    assert 2 <= values["gpu_provider_rows_paid_total", ("cpu", "2048")] <= 16
    assert values["gpu_provider_held_seconds_count", ("2048",)] == 2
    assert 0 <= values["gpu_provider_processor_stall_ratio", ()] <= 1
    assert 0 <= values["gpu_provider_processor_use_ratio", ()] <= 1
    assert sum(values["gpu_provider_keys", (prepared,)] for prepared in ("locked", "unlocked", "no")) == 3
    assert values["gpu_provider_queue_depth", ()] == 100
    assert values["gpu_provider_queue_in_use", ()] == 0
    assert values["gpu_provider_backend_in_use", ("cpu",)] == 1


def test_series_exist_before_their_first_event() -> None:
    """A rate over a counter that appears with its first event misses that event."""
    with BatchingProvider(ProviderConfig(backend="cpu")) as provider:
        values = scrape(provider.registry)
    for labels in (("ok", "2048"), ("error", "4096"), ("error", "modexp")):
        assert values["gpu_provider_requests_total", labels] == 0
    for reason in ("error", "refused", "timeout", "wrong_result"):
        assert values["gpu_provider_fallbacks_total", ("cpu", reason)] == 0


def test_small_batches_of_connections_are_counted_like_others() -> None:
    """The C core computes them inside the batching thread's wait; the figures must include them."""
    with BatchingProvider(ProviderConfig(backend="cpu")) as provider:
        context = server_context(provider)
        for _ in range(3):
            connection = accept(context)
            finish(connection, Peer(connection))
            connection.close()
        stats = provider.stats()
        values = scrape(provider.registry)
    assert (stats.submitted, stats.completed, stats.batches, stats.largest_batch) == (3, 3, 3, 1)
    assert stats.by_backend == {"cpu": 3}
    assert values["gpu_provider_requests_total", ("ok", "2048")] == 3
    assert values["gpu_provider_batch_size_bucket", ("cpu", "1.0")] == 3
    assert values["gpu_provider_execute_seconds_count", ("cpu", "2048")] == 3
    assert values["gpu_provider_queue_seconds_count", ("2048",)] == 3
    assert values["gpu_provider_held_seconds_count", ("2048",)] == 3
    assert values["gpu_provider_rows_total", ("cpu", "2048")] == 3
    assert values["gpu_provider_rows_paid_total", ("cpu", "2048")] >= 3


def test_build_info_names_the_version_and_openssl() -> None:
    registry = CollectorRegistry()
    BatchingProvider(registry=registry)
    (labels,) = [labels for name, labels in scrape(registry) if name == "gpu_provider_build_info"]
    assert labels[0].startswith("OpenSSL ")
    assert labels[1][0].isdigit()


@pytest.mark.parametrize("results", [1, 150])
def test_who_gets_a_result_sees_it_counted(results: int) -> None:
    """Hazard: small batches are computed outside of Python, and more of them than there is room for records."""
    with BatchingProvider() as provider:
        key = evp.Key.load(provider.library_context.pointer, private_der(private_key(2048)))
        for turn in range(1, 4):
            for _ in range(results):
                key.digest_sign("SHA256", b"message", {})
            stats, values = provider.stats(), scrape(provider.registry)
            assert stats.completed == stats.batches == sum(stats.by_backend.values()) == turn * results
            assert values["gpu_provider_requests_total", ("ok", "2048")] == turn * results
            assert values["gpu_provider_queue_seconds_count", ("2048",)] == turn * results


@pytest.mark.gpu_provider(queue_depth=3)
def test_a_full_queue_shows(held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
    key = held_provider.load_key(private_key(2048))
    futures = fill_queue(held_provider, key)
    with pytest.raises(QueueFullError):
        held_provider.submit(key, 2)
    values = scrape(held_provider.registry)
    assert values["gpu_provider_queue_in_use", ()] == 3
    assert values["gpu_provider_retries_total", ()] == 2
    held_backend.release_all()
    for future in futures:
        future.result(timeout=10)
    assert scrape(held_provider.registry)["gpu_provider_requests_total", ("ok", "2048")] == 3


def test_a_failure_shows(held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
    key = held_provider.load_key(private_key(2048))
    held_backend.release_all()
    held_backend.lie_next()
    held_provider.private_op(key, 2)
    values = scrape(held_provider.registry)
    assert values["gpu_provider_fallbacks_total", ("held", "wrong_result")] == 1
    assert values["gpu_provider_backend_in_use", ("held",)] == 0
    assert values["gpu_provider_backend_in_use", ("libcrypto",)] == 1
    assert values["gpu_provider_requests_total", ("ok", "2048")] == 1


def test_nothing_is_counted_in_the_default_registry() -> None:
    """Two providers in one process must not collide."""
    first, second = BatchingProvider(), BatchingProvider()
    assert first.registry is not second.registry
