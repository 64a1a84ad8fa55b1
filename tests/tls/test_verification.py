"""A client verifies its server unless it is told not to: forgetting a setting never makes a connection unsafe."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tls_peers import accept, authority, server_context

from gpu_provider import tls
from gpu_provider.tls import aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The system's authorities are the tests' authority."""
    authority().cert_pem.write_to_path(str(tmp_path / "authorities.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities.pem"))


@pytest.fixture
def distrusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The system has no authorities."""
    (tmp_path / "none.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))


class Client:
    """Connects with ``aio`` to a server whose certificate is for ``name``."""

    def __init__(self) -> None:
        self.servers: list[asyncio.Server] = []

    async def __call__(self, context: tls.Context, name: str = "localhost", **options: Any) -> Any:
        server = await aio.create_server(asyncio.Protocol, "127.0.0.1", 0, context=server_context(name=name))
        self.servers.append(server)
        port = server.sockets[0].getsockname()[1]
        options.setdefault("server_hostname", name)
        transport, _ = await aio.create_connection(asyncio.Protocol, "127.0.0.1", port, context=context, **options)
        transport.abort()
        return transport.get_extra_info("ssl_object")


@pytest.fixture
async def connect() -> AsyncIterator[Client]:
    client = Client()
    yield client
    for server in client.servers:
        server.close()


METHODS = [tls.TLS_CLIENT_METHOD, tls.TLS_METHOD]


@pytest.mark.usefixtures("distrusted")
@pytest.mark.parametrize("method", METHODS)
async def test_an_unconfigured_context_does_not_connect_to_a_stranger(connect: Client, method: str) -> None:
    with pytest.raises(tls.Error, match=r"^certificate verify failed \(unable to get local issuer certificate\)$"):
        await connect(tls.Context(method))


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("method", METHODS)
async def test_an_unconfigured_context_trusts_the_systems_authorities_for_the_right_name(
    connect: Client, method: str
) -> None:
    context = tls.Context(method)
    assert (await connect(context)).getpeercert()["subjectAltName"] == (("DNS", "localhost"),)
    with pytest.raises(tls.Error, match="ostname mismatch"):
        await connect(context, server_hostname="other.example")


@pytest.mark.usefixtures("trusted")
async def test_authorities_of_ones_own_replace_the_systems(connect: Client, tmp_path: Path) -> None:
    other, _ = self_signed("other.example")
    (tmp_path / "other.pem").write_bytes(other)
    context = tls.Context(tls.TLS_CLIENT_METHOD)
    context.load_verify_locations(tmp_path / "other.pem")
    with pytest.raises(tls.Error, match="certificate verify failed"):
        await connect(context)


@pytest.mark.usefixtures("distrusted")
@pytest.mark.parametrize("method", METHODS)
async def test_verification_can_be_switched_off_by_name_only(connect: Client, method: str) -> None:
    context = tls.Context(method)
    context.set_verify(tls.VERIFY_NONE)
    assert (await connect(context, server_hostname="other.example")).getpeercert() == {}
    assert await connect(context, server_hostname="")


@pytest.mark.usefixtures("trusted")
async def test_the_name_alone_can_be_left_unchecked(connect: Client) -> None:
    context = tls.Context(tls.TLS_CLIENT_METHOD)
    with pytest.raises(ValueError, match="check_hostname"):
        await connect(context, server_hostname="")
    context.check_hostname = False
    assert await connect(context, server_hostname="")
    assert await connect(context, server_hostname="other.example")


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("certified", "asked"),
    [
        ("localhost", "localhost."),
        ("localhost", "LOCALHOST"),
        ("*.one.example", "www.one.example"),
        ("xn--bcher-kva.example", "bücher.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "0:0::1"),
    ],
)
async def test_names_that_a_certificate_is_for(connect: Client, certified: str, asked: str) -> None:
    assert await connect(tls.Context(tls.TLS_CLIENT_METHOD), certified, server_hostname=asked)


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("certified", "asked"),
    [
        ("*.one.example", "one.example"),
        ("*.one.example", "a.b.one.example"),
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "127.1"),
        ("localhost", "127.0.0.1"),
    ],
)
async def test_names_that_it_is_not_for(connect: Client, certified: str, asked: str) -> None:
    with pytest.raises(tls.Error, match="mismatch"):
        await connect(tls.Context(tls.TLS_CLIENT_METHOD), certified, server_hostname=asked)


@pytest.mark.parametrize("name", [".example", "local\0host", "a..b", "x" * 64 + ".example", "."])
async def test_what_is_no_name_is_refused_before_connecting(connect: Client, name: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        await connect(tls.Context(tls.TLS_CLIENT_METHOD), server_hostname=name)


@pytest.mark.parametrize("name", [b"host", 1, ("localhost",)])
async def test_what_is_no_text_is_refused(connect: Client, name: Any) -> None:
    """``ipaddress`` would read the first two as IPv4 addresses."""
    with pytest.raises(TypeError, match="must be a str"):
        await connect(tls.Context(tls.TLS_CLIENT_METHOD), server_hostname=name)


def test_a_self_signed_certificate_that_is_trusted_will_do(tmp_path: Path) -> None:
    shake_with_self_signed(tmp_path, "www.example")


def test_a_partial_wildcard_matches_nothing(tmp_path: Path) -> None:
    with pytest.raises(tls.Error, match="ostname mismatch"):
        shake_with_self_signed(tmp_path, "w*.example")


def test_a_certificate_for_clients_is_none_for_servers(tmp_path: Path) -> None:
    usage = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])
    with pytest.raises(tls.Error, match="purpose"):
        shake_with_self_signed(tmp_path, "www.example", usage)


@pytest.mark.parametrize("method", METHODS)
def test_certificates_are_held_to_what_this_pythons_ssl_asks_of_them(tmp_path: Path, method: str) -> None:
    assert tls.Context(method).set_verify_flags(0) == ssl.create_default_context().verify_flags
    certificate, key, authorities = issued_without_key_identifiers("www.example")
    (tmp_path / "authorities.pem").write_bytes(authorities)
    strict = pytest.raises(tls.Error, match=r"^certificate verify failed")
    for flags, outcome in ((0, contextlib.nullcontext()), (ssl.VERIFY_X509_STRICT, strict)):
        context, server = tls.Context(method), tls.Context(tls.TLS_SERVER_METHOD)
        context.load_verify_locations(tmp_path / "authorities.pem")
        assert context.clear_verify_flags(ssl.VERIFY_X509_STRICT) & ssl.VERIFY_X509_STRICT == 0
        assert context.set_verify_flags(flags) & ssl.VERIFY_X509_STRICT == flags
        server.use_certificate(certificate)
        server.use_privatekey(key)
        with outcome:
            shake(server, context, lambda client: client.set_verify_host("www.example"))


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("method", METHODS)
def test_a_connection_without_asyncio_is_no_less_safe(method: str) -> None:
    def nothing(client: tls.Connection) -> None:
        pass

    with pytest.raises(ValueError, match="set_verify_host"):
        shake(server_context(), tls.Context(method), nothing)
    shake(server_context(), tls.Context(method), lambda client: client.set_verify_host("localhost"))
    with pytest.raises(tls.Error, match="ostname mismatch"):
        shake(server_context(), tls.Context(method), lambda client: client.set_verify_host("other.example"))
    shake(server_context(), tls.Context(method), lambda client: client.set_verify(tls.VERIFY_NONE))


@pytest.mark.usefixtures("trusted")
def test_a_session_vouches_for_no_other_server() -> None:
    """A resumed connection sees no certificate: what was not verified at first would never be."""

    def session(prepare: Callable[[tls.Connection], object]) -> tls.Session:
        found = shake(server, context, prepare).get_session()
        assert found is not None
        return found

    server, context = server_context(version=tls.TLS1_2_VERSION), tls.Context(tls.TLS_CLIENT_METHOD)
    verified = session(lambda client: client.set_verify_host("localhost"))
    unverified = session(lambda client: client.set_verify(tls.VERIFY_NONE))

    def resume(client: tls.Connection, host: str, session: tls.Session) -> None:
        client.set_verify_host(host)
        client.set_session(session)

    assert shake(server, context, lambda client: resume(client, "localhost.", verified)).session_reused()
    for host, of_another in (("other.example", verified), ("localhost", unverified)):
        with pytest.raises(ValueError, match="session to resume was not verified"):
            shake(server, context, lambda client: resume(client, host, of_another))  # noqa: B023


@pytest.mark.usefixtures("distrusted")
def test_a_server_asks_for_no_certificate_by_itself() -> None:
    context = tls.Context(tls.TLS_CLIENT_METHOD)
    context.set_verify(tls.VERIFY_NONE)
    server = server_context()
    assert server.get_verify_mode() == tls.VERIFY_NONE
    shake(server, context, lambda client: None)


def test_a_clients_hello_offers_what_pythons_does() -> None:
    """The ciphers, no compression, and the versions. CPython's list is written out: Debian 13 builds its Python with
    another, OpenSSL's own.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_ciphers("@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM")
    pythons = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        pythons.do_handshake()
    client = tls.Connection(tls.Context(tls.TLS_CLIENT_METHOD))
    client.set_connect_state()
    client.set_verify_host("localhost")
    client.set_tlsext_host_name(b"localhost")
    with pytest.raises(tls.WantReadError):
        client.do_handshake()
    assert offers(client.bio_read(65536)) == offers(outgoing.read())


