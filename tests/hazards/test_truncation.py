"""A stream that was cut off must never look whole: neither the client's to the upstream, nor the reverse.

Anybody on the network can cut a TCP stream short; in TLS only close_notify is the end.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from terminator_process import TIMEOUT, Terminator, Upstream, reset, write_credentials

from gpu_provider import tls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SESSIONS = "gpu_provider_terminator_sessions_total"


class Recorder:
    """An upstream that records what each connection sent, and whether it ended cleanly or by a reset."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.end = ""
        self.ended = threading.Event()
        self.first = threading.Event()
        self.requested = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(b"hello")
        try:
            while data := connection.recv(65536):
                self.received += data
                self.first.set()
                if self.received.endswith(b"request"):
                    self.requested.set()
            self.end = "end"
        except ConnectionResetError:
            self.end = "reset"
        self.ended.set()


def raw(client: tls.Connection) -> socket.socket:
    sock = client._socket
    assert isinstance(sock, socket.socket)
    return sock


def send_until_nothing_is_taken(client: tls.Connection) -> None:
    raw(client).setblocking(False)
    while select.select([], [raw(client)], [], 0.5)[1]:
        with contextlib.suppress(tls.WantWriteError):
            client.send(bytes(16384))
    raw(client).setblocking(True)


def close_notify(client: tls.Connection, terminator: Terminator) -> None:
    client.shutdown()


def bare_end(client: tls.Connection, terminator: Terminator) -> None:
    raw(client).shutdown(socket.SHUT_WR)


def reset_by_client(client: tls.Connection, terminator: Terminator) -> None:
    reset(raw(client))
    client.close()


def forged_record(client: tls.Connection, terminator: Terminator) -> None:
    raw(client).sendall(b"\x17\x03\x03\x00\x20" + os.urandom(32))


def plaintext(client: tls.Connection, terminator: Terminator) -> None:
    raw(client).sendall(b"GET / HTTP/1.1\r\n\r\n")


def partial_record(client: tls.Connection, terminator: Terminator) -> None:
    raw(client).sendall(b"\x17\x03\x03\x40\x00")
    raw(client).shutdown(socket.SHUT_WR)


def silence(client: tls.Connection, terminator: Terminator) -> None:
    """Until idle_timeout."""


def drain_timeout(client: tls.Connection, terminator: Terminator) -> None:
    terminator.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("proxy_protocol", ["off", "v1", "v2"])
@pytest.mark.parametrize(
    ("leave", "end", "counted"),
    [
        (close_notify, "end", ""),
        (bare_end, "reset", "client_eof"),
        (reset_by_client, "reset", "client_reset"),
        (forged_record, "reset", "tls_error"),
        (plaintext, "reset", "tls_error"),
        (partial_record, "reset", "client_eof"),
        (silence, "reset", "idle_timeout"),
        (drain_timeout, "reset", ""),
    ],
)
def test_upstream_sees_an_end_only_after_close_notify(
    tmp_path: Path,
    leave: Callable[[tls.Connection, Terminator], None],
    end: str,
    counted: str,
    proxy_protocol: str,
) -> None:
    upstream_side = Recorder()
    flags = ["--idle-timeout", "1" if leave is silence else "60", "--drain-timeout", "0.2"]
    with (
        Upstream(upstream_side) as upstream,
        Terminator(
            *write_credentials(tmp_path), *flags, "--proxy-protocol", proxy_protocol, upstream=upstream.address
        ) as terminator,
    ):
        client = terminator.library_client()
        assert client.recv(5) == b"hello"
        client.sendall(b"request")
        assert upstream_side.requested.wait(TIMEOUT)
        leave(client, terminator)
        assert upstream_side.ended.wait(TIMEOUT)
        assert upstream_side.end == end
        if leave is not drain_timeout:
            client.close()
        if counted:
            terminator.wait_for_metric(SESSIONS, 1, end=counted)
        if leave is drain_timeout:
            assert terminator.wait() == 3
            client.close()


def test_client_that_leaves_before_it_has_sent_anything(tmp_path: Path) -> None:
    """The PROXY header alone is not a whole stream either."""
    upstream_side = Recorder()
    with (
        Upstream(upstream_side) as upstream,
        Terminator(*write_credentials(tmp_path), "--proxy-protocol", "v1", upstream=upstream.address) as terminator,
    ):
        client = terminator.library_client()
        assert upstream_side.first.wait(TIMEOUT)
        bare_end(client, terminator)
        assert upstream_side.ended.wait(TIMEOUT)
        assert upstream_side.end == "reset"
        assert upstream_side.received.startswith(b"PROXY TCP4 127.0.0.1 ")
        client.close()


