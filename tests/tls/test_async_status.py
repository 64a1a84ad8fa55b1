"""The four values of SSL_get_async_status, and what goes wrong around an asynchronous operation, on real handshakes."""

from __future__ import annotations

import datetime
import logging
import queue
import select
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from paths import SUPPORT
from tls_peers import (
    Peer,
    accept,
    credentials,
    finish,
    handshake,
    pause,
    pause_connection,
    server_context,
    wait_for_descriptor,
)

from gpu_provider import AsyncStatus, tls
from gpu_provider.testing import fill_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider import BatchingProvider
    from gpu_provider.testing import HeldBackend


DAY = datetime.timedelta(days=1)


def test_unsupported_before_anything_has_been_asked_for(held_provider: BatchingProvider) -> None:
    assert accept(server_context(held_provider)).get_async_status() is AsyncStatus.UNSUPPORTED


def test_unsupported_where_openssl_itself_computes(held_provider: BatchingProvider) -> None:
    """An ECDSA P-256 certificate works too, without batching."""
    connection = handshake(server_context(held_provider, kind="ECDSA"))
    assert connection.get_async_status() is AsyncStatus.UNSUPPORTED
    assert held_provider.stats().submitted == 0


def test_ok_when_the_request_was_submitted(held_backend: HeldBackend, held_provider: BatchingProvider) -> None:
    connection, peer = pause(server_context(held_provider))
    assert connection.get_async_status() is AsyncStatus.OK
    held_backend.release_all()
    finish(connection, peer)
    assert connection.get_async_status() is AsyncStatus.OK


def test_err_when_no_backend_can_compute(held_backend: HeldBackend, held_provider: BatchingProvider) -> None:
    """OpenSSL, the last resort, refuses to compute with this key: one of its primes is even."""
    right = rsa.generate_private_key(65537, 2048)
    context = tls.Context(tls.TLS_SERVER_METHOD, held_provider)
    context.set_mode(tls.SSL_MODE_ASYNC)
    context.use_certificate(self_signed(right))
    context.use_privatekey(with_even_prime(right))
    bad, _ = pause(context)
    good, good_peer = pause(server_context(held_provider))
    held_backend.release_all()
    wait_for_descriptor(bad)
    with pytest.raises(tls.Error) as raised:
        bad.do_handshake()
    assert type(raised.value) is tls.Error
    assert bad.get_async_status() is AsyncStatus.ERR
    bad.close()
    wait_for_descriptor(good)  # nobody else is touched
    finish(good, good_peer)


