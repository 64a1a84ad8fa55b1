"""TLS to the upstream: bytes both ways, and neither side takes a truncated stream for a whole one."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from groups import find_program
from terminator_process import (
    TIMEOUT,
    Terminator,
    client_context,
    credentials,
    echo,
    receive,
    reset,
)
from tls_upstreams import LibraryUpstream, encrypted, receive_all, ssl_context, trusting

from gpu_provider import tls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SESSIONS = "gpu_provider_terminator_sessions_total"
MIB = 1 << 20


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LibraryUpstream, Terminator]]:
    with (
        LibraryUpstream() as upstream,
        trusting(
            tmp_path_factory.mktemp("shared"), upstream.address, "--alpn", "h2", "--alpn", "http/1.1"
        ) as terminator,
    ):
        yield upstream, terminator


def test_bytes_arrive_both_ways_and_the_upstream_is_asked_by_name(tmp_path: Path) -> None:
    asked = []
    contexts = ssl_context(tmp_path), ssl_context(tmp_path)
    contexts[0].maximum_version = ssl.TLSVersion.TLSv1_2
    for context in contexts:
        context.sni_callback = lambda _, name, __: asked.append(name)
    data = os.urandom(MIB)
    with (
        encrypted(contexts[0], echo) as first,
        encrypted(contexts[1], echo) as second,
        trusting(tmp_path, first.address, "--upstream", second.address) as terminator,
    ):
        for _ in contexts:
            with terminator.connect() as client:
                for part in (data[at : at + 65536] for at in range(0, MIB, 65536)):
                    client.sendall(part)
                    assert receive(client, len(part)) == part
    assert asked == ["localhost", "localhost"]


def test_upstream_that_reads_late_stops_the_client_and_gets_all_in_the_end(
    both: tuple[LibraryUpstream, Terminator],
) -> None:
    received = []
    may_read = threading.Event()

    def read_late(secure: tls.Connection, _: socket.socket) -> None:
        may_read.wait(TIMEOUT)
        received.append(len(receive_all(secure)))
        secure.shutdown()

    upstream, terminator = both
    upstream.handler = read_late
    with terminator.connect() as client:
        client.settimeout(1)
        sent, part = 0, bytes(65536)
        with contextlib.suppress(TimeoutError):
            while sent < 256 * MIB:
                sent += client.send(part)
        assert sent < 64 * MIB, "the terminator takes what the upstream does not"
        may_read.set()
        client.settimeout(TIMEOUT)
        client.sendall(part)
        client.unwrap()
    assert received == [sent + len(part)]


def test_client_that_reads_late_gets_all_in_the_end(both: tuple[LibraryUpstream, Terminator]) -> None:
    data = os.urandom(8 * MIB)

    def answer(secure: tls.Connection, _: socket.socket) -> None:
        secure.sendall(data)
        secure.shutdown()

    upstream, terminator = both
    upstream.handler = answer
    client = terminator.library_client()
    assert receive_all(client) == data
    client.close()


def test_each_direction_ends_separately(both: tuple[LibraryUpstream, Terminator]) -> None:
    """close_notify of either side ends its direction alone, and is passed on as one, before TCP's end."""
    seen = []

    def speak_then_listen(secure: tls.Connection, connection: socket.socket) -> None:
        secure.sendall(b"hello")
        secure.shutdown()
        seen.append(receive_all(secure))  # up to close_notify
        seen.append(connection.recv(1))
        ended.set()

    ended = threading.Event()
    upstream, terminator = both
    upstream.handler = speak_then_listen
    client = terminator.library_client()
    assert receive_all(client) == b"hello"
    client.sendall(b"y" * 100_000)
    client.shutdown()
    assert ended.wait(TIMEOUT)
    client.close()
    assert seen == [b"y" * 100_000, b""]


def test_client_that_ends_without_close_notify_is_no_end_for_the_upstream(
    both: tuple[LibraryUpstream, Terminator],
) -> None:
    ends: list[Exception] = []

    def listen(secure: tls.Connection, _: socket.socket) -> None:
        secure.sendall(secure.recv(100))
        try:
            secure.recv(1)
        except tls.Error as error:
            ends.append(error)
        ended.set()

    ended = threading.Event()
    upstream, terminator = both
    upstream.handler = listen
    with terminator.connect() as client:  # its close() ends TCP alone
        client.sendall(b"half a request")
        assert receive(client, 14) == b"half a request"
    assert ended.wait(TIMEOUT)
    assert [end.args[0] for end in ends] == [errno.ECONNRESET]


