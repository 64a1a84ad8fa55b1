"""What is not TLS, or not valid TLS, ends its own connection and nothing else."""

import contextlib
import os
import socket
import ssl
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from forged_records import APPLICATION_DATA, TLS13_CIPHERSUITE, forging_client, plain
from terminator_process import TIMEOUT, Terminator, Upstream, client_context, echo_terminator, write_credentials
from tls_peers import Peer, accept, finish, server_context

from gpu_provider.tls.terminator.poller import PEER_ENDED, READABLE, WRITABLE
from gpu_provider.tls.terminator.relay import Relay

HANDSHAKES = "gpu_provider_terminator_handshakes_total"
SESSIONS = "gpu_provider_terminator_sessions_total"
OPEN = "gpu_provider_terminator_open_connections"


@pytest.fixture(scope="module")
def terminator(tmp_path_factory):
    with echo_terminator(tmp_path_factory.mktemp("credentials")) as running:
        yield running


def client_hello():
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def until_closed(sock):
    sock.settimeout(TIMEOUT)
    try:
        while sock.recv(4096):
            pass
    except ConnectionError:
        pass


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(4096),
        b"\xff" * 4096,
        os.urandom(4096),
        b"\x16\x03\x01\xff\xff" + bytes(70_000),  # a record longer than any may be
        b"\x80\x2e\x01\x00\x02" + bytes(64),  # SSL 2
        b"\x15\x03\x03\x00\x02\x02\x28",  # an alert before anything else
    ],
    ids=["http", "zeros", "ones", "random", "overlong record", "ssl2", "alert"],
)
def test_garbage_instead_of_tls(terminator, garbage):
    failed = terminator.metric(HANDSHAKES, result="failed") + terminator.metric(HANDSHAKES, result="client_gone")
    with terminator.dial() as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(garbage)
        until_closed(sock)
    terminator.wait_for_metric(OPEN, 0)
    now = terminator.metric(HANDSHAKES, result="failed") + terminator.metric(HANDSHAKES, result="client_gone")
    assert now == failed + 1
    assert terminator.echo() == b"are you there?"


def test_damaged_handshake(terminator):
    hello = bytearray(client_hello())
    for position in range(5, len(hello), 16):
        damaged = bytearray(hello)
        damaged[position] ^= 0xFF
        with terminator.dial() as sock:
            sock.sendall(damaged)
            sock.shutdown(socket.SHUT_WR)
            until_closed(sock)
    terminator.wait_for_metric(OPEN, 0)
    assert terminator.echo() == b"are you there?"


def test_garbage_after_the_handshake(terminator):
    before = terminator.metric(SESSIONS, end="tls_error")
    with terminator.connect() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        raw = socket.socket(fileno=client.detach())
    with raw:
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        until_closed(raw)
    terminator.wait_for_metric(SESSIONS, before + 1, end="tls_error")
    assert terminator.echo() == b"are you there?"


def test_garbage_right_behind_a_good_record_is_acted_on_without_further_input(tmp_path):
    """The read that returns the good bytes meets the error too, and neither the client nor the upstream sends more."""

    def silent(connection):
        while connection.recv(65536):
            pass

    flags = [*write_credentials(tmp_path), "--ciphersuites", TLS13_CIPHERSUITE]
    with (
        Upstream(silent) as upstream,
        Terminator(*flags, upstream=upstream.address) as terminator,
        terminator.dial() as sock,
    ):
        sender = forging_client(sock, client_context(), tmp_path / "keys")
        sock.sendall(sender.seal(APPLICATION_DATA, b"GET /") + plain(APPLICATION_DATA, bytes(32)))
        until_closed(sock)
        terminator.wait_for_metric(SESSIONS, 1, end="tls_error")
        terminator.wait_for_metric(OPEN, 0)


def test_garbage_behind_bytes_that_the_upstream_does_not_take_ends_the_session():
    connection = accept(server_context(asynchronous=False))
    peer = Peer(connection)
    finish(connection, peer)
    full, other_end = socket.socketpair()
    with full, other_end:
        full.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                full.send(bytes(65536))
        ends = []
        session = SimpleNamespace(
            connection=connection, trace=Mock(to_upstream=0), moved=Mock(), linger=lambda result, _: ends.append(result)
        )
        server = SimpleNamespace(
            buffer=memoryview(bytearray(65536)),
            poller=Mock(),
            metrics=SimpleNamespace(bytes_to_upstream=0),
        )
        relay = Relay(session, full, server, b"")
        peer.write(b"good")
        connection.bio_write(plain(APPLICATION_DATA, bytes(32)))
        relay.on_client(READABLE)
        assert ends == ["tls_error"]


def test_a_session_that_a_write_has_ended_is_not_looked_at_any_more():
    """Hazard: its idle timer would keep it, and its keys, for minutes."""
    connection = accept(server_context(asynchronous=False))
    peer = Peer(connection)
    finish(connection, peer)
    full, other_end = socket.socketpair()
    with full, other_end:
        full.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                full.send(bytes(65536))
        session = SimpleNamespace(connection=connection, trace=Mock(to_upstream=0), moved=Mock(), linger=Mock())
        metrics = SimpleNamespace(bytes_to_upstream=0)
        server = SimpleNamespace(buffer=memoryview(bytearray(65536)), poller=Mock(), metrics=metrics)
        relay = Relay(session, full, server, b"")
        peer.write(b"more than the upstream takes")
        relay.on_client(READABLE)
        other_end.shutdown(socket.SHUT_WR)
        relay.on_upstream(READABLE | PEER_ENDED)
        other_end.close()
        session.moved.reset_mock()
        relay.on_upstream(WRITABLE)
        session.linger.assert_called_once_with("closed")
        session.moved.assert_not_called()


def test_certificate_refused_by_the_client(terminator):
    with pytest.raises(ssl.SSLCertVerificationError):
        terminator.connect(ssl.create_default_context())
    terminator.wait_for_metric(OPEN, 0)
    assert terminator.echo() == b"are you there?"
