"""A provider's key as an RSAPrivateKey of ``cryptography``, which is also the oracle: results, paddings and errors."""

from __future__ import annotations

import asyncio
import datetime
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding as paddings
from cryptography.hazmat.primitives.asymmetric import rsa, utils
from cryptography.hazmat.primitives.serialization import pkcs7
from rsa_keys import private_key

from gpu_provider import BatchingProvider, Key, KeyLoadError, ProviderClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHA256, SHA384 = hashes.SHA256(), hashes.SHA384()
PKCS1 = paddings.PKCS1v15()
PSS = paddings.PSS(paddings.MGF1(SHA256), paddings.PSS.DIGEST_LENGTH)
OAEP = paddings.OAEP(paddings.MGF1(SHA256), SHA384, b"label")
DER = serialization.Encoding.DER
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
TODAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider() as provider:
        yield provider


@pytest.fixture(scope="module", params=[2048, 2049, 4096])
def pair(request: pytest.FixtureRequest, provider: BatchingProvider) -> tuple[Key, rsa.RSAPrivateKey]:
    """The same key in the provider and in ``cryptography``. 2049 bits: the encoding of PSS is a byte shorter."""
    return provider.load_key(private_key(request.param)), private_key(request.param)


@pytest.fixture(scope="module")
def key(provider: BatchingProvider) -> Key:
    return provider.load_key(private_key(2048))


class TestSign:
    @pytest.mark.parametrize(
        "algorithm",
        [hashes.SHA1(), hashes.SHA224(), SHA256, SHA384, hashes.SHA512(), hashes.SHA512_256(), hashes.SHA3_256()],  # noqa: S303
        ids=lambda algorithm: algorithm.name,
    )
    def test_pkcs1_signatures_are_the_same(
        self, pair: tuple[Key, rsa.RSAPrivateKey], algorithm: hashes.HashAlgorithm
    ) -> None:
        key, plain = pair
        assert key.sign(b"message", PKCS1, algorithm) == plain.sign(b"message", PKCS1, algorithm)

    @pytest.mark.parametrize(
        "salt", [0, 7, paddings.PSS.DIGEST_LENGTH, paddings.PSS.MAX_LENGTH], ids=["none", "7", "digest", "max"]
    )
    def test_pss_signatures_verify(self, pair: tuple[Key, rsa.RSAPrivateKey], salt: Any) -> None:
        key, plain = pair
        pss = paddings.PSS(paddings.MGF1(SHA384), salt)
        first, second = key.sign(b"message", pss, SHA256), key.sign(b"message", pss, SHA256)
        plain.public_key().verify(first, b"message", pss, SHA256)
        assert (first == second) == (salt == 0)

    def test_prehashed_and_without_digest_info(self, key: Key) -> None:
        digest = hashes.Hash(SHA256)
        digest.update(b"message")
        value = digest.finalize()
        prehashed = utils.Prehashed(SHA256)
        assert key.sign(value, PKCS1, prehashed) == private_key(2048).sign(b"message", PKCS1, SHA256)
        private_key(2048).public_key().verify(key.sign(value, PSS, prehashed), b"message", PSS, SHA256)
        raw = utils.NoDigestInfo()
        assert key.sign(b"anything", PKCS1, raw) == private_key(2048).sign(b"anything", PKCS1, raw)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_kinds_of_bytes(self, key: Key, kind: Callable[[bytes], bytes]) -> None:
        assert key.sign(kind(b"message"), PKCS1, SHA256) == key.sign(b"message", PKCS1, SHA256)


def error_of(call: Callable[[], object]) -> Exception:
    try:
        call()
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        return error
    pytest.fail("nothing was refused")


class OtherMgf(paddings.MGF):
    _algorithm = SHA256


REFUSED_SIGNATURES: dict[str, tuple[Any, Any, Any]] = {
    "text": ("message", PKCS1, SHA256),
    "a padding for decryption": (b"", OAEP, SHA256),
    "no padding": (b"", None, SHA256),
    "no algorithm": (b"", PKCS1, None),
    "an algorithm's class": (b"", PKCS1, hashes.SHA256),
    "another MGF": (b"", paddings.PSS(OtherMgf(), 20), SHA256),
    "a salt to be found out": (b"", paddings.PSS(paddings.MGF1(SHA256), paddings.PSS.AUTO), SHA256),
    "a salt that is too long": (b"", paddings.PSS(paddings.MGF1(SHA256), 223), SHA256),
    "no digest for PSS": (b"", PSS, utils.NoDigestInfo()),
    "too much without a digest": (bytes(246), PKCS1, utils.NoDigestInfo()),
    "a digest of another length": (bytes(33), PKCS1, utils.Prehashed(SHA256)),
    "a digest for no signature": (b"", PKCS1, hashes.BLAKE2s(32)),
    "a digest without a length": (b"", PSS, hashes.SHAKE128(32)),
}


