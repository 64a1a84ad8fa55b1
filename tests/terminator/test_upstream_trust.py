"""TLS to the upstream: nobody else can pose as it, and one that fails in the handshake is passed over."""

from __future__ import annotations

import signal
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme
from terminator_process import (
    Terminator,
    Upstream,
    authority,
    echo,
    receive,
    run_command,
    write_credentials,
)
from tls_upstreams import encrypted, receive_all, ssl_context, trusting, write_authority

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

PAUSED = "gpu_provider_terminator_upstream_paused"
FAILURES = "gpu_provider_terminator_upstream_failures_total"
MIB = 1 << 20


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