def with_even_prime(key: rsa.RSAPrivateKey) -> bytes:
    """``key`` as PKCS#1 DER with an even first prime, which ``cryptography`` would not write."""
    numbers = key.private_numbers()
    n, e = numbers.public_numbers.n, numbers.public_numbers.e
    values = (0, n, e, numbers.d, numbers.p - 1, numbers.q, numbers.dmp1, numbers.dmq1, numbers.iqmp)
    return der(0x30, b"".join(der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big")) for value in values))


def der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 128:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def self_signed(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + DAY)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.gpu_provider(queue_depth=4)
def test_eagain_when_the_queue_is_full(held_backend: HeldBackend, held_provider: BatchingProvider) -> None:
    filling = fill_queue(held_provider, held_provider.load_key(credentials().key))
    connection, peer = pause(server_context(held_provider))
    assert connection.get_async_status() is AsyncStatus.EAGAIN
    assert held_provider.stats().retries == 2  # fill_queue's last attempt was the other
    held_backend.release_all()
    while connection.waiting_for_async():
        wait_for_descriptor(connection)
        with pytest.raises((tls.WantAsyncError, tls.WantReadError)):
            connection.do_handshake()
    assert connection.get_async_status() is AsyncStatus.OK
    finish(connection, peer)
    assert all(future.result(timeout=30) for future in filling)


# ---- descriptors, and no descriptors ----


def test_without_a_callback_there_is_one_wait_descriptor_for_the_connections_life(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    connection, peer = pause(server_context(held_provider))
    added, removed = connection.get_changed_async_fds()
    assert connection.get_all_async_fds() == added
    assert len(added) == 1
    assert removed == []
    assert select.select(added, [], [], 0)[0] == []
    held_backend.release_all()
    assert select.select(added, [], [], 30)[0] == added
    finish(connection, peer)
    assert connection.get_all_async_fds() == added
    assert connection.get_changed_async_fds() == ([], [])


def test_without_the_mode_the_call_waits_and_other_threads_go_on(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    connection = accept(server_context(held_provider, asynchronous=False))
    peer = Peer(connection)
    ended = threading.Event()

    def serve() -> None:
        finish(connection, peer)
        ended.set()

    threading.Thread(target=serve, daemon=True).start()
    held_backend.wait_for_batch()
    assert not ended.is_set()
    held_backend.release_all()
    assert ended.wait(30)


# ---- callbacks that are late, wrong or raise ----


def test_a_callback_set_after_the_first_operation_is_refused(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    connection, peer = pause(server_context(held_provider))
    for callback in (print, None):
        with pytest.raises(tls.Error, match="before the first operation"):
            connection.set_async_callback(callback)
    connection.set_async_callback_arg("allowed at any time")
    held_backend.release_all()
    finish(connection, peer)


def test_a_callback_that_can_not_be_called_is_refused(held_provider: BatchingProvider) -> None:
    context = server_context(held_provider)
    with pytest.raises(TypeError, match="must be callable"):
        context.set_async_callback("name")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be callable"):
        accept(context).set_async_callback(7)  # type: ignore[arg-type]


def test_what_a_callback_raises_is_reported_once_by_its_own_connection_and_harms_no_other(
    held_backend: HeldBackend, held_provider: BatchingProvider, caplog: pytest.LogCaptureFixture
) -> None:
    called: queue.SimpleQueue[tls.Connection] = queue.SimpleQueue()

    def callback(connection: tls.Connection, arg: object) -> None:
        called.put(connection)
        if arg == "bad":
            raise LookupError("from the callback")

    context = server_context(held_provider)
    context.set_async_callback(callback)
    bad, good = accept(context), accept(context)
    bad.set_async_callback_arg("bad")
    bad_peer, good_peer = pause_connection(bad), pause_connection(good)
    held_backend.wait_for_batch()
    with caplog.at_level(logging.ERROR, "gpu_provider.tls"):
        held_backend.release_all()
        assert {called.get(timeout=30), called.get(timeout=30)} == {bad, good}
        finish(good, good_peer)
        with pytest.raises(tls.CallbackError, match="LookupError") as raised:
            next_call_after_callbacks(bad, called, context, held_backend)
    assert isinstance(raised.value.__cause__, LookupError)
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [raised.value.__cause__]
    finish(bad, bad_peer)


def next_call_after_callbacks(
    bad: tls.Connection,
    called: queue.SimpleQueue[tls.Connection],
    context: tls.Context,
    backend: HeldBackend,
) -> None:
    """Makes the next call on ``bad`` when its callback has certainly ended: callbacks run one after the other."""
    backend.hold()
    pause(context)
    backend.release_all()
    called.get(timeout=30)
    bad.do_handshake()


def test_the_dispatcher_starts_with_the_first_callback_and_again_in_a_forked_child() -> None:
    script = r"""
import os, threading
from tls_peers import server_context, accept, Peer, finish
from gpu_provider import BatchingProvider, ProviderConfig

def count():
    return sum(thread.name == "tls-async-callbacks" for thread in threading.enumerate())

def serve():
    with BatchingProvider(ProviderConfig()) as provider:
        called = threading.Semaphore(0)
        context = server_context(provider)
        context.set_async_callback(lambda connection, arg: called.release())
        connection = accept(context)
        assert count() == 1, count()
        finish(connection, Peer(connection), called.acquire)

import gpu_provider.tls
assert count() == 0
serve()
child = os.fork()
if child == 0:
    assert count() == 0
    serve()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
serve()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=SUPPORT)


# ---- jobs ----


def test_want_async_job_is_a_state_of_its_own_and_passes_when_a_job_ends(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    def on_a_thread() -> None:
        tls.set_async_job_limit(1)  # OpenSSL keeps jobs by thread
        context = server_context(held_provider)
        first, first_peer = pause(context)
        second = accept(context)
        second_peer = Peer(second)
        second_peer.exchange()
        with pytest.raises(tls.WantAsyncJobError):
            second.do_handshake()
        assert not second.waiting_for_async()
        held_backend.release_all()
        finish(first, first_peer)
        finish(second, second_peer)

    run_on_a_thread(on_a_thread)


def test_a_paused_operation_must_be_finished_before_another_starts(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    connection, peer = pause(server_context(held_provider))
    for other in (lambda: connection.recv(10), lambda: connection.send(b"x"), connection.shutdown):
        with pytest.raises(tls.Error, match="only the same do_handshake"):
            other()
    with pytest.raises(tls.Error, match="clear_mode has to wait"):
        connection.clear_mode(tls.SSL_MODE_ASYNC)
    with pytest.raises(tls.Error, match="another thread"):
        run_on_a_thread(connection.do_handshake)
    held_backend.release_all()
    finish(connection, peer)


def test_a_paused_read_goes_on_with_the_first_calls_buffer(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    """libssl does the handshake within the first read; what arrives belongs in that call's buffer."""
    connection = accept(server_context(held_provider))
    peer = Peer(connection)
    peer.exchange()
    buffer = bytearray(100)
    with pytest.raises(tls.WantAsyncError):
        connection.recv_into(buffer)
    for other in (bytearray(100), bytearray(50)):
        with pytest.raises(tls.Error, match="paused"):
            connection.recv_into(other)
    with pytest.raises(BufferError):
        buffer.extend(b"libssl holds a pointer to it")
    held_backend.release_all()
    wait_for_descriptor(connection)
    with pytest.raises(tls.WantReadError):
        connection.recv_into(buffer)
    peer.exchange()
    peer.write(b"hello")
    assert connection.recv_into(buffer) == 5
    assert buffer[:5] == b"hello"


def run_on_a_thread(function: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result(timeout=60)