@pytest.mark.parametrize("case", REFUSED_SIGNATURES)
def test_what_cryptography_refuses_to_sign_is_refused_alike(key: Key, case: str) -> None:
    expected = error_of(lambda: private_key(2048).sign(*REFUSED_SIGNATURES[case]))
    error = error_of(lambda: key.sign(*REFUSED_SIGNATURES[case]))
    assert type(error) is type(expected)
    assert str(error).partition(" for RSA")[0] == str(expected).partition(" for RSA")[0]


def test_what_only_cryptography_signs_is_said_to_be_unsupported(key: Key) -> None:
    with pytest.raises(UnsupportedAlgorithm, match="md5 is not supported"):
        key.sign(b"", PKCS1, hashes.MD5())  # noqa: S303


class TestDecrypt:
    @pytest.mark.parametrize("padding", [PKCS1, OAEP, paddings.OAEP(paddings.MGF1(hashes.SHA1()), hashes.SHA1(), None)])  # noqa: S303
    @pytest.mark.parametrize("message", [b"", b"\0", b"a secret"])
    def test_messages(
        self, pair: tuple[Key, rsa.RSAPrivateKey], padding: paddings.AsymmetricPadding, message: bytes
    ) -> None:
        key, plain = pair
        assert key.decrypt(plain.public_key().encrypt(message, padding), padding) == message

    def test_bad_pkcs1_padding_gives_the_message_that_openssl_gives(self, pair: tuple[Key, rsa.RSAPrivateKey]) -> None:
        """Hazard: a program that tells bad padding from good is an oracle for decryption (Bleichenbacher)."""
        key, plain = pair
        for number in range(2, 12):
            ciphertext = number.to_bytes(key.bytes, "big")
            assert key.decrypt(ciphertext, PKCS1) == plain.decrypt(ciphertext, PKCS1)

    @pytest.mark.parametrize(
        ("ciphertext", "padding"),
        [
            (b"short", PKCS1),
            (b"\xff" * 256, PKCS1),  # not below the modulus
            (b"\xff" * 256, OAEP),
            (bytes(255) + b"\2", OAEP),
            (bytes(256), PSS),
            (bytes(256), None),
            (bytes(256), paddings.OAEP(OtherMgf(), SHA256, None)),
        ],
    )
    def test_what_cryptography_refuses_is_refused_alike(self, key: Key, ciphertext: bytes, padding: Any) -> None:
        expected = error_of(lambda: private_key(2048).decrypt(ciphertext, padding))
        error = error_of(lambda: key.decrypt(ciphertext, padding))
        assert (type(error), str(error)) == (type(expected), str(expected))

    def test_another_label_is_as_bad_as_any_padding(self, key: Key) -> None:
        ciphertext = key.public_key().encrypt(b"a secret", paddings.OAEP(paddings.MGF1(SHA256), SHA384, b"other"))
        with pytest.raises(ValueError, match=r"^Decryption failed$"):
            key.decrypt(ciphertext, OAEP)

    def test_text_is_no_ciphertext(self, key: Key) -> None:
        with pytest.raises(TypeError, match="a ciphertext is bytes, not str"):
            key.decrypt("x" * 256, PKCS1)  # type: ignore[arg-type]


def test_coroutines(key: Key) -> None:
    ciphertext = key.public_key().encrypt(b"a secret", OAEP)

    async def both() -> list[bytes]:
        return await asyncio.gather(key.sign_async(b"message", PKCS1, SHA256), key.decrypt_async(ciphertext, OAEP))

    assert asyncio.run(both()) == [private_key(2048).sign(b"message", PKCS1, SHA256), b"a secret"]


class TestPublicPart:
    def test_size_and_public_key(self, key: Key) -> None:
        assert isinstance(key, rsa.RSAPrivateKey)
        assert key.key_size == 2048
        assert key.public_key() == private_key(2048).public_key()

    def test_private_numbers_never_leave(self, key: Key) -> None:
        encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        for export in (key.private_numbers, lambda: key.private_bytes(*encoding)):
            with pytest.raises(UnsupportedAlgorithm, match="export it from where it was loaded from"):
                export()


