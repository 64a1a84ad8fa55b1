"""What text Context and Connection accept, and how they say that they can't be copied."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from tls_peers import Peer, accept, credentials, finish

from gpu_provider import tls

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def context() -> tls.Context:
    return tls.Context(tls.TLS_SERVER_METHOD)


TEXTS: list[tuple[Callable[[tls.Context], Callable[[str | bytes], None]], str]] = [
    (lambda context: context.set_cipher_list, "ECDHE-RSA-AES128-GCM-SHA256"),
    (lambda context: context.set_ciphersuites, "TLS_AES_128_GCM_SHA256"),
    (lambda context: context.set_groups, "X25519:P-256"),
    (lambda context: context.set_sigalgs, "RSA-PSS+SHA256:ECDSA+SHA256"),
]


@pytest.mark.parametrize(("setter", "text"), TEXTS)
class TestText:
    def test_str_and_bytes(
        self, context: tls.Context, setter: Callable[[tls.Context], Callable[[str | bytes], None]], text: str
    ) -> None:
        setter(context)(text)
        setter(context)(text.encode())

    def test_another_type_is_named(
        self, context: tls.Context, setter: Callable[[tls.Context], Callable[[object], None]], text: str
    ) -> None:
        with pytest.raises(TypeError, match="must be str or bytes, not list"):
            setter(context)([text])


@pytest.mark.parametrize(("setter", "text"), TEXTS[:-1])
def test_a_nul_is_named(
    context: tls.Context, setter: Callable[[tls.Context], Callable[[str | bytes], None]], text: str
) -> None:
    """OpenSSL would stop reading there."""
    for with_more in (text + "\0more", text.encode() + b"\0more"):
        with pytest.raises(ValueError, match="has a NUL in it"):
            setter(context)(with_more)


def test_names_with_a_length_of_their_own_may_hold_a_nul(context: tls.Context) -> None:
    context.set_session_id_context(b"a\0b")
    context.set_alpn_protos([b"a\0b"])


def test_an_identity_may_have_any_bytes(context: tls.Context) -> None:
    """Hazard: one hash in eight has a NUL in it."""
    for identity in ("name", b"name", bytes(32)):
        context.set_session_id_context(identity)
    context.set_alpn_protos([b"\0\1", "h2"])


def test_alpn_protocols_are_names_not_one_name(context: tls.Context) -> None:
    """Hazard: "h2" is also a sequence of one-letter names."""
    for set_protocols in (context.set_alpn_protos, context.set_alpn_server_protos):
        set_protocols(["h2", b"http/1.1"])
        for single in ("h2", b"h2"):
            with pytest.raises(TypeError, match=r"must be a list of names, such as \[b?'h2'\]"):
                set_protocols(single)
        with pytest.raises(TypeError, match="the ALPN protocol must be str or bytes, not int"):
            set_protocols([2])  # type: ignore[list-item]


def test_certificate_key_and_password_as_str(context: tls.Context) -> None:
    key = serialization.load_pem_private_key(credentials().key, None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    context.use_certificate(credentials().chain.decode())
    context.use_privatekey(encrypted.decode(), "secret")
    connection = accept(context)
    finish(connection, Peer(connection))


def test_a_certificate_or_key_of_another_type_is_named(context: tls.Context) -> None:
    with pytest.raises(tls.CertificateError, match="not int"):
        context.use_certificate(5)  # type: ignore[arg-type]
    with pytest.raises(tls.PrivateKeyError, match="not int"):
        context.use_privatekey(5)  # type: ignore[arg-type]


def test_server_name_as_str_and_bytes() -> None:
    for name in ("localhost", b"localhost"):
        connection = tls.Connection(tls.Context(tls.TLS_CLIENT_METHOD))
        connection.set_tlsext_host_name(name)
        assert connection.get_servername() == b"localhost"


@pytest.mark.parametrize("copy_of", [pickle.dumps, copy.copy, copy.deepcopy])
def test_pickling_and_copying_are_refused(context: tls.Context, copy_of: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="a Context can't be pickled or copied: set one up in the other process"):
        copy_of(context)
    with pytest.raises(TypeError, match="a Connection can't be pickled or copied"):
        copy_of(tls.Connection(context))
