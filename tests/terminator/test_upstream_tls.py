"""TLS to the upstream: nobody else can pose as it, and neither side takes a truncated stream for a whole one."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
import trustme
from groups import find_program
from terminator_process import (
    TIMEOUT,
    Terminator,
    Upstream,
    authority,
    client_context,
    credentials,
    echo,
    receive,
    reset,
    run_command,
    write_credentials,
)

from gpu_provider import tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAUSED = "gpu_provider_terminator_upstream_paused"
FAILURES = "gpu_provider_terminator_upstream_failures_total"
SESSIONS = "gpu_provider_terminator_sessions_total"
MIB = 1 << 20


def ssl_context(directory: Path, name: str = "localhost") -> ssl.SSLContext:
    """Of an upstream of Python's ``ssl``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _, cert, _, key = write_credentials(directory, name, stem=f"upstream-{name}")
    context.load_cert_chain(cert, key)
    return context


def encrypted(context: ssl.SSLContext, handler: Callable[[ssl.SSLSocket], None]) -> Upstream:
    def serve(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                handler(secure)
        except ssl.SSLError:  # refused by the terminator
            connection.close()

    return Upstream(serve)


class LibraryUpstream(Upstream):
    """Unlike Python's ``ssl``, it can end one direction alone. Each test says what it does."""

    def __init__(self) -> None:
        super().__init__(self._run)
        self.handler: Callable[[tls.Connection, socket.socket], None] = lambda _, __: None
        self.alpn: tuple[str, ...] = ()

    def _run(self, connection: socket.socket) -> None:
        context = tls.Context(tls.TLS_SERVER_METHOD)
        chain, key = credentials("localhost")
        context.use_certificate(chain)
        context.use_privatekey(key)
        if self.alpn:
            context.set_alpn_server_protos(self.alpn)
        connection.setblocking(True)
        secure = tls.Connection(context, connection)
        secure.set_accept_state()
        secure.do_handshake()
        self.handler(secure, connection)


def write_authority(directory: Path, ca: trustme.CA) -> str:
    file = directory / "upstream-ca.pem"
    file.write_bytes(ca.cert_pem.bytes())
    return str(file)


def trusting(directory: Path, upstream: str, *flags: str, ca: trustme.CA | None = None) -> Terminator:
    """A terminator that verifies the upstream, whose name is localhost."""
    return Terminator(
        *write_credentials(directory), "--upstream-tls", "on", "--upstream-name", "localhost",
        "--upstream-ca", write_authority(directory, ca or authority()), *flags, upstream=upstream,
    )  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LibraryUpstream, Terminator]]:
    with (
        LibraryUpstream() as upstream,
        trusting(
            tmp_path_factory.mktemp("shared"), upstream.address, "--alpn", "h2", "--alpn", "http/1.1"
        ) as terminator,
    ):
        yield upstream, terminator


def receive_all(connection: tls.Connection) -> bytes:
    received = bytearray()
    while True:
        try:
            received += connection.recv(65536)
        except tls.ZeroReturnError:
            return bytes(received)


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


# ---- whom it trusts ----


@pytest.mark.parametrize(
    ("name", "own_authority", "reason"),
    [("other.example", True, "hostname mismatch"), ("localhost", False, "unable to get local issuer certificate")],
)
def test_who_poses_as_the_upstream_gets_nothing(tmp_path: Path, name: str, own_authority: bool, reason: str) -> None:
    received: list[bytes] = []
    with encrypted(ssl_context(tmp_path, name), lambda secure: received.append(secure.recv(1))) as upstream:
        ca = authority() if own_authority else trustme.CA()
        with trusting(tmp_path, upstream.address, ca=ca) as terminator:
            client = terminator.library_client()
            client.sendall(b"secret")
            assert receive_all(client) == b""
            client.close()
            line = terminator.wait_for("connection", end="upstream_unreachable", state="connecting")
            assert line["reason"].startswith("TLS handshake: certificate verify failed")
            assert reason in line["reason"]
            assert terminator.metric(FAILURES, reason="bad_certificate") == 1
            assert terminator.metric(PAUSED, upstream=upstream.address) == 1
    assert not any(received)


def test_next_upstream_is_taken_when_one_is_not_who_it_should_be(tmp_path: Path) -> None:
    with (
        encrypted(ssl_context(tmp_path, "other.example"), echo) as impostor,
        encrypted(ssl_context(tmp_path), echo) as upstream,
        trusting(tmp_path, impostor.address, "--upstream", upstream.address) as terminator,
    ):
        assert terminator.echo() == b"are you there?"
        assert terminator.metric(PAUSED, upstream=impostor.address) == 1
        assert terminator.metric(FAILURES) == 0


