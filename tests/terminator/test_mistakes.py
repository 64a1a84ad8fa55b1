"""Mistakes that used to be accepted silently: what can't work is refused, and what is surely a mistake gets a
warning."""

from __future__ import annotations

import datetime
import os
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from ports import unused_port
from rsa_keys import private_key
from terminator_process import (
    COMMAND,
    TIMEOUT,
    Terminator,
    Upstream,
    client_context,
    credentials,
    echo,
    environment,
    run_command,
    write_credentials,
)

from gpu_provider.commands.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
ADDRESSES = {"--listen": "127.0.0.1:0", "--upstream": "127.0.0.1:9", "--admin": "off"}


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, str, str]]:
    """``gpu-provider terminator --check`` with flags instead of the usual addresses: exit code, stdout, stderr."""
    for name in [name for name in os.environ if name.startswith("GPU_PROVIDER_")]:
        monkeypatch.delenv(name)

    def run(*flags: str) -> tuple[Any, str, str]:
        usual = [part for flag, value in ADDRESSES.items() if flag not in flags for part in (flag, value)]
        try:
            code = main(["terminator", "--check", *usual, *flags])
        except SystemExit as leaving:  # argparse's way
            code = leaving.code
        return code, *capsys.readouterr()

    return run


def refused(result: tuple[Any, str, str]) -> str:
    code, output, errors = result
    assert (code, output) == (2, ""), result
    return errors.splitlines()[-1]


def warned(result: tuple[Any, str, str]) -> list[str]:
    code, output, errors = result
    assert (code, output) == (0, "the settings are valid\n"), result
    lines = errors.splitlines()
    assert all(line.startswith("gpu-provider terminator: warning: ") for line in lines)
    return lines


def issue(
    key: Key,
    name: str = "localhost",
    *,
    issuer: tuple[x509.Certificate, Key] | None = None,
    begin: datetime.datetime = NOW - DAY,
    end: datetime.datetime = NOW + 30 * DAY,
    digest: hashes.HashAlgorithm | None = None,
    usage: list[x509.ObjectIdentifier] | None = None,
    dns: bool = True,
    issuers_certificate: str | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer_name = subject if issuer is None else issuer[0].subject
    builder = x509.CertificateBuilder(issuer_name, subject, key.public_key(), x509.random_serial_number(), begin, end)
    if dns:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    if issuers_certificate is not None:
        where = x509.UniformResourceIdentifier(issuers_certificate)
        access = x509.AccessDescription(x509.AuthorityInformationAccessOID.CA_ISSUERS, where)
        builder = builder.add_extension(x509.AuthorityInformationAccess([access]), critical=False)
    return builder.sign(key if issuer is None else issuer[1], digest or hashes.SHA256())


def write(directory: Path, key: Key, *chain: x509.Certificate, stem: str = "made") -> list[str]:
    """The flags for these files."""
    (directory / f"{stem}.pem").write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain))
    (directory / f"{stem}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ["--cert", str(directory / f"{stem}.pem"), "--key", str(directory / f"{stem}.key")]


# ---- flags and variables ----


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--admin", ("off", "127.0.0.1:0")),
        ("--queue-depth", ("1", "2")),
        ("--tls-min", ("TLSv1.2", "TLSv1.3")),
        ("--log-level", ("info", "debug")),
        ("--config", ("a.toml", "b.toml")),
    ],
)
def test_flag_with_one_value_given_twice(
    check: Callable[..., tuple[Any, str, str]], tmp_path: Path, flag: str, values: tuple[str, str]
) -> None:
    line = refused(check(*write_credentials(tmp_path), flag, values[0], flag, values[1]))
    assert flag in line
    assert "more than once" in line


