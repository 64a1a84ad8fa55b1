"""What a TLS client sees of the terminator: versions, the certificate by name, ALPN; and the metrics about it."""

import hashlib
import ssl
import subprocess

import pytest
from terminator_process import (
    TIMEOUT,
    Terminator,
    Upstream,
    client_context,
    credentials,
    echo,
    echo_terminator,
    write_credentials,
)

HANDSHAKES = "gpu_provider_terminator_handshakes_total"


@pytest.fixture(scope="module")
def terminator(tmp_path_factory):
    directory = tmp_path_factory.mktemp("credentials")
    flags = [
        *write_credentials(directory, "first.example", stem="first"),
        *write_credentials(directory, "*.wild.example", stem="wild"),
        *write_credentials(directory, "exact.wild.example", stem="exact"),
        *write_credentials(directory, "ec.example", kind="ECDSA", stem="ec"),
        *("--alpn", "h2", "--alpn", "http/1.1"),
    ]
    with Upstream(echo) as upstream, Terminator(*flags, upstream=upstream.address) as running:
        yield running


def fingerprint(*names, kind="RSA"):
    leaf = credentials(*names, kind=kind)[0].decode()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(leaf[: leaf.index("-----END CERTIFICATE-----") + 25])).digest()


def shown(terminator, name):
    """The certificate that a client gets when it asks for this name."""
    context = client_context()
    context.check_hostname = False
    with terminator.connect(context, name=name) as client:
        return hashlib.sha256(client.getpeercert(binary_form=True)).digest()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_tls_versions_serve_and_are_counted_as_asynchronous(terminator, version):
    name = version.name.replace("_", ".")
    before = terminator.metric(HANDSHAKES, version=name, async_status="OK", result="ok")
    context = client_context(version)
    assert terminator.echo(context=context, name="first.example") == b"are you there?"
    assert terminator.metric(HANDSHAKES, version=name, async_status="OK", result="ok") == before + 1


@pytest.mark.parametrize(
    ("name", "certificate"),
    [
        ("first.example", "first.example"),
        ("exact.wild.example", "exact.wild.example"),
        ("EXACT.Wild.Example", "exact.wild.example"),
        ("other.wild.example", "*.wild.example"),
        ("two.labels.wild.example", "first.example"),
        ("unknown.example", "first.example"),
    ],
)
def test_certificate_is_chosen_by_name_exact_then_wildcard_then_the_first(terminator, name, certificate):
    assert shown(terminator, name) == fingerprint(certificate)


def test_client_without_a_server_name_gets_the_first_certificate(terminator):
    assert shown(terminator, None) == fingerprint("first.example")


def test_ecdsa_certificate_is_openssls_own_work_and_its_status_says_so(terminator):
    before = terminator.metric(HANDSHAKES, async_status="UNSUPPORTED", result="ok")
    submitted = terminator.metric("gpu_provider_submitted_total")
    assert terminator.echo(name="ec.example") == b"are you there?"
    assert terminator.metric(HANDSHAKES, async_status="UNSUPPORTED", result="ok") == before + 1
    assert terminator.metric("gpu_provider_submitted_total") == submitted


@pytest.mark.parametrize(("offered", "chosen"), [(["http/1.1", "h2"], "h2"), (["http/1.1"], "http/1.1"), ([], None)])
def test_alpn_follows_the_configured_preference(terminator, offered, chosen):
    context = client_context()
    if offered:
        context.set_alpn_protocols(offered)
    with terminator.connect(context, name="first.example") as client:
        assert client.selected_alpn_protocol() == chosen


def test_client_whose_alpn_protocols_are_all_unknown_is_told_so(terminator):
    context = client_context()
    context.set_alpn_protocols(["spdy/1"])
    failed = terminator.metric(HANDSHAKES, result="failed")
    with pytest.raises(ssl.SSLError, match="no application protocol"):
        terminator.connect(context, name="first.example")
    terminator.wait_for_metric(HANDSHAKES, failed + 1, result="failed")
    assert terminator.echo(name="first.example") == b"are you there?"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_program_as_the_client(terminator, tmp_path, version):
    host, port = terminator.address
    authority = tmp_path / "authority.pem"
    context = client_context()
    authority.write_text(ssl.DER_cert_to_PEM_cert(context.get_ca_certs(binary_form=True)[-1]))
    command = ["openssl", "s_client", version, "-connect", f"{host}:{port}", "-servername", "first.example"]
    command += ["-CAfile", str(authority), "-verify_return_error", "-verify_hostname", "first.example", "-brief"]
    result = subprocess.run(command, input=b"", capture_output=True, timeout=TIMEOUT, check=False)
    assert result.returncode == 0, result.stderr
    assert b"Verification: OK" in result.stderr


def test_resumed_sessions_work(terminator):
    context = client_context(ssl.TLSVersion.TLSv1_2)
    with terminator.connect(context, name="first.example") as client:
        session = client.session
    with context.wrap_socket(terminator.dial(), server_hostname="first.example", session=session) as client:
        assert client.session_reused
        client.sendall(b"again")
        assert client.recv(5) == b"again"


def test_versions_outside_the_limits_are_refused(tmp_path):
    with echo_terminator(tmp_path, "--tls-min", "TLSv1.3") as terminator:
        with pytest.raises(ssl.SSLError):
            terminator.connect(client_context(ssl.TLSVersion.TLSv1_2))
        assert terminator.echo() == b"are you there?"


def test_ciphers_and_ciphersuites_are_passed_on(tmp_path):
    ciphers = ("--ciphers", "ECDHE-RSA-AES256-GCM-SHA384", "--ciphersuites", "TLS_CHACHA20_POLY1305_SHA256")
    with echo_terminator(tmp_path, *ciphers) as terminator:
        for version, cipher in (("TLSv1_2", ciphers[1]), ("TLSv1_3", ciphers[3])):
            with terminator.connect(client_context(ssl.TLSVersion[version])) as client:
                assert client.cipher()[0] == cipher
