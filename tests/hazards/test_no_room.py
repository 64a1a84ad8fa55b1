"""A peer that sends but never reads: whatever waits for room must not harm the rest."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from forged_records import APPLICATION_DATA, Tls13Sender, with_known_ciphers
from tls_peers import client_ssl_context, server_context

from gpu_provider import tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class SlowReader:
    """A client whose socket has little room; ``read`` takes what is there, decrypted by Python's ``ssl``."""

    def __init__(self, directory: Path) -> None:
        ours, self.sock = socket.socketpair()
        for sock in (ours, self.sock):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        context = client_ssl_context(version=ssl.TLSVersion.TLSv1_3)
        context.keylog_filename = str(directory / "keys")
        self.connection = tls.Connection(with_known_ciphers(server_context(asynchronous=False)), ours)
        self.connection.set_accept_state()
        self._incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, outgoing, server_hostname="localhost")
        thread = threading.Thread(target=self.connection.do_handshake)
        thread.start()
        while True:
            try:
                self._ssl.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(outgoing.read())
                self._incoming.write(self.sock.recv(65536))
        self.sock.sendall(outgoing.read())
        thread.join()
        for sock in (ours, self.sock):
            sock.setblocking(False)
        self.sender = Tls13Sender(directory / "keys")

    def read(self) -> bytes:
        received = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._incoming.write(self.sock.recv(65536))
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                received += self._ssl.read(65536)
        return received


@pytest.fixture
def slow_reader(tmp_path: Path) -> Iterator[SlowReader]:
    client = SlowReader(tmp_path)
    yield client
    client.connection.close()
    client.sock.close()


def test_answers_without_room_stop_the_reading_at_last_until_there_is_some(slow_reader: SlowReader) -> None:
    connection = slow_reader.connection
    received = stopped = 0
    pairs = 3000  # 27 bytes of answer each
    for _ in range(pairs):
        slow_reader.sock.send(slow_reader.sender.key_update() + slow_reader.sender.seal(APPLICATION_DATA, b"x"))
        while True:
            try:
                received += len(connection.recv(100))
            except tls.WantReadError:
                break
            except tls.WantWriteError:
                stopped += 1
                slow_reader.read()
    assert received == pairs
    assert stopped
    sent, got = False, b""
    while not sent:
        with contextlib.suppress(tls.WantWriteError):
            sent = connection.send(b"under the last key") > 0
        got += slow_reader.read()
    assert got + slow_reader.read() == b"under the last key"


def test_rekeying_asked_for_in_the_middle_of_a_write_disturbs_neither_direction(slow_reader: SlowReader) -> None:
    connection = slow_reader.connection
    data = bytes(range(256)) * 1000
    sent = 0
    got = b""
    for round_ in range(50):
        with contextlib.suppress(tls.WantWriteError):
            while sent < len(data):
                sent += connection.send(data[sent:])
        slow_reader.sock.send(
            slow_reader.sender.key_update() + slow_reader.sender.seal(APPLICATION_DATA, b"%d" % round_)
        )
        while True:
            try:
                assert connection.recv(100) == b"%d" % round_
                break
            except tls.WantWriteError:
                got += slow_reader.read()
        got += slow_reader.read()
    while sent < len(data):
        with contextlib.suppress(tls.WantWriteError):
            sent += connection.send(data[sent:])
        got += slow_reader.read()
    got += slow_reader.read()
    assert got == data


def test_whole_connection_over_a_socket_with_hardly_any_room() -> None:
    """Handshake, data and close_notify each wait for room, and nothing is lost or sent twice."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        sock.setblocking(False)
    connection = tls.Connection(server_context(asynchronous=False), ours)
    connection.set_accept_state()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_ssl_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    waited: Counter[str] = Counter()
    data = bytes(range(256)) * 1000
    received = bytearray()
    sent = filling = 0
    closed = False
    with contextlib.suppress(BlockingIOError):
        while True:
            filling += ours.send(bytes(100))

    def exchange() -> None:
        """The client takes a little, and answers."""
        nonlocal closed, filling
        with contextlib.suppress(BlockingIOError):
            if filling:
                if waited:
                    filling -= len(theirs.recv(min(filling, 700)))
            else:
                incoming.write(theirs.recv(700))
        try:
            if client.version() is None:
                client.do_handshake()
            while piece := client.read(65536):
                received.extend(piece)
            closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            closed = True
        if answer := outgoing.read():
            theirs.sendall(answer)

    def until_done(step: Callable[[], object]) -> None:
        while True:
            try:
                step()
            except tls.WantReadError:
                exchange()
            except tls.WantWriteError:
                waited[step.__name__] += 1
                exchange()
            else:
                return

    def send() -> None:
        nonlocal sent
        while sent < len(data):
            sent += connection.send(data[sent:])

    with theirs, connection:
        exchange()
        until_done(connection.do_handshake)
        until_done(send)
        until_done(connection.shutdown)
        while not closed:
            exchange()
    assert received == data
    assert waited["do_handshake"]
    assert waited["send"]
    assert waited["shutdown"]


def test_peer_that_is_gone_while_a_record_waits_for_room_is_told_of(slow_reader: SlowReader) -> None:
    with contextlib.suppress(tls.WantWriteError):
        while True:
            slow_reader.connection.send(bytes(65536))
    slow_reader.sock.close()
    with pytest.raises(tls.SysCallError, match="Broken pipe"):
        slow_reader.connection.send(bytes(65536))