def test_unverified_upstream_is_taken_and_warned_of(tmp_path: Path) -> None:
    with (
        encrypted(ssl_context(tmp_path, "other.example"), echo) as upstream,
        Terminator(
            *write_credentials(tmp_path), "--upstream-tls", "unverified", upstream=upstream.address
        ) as terminator,
    ):
        assert terminator.echo() == b"are you there?"
        assert any("can pose as it" in event["event"] for event in terminator.events)


def test_upstream_is_verified_by_the_host_of_its_setting(tmp_path: Path) -> None:
    """Also one that is an address, which is not asked for by name."""
    asked = []
    context = ssl_context(tmp_path, "127.0.0.1")
    context.sni_callback = lambda _, name, __: asked.append(name)
    with (
        encrypted(context, echo) as upstream,
        Terminator(
            *write_credentials(tmp_path), "--upstream-tls", "on", upstream=upstream.address,
            settings={"SSL_CERT_FILE": write_authority(tmp_path, authority())},
        ) as terminator,
    ):  # fmt: skip
        assert terminator.echo() == b"are you there?"
    assert asked == [None]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_upstream_that_asks_for_a_certificate_sees_ours(tmp_path: Path, version: ssl.TLSVersion) -> None:
    seen: list[object] = []

    def note(secure: ssl.SSLSocket) -> None:
        certificate = secure.getpeercert()
        assert certificate is not None
        seen.append(certificate["subjectAltName"])
        echo(secure)

    context = ssl_context(tmp_path)
    context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(write_authority(tmp_path, authority()))
    _, cert, _, key = write_credentials(tmp_path, "terminator.example", kind="ECDSA", stem="own")
    with (
        encrypted(context, note) as upstream,
        trusting(tmp_path, upstream.address, "--upstream-cert", cert, "--upstream-key", key) as terminator,
    ):
        assert terminator.echo() == b"are you there?"
    assert seen == [(("DNS", "terminator.example"),)]


def test_reload_reads_the_authorities_again(tmp_path: Path) -> None:
    with (
        encrypted(ssl_context(tmp_path), echo) as upstream,
        trusting(tmp_path, upstream.address, ca=trustme.CA()) as terminator,
    ):
        with terminator.connect() as client:
            assert receive(client, 1) == b""
        write_authority(tmp_path, authority())
        terminator.process.send_signal(signal.SIGHUP)
        terminator.wait_for("certificates reloaded")
        assert terminator.echo() == b"are you there?"


def test_upstream_that_never_answers_the_handshake_costs_no_more_than_the_connect_timeout(tmp_path: Path) -> None:
    with (
        Upstream(lambda connection: receive(connection, MIB) and None) as upstream,
        trusting(tmp_path, upstream.address, "--connect-timeout", "0.5") as terminator,
    ):
        client = terminator.library_client()
        assert receive_all(client) == b""
        client.close()
        terminator.wait_for_metric(FAILURES, 1, reason="ETIMEDOUT")
        assert terminator.metric(PAUSED, upstream=upstream.address) == 1


def test_upstream_without_tls_is_named_as_such(tmp_path: Path) -> None:
    with (
        Upstream(lambda connection: connection.sendall(b"220 ready\r\n")) as upstream,
        trusting(tmp_path, upstream.address) as terminator,
    ):
        with terminator.connect() as client:
            assert receive(client, 1) == b""
        assert terminator.wait_for("connection")["reason"] == "TLS handshake: wrong version number"
        assert terminator.metric(FAILURES, reason="tls_error") == 1


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


# ---- settings ----


def check(directory: Path, *flags: str, upstream: str = "127.0.0.1:1") -> subprocess.CompletedProcess[str]:
    return run_command(
        "terminator",
        "--check",
        "--listen",
        "127.0.0.1:0",
        "--upstream",
        upstream,
        *write_credentials(directory),
        *flags,
    )


@pytest.mark.parametrize(
    ("flags", "upstream", "said"),
    [
        (("--upstream-ca", "missing.pem"), "127.0.0.1:1", "upstream_ca = 'missing.pem' can't be read"),
        ((), "/run/app.sock", "--upstream-name NAME"),
        (("--upstream-cert", "missing.pem"), "127.0.0.1:1", "given as --upstream-cert missing.pem"),
        (("--upstream-key", "own.key"), "127.0.0.1:1", "add --upstream-cert FILE"),
        (("--upstream-name", ".example"), "127.0.0.1:1", "upstream_name = '.example'"),
        (("--upstream-name", "app.example:443"), "127.0.0.1:1", "upstream_name = 'app.example:443'"),
    ],
)
def test_check_refuses_what_can_not_work(tmp_path: Path, flags: tuple[str, ...], upstream: str, said: str) -> None:
    end = check(tmp_path, "--upstream-tls", "on", *flags, upstream=upstream)
    assert end.returncode == 2
    assert said in end.stderr


def test_check_warns_of_settings_without_effect(tmp_path: Path) -> None:
    end = check(tmp_path, "--upstream-ca", "ca.pem")
    assert end.returncode == 0
    assert "upstream_ca has no effect" in end.stderr
