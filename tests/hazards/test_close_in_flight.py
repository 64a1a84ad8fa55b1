"""Our own side closes a connection whose request is in flight, in every way and at every time."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tls_peers import (
    Peer,
    accept,
    credentials,
    finish,
    pause,
    pause_connection,
    server_context,
    unverifying_client_context,
)

from gpu_provider import tls
from gpu_provider.testing import fill_queue

if TYPE_CHECKING:
    from gpu_provider import BatchingProvider
    from gpu_provider.testing import HeldBackend


def drain() -> None:
    while tls.drain_closed_connections():
        pass


def ignore(_connection: tls.Connection, _arg: object) -> None:
    pytest.fail("no callback for a closed connection")


@pytest.mark.parametrize("callback", [None, ignore], ids=["wait descriptor", "callback"])
def test_closed_before_the_request_is_done(
    held_backend: HeldBackend, held_provider: BatchingProvider, callback: tls.AsyncCallback | None
) -> None:
    context = server_context(held_provider)
    context.set_async_callback(callback)
    connection, _ = pause(context)
    connection.close()
    connection.close()
    assert tls.drain_closed_connections() == 1
    with pytest.raises(tls.Error, match="closed"):
        connection.do_handshake()
    held_backend.release_all()
    drain()
    assert held_provider.stats().completed == 1
    works(held_provider)


def test_closed_when_the_request_is_done_but_not_yet_resumed(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    context = server_context(held_provider)
    connection, _ = pause(context)
    held_backend.release_all()
    while held_provider.stats().completed == 0:
        pass
    connection.close()
    drain()
    works(held_provider)


@pytest.mark.gpu_provider(queue_depth=4)
def test_closed_in_the_line_for_a_full_queue(held_backend: HeldBackend, held_provider: BatchingProvider) -> None:
    filling = fill_queue(held_provider, held_provider.load_key(credentials().key))
    connection, _ = pause(server_context(held_provider))
    connection.close()
    held_backend.release_all()
    assert all(future.result(timeout=30) for future in filling)
    drain()
    works(held_provider)


def test_the_next_call_on_the_thread_drains(held_backend: HeldBackend, held_provider: BatchingProvider) -> None:
    context = server_context(held_provider)
    connection, _ = pause(context)
    connection.close()
    held_backend.release_all()
    while held_provider.stats().completed == 0:
        pass
    works(held_provider)
    assert tls.drain_closed_connections() == 0


def test_closed_on_another_thread_than_its_own(held_backend: HeldBackend, held_provider: BatchingProvider) -> None:
    connection, _ = pause(server_context(held_provider))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(connection.close).result(timeout=30)
    assert tls.drain_closed_connections() == 1
    held_backend.release_all()
    drain()
    works(held_provider)


def test_dropped_without_closing(held_backend: HeldBackend, held_provider: BatchingProvider) -> None:
    connection, peer = pause(server_context(held_provider))
    gone = weakref.ref(connection)
    del connection, peer
    gc.collect()
    assert gone() is None
    assert tls.drain_closed_connections() == 1
    held_backend.release_all()
    drain()
    works(held_provider)


def test_the_socket_is_free_at_once_and_the_job_never_writes_to_its_number_again(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    """The descriptor may be someone else's connection by the time the batch is done."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    client = tls.Connection(unverifying_client_context())
    client.set_connect_state()
    with pytest.raises(tls.WantReadError):
        client.do_handshake()
    theirs.sendall(client.bio_read(65536))
    number = ours.fileno()
    connection = tls.Connection(server_context(held_provider), ours)
    connection.set_accept_state()
    with pytest.raises(tls.WantAsyncError):
        connection.do_handshake()
    connection.close()
    assert theirs.recv(1) == b""
    others: list[socket.socket] = []
    while number not in {end.fileno() for end in others}:  # a thread may have a file open for a moment
        others += socket.socketpair()
        assert len(others) < 100
    held_backend.release_all()
    drain()
    for end in others:
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)
    for end in (*others, theirs):
        end.close()


def test_the_provider_closed_while_connections_are_paused(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    context = server_context(held_provider)
    connection, peer = pause(context)
    parked, _ = pause(context)
    parked.close()
    held_backend.release_all()
    held_provider.close()
    finish(connection, peer)
    drain()


async def test_a_loop_drains_what_it_closed_and_calls_nobody(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    loop = asyncio.get_running_loop()
    notifier = tls.LoopNotifier.of(loop)
    assert tls.LoopNotifier.of(loop) is notifier
    context = server_context(held_provider)
    for _ in range(5):
        connection = accept(context)
        notifier.attach(connection, lambda: pytest.fail("no wake-up for a closed connection"))
        pause_connection(connection)
        connection.close()
    held_backend.release_all()
    while notifier.waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)
    works(held_provider)


def test_a_loop_that_ends_leaves_its_closed_connections_to_its_thread(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    async def run() -> None:
        connection = accept(server_context(held_provider))
        tls.LoopNotifier.of(asyncio.get_running_loop()).attach(connection, lambda: None)
        pause_connection(connection)
        connection.close()

    asyncio.run(run())
    gc.collect()
    assert tls.drain_closed_connections() == 1
    held_backend.release_all()
    drain()
    works(held_provider)


def works(provider: BatchingProvider) -> None:
    """After all that, the next handshake does."""
    connection = accept(server_context(provider))
    finish(connection, Peer(connection))
    connection.close()
