"""Bytes both ways: all of them, in order, with back-pressure; and each direction ends separately."""

import contextlib
import hashlib
import os
import select
import socket
import ssl
import threading
from pathlib import Path

import pytest
from terminator_process import (
    TIMEOUT,
    Terminator,
    Upstream,
    echo_terminator,
    receive,
    write_credentials,
)

from gpu_provider import tls

SESSIONS = "gpu_provider_terminator_sessions_total"
MIB = 1 << 20


def receive_all(connection):
    received = bytearray()
    while True:
        try:
            received += connection.recv(65536)
        except tls.ZeroReturnError:
            return bytes(received)


@pytest.fixture(scope="module")
def terminator(tmp_path_factory):
    with echo_terminator(tmp_path_factory.mktemp("credentials")) as running:
        yield running


def test_every_byte_arrives_in_order_both_ways_at_once(terminator):
    data = os.urandom(8 * MIB)
    with terminator.connect() as client:
        # OpenSSL's objects are not for two threads at a time, so one thread does both with a non-blocking socket.
        client.setblocking(False)
        sent, received = 0, bytearray()
        while len(received) < len(data):
            readable, writable, _ = select.select([client], [client] if sent < len(data) else [], [], TIMEOUT)
            assert readable or writable, "the relay has stopped"
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if writable:
                    sent += client.send(data[sent : sent + 65536])
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                while chunk := client.recv(65536):
                    received += chunk
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


def test_many_connections_do_not_mix_their_bytes(terminator):
    failures = []

    def one(number):
        data = bytes([number]) * 100_000
        with terminator.connect() as client:
            for _ in range(5):
                client.sendall(data)
                if receive(client, len(data)) != data:
                    failures.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert not failures


def test_client_ends_its_direction_and_still_gets_the_answer(tmp_path):
    """Half-close: close_notify becomes the end of the stream, and the way back stays open."""

    def count_then_answer(connection):
        total = 0
        while data := connection.recv(65536):
            total += len(data)
        connection.sendall(b"%d bytes" % total)

    with (
        Upstream(count_then_answer) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        client = terminator.library_client()
        client.sendall(b"x" * 100_000)
        client.shutdown()
        assert receive_all(client) == b"100000 bytes"
        client.close()
        terminator.wait_for_metric(SESSIONS, 1, end="closed")


def test_upstream_ends_its_direction_and_still_gets_the_request(tmp_path):
    received = []

    def answer_then_listen(connection):
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        data = bytearray()
        while chunk := connection.recv(65536):
            data += chunk
        received.append(bytes(data))

    with (
        Upstream(answer_then_listen) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        client = terminator.library_client()
        assert receive_all(client) == b"hello"
        client.sendall(b"y" * 100_000)
        client.shutdown()
        terminator.wait_for_metric(SESSIONS, 1, end="closed")
        client.close()
    assert received == [b"y" * 100_000]


def test_end_without_close_notify_is_told_from_a_proper_end(terminator):
    before = terminator.metric(SESSIONS, end="client_eof")
    with terminator.connect() as client:  # its close() ends TCP alone
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    terminator.wait_for_metric(SESSIONS, before + 1, end="client_eof")


def test_upstream_that_speaks_and_ends_at_once(tmp_path):
    """Its bytes and its end may arrive before the terminator looks at the new connection: none may be lost."""
    with (
        Upstream(lambda connection: connection.sendall(b"220 ready")) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        for _ in range(50):
            client = terminator.library_client()
            assert receive_all(client) == b"220 ready"
            client.close()
        terminator.wait_for_metric(SESSIONS, 50, end="closed")


def test_client_that_leaves_right_after_its_handshake(tmp_path):
    with echo_terminator(tmp_path) as terminator:
        for _ in range(50):
            client = terminator.library_client()
            client.sendall(b"and good bye")
            client.shutdown()
            client.close()
        terminator.wait_for_metric("gpu_provider_terminator_accepted_total", 50)
        terminator.wait_for_metric("gpu_provider_terminator_open_connections", 0)


def resident(process):
    """Bytes of memory that the process uses now."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_slow_reader_stops_the_sender_and_memory_stays_bounded(tmp_path):
    """Back-pressure: what the client does not read must not pile up here."""
    sent, stopped = 0, threading.Event()

    def flood(connection):
        nonlocal sent
        connection.settimeout(1)
        try:
            while sent < 256 * MIB:
                sent += connection.send(bytes(65536))
        except TimeoutError:
            stopped.set()
            connection.settimeout(TIMEOUT)
            connection.sendall(b"end")

    with (
        Upstream(flood) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        before = resident(terminator.process)
        with terminator.connect() as client:
            assert stopped.wait(TIMEOUT), "the upstream could send 256 MiB that nobody read"
            assert resident(terminator.process) - before < 8 * MIB
            total = 0
            tail = b""
            while not tail.endswith(b"end"):
                chunk = client.recv(65536)
                assert chunk, "ended too early"
                total += len(chunk)
                tail = (tail + chunk)[-3:]
            assert total == sent + 3


def test_slow_upstream_stops_the_client(tmp_path):
    may_read = threading.Event()
    received = []

    def read_late(connection):
        may_read.wait(TIMEOUT)
        received.append(sum(len(chunk) for chunk in iter(lambda: connection.recv(65536), b"")))

    with (
        Upstream(read_late) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        before = resident(terminator.process)
        client = terminator.connect()
        client.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 256 * MIB:
                sent += client.send(bytes(16384))
        assert sent < 64 * MIB
        assert resident(terminator.process) - before < 8 * MIB
        assert terminator.metric("gpu_provider_terminator_relayed_bytes_total", direction="to_upstream") <= sent + 16384
        client.close()
        may_read.set()


def test_idle_connection_is_closed(tmp_path):
    with echo_terminator(tmp_path, "--idle-timeout", "0.3") as terminator:
        client = terminator.library_client()
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        with pytest.raises(tls.SysCallError, match="EOF"):  # cut off, and the client can tell
            client.recv(1)
        client.close()
        terminator.wait_for_metric(SESSIONS, 1, end="idle_timeout")
