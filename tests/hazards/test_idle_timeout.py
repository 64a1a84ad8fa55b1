"""Timeouts must measure whether bytes move: a slow reader is not idle, one that has stopped is."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from terminator_process import TIMEOUT, Terminator, Upstream, write_credentials

from gpu_provider import tls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SESSIONS = "gpu_provider_terminator_sessions_total"
SIZE = 2 << 20
"""Less than the kernel keeps for one socket: once it is written, no event comes until the reader is nearly done."""
PIECE = 64 << 10
PAUSE = 0.12


def slowly(read: Callable[[int], bytes], size: int, pause: float = PAUSE) -> int:
    """Reads at a steady pace for some seconds; returns how many bytes came."""
    received = 0
    while received < size and (data := read(min(PIECE, size - received))):
        received += len(data)
        time.sleep(pause * len(data) / PIECE)
    return received


def small_buffer_client(terminator: Terminator) -> tls.Connection:
    """A client whose kernel buffers little, so that what it does not read stays with the terminator."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
    sock.connect(terminator.address)
    context = tls.Context(tls.TLS_CLIENT_METHOD)
    context.set_verify(tls.VERIFY_NONE)
    connection = tls.Connection(context, sock)
    connection.set_connect_state()
    connection.do_handshake()
    return connection


def test_slow_but_steady_download_is_not_idle(tmp_path: Path) -> None:
    def send_all(connection: socket.socket) -> None:
        connection.sendall(bytes(SIZE))
        connection.recv(1)

    with (
        Upstream(send_all) as upstream,
        Terminator(*write_credentials(tmp_path), "--idle-timeout", "1.5", upstream=upstream.address) as terminator,
    ):
        client = small_buffer_client(terminator)
        assert slowly(client.recv, SIZE) == SIZE
        client.shutdown()
        client.close()
        assert terminator.metric(SESSIONS, end="idle_timeout") == 0


def test_slow_but_steady_upload_is_not_idle(tmp_path: Path) -> None:
    received = []

    def read_slowly(connection: socket.socket) -> None:
        received.append(slowly(connection.recv, SIZE))
        connection.sendall(b"done")

    with (
        Upstream(read_slowly) as upstream,
        Terminator(*write_credentials(tmp_path), "--idle-timeout", "1.5", upstream=upstream.address) as terminator,
    ):
        upstream._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
        client = terminator.library_client()
        client.sendall(bytes(SIZE))
        assert client.recv(4) == b"done"
        client.close()
    assert received == [SIZE]


@pytest.mark.parametrize("sending", [SIZE, 64 << 20])
def test_client_that_has_stopped_reading_is_ended(tmp_path: Path, sending: int) -> None:
    """With an answer that the kernel has taken whole, and with one that is more than all buffers hold."""

    def send_all(connection: socket.socket) -> None:
        connection.sendall(bytes(sending))
        connection.recv(1)

    with (
        Upstream(send_all) as upstream,
        Terminator(*write_credentials(tmp_path), "--idle-timeout", "0.5", upstream=upstream.address) as terminator,
    ):
        client = small_buffer_client(terminator)
        client.sendall(b"x")
        terminator.wait_for_metric(SESSIONS, 1, end="idle_timeout")
        client.close()


def test_upstream_that_has_stopped_reading_is_ended(tmp_path: Path) -> None:
    ended = threading.Event()
    with (
        Upstream(lambda connection: ended.wait(TIMEOUT) and None) as upstream,
        Terminator(*write_credentials(tmp_path), "--idle-timeout", "0.5", upstream=upstream.address) as terminator,
    ):
        client = terminator.library_client()
        with pytest.raises(tls.SysCallError):
            client.sendall(bytes(64 << 20))
        terminator.wait_for_metric(SESSIONS, 1, end="idle_timeout")
        ended.set()
        client.close()


def test_slow_reader_gets_the_whole_of_an_answer_that_ends_with_a_linger(tmp_path: Path) -> None:
    """The upstream refuses a request that the client goes on sending. A close after the two seconds of a linger would
    meet unread bytes, which makes it a reset, and lose what the client has not read by then."""

    def refuse(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(bytes(size))
        connection.shutdown(socket.SHUT_WR)
        answered.wait(TIMEOUT)

    size = SIZE // 2
    answered = threading.Event()
    with (
        Upstream(refuse) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        client = small_buffer_client(terminator)
        client.sendall(bytes(PIECE))
        terminator.wait_for_metric("gpu_provider_terminator_relayed_bytes_total", size, direction="to_client")
        answered.set()

        def read_and_send(size: int) -> bytes:
            client.sendall(b"more")
            return client.recv(size)

        assert slowly(read_and_send, size, 2 * PAUSE) == size
        with pytest.raises(tls.ZeroReturnError):
            client.recv(1)
        client.close()
