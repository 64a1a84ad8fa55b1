"""The terminator's metrics must say what happened: an operator sees nothing else."""

from __future__ import annotations

import ssl
import struct
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from terminator_process import (
    Terminator,
    Upstream,
    client_context,
    echo,
    echo_terminator,
    receive,
    reset,
    write_credentials,
)

from gpu_provider.tls.terminator.failures import HANDSHAKE_FAILURES, handshake_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PREFIX = "gpu_provider_terminator_"
HANDSHAKES = f"{PREFIX}handshakes_total"
FAILURES = f"{PREFIX}handshake_failures_total"


@pytest.fixture(scope="module")
def terminator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminator]:
    directory = tmp_path_factory.mktemp("credentials")
    flags = ("--alpn", "h2", "--ciphers", "ECDHE-RSA-AES256-GCM-SHA384", "--handshake-timeout", "1")
    with (
        Upstream(echo) as upstream,
        Terminator(
            *write_credentials(directory),
            *write_credentials(directory, "new.example", stem="new"),
            *flags,
            upstream=upstream.address,
        ) as running,
    ):
        yield running


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_resumed_handshakes_are_counted_apart_and_without_an_async_status(
    terminator: Terminator, version: ssl.TLSVersion
) -> None:
    """They need no private operation, so they do not tell of one that OpenSSL computed (UNSUPPORTED)."""
    labels = {"version": version.name.replace("_", "."), "result": "ok"}
    before = {resumed: terminator.metric(HANDSHAKES, resumed=resumed, **labels) for resumed in ("yes", "no")}
    timed = terminator.metric(f"{PREFIX}handshake_seconds_count", resumed="yes", **labels)
    context = client_context(version)
    with terminator.connect(context) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"  # the tickets come before it
        session = client.session
    with context.wrap_socket(terminator.dial(), server_hostname="localhost", session=session) as client:
        assert client.session_reused
    terminator.wait_for_metric(HANDSHAKES, before["yes"] + 1, resumed="yes", async_status="", **labels)
    assert terminator.metric(HANDSHAKES, resumed="no", **labels) == before["no"] + 1
    assert terminator.metric(HANDSHAKES, async_status="UNSUPPORTED") == 0
    assert terminator.metric(f"{PREFIX}handshake_seconds_count", resumed="yes", **labels) == timed + 1


def fail_by_context(
    change: Callable[[ssl.SSLContext], object], name: str = "localhost"
) -> Callable[[Terminator], None]:
    def run(terminator: Terminator) -> None:
        context = client_context()
        change(context)
        with pytest.raises(ssl.SSLError):
            terminator.connect(context, name=name)

    return run


def fail_by_bytes(data: bytes, *, leave: bool = False) -> Callable[[Terminator], None]:
    def run(terminator: Terminator) -> None:
        with terminator.dial() as client:
            client.sendall(data)
            if leave:
                reset(client)
            else:
                receive(client, 100)

    return run


def old_hello(version: int) -> bytes:
    """A ClientHello of TLS 1.0 or 1.1 without extensions, which no current library sends."""
    body = struct.pack("!H", version) + bytes(32) + b"\x00" + b"\x00\x02\x00\x2f" + b"\x01\x00"
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


def only_tls_1_2(ciphers: str) -> Callable[[ssl.SSLContext], None]:
    def change(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)

    return change


def untrusting(terminator: Terminator) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(terminator.dial(), server_hostname="localhost")


