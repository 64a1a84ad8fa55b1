"""What an operator does with a running terminator: reload, cap, ports, and what its log and environment show."""

import datetime
import signal
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from rsa_keys import private_key
from terminator_process import (
    TIMEOUT,
    Terminator,
    Upstream,
    client_context,
    echo,
    echo_terminator,
    run_command,
    write_credentials,
)

RELOADS = "gpu_provider_terminator_reloads_total"
EXPIRY = "gpu_provider_terminator_certificate_expiry_timestamp_seconds"
OPEN = "gpu_provider_terminator_open_connections"


def names_shown(terminator):
    context = client_context()
    context.check_hostname = False
    with terminator.connect(context) as client:
        return [name for _, name in client.getpeercert()["subjectAltName"]]


def test_sighup_takes_new_certificates_for_new_connections_only(tmp_path):
    with echo_terminator(tmp_path) as terminator:
        with terminator.connect() as earlier:
            expiry = terminator.metric(EXPIRY)
            assert expiry > 0
            write_credentials(tmp_path, "new.example")
            terminator.process.send_signal(signal.SIGHUP)
            terminator.wait_for("certificates reloaded")
            assert names_shown(terminator) == ["new.example"]
            earlier.sendall(b"still here")
            assert earlier.recv(10) == b"still here"
        assert terminator.metric(RELOADS, result="ok") == 1


@pytest.mark.parametrize("damage", ["garbage", "missing", "mismatch"])
def test_sighup_with_bad_files_keeps_the_old_certificates_and_says_why(tmp_path, damage):
    with echo_terminator(tmp_path) as terminator:
        certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
        if damage == "garbage":
            certificate.write_text("not a certificate")
        elif damage == "missing":
            key.unlink()
        else:
            write_credentials(tmp_path, "other.example", stem="other")
            (tmp_path / "other.key").replace(key)
        terminator.process.send_signal(signal.SIGHUP)
        event = terminator.wait_for("certificates not reloaded, the old ones stay in use")
        assert str(certificate if damage == "garbage" else key) in event["reason"]
        assert names_shown(terminator) == ["localhost"]
        assert terminator.metric(RELOADS, result="failed") == 1
        assert terminator.admin("/readyz")[0] == 200


def test_at_the_cap_new_connections_wait_and_are_served_later(tmp_path):
    with echo_terminator(tmp_path, "--max-connections", "2") as terminator:
        first, second = terminator.connect(), terminator.connect()
        late = terminator.dial()  # the kernel takes it
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client_context().wrap_socket(late, server_hostname="localhost")
        assert terminator.metric(OPEN) == 2
        waiting = terminator.dial()
        first.close()
        with client_context().wrap_socket(waiting, server_hostname="localhost") as served:
            served.sendall(b"at last")
            assert served.recv(7) == b"at last"
        second.close()
        terminator.wait_for_metric(OPEN, 0)


def test_a_name_that_means_every_interface_listens_on_both_families(tmp_path):
    with (
        Upstream(echo) as upstream,
        Terminator(*write_credentials(tmp_path), "--listen", ":0", upstream=upstream.address) as terminator,
    ):
        port = terminator.address[1]
        for host in ("127.0.0.1", "::1"):
            sock = socket.create_connection((host, port), timeout=TIMEOUT)
            with client_context().wrap_socket(sock, server_hostname="localhost") as client:
                client.sendall(host.encode())
                assert client.recv(20) == host.encode()


def test_it_runs_on_asyncios_own_loop_where_uvloop_is_not_installed(tmp_path):
    (tmp_path / "uvloop.py").write_text("raise ImportError('not here')")
    with (
        Upstream(echo) as upstream,
        Terminator(
            *write_credentials(tmp_path), upstream=upstream.address, settings={"PYTHONPATH": str(tmp_path)}
        ) as terminator,
    ):
        assert terminator.wait_for("ready")["event_loop"] == "asyncio"
        assert terminator.echo() == b"are you there?"


def test_core_dumps_are_off(tmp_path):
    with echo_terminator(tmp_path) as terminator:
        limits = Path(f"/proc/{terminator.process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]


def test_log_lines_are_json_and_hold_no_key(tmp_path):
    with echo_terminator(tmp_path, "--log-level", "debug") as terminator:
        assert terminator.echo() == b"are you there?"
        secret = (tmp_path / "server.key").read_text().splitlines()[1]
    assert not terminator.other_lines
    assert secret not in str(terminator.events)
    assert {"event", "level", "logger", "timestamp"} <= terminator.events[0].keys()


def test_port_in_use_is_one_clear_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flags, setting in (
            (["--listen", address, "--admin", "off"], "listen"),
            (["--listen", "127.0.0.1:0", "--admin", address], "admin"),
        ):
            result = run_command("terminator", *flags, "--upstream", "127.0.0.1:9", *write_credentials(tmp_path))
            assert result.returncode == 2
            (line,) = result.stderr.splitlines()
            assert f"{setting}: can't listen on {address}" in line
            assert "choose another port" in line


def test_expired_certificate_is_reported_but_used(tmp_path):
    """The operator may have to serve it; clients decide."""
    key = private_key(2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old.example")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2021, 1, 1))
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "c.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "k.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    flags = ["--cert", str(tmp_path / "c.pem"), "--key", str(tmp_path / "k.pem")]
    with Upstream(echo) as upstream, Terminator(*flags, upstream=upstream.address) as terminator:
        event = terminator.wait_for("certificate has expired")
        assert event["names"] == ["old.example"]
        assert event["level"] == "warning"
        with pytest.raises(ssl.SSLCertVerificationError):
            terminator.connect(name="old.example")