def test_misspelt_variable_is_named_even_if_a_setting_is_missing(tmp_path: Path) -> None:
    flags = ["--upstream", "127.0.0.1:9", *write_credentials(tmp_path)]
    result = run_command("terminator", *flags, GPU_PROVIDER_LISTN="127.0.0.1:0")
    assert result.returncode == 2
    warning, error = result.stderr.splitlines()
    assert "GPU_PROVIDER_LISTN is not a setting and has no effect; GPU_PROVIDER_LISTEN is" in warning
    assert "listen is not given" in error


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("GPU_PROVIDER_QUEUE_DEPHT", True),
        ("GPU_PROVIDER_TIMEOUT", True),
        ("GPU_PROVIDER_", True),
        ("GPU_PROVIDER_PORT", False),
        ("GPU_PROVIDER_PORT_8443_TCP_ADDR", False),
        ("GPU_PROVIDER_SERVICE_HOST", False),
        ("GPU_PROVIDER_SERVICE_PORT_HTTPS", False),
        ("GPU_PROVIDER_ADMIN_SERVICE_PORT", False),
    ],
)
def test_variable_that_is_no_setting(
    check: Callable[..., tuple[Any, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    told: bool,
) -> None:
    credentials = write_credentials(tmp_path)
    monkeypatch.setenv(variable, "1")
    lines = warned(check(*credentials))
    assert [variable in line for line in lines] == [True] * told


def test_misspelt_variable_is_told_at_the_start_too(tmp_path: Path) -> None:
    with (
        Upstream(echo) as upstream,
        Terminator(
            *write_credentials(tmp_path), upstream=upstream.address, settings={"GPU_PROVIDER_QUEUE_DEPHT": "1"}
        ) as terminator,
    ):
        assert any("GPU_PROVIDER_QUEUE_DEPHT is not a setting" in line for line in terminator.other_lines)


@pytest.mark.parametrize("given", ["h2,http/1.1", "h2, http/1.1", "h2 http/1.1"])
def test_protocols_in_one_flag(check: Callable[..., tuple[Any, str, str]], tmp_path: Path, given: str) -> None:
    line = refused(check(*write_credentials(tmp_path), "--alpn", given))
    assert given in line
    assert "--alpn h2 --alpn http/1.1" in line


@pytest.mark.parametrize(("given", "meant"), [("http/2", "h2"), ("HTTP/1.1", "http/1.1"), ("http1.1", "http/1.1")])
def test_protocol_by_a_name_that_no_client_uses(
    check: Callable[..., tuple[Any, str, str]], tmp_path: Path, given: str, meant: str
) -> None:
    (line,) = warned(check(*write_credentials(tmp_path), "--alpn", given))
    assert repr(given) in line
    assert repr(meant) in line


def test_unknown_names_in_a_cipher_list(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    flags = ["--ciphers", "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GMC-SHA384:!RC4:!NONSENSE:@SECLEVEL=1"]
    flags += ["--ciphersuites", "TLS_AES_128_GCM_SHA256:TLS_AES_256_GMC_SHA384"]
    first, second = warned(check(*write_credentials(tmp_path), *flags))
    assert "ciphers: OpenSSL has no 'ECDHE-RSA-AES256-GMC-SHA384'" in first
    assert "ciphersuites: OpenSSL has no 'TLS_AES_256_GMC_SHA384'" in second


def test_ciphers_of_a_version_that_is_off(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    credentials = write_credentials(tmp_path)
    (line,) = warned(check(*credentials, "--tls-min", "TLSv1.3", "--ciphers", "ECDHE-RSA-AES128-GCM-SHA256"))
    assert "ciphers is for TLS 1.2" in line
    (line,) = warned(check(*credentials, "--tls-max", "TLSv1.2", "--ciphersuites", "TLS_AES_128_GCM_SHA256"))
    assert "ciphersuites is for TLS 1.3" in line


# ---- addresses ----


@pytest.mark.parametrize(
    ("listen", "admin"),
    [
        ("127.0.0.1:8443", "127.0.0.1:8443"),
        (":8443", "127.0.0.1:8443"),
        ("127.0.0.1:8443", "0.0.0.0:8443"),
        ("[::1]:8443", ":8443"),
    ],
)
def test_listen_and_admin_on_one_port(
    check: Callable[..., tuple[Any, str, str]], tmp_path: Path, listen: str, admin: str
) -> None:
    line = refused(check("--listen", listen, "--admin", admin, *write_credentials(tmp_path)))
    assert f"listen = {listen!r} and admin = {admin!r}" in line


@pytest.mark.parametrize(
    ("listen", "upstream"),
    [
        ("127.0.0.1:8443", "127.0.0.1:8443"),
        ("127.0.0.1:8443", "0.0.0.0:8443"),
        (":8443", "127.0.0.1:8443"),
        (":8443", "127.9.9.9:8443"),
        (":8443", "[::1]:8443"),
        ("0.0.0.0:8443", "localhost:8443"),
    ],
)
def test_upstream_that_leads_back(
    check: Callable[..., tuple[Any, str, str]], tmp_path: Path, listen: str, upstream: str
) -> None:
    line = refused(check("--listen", listen, "--upstream", upstream, *write_credentials(tmp_path)))
    assert f"upstream = {upstream!r} leads back to listen = {listen!r}" in line


@pytest.mark.parametrize(
    ("listen", "upstream"),
    [
        ("127.0.0.1:8443", "127.0.0.2:8443"),
        (":8443", "192.0.2.1:8443"),
        (":8443", "127.0.0.1:8444"),
        ("127.0.0.1:8443", "[::1]:8443"),
    ],
)
def test_upstream_on_the_same_port_elsewhere_is_fine(
    check: Callable[..., tuple[Any, str, str]], tmp_path: Path, listen: str, upstream: str
) -> None:
    assert warned(check("--listen", listen, "--upstream", upstream, *write_credentials(tmp_path))) == []


def test_upstream_that_is_the_admin_port(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    flags = ["--admin", "127.0.0.1:9180", "--upstream", "127.0.0.1:9180"]
    (line,) = warned(check(*flags, *write_credentials(tmp_path)))
    assert "the admin port" in line


@pytest.mark.parametrize("setting", ["listen", "admin"])
def test_address_that_can_not_be_resolved_is_named(
    check: Callable[..., tuple[Any, str, str]], tmp_path: Path, setting: str
) -> None:
    line = refused(check(f"--{setting}", "no-such-host.invalid:80", *write_credentials(tmp_path)))
    assert f"error: {setting}: no-such-host.invalid:80" in line


def test_start_refuses_what_the_check_refuses(tmp_path: Path) -> None:
    port = unused_port()
    flags = ["--listen", f"127.0.0.1:{port}", "--upstream", f"127.0.0.1:{port}", "--admin", "off"]
    result = run_command("terminator", *flags, *write_credentials(tmp_path))
    assert result.returncode == 2
    assert "leads back" in result.stderr


# ---- certificates ----


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [(NOW - 60 * DAY, NOW - DAY, "has expired"), (NOW + DAY, NOW + 60 * DAY, "is not valid yet")],
)
def test_certificate_whose_time_is_not_now(
    check: Callable[..., tuple[Any, str, str]],
    tmp_path: Path,
    begin: datetime.datetime,
    end: datetime.datetime,
    words: str,
) -> None:
    key = private_key(2048)
    (line,) = warned(check(*write(tmp_path, key, issue(key, begin=begin, end=end))))
    assert "made.pem" in line
    assert words in line
    assert (end if end < NOW else begin).strftime("%Y-%m-%d") in line


def test_chain_that_does_not_link(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    key, other_key = private_key(2048), ec.generate_private_key(ec.SECP256R1())
    authority = issue(other_key, "Right authority")
    leaf = issue(key, issuer=(authority, other_key))
    stranger = issue(ec.generate_private_key(ec.SECP256R1()), "Right authority")
    assert warned(check(*write(tmp_path, key, leaf, authority))) == []
    for chain in ((leaf, stranger), (leaf, issue(other_key, "Other authority"))):
        (line,) = warned(check(*write(tmp_path, key, *chain)))
        assert "certificate 2" in line
        assert "did not issue" in line


def test_expired_certificate_within_the_chain(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    key, other_key = private_key(2048), ec.generate_private_key(ec.SECP256R1())
    authority = issue(other_key, "Authority", begin=NOW - 60 * DAY, end=NOW - DAY)
    (line,) = warned(check(*write(tmp_path, key, issue(key, issuer=(authority, other_key)), authority)))
    assert "certificate 2" in line
    assert "has expired" in line


def test_certificate_for_clients(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    key = private_key(2048)
    (line,) = warned(check(*write(tmp_path, key, issue(key, usage=[x509.ExtendedKeyUsageOID.CLIENT_AUTH]))))
    assert "not for servers" in line


def test_certificate_that_is_never_used(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    first = write_credentials(tmp_path)
    again = write(tmp_path, private_key(2048), issue(private_key(2048)), stem="again")
    nameless = write(tmp_path, private_key(2048), issue(private_key(2048), "*.*", dns=False), stem="nameless")
    (line,) = warned(check(*first, *first))
    assert "server.pem' is never used" in line
    (line,) = warned(check(*first, *again))
    assert "again.pem' is never used" in line
    assert "localhost" in line
    assert warned(check(*nameless)) == []
    (line,) = warned(check(*first, *nameless))
    assert "nameless.pem' is never used: it has no DNS name" in line


def test_names_that_several_certificates_have(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    first = write_credentials(tmp_path, "one.example", "two.example")
    some = write_credentials(tmp_path, "two.example", "three.example", stem="some")
    other_kind = write_credentials(tmp_path, "two.example", kind="ECDSA", stem="other")
    (line,) = warned(check(*first, *some, *other_kind))
    assert "some.pem' is not used for all its names" in line
    assert line.endswith("some of them (two.example)")


def test_leaf_without_its_issuer(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    key, other_key = private_key(2048), ec.generate_private_key(ec.SECP256R1())
    authority = issue(other_key, "Intermediate")
    leaf = issue(key, issuer=(authority, other_key), issuers_certificate="http://ca.example/intermediate.der")
    (line,) = warned(check(*write(tmp_path, key, leaf)))
    assert "lacks its issuer's certificate (CN=Intermediate)" in line
    assert warned(check(*write(tmp_path, key, leaf, authority))) == []


def test_key_that_is_too_small_for_clients(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505
    (line,) = warned(check(*write(tmp_path, key, issue(key)), "--ciphers", "DEFAULT@SECLEVEL=0"))
    assert "made.pem" in line
    assert "has a key of 1024 bits" in line


@pytest.mark.parametrize("curve", [ec.SECP224R1(), ec.SECP256K1()])
def test_curve_that_no_handshake_can_use(
    check: Callable[..., tuple[Any, str, str]], tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    key = ec.generate_private_key(curve)
    line = refused(check(*write(tmp_path, key, issue(key)), "--tls-min", "TLSv1.3"))
    assert "made.pem" in line
    assert "can't be used in any handshake" in line


def test_key_that_the_security_level_refuses(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505
    line = refused(check(*write(tmp_path, key, issue(key)), "--ciphers", "DEFAULT@SECLEVEL=2"))
    assert "made.pem" in line
    assert "too small" in line


def test_ciphers_that_the_key_can_not_serve(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    flags = [*write_credentials(tmp_path), "--ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256"]
    (line,) = warned(check(*flags))
    assert "can't be used by TLSv1.2 clients" in line
    assert "can't be used in any handshake" in refused(check(*flags, "--tls-max", "TLSv1.2"))


def test_rsa_and_ecdsa_certificates_for_one_name_are_both_served(tmp_path: Path) -> None:
    """Each client gets the one that it can use, with and without a name."""
    flags = [
        *write_credentials(tmp_path, "one.example", "two.example"),
        *write_credentials(tmp_path, "one.example", "two.example", kind="ECDSA", stem="ec"),
        *write_credentials(tmp_path, "three.example", stem="three"),
    ]

    def shown(cipher: str, name: str | None) -> bytes:
        context = client_context(ssl.TLSVersion.TLSv1_2)
        context.check_hostname = False
        context.set_ciphers(cipher)
        with terminator.connect(context, name=name) as client:
            certificate = client.getpeercert(binary_form=True)
            assert certificate is not None
            return certificate

    rsa_leaf, ec_leaf = (
        ssl.PEM_cert_to_DER_cert(chain.decode().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----")
        for chain in (
            credentials("one.example", "two.example", kind="RSA")[0],
            credentials("one.example", "two.example", kind="ECDSA")[0],
        )
    )
    with Upstream(echo) as upstream, Terminator(*flags, upstream=upstream.address) as terminator:
        for name in ("one.example", "two.example", None, "unknown.example"):
            assert shown("ECDHE-RSA-AES128-GCM-SHA256", name) == rsa_leaf
            assert shown("ECDHE-ECDSA-AES128-GCM-SHA256", name) == ec_leaf
        with pytest.raises(ssl.SSLError):
            shown("ECDHE-ECDSA-AES128-GCM-SHA256", "three.example")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
def test_client_of_tls_1_3_gets_the_certificate_whose_signature_it_can_verify(tmp_path: Path) -> None:
    flags = [*write_credentials(tmp_path), *write_credentials(tmp_path, kind="ECDSA", stem="ec")]
    with Upstream(echo) as upstream, Terminator(*flags, upstream=upstream.address) as terminator:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{terminator.address[1]}", "-tls1_3", "-sigalgs"]
        for algorithm, kind in (("RSA-PSS+SHA256", "RSA-PSS"), ("ECDSA+SHA256", "ECDSA")):
            done = subprocess.run([*command, algorithm], input=b"", capture_output=True, timeout=TIMEOUT, check=True)
            assert f"Peer signature type: {kind}\n".encode() in done.stdout


def test_certificates_that_share_only_some_names(tmp_path: Path) -> None:
    flags = [
        *write_credentials(tmp_path, "one.example", "two.example"),
        *write_credentials(tmp_path, "two.example", kind="ECDSA", stem="ec"),
    ]
    context = client_context(ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    with Upstream(echo) as upstream, Terminator(*flags, upstream=upstream.address) as terminator:
        assert terminator.echo(context=context, name="two.example") == b"are you there?"
        for name in ("one.example", "two.example"):
            assert terminator.echo(context=client_context(ssl.TLSVersion.TLSv1_3), name=name) == b"are you there?"
        with pytest.raises(ssl.SSLError):
            terminator.connect(context, name="one.example")


# ---- the machine ----


def test_cuda_without_a_gpu(check: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has a GPU")
    line = refused(check(*write_credentials(tmp_path), "--backend", "cuda"))
    assert "backend = 'cuda'" in line
    usual = [part for pair in ADDRESSES.items() for part in pair]
    result = run_command("terminator", *usual, *write_credentials(tmp_path), "--backend", "cuda")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


def test_closed_standard_error_is_as_good_as_none(tmp_path: Path) -> None:
    """Nothing printed may reach a connection that has the descriptor of a standard stream."""
    usual = [part for pair in ADDRESSES.items() for part in pair]
    command = [*COMMAND, "terminator", "--check", *usual, *write_credentials(tmp_path), "--alpn", "http/2"]
    result = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&- <&-', "sh", *command],
        env=environment(),
        stdout=subprocess.PIPE,
        timeout=TIMEOUT,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, b"the settings are valid\n")