@pytest.mark.parametrize(
    ("reason", "result", "fail"),
    [
        ("no_common_cipher", "failed", fail_by_context(only_tls_1_2("ECDHE-RSA-CHACHA20-POLY1305"))),
        ("no_common_alpn", "failed", fail_by_context(lambda context: context.set_alpn_protocols(["spdy/1"]))),
        ("client_unknown_ca", "failed", untrusting),
        ("client_bad_certificate", "failed", fail_by_context(lambda context: None, name="other.example")),
        ("unsupported_version", "failed", fail_by_bytes(old_hello(0x0302))),
        ("http_request", "failed", fail_by_bytes(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        ("not_tls", "failed", fail_by_bytes(b"SSH-2.0-OpenSSH_9.2\r\n")),
        ("client_gone", "client_gone", fail_by_bytes(b"\x16\x03\x01", leave=True)),
        ("timeout", "timeout", fail_by_bytes(b"\x16\x03\x01")),
    ],
)
def test_failed_handshake_says_why(
    terminator: Terminator, reason: str, result: str, fail: Callable[[Terminator], None]
) -> None:
    reasons, results = terminator.metric(FAILURES, reason=reason), terminator.metric(HANDSHAKES, result=result)
    everything = terminator.metric(FAILURES)
    fail(terminator)
    terminator.wait_for_metric(FAILURES, reasons + 1, reason=reason)
    assert terminator.metric(HANDSHAKES, result=result) == results + 1
    assert terminator.metric(FAILURES) == everything + 1


def test_reasons_are_few_whatever_openssl_says() -> None:
    assert handshake_failure("something new") == "other"
    assert handshake_failure("tlsv1 alert unknown ca") == handshake_failure("tls alert unknown ca")
    assert len(HANDSHAKE_FAILURES) == len(set(HANDSHAKE_FAILURES)) < 20


def test_series_exist_before_their_first_event(tmp_path: Path) -> None:
    with echo_terminator(tmp_path) as terminator:
        text = terminator.admin("/metrics")[1]
    samples = {
        (sample.name, *sorted(sample.labels.values()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for wanted in (
        (HANDSHAKES, "OK", "TLSv1.3", "no", "ok"),
        (HANDSHAKES, "", "TLSv1.2", "ok", "yes"),
        (HANDSHAKES, "", "", "", "timeout"),
        (f"{PREFIX}handshake_seconds_count", "TLSv1.3", "ok", "yes"),
        (f"{PREFIX}handshake_seconds_count", "", "", "client_gone"),
        (FAILURES, "client_unknown_ca"),
        (f"{PREFIX}sessions_total", "client_reset"),
        (f"{PREFIX}upstream_failures_total", "ECONNREFUSED"),
        (f"{PREFIX}reloads_total", "failed"),
        (f"{PREFIX}connection_limit_reached_total",),
        (f"{PREFIX}shortages_total", "Too many open files"),
    ):
        assert wanted in samples


def test_a_handshakes_time_begins_with_the_clients_first_byte(tmp_path: Path) -> None:
    """Whether it waits to be accepted, as here, or is accepted in silence: what a client sees is the time from there
    on."""
    times = f"{PREFIX}handshake_seconds_sum"
    with echo_terminator(tmp_path, "--max-connections", "1") as terminator:
        with terminator.connect():
            late = terminator.dial()
            late.settimeout(1)
            with pytest.raises(TimeoutError):
                client_context().wrap_socket(late, server_hostname="localhost")
        terminator.wait_for_metric(f"{PREFIX}handshakes_total", 1, result="client_gone")
        assert terminator.metric(times, result="client_gone") > 0.9
        accepted = terminator.metric(f"{PREFIX}accepted_total")
        silent = terminator.dial()
        terminator.wait_for_metric(f"{PREFIX}accepted_total", accepted + 1)  # after a second of silence
        before, began = terminator.metric(times, result="ok"), time.monotonic()
        with client_context().wrap_socket(silent, server_hostname="localhost"):
            terminator.wait_for_metric(f"{PREFIX}handshakes_total", 2, result="ok")
            assert terminator.metric(times, result="ok") - before < time.monotonic() - began


def test_connection_limit_leaves_a_trace_and_so_does_the_wait_behind_it(tmp_path: Path) -> None:
    waited = f"{PREFIX}accept_queue_seconds_sum"
    with echo_terminator(tmp_path, "--max-connections", "1") as terminator:
        assert terminator.metric(f"{PREFIX}max_connections") == 1
        first = terminator.connect()
        assert terminator.metric(waited) < 1
        late = terminator.dial()
        late.settimeout(1)
        with pytest.raises(TimeoutError):  # its first bytes are here for a second before it is accepted
            client_context().wrap_socket(late, server_hostname="localhost")
        behind = terminator.dial()
        terminator.wait_for_metric(f"{PREFIX}connection_limit_reached_total", 1)
        first.close()
        with client_context().wrap_socket(behind, server_hostname="localhost"):
            assert 0.9 < terminator.metric(waited) < 20
