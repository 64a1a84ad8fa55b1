"""The log's line for each connection: it must tell an operator who came, what was agreed, how long it took, and how and
why it ended."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from terminator_process import (
    TIMEOUT,
    Terminator,
    Upstream,
    client_context,
    echo,
    echo_terminator,
    receive,
    refused_address,
    reset,
    write_credentials,
)
from tls_peers import named_hello

from gpu_provider.tls.terminator.metrics import TerminatorMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPERATING = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
HOSTILE = "\x1b[31m.localhost"
LEFT_OUT = "connections left out of the log"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("credentials")


@pytest.fixture(scope="module")
def terminator(directory: Path) -> Iterator[Terminator]:
    """It logs every connection, and has an RSA and an ECDSA certificate."""
    flags = ("--access-log", "all", "--alpn", "h2", "--handshake-timeout", "1", "--idle-timeout", "2")
    with (
        Upstream(echo) as upstream,
        Terminator(
            *write_credentials(directory),
            *write_credentials(directory, "ecdsa.example", kind="ECDSA", stem="ecdsa"),
            *flags,
            upstream=upstream.address,
        ) as running,
    ):
        yield running


def line_of(terminator: Terminator, client: tuple[str, int]) -> dict[str, Any]:
    """The line of the connection that came from this address."""
    line = terminator.wait_for("connection", client=f"{client[0]}:{client[1]}")
    assert line.keys() <= documented("field | meaning") | {"event", "level", "logger"}
    return line


def documented(header: str) -> set[str]:
    """What the first column of the table with this header in docs/operating.md names."""
    table = OPERATING.partition(f"\n| {header} |")[2].partition("\n\n")[0]
    return {name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)}


def test_the_manual_explains_every_end() -> None:
    metrics = TerminatorMetrics()
    assert documented("`end` | means") == {*metrics.handshake_failures, *metrics.sessions} - {"out_of_memory"}


@contextlib.contextmanager
def dialled(terminator: Terminator) -> Iterator[tuple[socket.socket, tuple[str, int]]]:
    with terminator.dial() as sock:
        yield sock, sock.getsockname()[:2]


def context_for(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = client_context(version)
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_line_says_what_was_agreed_and_how_long_it_took(
    terminator: Terminator, directory: Path, version: ssl.TLSVersion
) -> None:
    context = context_for(version)
    with dialled(terminator) as (sock, address):
        client = context.wrap_socket(sock, server_hostname="localhost")
        client.sendall(b"eleven byte")
        assert receive(client, 11) == b"eleven byte"
        cipher = client.cipher()
        client.unwrap().close()
    line = line_of(terminator, address)
    assert cipher is not None
    assert line["level"] == "info"
    expected = {
        "state": "relay",
        "end": "closed",
        "server_name": "localhost",
        "certificate": str(directory / "server.pem"),
        "tls": version.name.replace("_", "."),
        "cipher": cipher[0],
        "group": "x25519",
        "alpn": "h2",
        "resumed": False,
        "async_status": "OK",
        "bytes_to_upstream": 11,
        "bytes_to_client": 11,
    }
    assert expected.items() <= line.items()
    assert line["upstream"].startswith("127.0.0.1:")
    assert not line.keys() & {"alert_sent", "alert_received", "reason"}
    assert 0 <= line["rsa_seconds"] < line["handshake_seconds"] < line["seconds"] < TIMEOUT
    assert 0 < line["connect_seconds"] < line["seconds"]
    assert 0 <= line["accept_queue_seconds"] < line["seconds"]


def test_the_certificate_is_the_one_that_the_client_saw(terminator: Terminator, directory: Path) -> None:
    context = context_for(ssl.TLSVersion.TLSv1_3)
    with dialled(terminator) as (sock, address), context.wrap_socket(sock, server_hostname="ecdsa.example") as client:
        seen = client.getpeercert(binary_form=True)
    line = line_of(terminator, address)
    assert line["certificate"] == str(directory / "ecdsa.pem")
    served = x509.load_pem_x509_certificate((directory / "ecdsa.pem").read_bytes())
    assert x509.load_der_x509_certificate(seen or b"").fingerprint(hashes.SHA256()) == served.fingerprint(
        hashes.SHA256()
    )
    assert line["async_status"] == "UNSUPPORTED"
    assert line["rsa_seconds"] == 0


def test_a_resumed_session_has_neither_certificate_nor_rsa_operation(terminator: Terminator) -> None:
    context = context_for(ssl.TLSVersion.TLSv1_3)
    with terminator.connect(context) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"  # the tickets come before it
        session = client.session
    with dialled(terminator) as (sock, address):
        context.wrap_socket(sock, server_hostname="localhost", session=session).close()
    line = line_of(terminator, address)
    assert line["resumed"] is True
    assert line["rsa_seconds"] == 0
    assert not line.keys() & {"certificate", "async_status"}


def test_every_connection_has_an_id_of_its_own(terminator: Terminator) -> None:
    lines = []
    for _ in range(3):
        with dialled(terminator) as (sock, address):
            context_for(ssl.TLSVersion.TLSv1_3).wrap_socket(sock, server_hostname="localhost").close()
        lines.append(line_of(terminator, address))
    assert len({line["id"] for line in lines}) == 3


# ---- how connections end ----


def handshake_fails(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def run(sock: socket.socket) -> None:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(sock, server_hostname="localhost")

    return run


def no_common_protocol() -> ssl.SSLContext:
    context = client_context()
    context.set_alpn_protocols(["spdy/1"])
    return context


def sends(data: bytes, *, leave: bool = False) -> Callable[[socket.socket], None]:
    def run(sock: socket.socket) -> None:
        sock.sendall(data)
        if leave:
            reset(sock)
            sock.close()
        else:
            receive(sock, 100)

    return run


@pytest.mark.parametrize(
    ("expected", "fail"),
    [
        ({"end": "no_common_alpn", "alert_sent": "no application protocol"}, handshake_fails(no_common_protocol())),
        (
            {"end": "client_unknown_ca", "alert_received": "unknown CA", "server_name": "localhost", "tls": "TLSv1.3"},
            handshake_fails(ssl.create_default_context()),
        ),
        ({"end": "http_request", "reason": "http request"}, sends(b"GET / HTTP/1.1\r\n\r\n")),
        ({"end": "client_gone"}, sends(b"\x16\x03\x01", leave=True)),
        ({"end": "timeout", "reason": "waited for the client"}, sends(b"\x16\x03\x01")),
    ],
)
def test_a_failed_handshake_says_why(
    terminator: Terminator, expected: dict[str, str], fail: Callable[[socket.socket], None]
) -> None:
    with dialled(terminator) as (sock, address):
        fail(sock)
    line = line_of(terminator, address)
    assert line["level"] == "warning"
    assert line["state"] == "handshake"
    assert expected.items() <= line.items()
    assert not line.keys() & {"handshake_seconds", "upstream", "connect_seconds"}


def test_a_client_that_sends_nothing_is_no_failure(terminator: Terminator) -> None:
    """Load balancers probe like this, every few seconds."""
    with dialled(terminator) as (sock, address):
        sock.shutdown(socket.SHUT_WR)
        receive(sock, 100)
    line = line_of(terminator, address)
    assert (line["end"], line["level"]) == ("client_gone", "info")


def test_a_client_that_leaves_without_an_answer_is_a_failure(directory: Path) -> None:
    """It tells of an upstream that hangs: nothing else in the log would."""

    def silent(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with (
        Upstream(silent) as upstream,
        Terminator(*write_credentials(directory), upstream=upstream.address) as terminator,
    ):
        with dialled(terminator) as (sock, address):
            client = client_context().wrap_socket(sock, server_hostname="localhost")
            client.sendall(b"hello?")
            terminator.wait_for_metric("gpu_provider_terminator_relayed_bytes_total", 6)
            reset(client)
            client.close()
        line = line_of(terminator, address)
        assert (line["end"], line["level"]) == ("client_reset", "warning")
        assert line["bytes_to_upstream"] == 6


def test_an_idle_connection_that_was_answered_is_no_failure(terminator: Terminator) -> None:
    with dialled(terminator) as (sock, address):
        client = context_for(ssl.TLSVersion.TLSv1_3).wrap_socket(sock, server_hostname="localhost")
        client.sendall(b"x")
        assert client.recv(2) == b"x"
        with contextlib.suppress(ssl.SSLEOFError):
            assert client.recv(1) == b""
        line = line_of(terminator, address)
    assert (line["end"], line["state"], line["level"]) == ("idle_timeout", "relay", "info")


def test_garbage_after_the_handshake_is_named_with_its_alert(terminator: Terminator) -> None:
    with dialled(terminator) as (sock, address):
        client = context_for(ssl.TLSVersion.TLSv1_3).wrap_socket(sock, server_hostname="localhost")
        raw = socket.socket(fileno=client.detach())
        raw.settimeout(TIMEOUT)
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        receive(raw, 10000)
        raw.close()
    line = line_of(terminator, address)
    assert (line["end"], line["level"], line["alert_sent"]) == ("tls_error", "warning", "bad record mac")


def test_an_upstream_that_refuses_is_named(directory: Path) -> None:
    upstream = refused_address()
    with Terminator(*write_credentials(directory), upstream=upstream) as terminator:
        with dialled(terminator) as (sock, address):
            client_context().wrap_socket(sock, server_hostname="localhost").close()
        line = line_of(terminator, address)
    expected = {
        "end": "upstream_unreachable",
        "state": "connecting",
        "upstream": upstream,
        "reason": "Connection refused",
        "level": "warning",
    }
    assert expected.items() <= line.items()


def test_waiting_behind_the_cap_is_logged(directory: Path) -> None:
    with echo_terminator(directory, "--max-connections", "1") as terminator, terminator.connect(), terminator.dial():
        line = terminator.wait_for("new connections wait")
        assert line["reason"] == "1 are open, max_connections"


# ---- how many lines there are ----


def test_by_default_only_failures_are_logged_and_what_a_drain_cuts_off_is_one(directory: Path) -> None:
    with echo_terminator(directory, "--drain-timeout", "0") as terminator, dialled(terminator) as (sock, address):
        assert terminator.echo() == b"are you there?"
        client = client_context().wrap_socket(sock, server_hostname="localhost")
        client.sendall(b"x")
        assert client.recv(2) == b"x"
        assert terminator.end_at_once() == 3
        line = line_of(terminator, address)
    assert (line["end"], line["level"]) == ("forced", "warning")
    assert sum(entry["event"] == "connection" for entry in terminator.events) == 1


def test_it_can_be_switched_off(directory: Path) -> None:
    with echo_terminator(directory, "--access-log", "off") as terminator:
        with terminator.dial() as sock:
            sends(b"not TLS")(sock)
        terminator.end_at_once()
    assert not [entry for entry in terminator.events if entry["event"] == "connection"]


def test_in_a_storm_of_failures_the_rest_is_counted(directory: Path) -> None:
    """A client could fill the disk otherwise, and each line costs the event loop time."""
    failures = 130
    with echo_terminator(directory) as terminator:

        def fail() -> None:
            for _ in range(failures // 2):
                with terminator.dial() as sock:
                    sends(b"not TLS")(sock)

        threads = [threading.Thread(target=fail) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        terminator.end_at_once()
    written = sum(entry["event"] == "connection" for entry in terminator.events)
    left_out = [entry for entry in terminator.events if entry["event"] == LEFT_OUT]
    assert written >= 100
    assert sum(entry["connections"] for entry in left_out) == failures - written
    assert all(entry["not_tls"] == entry["connections"] for entry in left_out)


def test_what_a_client_sends_can_not_command_a_terminal(terminator: Terminator) -> None:
    hello = named_hello(HOSTILE)
    with dialled(terminator) as (sock, address):
        sock.sendall(hello)
        reset(sock)
    assert line_of(terminator, address)["server_name"] == "\\x1b[31m.localhost"