@pytest.mark.parametrize("by_reset", [False, True])
def test_upstream_that_ends_without_close_notify_is_no_end_for_the_client(
    both: tuple[LibraryUpstream, Terminator], by_reset: bool
) -> None:
    gone = threading.Event()

    def half_an_answer(secure: tls.Connection, connection: socket.socket) -> None:
        secure.sendall(b"half an answer")
        gone.wait(TIMEOUT)
        if by_reset:
            reset(connection)

    upstream, terminator = both
    upstream.handler = half_an_answer
    before = terminator.metric(SESSIONS, end="upstream_reset")
    client = terminator.library_client()
    assert client.recv(100) == b"half an answer"
    gone.set()
    with pytest.raises(tls.SysCallError):
        client.recv(1)
    client.close()
    terminator.wait_for_metric(SESSIONS, before + 1, end="upstream_reset")
    if not by_reset:
        terminator.wait_for("connection", reason="the upstream ended without close_notify")


def test_answer_of_an_upstream_that_reads_no_more_arrives(both: tuple[LibraryUpstream, Terminator]) -> None:
    """It answers and closes without reading the request, as for a body that is too large."""

    def refuse(secure: tls.Connection, connection: socket.socket) -> None:
        secure.recv(1)
        secure.sendall(b"too large")
        secure.shutdown()
        answered.wait(TIMEOUT)
        reset(connection)

    answered = threading.Event()
    upstream, terminator = both
    upstream.handler = refuse
    client = terminator.library_client()
    client.sendall(b"y" * 10_000)
    assert receive_all(client) == b"too large"
    answered.set()
    client.sendall(b"y" * 10_000)
    client.close()
    terminator.wait_for_metric("gpu_provider_terminator_open_connections", 0)


# ---- protocols ----


@pytest.mark.parametrize(
    ("of_client", "of_upstream", "agreed"),
    [("h2", ("http/1.1", "h2"), b"h2"), ("http/1.1", (), b""), (None, ("h2", "http/1.1"), b"")],
)
def test_upstream_is_offered_what_the_client_speaks(
    both: tuple[LibraryUpstream, Terminator], of_client: str | None, of_upstream: tuple[str, ...], agreed: bytes
) -> None:
    protocols: list[bytes] = []

    def note(secure: tls.Connection, _: socket.socket) -> None:
        protocols.append(secure.get_alpn_proto_negotiated())
        secure.sendall(b"x")
        secure.shutdown()

    upstream, terminator = both
    upstream.handler, upstream.alpn = note, of_upstream
    with terminator.connect(offering(of_client)) as client:
        assert receive(client, 1) == b"x"
    assert protocols == [agreed]


def test_upstream_that_does_not_speak_h2_is_not_sent_it(both: tuple[LibraryUpstream, Terminator]) -> None:
    received: list[bytes] = []

    def listen(secure: tls.Connection, _: socket.socket) -> None:
        with contextlib.suppress(tls.SysCallError):
            received.append(secure.recv(1))

    upstream, terminator = both
    upstream.handler, upstream.alpn = listen, ()
    with terminator.connect(offering("h2")) as client:
        client.sendall(b"PRI * HTTP/2.0")
        assert receive(client, 1) == b""
    assert "has not agreed" in terminator.wait_for("connection", end="upstream_unreachable")["reason"]
    assert not received


def offering(protocol: str | None) -> ssl.SSLContext:
    context = client_context()
    if protocol is not None:
        context.set_alpn_protocols([protocol])
    return context


def test_haproxy_takes_the_proxy_header_before_the_handshake(tmp_path: Path) -> None:
    haproxy = find_program("haproxy")
    (tmp_path / "haproxy.pem").write_bytes(b"".join(credentials("localhost")))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        configuration = tmp_path / "haproxy.cfg"
        configuration.write_text(
            "defaults\n mode http\n timeout client 20s\n"
            f"frontend tls\n bind fd@{listener.fileno()} ssl crt {tmp_path}/haproxy.pem accept-proxy\n"
            " http-request return status 200 content-type text/plain lf-string %[src]:%[src_port]\n"
        )
        command = [haproxy, "-db", "-f", str(configuration)]
        with (
            subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL) as process,
            trusting(tmp_path, f"127.0.0.1:{listener.getsockname()[1]}", "--proxy-protocol", "v2") as terminator,
        ):
            with terminator.connect() as client:
                host, port = client.getsockname()
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = receive(client, 65536).decode()
            process.kill()
    assert answer.endswith(f"{host}:{port}")