def test_truncated_upload_to_a_slow_upstream_does_not_look_whole(tmp_path: Path) -> None:
    """Bytes wait here and in the kernel when the client is gone."""
    may_read, result = threading.Event(), []

    def read_late(connection: socket.socket) -> None:
        assert may_read.wait(TIMEOUT)
        try:
            while connection.recv(65536):
                pass
            result.append("end")
        except ConnectionResetError:
            result.append("reset")

    with (
        Upstream(read_late) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        client = terminator.library_client()
        send_until_nothing_is_taken(client)
        reset_by_client(client, terminator)
        may_read.set()
        terminator.wait_for_metric(SESSIONS, 1, end="client_reset")
    assert result == ["reset"]


def test_whole_upload_to_a_slow_upstream_arrives_whole(tmp_path: Path) -> None:
    may_read, received = threading.Event(), []

    def read_late(connection: socket.socket) -> None:
        assert may_read.wait(TIMEOUT)
        received.append(sum(len(chunk) for chunk in iter(lambda: connection.recv(65536), b"")))

    with (
        Upstream(read_late) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        client = terminator.library_client()
        client.sendall(bytes(1 << 20))
        client.shutdown()
        may_read.set()
        with pytest.raises(tls.ZeroReturnError):
            client.recv(1)
        client.close()
    assert received == [1 << 20]


@pytest.mark.parametrize("proxy_protocol", ["off", "v1"])
def test_message_of_a_client_that_does_not_wait_arrives_whole(tmp_path: Path, proxy_protocol: str) -> None:
    """It leaves the server's session tickets unread, so that its close is a reset; close_notify came before that."""
    ends = []

    def record(connection: socket.socket) -> None:
        received = bytearray()
        try:
            while data := connection.recv(65536):
                received += data
            ends.append((bytes(received[-7:]), "end"))
        except ConnectionResetError:
            ends.append((bytes(received[-7:]), "reset"))

    with (
        Upstream(record) as upstream,
        Terminator(
            *write_credentials(tmp_path), "--proxy-protocol", proxy_protocol, upstream=upstream.address
        ) as terminator,
    ):
        for _ in range(30):
            client = terminator.library_client()
            raw(client).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or close() would discard close_notify
            client.sendall(b"message")
            client.shutdown()
            client.close()
        terminator.wait_for_metric("gpu_provider_terminator_accepted_total", 30)
        terminator.wait_for_metric("gpu_provider_terminator_open_connections", 0)
    assert ends == [(b"message", "end")] * 30


def test_killed_terminator_leaves_no_stream_that_looks_whole(tmp_path: Path) -> None:
    upstream_side = Recorder()
    with (
        Upstream(upstream_side) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        client = terminator.library_client()
        client.sendall(b"request")
        assert upstream_side.requested.wait(TIMEOUT)
        terminator.process.kill()
        assert upstream_side.ended.wait(TIMEOUT)
        assert upstream_side.end == "reset"
        client.close()


# ---- the other way ----


def read_to_the_end(client: tls.Connection) -> tuple[bytes, type[tls.Error]]:
    received = bytearray()
    while True:
        try:
            received += client.recv(65536)
        except tls.Error as error:
            return bytes(received), type(error)


def half_then_reset(connection: socket.socket) -> None:
    connection.recv(1)
    connection.sendall(b"half an ans")
    reset(connection)


def half_then_close_without_reading(connection: socket.socket) -> None:
    """The kernel answers unread bytes with a reset."""
    connection.recv(1)
    connection.sendall(b"half an ans")


def whole_then_reset(connection: socket.socket) -> None:
    connection.recv(1)
    connection.sendall(b"half an ans")
    connection.shutdown(socket.SHUT_WR)
    reset(connection)


@pytest.fixture
def flooding(tmp_path: Path) -> Callable[[Callable[[socket.socket], None]], tuple[bytes, type[tls.Error]]]:
    """Has a client send until nothing more is taken, so that the terminator's next call on the upstream's socket is a
    write, which learns of the reset; the reads after it end as if the stream were whole."""

    def run(end: Callable[[socket.socket], None]) -> tuple[bytes, type[tls.Error]]:
        full = threading.Event()

        def handler(connection: socket.socket) -> None:
            assert full.wait(TIMEOUT)
            end(connection)

        with (
            Upstream(handler) as upstream,
            Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
        ):
            client = terminator.library_client()
            send_until_nothing_is_taken(client)
            full.set()
            result = read_to_the_end(client)
            client.close()
            return result

    return run


@pytest.mark.parametrize("end", [half_then_reset, half_then_close_without_reading])
def test_reset_that_a_write_learns_of_gives_the_client_no_close_notify(
    flooding: Callable[[Callable[[socket.socket], None]], tuple[bytes, type[tls.Error]]],
    end: Callable[[socket.socket], None],
) -> None:
    assert flooding(end) == (b"half an ans", tls.SysCallError)


def test_whole_answer_before_a_reset_stays_whole(
    flooding: Callable[[Callable[[socket.socket], None]], tuple[bytes, type[tls.Error]]],
) -> None:
    assert flooding(whole_then_reset) == (b"half an ans", tls.ZeroReturnError)


def test_reset_right_after_the_connect_gives_no_close_notify(tmp_path: Path) -> None:
    with Upstream(reset) as upstream, Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator:
        for _ in range(20):
            client = terminator.library_client()
            assert read_to_the_end(client) == (b"", tls.SysCallError)
            client.close()


def test_bytes_before_a_reset_reach_a_client_that_is_still_sending(tmp_path: Path) -> None:
    """Closing at once would answer what it sends with a reset of ours, which could destroy them."""
    go = threading.Event()

    def answer_then_reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"too large")
        assert go.wait(TIMEOUT)
        reset(connection)

    with (
        Upstream(answer_then_reset) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        client = terminator.library_client()
        client.sendall(b"x")
        go.set()
        for _ in range(200):
            client.sendall(bytes(16384))
        assert read_to_the_end(client) == (b"too large", tls.SysCallError)
        client.close()
