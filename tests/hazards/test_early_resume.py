"""A paused operation resumed before its request is done: nothing happens, and nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tls_peers import credentials, finish, pause, server_context

from gpu_provider import tls
from gpu_provider.testing import fill_queue

if TYPE_CHECKING:
    from gpu_provider import BatchingProvider
    from gpu_provider.testing import HeldBackend


@pytest.mark.parametrize("version", [tls.TLS1_2_VERSION, tls.TLS1_3_VERSION])
def test_resuming_early_pauses_again(held_backend: HeldBackend, held_provider: BatchingProvider, version: int) -> None:
    connection, peer = pause(server_context(held_provider, version=version))
    for _ in range(1000):
        with pytest.raises(tls.WantAsyncError):
            connection.do_handshake()
    assert held_provider.stats().submitted == 1
    held_backend.release_all()
    finish(connection, peer)


@pytest.mark.gpu_provider(queue_depth=4)
def test_resuming_early_in_the_line_for_a_full_queue_keeps_the_place(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    filling = fill_queue(held_provider, held_provider.load_key(credentials().key))
    context = server_context(held_provider)
    first, first_peer = pause(context)
    second, second_peer = pause(context)
    for _ in range(1000):
        with pytest.raises(tls.WantAsyncError):
            second.do_handshake()
    stats = held_provider.stats()
    assert (stats.in_line, stats.submitted) == (2, len(filling))
    held_backend.release_all()
    finish(first, first_peer)
    finish(second, second_peer)


def test_one_resumed_early_leaves_the_others_paused(held_backend: HeldBackend, held_provider: BatchingProvider) -> None:
    context = server_context(held_provider)
    paused = [pause(context) for _ in range(10)]
    for connection, _ in paused[::2]:
        with pytest.raises(tls.WantAsyncError):
            connection.do_handshake()
    assert all(connection.waiting_for_async() for connection, _ in paused)
    held_backend.release_all()
    for connection, peer in reversed(paused):
        finish(connection, peer)