SUPPORTED_VERSIONS = 43


def offers(hello: bytes) -> tuple[Any, ...]:
    """What a ClientHello offers, except for what depends on OpenSSL's version (ssl may have another than we)."""
    view = hello[5 + 4 + 2 + 32 :]
    view = view[1 + view[0] :]  # the session's id
    size = int.from_bytes(view[:2])
    ciphers, view = view[2 : 2 + size], view[2 + size :]
    compression, view = view[1 : 1 + view[0]], view[1 + view[0] + 2 :]
    extensions = {}
    while view:
        kind, size = int.from_bytes(view[:2]), int.from_bytes(view[2:4])
        extensions[kind] = view[4 : 4 + size]
        view = view[4 + size :]
    return ciphers, compression, extensions[SUPPORTED_VERSIONS]


def shake(server: tls.Context, client: tls.Context, prepare: Callable[[tls.Connection], object]) -> tls.Connection:
    accepting, connecting = accept(server), tls.Connection(client)
    connecting.set_connect_state()
    prepare(connecting)
    accepting.clear_mode(tls.SSL_MODE_ASYNC)
    waiting = [connecting, accepting]
    while waiting:
        for one, other in ((connecting, accepting), (accepting, connecting)):
            try:
                one.do_handshake()
                if one in waiting:
                    waiting.remove(one)
            except tls.WantReadError:
                pass
            if count := one.bio_pending():
                other.bio_write(one.bio_read(count))
    connecting.shutdown()  # or the session can't be resumed
    return connecting


