"""Requests that wait for company when something else happens. Here they would wait for an hour."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rsa_keys import private_key
from tls_peers import Peer, accept, finish, pause, server_context

from gpu_provider import BatchingProvider, ProviderConfig
from gpu_provider.engine import company
from gpu_provider.engine.scheduler import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpu_provider.library.keys import Key

_HOUR = 3600.0


@pytest.fixture
def patient_provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchingProvider]:
    """It has computed one request, and the next ones wait until they are four. However slow the machine is, a batch may
    hold so many: those that are left over would wait again."""
    monkeypatch.setattr(company, "patience", lambda *_, **__: Patience(4, 8, _HOUR))
    with BatchingProvider(ProviderConfig(backend="cpu", max_delay=60)) as provider:
        key = provider.load_key(private_key(2048))
        provider.private_op(key, 2)
        key.close()
        yield provider


def load(provider: BatchingProvider) -> tuple[Key, int, int]:
    numbers = private_key(2048).private_numbers()
    return provider.load_key(private_key(2048)), numbers.d, numbers.public_numbers.n


def test_company_ends_the_wait(patient_provider: BatchingProvider) -> None:
    key, d, n = load(patient_provider)
    futures = [patient_provider.submit(key, x) for x in range(2, 6)]
    assert [future.result(timeout=30) for future in futures] == [pow(x, d, n) for x in range(2, 6)]


def test_closing_the_provider_ends_the_wait(patient_provider: BatchingProvider) -> None:
    """Nothing that was submitted is lost."""
    key, d, n = load(patient_provider)
    futures = [patient_provider.submit(key, x) for x in (2, 3)]
    patient_provider.close()
    assert [future.result(timeout=0) for future in futures] == [pow(x, d, n) for x in (2, 3)]


def test_other_kinds_are_not_held_up(patient_provider: BatchingProvider) -> None:
    key, d, n = load(patient_provider)
    held = [patient_provider.submit(key, x) for x in (2, 3)]
    assert patient_provider.modexp([5], 3, 101) == [pow(5, 3, 101)]
    assert not any(future.done() for future in held)
    held += [patient_provider.submit(key, x) for x in (4, 5)]
    assert [future.result(timeout=30) for future in held] == [pow(x, d, n) for x in range(2, 6)]


def test_a_connection_that_goes_away_holds_nobody_up(patient_provider: BatchingProvider) -> None:
    """Its request counts until it would be taken; those of others that come later are answered."""
    gone, _ = pause(server_context(patient_provider))
    gone.close()
    key, d, n = load(patient_provider)
    futures = [patient_provider.submit(key, x) for x in range(2, 5)]
    assert [future.result(timeout=30) for future in futures] == [pow(x, d, n) for x in range(2, 5)]


def test_connections_wait_together(patient_provider: BatchingProvider) -> None:
    context = server_context(patient_provider)
    before = patient_provider.stats().completed
    paused = [pause(context) for _ in range(3)]
    assert patient_provider.stats().completed == before
    for connection, peer in [(last := accept(context), Peer(last)), *paused]:
        finish(connection, peer)
        connection.close()
    assert patient_provider.stats().completed == before + 4
