"""Certificate files of every sort, at the start, with --check and in a reload: OpenSSL serves them, or one line says
why not."""

import datetime
import os
import resource
import signal
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtensionOID
from rsa_keys import private_key, private_pem
from terminator_process import echo_terminator, refused_address, run_command

from gpu_provider import tls
from gpu_provider.tls.leaf import read_leaf

NOT_RELOADED = "certificates not reloaded, the old ones stay in use"
RELOADS = "gpu_provider_terminator_reloads_total"
LOCALHOST = b"\x82\x09localhost"
X400_ADDRESS = b"\xa3\x04\x30\x02\x30\x00"
UNKNOWN = [bytes((0x2A, 3, 4, last)) for last in (5, 6)]  # 1.2.3.4.5 and 1.2.3.4.6
ALTERNATIVE_NAME, ISSUER_NAME = b"\x06\x03\x55\x1d\x11", b"\x06\x03\x55\x1d\x12"


def write_certificate(directory, *extensions, change=lambda der: der):
    """With ``change`` the signature is wrong, which a server does not check."""
    key = private_key(2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "common.example")])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2999, 1, 1))
    )
    for oid, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    der = change(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))
    (directory / "server.pem").write_text(ssl.DER_cert_to_PEM_cert(der))
    (directory / "server.key").write_bytes(private_pem(key))
    return der


def names(*encoded):
    body = b"".join(encoded)
    return ExtensionOID.SUBJECT_ALTERNATIVE_NAME.dotted_string, bytes((0x30, len(body))) + body


def with_x400_address(directory):
    return write_certificate(directory, names(X400_ADDRESS, LOCALHOST))


def with_an_extension_twice(directory):
    return write_certificate(
        directory,
        names(LOCALHOST),
        ("1.2.3.4.5", b"\x05\x00"),
        ("1.2.3.4.6", b"\x05\x00"),
        change=lambda der: der.replace(UNKNOWN[1], UNKNOWN[0]),
    )


def with_a_name_that_is_not_ascii(directory):
    return write_certificate(directory, names(LOCALHOST, b"\x82\x02\xc3\xa4"))


def with_a_negative_serial_number(directory):
    return write_certificate(
        directory, names(LOCALHOST), change=lambda der: der.replace(b"\x02\x01\x01\x30", b"\x02\x01\xff\x30", 1)
    )


UNUSUAL = [with_x400_address, with_an_extension_twice, with_a_name_that_is_not_ascii, with_a_negative_serial_number]


def names_twice(directory):
    write_certificate(
        directory,
        names(LOCALHOST),
        (ExtensionOID.ISSUER_ALTERNATIVE_NAME.dotted_string, names(LOCALHOST)[1]),
        change=lambda der: der.replace(ISSUER_NAME, ALTERNATIVE_NAME),
    )


def names_damaged(directory):
    write_certificate(directory, (names()[0], b"\x30\x7f"))


def replace_by(make):
    def spoil(directory):
        (directory / "server.pem").unlink()
        make(directory / "server.pem")

    return spoil


def huge(path):
    path.touch()
    os.truncate(path, 1 << 40)


UNUSABLE = [
    (names_twice, "alternative names"),
    (names_damaged, "alternative names"),
    (replace_by(os.mkfifo), "no regular file"),
    (replace_by(lambda path: path.symlink_to("/dev/zero")), "no regular file"),
    (replace_by(Path.mkdir), "Is a directory"),
    (replace_by(Path.touch), "no PEM certificate"),
    (replace_by(huge), "such a file has at most"),
    (lambda directory: (directory / "server.key").write_text(""), "no private key"),
]


@pytest.fixture
def check(tmp_path):
    def run():
        flags = ["--cert", str(tmp_path / "server.pem"), "--key", str(tmp_path / "server.key")]
        addresses = ["--listen", "127.0.0.1:0", "--admin", "off", "--upstream", refused_address()]
        return run_command("terminator", *addresses, *flags, "--check")

    return run


def shown(terminator):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with terminator.connect(context) as client:
        return client.getpeercert(binary_form=True)


@pytest.mark.parametrize("make", UNUSUAL)
def test_what_openssl_can_serve_is_served(tmp_path, check, make):
    with echo_terminator(tmp_path) as terminator:
        der = make(tmp_path)
        assert check().returncode == 0
        terminator.process.send_signal(signal.SIGHUP)
        terminator.wait_for("certificates reloaded")
        event = terminator.wait_for("certificate", 2)
        assert event["names"] == ["localhost"]
        assert event["key_type"] == "RSA-2048"
        assert event["expires"] == "2999-01-01T00:00:00Z"
        assert shown(terminator) == der


def test_without_alternative_names_the_common_name_counts(tmp_path):
    with echo_terminator(tmp_path) as terminator:
        write_certificate(tmp_path)
        terminator.process.send_signal(signal.SIGHUP)
        assert terminator.wait_for("certificate", 2)["names"] == ["common.example"]


@pytest.mark.parametrize(("spoil", "words"), UNUSABLE)
def test_what_can_not_be_used_is_one_line_and_the_old_ones_stay(tmp_path, check, spoil, words):
    with echo_terminator(tmp_path) as terminator:
        old = shown(terminator)
        spoil(tmp_path)
        result = check()
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert words in line
        terminator.process.send_signal(signal.SIGHUP)
        event = terminator.wait_for(NOT_RELOADED)
        assert words in event["reason"]
        assert str(tmp_path) in event["reason"]
        assert terminator.metric(RELOADS, result="failed") == 1
        assert shown(terminator) == old


def test_without_a_thread_for_a_reload_the_old_ones_stay(tmp_path):
    with echo_terminator(tmp_path) as terminator:
        size = int(Path(f"/proc/{terminator.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        limits = resource.prlimit(terminator.process.pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        terminator.process.send_signal(signal.SIGHUP)
        assert "thread" in terminator.wait_for(NOT_RELOADED)["reason"]
        resource.prlimit(terminator.process.pid, resource.RLIMIT_AS, limits)
        assert terminator.metric(RELOADS, result="failed") == 1
        terminator.process.send_signal(signal.SIGHUP)
        terminator.wait_for("certificates reloaded")


def test_a_fault_in_the_reload_is_logged_counted_and_harmless(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("""
import gpu_provider.tls.terminator.lifecycle as lifecycle
load, calls = lifecycle.load_certificates, []
def load_or_fail(*arguments):
    calls.append(None)
    if len(calls) == 2:
        raise RuntimeError("made to fail by a test")
    return load(*arguments)
lifecycle.load_certificates = load_or_fail
""")
    with echo_terminator(tmp_path, settings={"PYTHONPATH": str(tmp_path)}) as terminator:
        terminator.process.send_signal(signal.SIGHUP)
        assert terminator.wait_for(NOT_RELOADED)["reason"] == "made to fail by a test"
        assert terminator.metric(RELOADS, result="failed") == 1
        terminator.process.send_signal(signal.SIGHUP)
        terminator.wait_for("certificates reloaded")
        terminator.events = []  # the fault's traceback


def test_a_context_without_a_certificate_has_no_leaf() -> None:
    """Hazard: OpenSSL's functions of certificates don't bear a null pointer."""
    with pytest.raises(tls.CertificateError, match="has none"):
        read_leaf(tls.Context(tls.TLS_SERVER_METHOD))