def shake_with_self_signed(tmp_path: Path, name: str, *extensions: x509.ExtensionType) -> None:
    """A client that trusts the server's certificate itself, and expects ``www.example``."""
    certificate, key = self_signed(name, *extensions)
    (tmp_path / "own.pem").write_bytes(certificate)
    context, server = tls.Context(tls.TLS_CLIENT_METHOD), tls.Context(tls.TLS_SERVER_METHOD)
    context.load_verify_locations(tmp_path / "own.pem")
    server.use_certificate(certificate)
    server.use_privatekey(key)
    shake(server, context, lambda client: client.set_verify_host("www.example"))


def self_signed(name: str, *extensions: x509.ExtensionType) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = certified(key, "self-signed", key, "self-signed", named(name), *extensions)
    return certificate, pem(key)


def issued_without_key_identifiers(name: str) -> tuple[bytes, bytes, bytes]:
    """A certificate, its key, and the certificate of its authority: RFC 5280 asks for more than these say."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    may_issue = x509.BasicConstraints(ca=True, path_length=None)
    return (
        certified(key, "server", authority, "authority", named(name)),
        pem(key),
        certified(authority, "authority", authority, "authority", may_issue),
    )


def named(name: str) -> x509.ExtensionType:
    return x509.SubjectAlternativeName([x509.DNSName(name)])


def certified(
    key: ec.EllipticCurvePrivateKey,
    subject: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: str,
    *extensions: x509.ExtensionType,
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
