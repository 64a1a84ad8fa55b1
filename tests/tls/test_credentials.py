"""Certificates and keys that can't be used: the message names the file and the remedy, and the context still works."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from tls_peers import Peer, accept, authority, credentials, finish, unverifying_client_context

from gpu_provider import tls
from gpu_provider.tls.public_part import public_part

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def context() -> tls.Context:
    return tls.Context(tls.TLS_SERVER_METHOD)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "chain.pem"
    path.write_bytes(credentials().chain)
    return path


def write(path: Path, key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, password: bytes | None = None) -> Path:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection))
    return path


def own_key() -> rsa.RSAPrivateKey:
    key = serialization.load_pem_private_key(credentials().key, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def works(context: tls.Context) -> None:
    connection = accept(context)
    finish(connection, Peer(connection))


def test_a_missing_file(context: tls.Context, tmp_path: Path) -> None:
    path = tmp_path / "none.pem"
    with pytest.raises(tls.CertificateError, match=r"none\.pem.*No such file"):
        context.use_certificate_chain_file(path)
    with pytest.raises(tls.PrivateKeyError, match=r"none\.pem.*No such file"):
        context.use_privatekey_file(path)
    with pytest.raises(tls.PrivateKeyError, match="Is a directory"):
        context.use_privatekey_file(tmp_path)
    with pytest.raises(tls.Error, match=r"none\.pem"):
        context.load_verify_locations(path)
    with pytest.raises(tls.CertificateError, match=r"none\.pem"):
        context.load_client_ca(path)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"-----BEGIN CERTIFICATE-----\nbm8=\n"])
def test_a_file_of_something_else(context: tls.Context, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.pem"
    path.write_bytes(content)
    with pytest.raises(tls.CertificateError, match=r"some\.pem"):
        context.use_certificate_chain_file(path)
    with pytest.raises(tls.PrivateKeyError, match=r"some\.pem.*no private key"):
        context.use_privatekey_file(path)


def test_the_two_files_taken_for_each_other(context: tls.Context, chain: Path, tmp_path: Path) -> None:
    key = write(tmp_path / "key.pem", own_key())
    with pytest.raises(tls.CertificateError, match="is it the private key"):
        context.use_certificate_chain_file(key)
    with pytest.raises(tls.PrivateKeyError, match="no private key"):
        context.use_privatekey_file(chain)


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("password", [None, b"correct horse"])
def test_a_file_of_certificate_and_key(
    context: tls.Context, tmp_path: Path, form: serialization.PrivateFormat, password: bytes | None
) -> None:
    """Hazard: what reads the certificates reads the key with them, and leaves copies of it in memory."""
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    key = own_key().private_bytes(serialization.Encoding.PEM, form, protection)
    path = tmp_path / "both.pem"
    for content in (key + credentials().chain, credentials().chain + key):
        path.write_bytes(content)
        context.use_certificate_chain_file(path)
        context.use_privatekey_file(path, password=password)
        public = public_part(path)
        assert credentials().chain in public
        assert not set(key.split(b"\n")) & set(public.split(b"\n")) - {b""}
    works(context)
    path.write_bytes(key[:-40])  # cut off
    assert public_part(path).strip() == b""


def test_a_chain_whose_second_certificate_is_damaged(context: tls.Context, tmp_path: Path) -> None:
    path = tmp_path / "chain.pem"
    path.write_bytes(credentials().chain + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(tls.CertificateError, match=r"chain\.pem"):
        context.use_certificate_chain_file(path)


def test_an_encrypted_key_needs_its_password(context: tls.Context, chain: Path, tmp_path: Path) -> None:
    context.use_certificate_chain_file(chain)
    path = write(tmp_path / "secret.pem", own_key(), b"correct horse")
    with pytest.raises(tls.PrivateKeyError, match=r"secret\.pem.*encrypted.*openssl pkey"):
        context.use_privatekey_file(path)
    with pytest.raises(tls.PrivateKeyError, match=r"secret\.pem.*password is wrong"):
        context.use_privatekey_file(path, password=b"battery staple")
    context.use_privatekey_file(path, password=b"correct horse")
    works(context)


def test_the_key_of_another_certificate(context: tls.Context, chain: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "other.pem", rsa.generate_private_key(65537, 2048))
    context.use_certificate_chain_file(chain)
    with pytest.raises(tls.PrivateKeyError, match=r"other\.pem.*does not belong to the certificate"):
        context.use_privatekey_file(path)
    with pytest.raises(tls.PrivateKeyError, match="does not belong to the certificate"):
        context.check_privatekey()
    context.use_privatekey(credentials().key)
    context.check_privatekey()
    works(context)


def test_a_key_that_is_neither_rsa_nor_ec(context: tls.Context, tmp_path: Path) -> None:
    path = write(tmp_path / "ed.pem", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(tls.PrivateKeyError, match=r"ed\.pem.*ED25519; RSA and EC"):
        context.use_privatekey_file(path)


def test_every_form_of_certificate_and_key_is_taken(context: tls.Context, tmp_path: Path) -> None:
    key = own_key()
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "key.der"
    path.write_bytes(der)
    context.use_certificate(x509.load_pem_x509_certificates(credentials().chain)[0])
    context.use_privatekey(key)
    context.use_privatekey(der)
    context.use_privatekey_file(path, tls.FILETYPE_ASN1)
    works(context)


def test_rsa_and_ec_side_by_side(context: tls.Context) -> None:
    for kind in ("RSA", "ECDSA"):
        chain, key = credentials(kind=kind)
        context.use_certificate(chain)
        context.use_privatekey(key)
    for algorithm, kind in (("ECDSA+SHA256", ec.EllipticCurvePublicKey), ("RSA-PSS+SHA256", rsa.RSAPublicKey)):
        client = unverifying_client_context()
        client.set_sigalgs(algorithm)
        server = accept(context)
        connection = tls.Connection(client)
        connection.set_connect_state()
        shake(server, connection)
        certificate = connection.get_peer_certificate()
        assert certificate is not None
        assert isinstance(certificate.public_key(), kind)


def shake(server: tls.Connection, client: tls.Connection) -> None:
    waiting = {server, client}
    while waiting:
        for one, other in ((client, server), (server, client)):
            if one in waiting:
                try:
                    one.do_handshake()
                    waiting.discard(one)
                except tls.WantReadError:
                    pass
            while one.bio_pending():
                other.bio_write(one.bio_read(65536))


def test_no_key_material_in_messages(context: tls.Context, tmp_path: Path) -> None:
    path = tmp_path / "broken.pem"
    lines = credentials().key.splitlines()
    path.write_bytes(b"\n".join([*lines[:5], *lines[6:]]))
    with pytest.raises(tls.PrivateKeyError) as raised:
        context.use_privatekey_file(path)
    assert not any(line.decode() in str(raised.value) for line in lines[1:-1])


def test_unusable_settings_name_themselves(context: tls.Context) -> None:
    with pytest.raises(tls.Error, match="cipher list 'none-such'"):
        context.set_cipher_list("none-such")
    with pytest.raises(tls.Error, match="cipher suites 'none-such'"):
        context.set_ciphersuites("none-such")
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        context.set_alpn_server_protos([b""])
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        context.set_alpn_protos([])
    with pytest.raises(ValueError, match="server name must be like"):
        context.set_sni_contexts({"a.*.example": context})
    with pytest.raises(ValueError, match="method must be one of"):
        tls.Context("SSLv3_method")
    assert authority()