def test_a_key_of_a_provider_is_not_loaded_into_another(key: Key) -> None:
    with BatchingProvider() as other, pytest.raises(KeyLoadError, match="export it from where it was loaded from"):
        other.load_key(key)


def test_a_key_that_can_not_compute_says_so() -> None:
    with BatchingProvider() as provider:
        closed, key = provider.load_key(private_key(2048)), provider.load_key(private_key(2048))
        ciphertext = key.public_key().encrypt(b"a secret", OAEP)
        closed.close()
        for use in (lambda: closed.sign(b"", PKCS1, SHA256), lambda: closed.decrypt(ciphertext, OAEP)):
            with pytest.raises(ProviderClosedError, match="key is closed; load it again"):
                use()
    for use in (lambda: key.sign(b"", PKCS1, SHA256), lambda: key.decrypt(ciphertext, OAEP)):
        with pytest.raises(ProviderClosedError, match="provider is closed"):
            use()


class TestOtherPackages:
    """They see an RSAPrivateKey, and check what it signs."""

    def test_certificates_requests_and_revocation_lists(self, key: Key) -> None:
        public = private_key(2048).public_key()
        certificate = x509.CertificateBuilder(NAME, NAME, public, 1, TODAY, TODAY + datetime.timedelta(1)).sign(
            key, SHA256
        )
        certificate.verify_directly_issued_by(certificate)
        request = x509.CertificateSigningRequestBuilder(NAME).sign(key, SHA256, rsa_padding=PSS)
        assert request.is_signature_valid
        revoked = x509.CertificateRevocationListBuilder(NAME, TODAY, TODAY + datetime.timedelta(1)).sign(key, SHA256)
        assert revoked.is_signature_valid(public)

    def test_signed_messages(self, key: Key) -> None:
        builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), 1, TODAY, TODAY + datetime.timedelta(1))
        certificate = builder.sign(key, SHA256)
        message = (
            pkcs7.PKCS7SignatureBuilder()
            .set_data(b"data")
            .add_signer(certificate, key, SHA256)
            .sign(DER, [pkcs7.PKCS7Options.NoAttributes])
        )
        assert private_key(2048).sign(b"data", PKCS1, SHA256) in message
        encrypted = pkcs7.PKCS7EnvelopeBuilder().set_data(b"data").add_recipient(certificate)
        der = encrypted.encrypt(DER, [pkcs7.PKCS7Options.Binary])
        assert pkcs7.pkcs7_decrypt_der(der, certificate, key, []) == b"data"

    def test_ssh_certificates(self, key: Key) -> None:
        builder = serialization.SSHCertificateBuilder().public_key(key.public_key()).serial(1).key_id(b"me")
        builder = builder.type(serialization.SSHCertificateType.USER).valid_for_all_principals()
        certificate = builder.valid_after(0).valid_before(1 << 40).sign(key)
        certificate.verify_cert_signature()

    @pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS256"])
    def test_json_web_tokens(self, key: Key, algorithm: str) -> None:
        token = jwt.encode({"sub": "me"}, key, algorithm=algorithm)
        assert jwt.decode(token, private_key(2048).public_key(), algorithms=[algorithm]) == {"sub": "me"}

    def test_unchanged_code_in_threads_shares_batches(self, key: Key, provider: BatchingProvider) -> None:
        before = provider.stats().completed
        with ThreadPoolExecutor(16) as threads:
            tokens = list(threads.map(lambda number: jwt.encode({"sub": str(number)}, key, "RS256"), range(64)))
        assert provider.stats().completed == before + 64
        public = private_key(2048).public_key()
        assert [jwt.decode(token, public, ["RS256"])["sub"] for token in tokens] == [
            str(number) for number in range(64)
        ]

    def test_a_placeholder_writes_what_the_key_would_but_for_the_signature(self, key: Key) -> None:
        builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), 1, TODAY, TODAY + datetime.timedelta(1))
        draft, certificate = (builder.sign(signer, SHA256).public_bytes(DER) for signer in (key.placeholder, key))
        assert draft == certificate[: -key.bytes] + bytes(key.bytes)
        assert key.placeholder.public_key() == key.public_key()
        with pytest.raises(UnsupportedAlgorithm, match="a placeholder can't decrypt"):
            key.placeholder.decrypt(bytes(256), PKCS1)
