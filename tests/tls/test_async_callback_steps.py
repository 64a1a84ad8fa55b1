"""The nine steps of the manual page SSL_set_async_callback, one test each, on real handshakes with batches held."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING

import pytest
from tls_peers import Peer, accept, credentials, finish, pause, pause_connection, server_context

from gpu_provider import AsyncStatus, BatchingProvider, tls
from gpu_provider.testing import fill_queue

if TYPE_CHECKING:
    from gpu_provider.testing import HeldBackend


class Calls:
    """A well-behaved async callback: it notes which connection it is called for, and returns."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[tls.Connection, object]] = queue.SimpleQueue()

    def __call__(self, connection: tls.Connection, arg: object) -> None:
        self._calls.put((connection, arg))

    def next(self) -> tuple[tls.Connection, object]:
        return self._calls.get(timeout=30)

    def none(self) -> bool:
        return self._calls.empty()


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def context(held_provider: BatchingProvider, calls: Calls) -> tls.Context:
    context = server_context(held_provider, asynchronous=False)
    context.set_async_callback(calls)
    context.set_async_callback_arg("from the context")
    return context


def asynchronous(context: tls.Context) -> tls.Connection:
    connection = accept(context)
    connection.set_mode(tls.SSL_MODE_ASYNC)
    return connection


def test_step_1_the_application_sets_the_callback_and_its_argument(
    held_backend: HeldBackend, context: tls.Context, calls: Calls
) -> None:
    own = Calls()
    inherits, overrides = asynchronous(context), asynchronous(context)
    overrides.set_async_callback(own)
    overrides.set_async_callback_arg("its own")
    pause_connection(inherits), pause_connection(overrides)
    held_backend.release_all()
    assert calls.next() == (inherits, "from the context")
    assert own.next() == (overrides, "its own")
    assert calls.none()
    assert own.none()


def test_step_2_it_sets_the_mode_and_makes_an_asynchronous_call(
    held_backend: HeldBackend, context: tls.Context, calls: Calls
) -> None:
    connection = accept(context)
    connection.set_mode(tls.SSL_MODE_ASYNC)
    pause_connection(connection)
    assert connection.waiting_for_async()

    synchronous = accept(context)
    peer = Peer(synchronous)
    peer.exchange()
    held_backend.release_all()
    with pytest.raises(tls.WantReadError):  # the same call without the mode: it returns when the result is there
        synchronous.do_handshake()
    finish(synchronous, peer)
    assert calls.next()[0] is connection
    assert calls.none()


@pytest.mark.gpu_provider(queue_depth=4)
def test_step_3_the_request_is_submitted_or_the_retry_is_told_through_the_callback(
    held_backend: HeldBackend, held_provider: BatchingProvider, context: tls.Context, calls: Calls
) -> None:
    submitted = asynchronous(context)
    pause_connection(submitted)
    assert held_provider.stats().submitted == 1
    assert submitted.get_async_status() is AsyncStatus.OK
    assert calls.none()

    key = held_provider.load_key(credentials().key)
    held_backend.wait_for_batch()
    filling = fill_queue(held_provider, key)
    retried = asynchronous(context)
    pause_connection(retried)
    assert calls.next()[0] is retried
    assert retried.get_async_status() is AsyncStatus.EAGAIN
    assert held_provider.stats().submitted == 1 + len(filling)
    held_backend.release_all()


def test_step_4_the_provider_pauses_the_job_and_the_application_goes_on_with_other_connections(
    held_backend: HeldBackend, context: tls.Context, calls: Calls
) -> None:
    paused = [asynchronous(context) for _ in range(20)]
    peers = [pause_connection(connection) for connection in paused]  # all on this thread, none waits for another
    assert all(connection.waiting_for_async() for connection in paused)
    held_backend.release_all()
    for _ in paused:
        connection, _ = calls.next()
        finish(connection, peers[paused.index(connection)])


def test_step_5_later_the_provider_learns_that_the_request_has_finished(
    held_backend: HeldBackend, held_provider: BatchingProvider, context: tls.Context, calls: Calls
) -> None:
    pause_connection(asynchronous(context))
    held_backend.wait_for_batch()
    assert held_provider.stats().completed == 0
    held_backend.release()
    calls.next()
    assert held_provider.stats().completed == 1


def test_step_6_it_calls_the_applications_callback_with_the_callback_argument(
    held_backend: HeldBackend, context: tls.Context, calls: Calls
) -> None:
    connection = asynchronous(context)
    pause_connection(connection)
    later = object()
    connection.set_async_callback_arg(later)  # read when it is called, so it may change in flight
    held_backend.release_all()
    called, arg = calls.next()
    assert called is connection
    assert arg is later


def test_step_7_the_callback_runs_on_another_thread_and_does_not_block_the_rest(
    held_backend: HeldBackend, context: tls.Context, calls: Calls
) -> None:
    entered, leave = threading.Event(), threading.Event()
    threads = []

    def slow(_connection: tls.Connection, _arg: object) -> None:
        threads.append(threading.get_ident())
        entered.set()
        leave.wait(30)

    slow_one = asynchronous(context)
    slow_one.set_async_callback(slow)
    slow_peer = pause_connection(slow_one)
    other = asynchronous(context)
    other_peer = pause_connection(other)
    held_backend.release_all()
    assert entered.wait(30)
    while other.waiting_for_async():  # a bad callback holds up callbacks, not the provider
        with contextlib.suppress(tls.WantAsyncError, tls.WantReadError):
            other.do_handshake()
    finish(other, other_peer)
    leave.set()
    assert threads != [threading.get_ident()]
    finish(slow_one, slow_peer)


def test_step_8_through_it_the_application_schedules_calling_the_function_again(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    ready: queue.SimpleQueue[tls.Connection] = queue.SimpleQueue()
    context = server_context(held_provider)
    context.set_async_callback(lambda connection, _arg: ready.put(connection))
    peers = dict(pause(context) for _ in range(5))
    held_backend.release_all()
    for _ in range(5):
        connection = ready.get(timeout=30)
        finish(connection, peers.pop(connection))


@pytest.mark.gpu_provider(queue_depth=4)
def test_step_9_it_reads_the_status_to_learn_of_a_retry(
    held_backend: HeldBackend, held_provider: BatchingProvider, context: tls.Context, calls: Calls
) -> None:
    filling = fill_queue(held_provider, held_provider.load_key(credentials().key))
    connection = asynchronous(context)
    peer = pause_connection(connection)
    assert calls.next()[0] is connection
    assert connection.get_async_status() is AsyncStatus.EAGAIN
    held_backend.release_all()
    assert calls.next()[0] is connection  # there is room now: the same call submits the request
    with pytest.raises((tls.WantAsyncError, tls.WantReadError)):
        connection.do_handshake()
    assert connection.get_async_status() is AsyncStatus.OK
    while connection.waiting_for_async():
        calls.next()
        with pytest.raises((tls.WantAsyncError, tls.WantReadError)):
            connection.do_handshake()
    finish(connection, peer)
    assert len(filling) == held_provider.stats().completed - 1
