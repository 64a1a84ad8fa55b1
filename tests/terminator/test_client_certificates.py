"""Clients' certificates: only those whom the authorities vouch for get in, and the upstream or the log learns who."""

from __future__ import annotations

import contextlib
import shutil
import signal
import ssl
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from client_authority import DAY, Authority, now
from proxyprotocol.v2 import ProxyProtocolV2
from terminator_process import (
    TIMEOUT,
    Terminator,
    Upstream,
    authority,
    client_context,
    echo_terminator,
    receive,
    write_credentials,
)

from gpu_provider.commands.cli import main

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from proxyprotocol.tlv import ProxyProtocolSSLTLV

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
FAILURES = "gpu_provider_terminator_handshake_failures_total"
CRL_EXPIRY = "gpu_provider_terminator_client_crl_expiry_timestamp_seconds"
RELOADED = "certificates reloaded"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def clients(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def resume(
    terminator: Terminator, context: ssl.SSLContext, session: ssl.SSLSession | None = None, name: str = "localhost"
) -> tuple[bool, ssl.SSLSession | None]:
    """Echoes. Returns whether the session was resumed, and the one to resume next."""
    with context.wrap_socket(terminator.dial(), server_hostname=name, session=session) as client:
        client.sendall(b"x")
        if receive(client, 1) != b"x":
            raise ConnectionError("closed")
        return bool(client.session_reused), client.session


def is_refused(terminator: Terminator, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> bool:
    """With TLS 1.3 a client learns it after its handshake."""
    try:
        resume(terminator, context, session)
    except OSError:
        return True
    return False


def reload(terminator: Terminator, count: int = 1) -> None:
    terminator.process.send_signal(signal.SIGHUP)
    terminator.wait_for(RELOADED, count)


@contextlib.contextmanager
def introducing(directory: Path, *flags: str) -> Iterator[tuple[Terminator, list[ProxyProtocolSSLTLV]]]:
    """A terminator that tells its upstream of each client by the PROXY protocol's version 2, and what it told."""
    told = []

    def greet(connection: socket.socket) -> None:
        head = receive(connection, 16)
        told.append(ProxyProtocolV2().unpack(head + receive(connection, int.from_bytes(head[14:]))).tlv.ssl)
        connection.sendall(receive(connection, 1))

    with (
        Upstream(greet) as upstream,
        Terminator(
            *write_credentials(directory), "--proxy-protocol", "v2", *flags, upstream=upstream.address
        ) as terminator,
    ):
        yield terminator, told


def test_upstream_learns_who_the_client_is_also_of_a_resumed_session(tmp_path: Path, clients: Authority) -> None:
    flags = ["--verify-client", "required", "--client-ca", str(clients.file)]
    with introducing(tmp_path, *flags) as (terminator, told):
        for version in VERSIONS:
            context, _ = clients.client("Ålice", "second", context=client_context(version))
            resumed, session = resume(terminator, context)
            assert not resumed
            assert resume(terminator, context, session)[0]
    for one in told:
        assert (one.has_ssl, one.has_cert_sess, one.verified) == (True, True, True)
        assert one.cn == "Ålice"
        assert one.cipher in {cipher["name"] for cipher in ssl.create_default_context().get_ciphers()}
    assert [one.version for one in told] == ["TLSv1.2", "TLSv1.2", "TLSv1.3", "TLSv1.3"]
    assert [one.has_cert_conn for one in told] == [True, False, True, False]


def test_optional_lets_clients_without_a_certificate_in_and_says_so(tmp_path: Path, clients: Authority) -> None:
    flags = ["--verify-client", "optional", "--client-ca", str(clients.file)]
    with introducing(tmp_path, *flags) as (terminator, told):
        for version in VERSIONS:
            context = client_context(version)
            _, session = resume(terminator, context)
            assert resume(terminator, context, session)[0]
            assert is_refused(
                terminator, Authority(tmp_path, stem="other").client("Mallory", context=client_context(version))[0]
            )
        assert terminator.metric(FAILURES, reason="bad_client_certificate") == 2
    assert len(told) == 4
    for one in told:
        assert one.has_ssl
        assert [one.has_cert_conn, one.has_cert_sess, one.verified] == [False] * 3
        assert one.cn is None


def test_whom_no_authority_vouches_for_does_not_get_in(tmp_path: Path, clients: Authority) -> None:
    with echo_terminator(tmp_path, "--verify-client", "required", "--client-ca", str(clients.file)) as terminator:
        for number, version in enumerate(VERSIONS, start=1):
            assert is_refused(terminator, client_context(version))
            assert terminator.metric(FAILURES, reason="no_client_certificate") == number
            same_name = Authority(tmp_path, stem="other")
            assert is_refused(terminator, same_name.client("Alice", context=client_context(version))[0])
            assert is_refused(terminator, clients.client("Alice", end=now() - DAY, context=client_context(version))[0])
            assert terminator.metric(FAILURES, reason="bad_client_certificate") == 2 * number
            assert not is_refused(terminator, clients.client("Alice", context=client_context(version))[0])


def test_revoked_client_is_refused_after_a_reload_and_can_not_resume(tmp_path: Path, clients: Authority) -> None:
    """Hazard: a resumed session is not verified again."""
    alices = [clients.client("Alice", context=client_context(version)) for version in VERSIONS]
    bob, _ = clients.client("Bob")
    flags = ["--verify-client", "required", "--client-ca", str(clients.file), "--client-crl", str(clients.write_crl())]
    with echo_terminator(tmp_path, *flags) as terminator:
        assert abs(terminator.metric(CRL_EXPIRY) - time.time() - 86400) < 3600
        sessions = [resume(terminator, alice)[1] for alice, _ in alices]
        reload(terminator)
        for number, (alice, _) in enumerate(alices):
            resumed, sessions[number] = resume(terminator, alice, sessions[number])
            assert resumed
        clients.write_crl(*(certificate for _, certificate in alices))
        reload(terminator, 2)
        for (alice, _), session in zip(alices, sessions, strict=True):
            assert is_refused(terminator, alice, session)
        assert not is_refused(terminator, bob)
        (tmp_path / "crl.pem").write_text("garbage")
        terminator.process.send_signal(signal.SIGHUP)
        reason = terminator.wait_for("certificates not reloaded, the old ones stay in use")["reason"]
        assert "client_crl" in reason
        assert "no revocation list" in reason
        assert is_refused(terminator, alices[0][0])
        assert not is_refused(terminator, bob)


def test_authority_that_is_no_longer_trusted_ends_its_clients_sessions(tmp_path: Path, clients: Authority) -> None:
    context, _ = clients.client("Alice", context=client_context(ssl.TLSVersion.TLSv1_2))
    with echo_terminator(tmp_path, "--verify-client", "required", "--client-ca", str(clients.file)) as terminator:
        _, session = resume(terminator, context)
        Authority(tmp_path)  # writes the same file
        reload(terminator)
        assert is_refused(terminator, context, session)


def test_certificate_chosen_by_name_lets_nobody_in_by_the_back_door(tmp_path: Path, clients: Authority) -> None:
    """Hazard: the server name switches the connection to a context of its own."""
    flags = [
        *write_credentials(tmp_path, "other.example", stem="second"),
        *("--verify-client", "required", "--client-ca", str(clients.file)),
    ]
    with echo_terminator(tmp_path, *flags) as terminator:
        with pytest.raises(OSError):  # noqa: PT011  a reset, or an alert
            resume(terminator, client_context(), name="other.example")
        context, _ = clients.client("Alice")
        _, session = resume(terminator, context, name="other.example")
        assert resume(terminator, context, session, name="other.example")[0]


def test_log_says_who_the_client_is_where_the_upstream_is_not_told(tmp_path: Path, clients: Authority) -> None:
    """Hazard: a name that writes log lines of its own."""
    context, _ = clients.client("Älice\nlevel=error")
    with echo_terminator(tmp_path, "--verify-client", "optional", "--client-ca", str(clients.file)) as terminator:
        with context.wrap_socket(terminator.dial(), server_hostname="localhost") as client:
            port = client.getsockname()[1]
            client.sendall(b"x")
            receive(client, 1)
        line = terminator.wait_for("client certificate")
    assert line["subject"] == r"CN=\C3\84lice\0Alevel=error"
    assert line["client"] == f"127.0.0.1:{port}"
    assert line["resumed"] is False


def test_workers_with_a_service_share_sessions_of_clients_with_certificates(tmp_path: Path, clients: Authority) -> None:
    context, certificate = clients.client("Alice")
    flags = ["--verify-client", "required", "--client-ca", str(clients.file), "--client-crl", str(clients.write_crl())]
    with introducing(tmp_path, "--workers", "2", *flags) as (terminator, told):
        _, session = resume(terminator, context)
        for _ in range(8):  # some worker that did not make it is among them
            resumed, session = resume(terminator, context, session)
            assert resumed
        assert is_refused(terminator, client_context())
        assert {(one.cn, one.verified) for one in told} == {("Alice", True)}
        clients.write_crl(certificate)
        reload(terminator, 2)
        assert all(is_refused(terminator, context, session) for _ in range(4))


@needs_openssl
def test_openssl_program_is_told_which_authorities_count(tmp_path: Path, clients: Authority) -> None:
    with echo_terminator(tmp_path, "--verify-client", "optional", "--client-ca", str(clients.file)) as terminator:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{terminator.address[1]}", "-tls1_2"]
        shown = subprocess.run(command, input="", capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
    assert "Acceptable client certificate CA names\nCN = Clients' authority" in shown


@needs_curl
def test_curl_with_a_certificate_gets_an_answer(tmp_path: Path, clients: Authority) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")

    clients.client("Alice")
    (tmp_path / "servers.pem").write_bytes(authority().cert_pem.bytes())
    flags = ["--verify-client", "required", "--client-ca", str(clients.file)]
    with (
        Upstream(answer) as upstream,
        Terminator(*write_credentials(tmp_path), *flags, upstream=upstream.address) as terminator,
    ):
        url = f"https://localhost:{terminator.address[1]}/"
        command = ["curl", "--silent", "--noproxy", "*", "-4", "--cacert", str(tmp_path / "servers.pem"), url]
        own = ["--cert", str(tmp_path / "client.pem"), "--key", str(tmp_path / "client.key")]
        with_own = subprocess.run([*command, *own], capture_output=True, timeout=TIMEOUT, check=False)
        without = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
    assert (with_own.returncode, with_own.stdout) == (0, b"hi")
    assert without.returncode != 0
    assert without.stdout == b""


@pytest.fixture
def check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clients: Authority
) -> Callable[..., tuple[int, str]]:
    """``gpu-provider terminator --check`` among the files, in this process because there are so many: exit code and
    stderr."""
    clients.write_crl(end=now() - DAY)
    flags = ["--listen", "127.0.0.1:0", "--admin", "off", "--upstream", "127.0.0.1:9", *write_credentials(tmp_path)]

    def run(*more: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        try:
            code = main(["terminator", "--check", *flags, *more])
        except SystemExit as leaving:  # argparse's way
            code = int(leaving.code or 0)
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("ca", "words"),
    [
        ([], ["verify_client = 'required' needs", "--client-ca FILE"]),
        (["--client-ca", "server.key"], ["client_ca = ", "give a PEM file of certificates"]),
        (["--client-ca", "none.pem"], ["client_ca = ", "none.pem' can't be read: No such file"]),
        (["--client-ca", "ca.pem", "--client-crl", "ca.pem"], ["client_crl = ", "no revocation list"]),
    ],
)
def test_what_can_not_work_is_refused(check: Callable[..., tuple[int, str]], ca: list[str], words: list[str]) -> None:
    code, text = check("--verify-client", "required", *ca)
    assert code == 2
    assert all(word in text.splitlines()[-1] for word in words), text


def test_what_is_surely_a_mistake_is_said(check: Callable[..., tuple[int, str]]) -> None:
    flags = ["--client-ca", "ca.pem", "--client-crl", "crl.pem"]
    code, text = check(*flags)
    assert code == 0
    first, second = text.splitlines()
    assert "client_ca has no effect" in first
    assert "client_crl has no effect" in second
    code, text = check(*flags, "--verify-client", "required")
    assert code == 0
    (line,) = text.splitlines()
    assert "out of date since" in line
