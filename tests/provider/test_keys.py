"""Loading keys: every usable format is accepted, and errors name what is wrong with others."""

from __future__ import annotations

import copy
import datetime
import functools
import gc
import importlib.util
import pickle
import re
import shutil
import subprocess
import weakref
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from rsa_keys import private_key, public_der, public_pem

from gpu_provider import (
    BatchingProvider,
    GpuProviderError,
    InputError,
    KeyLoadError,
    OperationError,
    ProviderClosedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PASSWORD = b"correct horse"


@pytest.fixture(scope="module")
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider() as provider:
        yield provider


def encode(
    encoding: Encoding = Encoding.PEM, format_: PrivateFormat = PrivateFormat.PKCS8, password: bytes | None = None
) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return private_key(2048).private_bytes(encoding, format_, encryption)


@functools.cache
def certificate() -> x509.Certificate:
    name, today = x509.Name([]), datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, private_key(2048).public_key(), x509.random_serial_number())
    return (
        builder.not_valid_before(today)
        .not_valid_after(today + datetime.timedelta(1))
        .sign(private_key(2048), hashes.SHA256())
    )


def ssh_keygen(directory: Path, kind: str, bits: str, password: str) -> bytes:
    file = directory / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-b", bits, "-N", password, "-f", file], check=True, timeout=60)
    return file.read_bytes()


needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


class TestForms:
    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    @pytest.mark.parametrize("format_", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
    def test_pem_and_der(self, provider: BatchingProvider, encoding: Encoding, format_: PrivateFormat) -> None:
        key = provider.load_key(encode(encoding, format_))
        assert key.n == private_key(2048).public_key().public_numbers().n

    def test_text(self, provider: BatchingProvider) -> None:
        assert provider.load_key(encode().decode()).bits == 2048

    def test_a_key_of_the_cryptography_package(self, provider: BatchingProvider) -> None:
        assert provider.load_key(private_key(2048)).bits == 2048

    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    @pytest.mark.parametrize("password", [PASSWORD, PASSWORD.decode()])
    def test_encrypted(self, provider: BatchingProvider, encoding: Encoding, password: bytes | str) -> None:
        assert provider.load_key(encode(encoding, password=PASSWORD), password).bits == 2048

    @pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, bytes.decode])
    def test_openssh(self, provider: BatchingProvider, wrap: Callable[[bytes], bytes | str]) -> None:
        encoded = encode(format_=PrivateFormat.OpenSSH)
        assert provider.load_key(wrap(encoded)).n == private_key(2048).public_key().public_numbers().n

    @needs_ssh_keygen
    def test_encrypted_openssh(self, provider: BatchingProvider, tmp_path: Path) -> None:
        encoded = ssh_keygen(tmp_path, "rsa", "2048", PASSWORD.decode())
        with pytest.raises(KeyLoadError, match="encrypted; give its password"):
            provider.load_key(encoded)
        if importlib.util.find_spec("bcrypt"):
            assert provider.load_key(encoded, PASSWORD).bits == 2048
            with pytest.raises(KeyLoadError, match="wrong password"):
                provider.load_key(encoded, b"battery staple")
        else:
            with pytest.raises(KeyLoadError, match="install the package bcrypt"):
                provider.load_key(encoded, PASSWORD)

    @pytest.mark.parametrize("password", [None, PASSWORD])
    def test_a_key_with_its_certificates(self, provider: BatchingProvider, password: bytes | None) -> None:
        chain = certificate().public_bytes(Encoding.PEM) * 2
        key = encode(password=password)
        for bundle in (chain + key, key + chain, b"subject=CN = x\r\n" + chain + key.replace(b"\n", b"\r\n") + chain):
            assert provider.load_key(bundle, password).bits == 2048

    def test_an_empty_password_is_none(self, provider: BatchingProvider) -> None:
        assert provider.load_key(encode(), "").bits == 2048
        with pytest.raises(KeyLoadError, match="encrypted; give its password"):
            provider.load_key(encode(password=PASSWORD), b"")

    def test_traditional_encrypted_pem(self, provider: BatchingProvider) -> None:
        encoded = encode(format_=PrivateFormat.TraditionalOpenSSL, password=PASSWORD)
        assert provider.load_key(encoded, PASSWORD).bits == 2048

    @pytest.mark.parametrize("which", [(2048,), (2048, 3), (2056,), (3000,), (3000, 3), (3072,), (4096,), (4096, 3)])
    def test_sizes_and_exponents(self, provider: BatchingProvider, which: tuple[int] | tuple[int, Literal[3]]) -> None:
        bits, e = (*which, 65537)[:2]
        key = provider.load_key(private_key(*which))
        assert (key.bits, key.bytes, key.e) == (bits, bits // 8, e)


# (6 K + 1) (12 K + 1) (18 K + 1), each of them a prime: a Carmichael number, as Chernick found.
K = 0x3BB768ABCF780E648A7DD06839EB905B6E6E307D4BEDC51431193E6C3F3391A2B8F1FF1FD42A29756CFD9
CARMICHAEL = (6 * K + 1) * (12 * K + 1) * (18 * K + 1)


def numbers_of(key: rsa.RSAPrivateKey) -> dict[str, int]:
    numbers = key.private_numbers()
    return numbers_from(numbers.p, numbers.q) | {"d": numbers.d}


def numbers_from(p: int, q: int) -> dict[str, int]:
    d = pow(65537, -1, (p - 1) * (q - 1))
    crt = {"dp": d % (p - 1), "dq": d % (q - 1), "qinv": pow(q, -1, p)}
    return {"n": p * q, "e": 65537, "d": d, "p": p, "q": q, **crt}


def der_with(**changes: int) -> bytes:
    """The 2048-bit key as PKCS#1 DER with some of its numbers changed: what ``cryptography`` refuses to write."""
    values = numbers_of(private_key(2048)) | changes
    body = b"".join(_integer(number) for number in (0, *values.values()))
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


def _integer(number: int) -> bytes:
    content = number.to_bytes(number.bit_length() // 8 + 1, "big")
    length = bytes([len(content)]) if len(content) < 128 else b"\x82" + len(content).to_bytes(2, "big")
    return b"\x02" + length + content


class TestRefused:
    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            (b"", "empty"),
            (b"  \n", "empty"),
            (b"not a key", "neither PEM nor DER"),
            (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "neither PEM nor DER"),
            (b"\x30\x82\xff\xff", "neither PEM nor DER"),
        ],
    )
    def test_unreadable(self, provider: BatchingProvider, source: bytes, reason: str) -> None:
        with pytest.raises(KeyLoadError, match=reason):
            provider.load_key(source)

    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    def test_encrypted_without_a_password(self, provider: BatchingProvider, encoding: Encoding) -> None:
        with pytest.raises(KeyLoadError, match="encrypted; give its password"):
            provider.load_key(encode(encoding, password=PASSWORD))

    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    def test_a_wrong_password_which_is_not_repeated(self, provider: BatchingProvider, encoding: Encoding) -> None:
        with pytest.raises(KeyLoadError, match="wrong password") as caught:
            provider.load_key(encode(encoding, password=PASSWORD), b"battery staple")
        assert "battery" not in str(caught.value)

    @pytest.mark.parametrize(
        "source", [encode(), encode(Encoding.DER), encode(format_=PrivateFormat.OpenSSH), private_key(2048)]
    )
    def test_a_password_for_a_plain_key(self, provider: BatchingProvider, source: bytes) -> None:
        with pytest.raises(KeyLoadError, match="not encrypted"):
            provider.load_key(source, PASSWORD)

    def test_a_password_of_another_type(self, provider: BatchingProvider) -> None:
        with pytest.raises(KeyLoadError, match="must be bytes or str, not int"):
            provider.load_key(encode(), 1234)  # type: ignore[arg-type]

    def test_a_path_is_not_a_key(self, provider: BatchingProvider, tmp_path: Path) -> None:
        """Its text is not shown: it may be a key after all."""
        path = tmp_path / "key.pem"
        path.write_bytes(encode())
        for source in (str(path), str(path).encode(), path, "key.pem"):
            with pytest.raises(KeyLoadError, match="read_bytes") as caught:
                provider.load_key(source)  # type: ignore[arg-type]
            assert "key.pem" not in str(caught.value)

    def test_what_is_no_private_key_is_named(self, provider: BatchingProvider) -> None:
        public, request = private_key(2048).public_key(), x509.CertificateSigningRequestBuilder()
        signed = request.subject_name(x509.Name([])).sign(private_key(2048), hashes.SHA256())
        damaged = encode(format_=PrivateFormat.OpenSSH).replace(b"\nb3Blbn", b"\nb3Blbm")
        pkcs12 = serialize_key_and_certificates(b"x", private_key(2048), certificate(), None, NoEncryption())
        for source, words in (
            (certificate().public_bytes(Encoding.PEM), "a certificate; the private key is needed"),
            (certificate().public_bytes(Encoding.DER), "a certificate; the private key is needed"),
            (signed.public_bytes(Encoding.PEM), "PEM of the kind CERTIFICATE REQUEST; the private key is needed"),
            (signed.public_bytes(Encoding.DER), "a certificate request; the private key is needed"),
            (public.public_bytes(Encoding.PEM, PublicFormat.PKCS1), "a public key; the private key is needed"),
            (public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH), "an OpenSSH public key; the private"),
            (pkcs12, "a PKCS#12 file; take the private key out of it: openssl pkcs12"),
            (b"PuTTY-User-Key-File-3: ssh-rsa\n", "a PuTTY key; convert it: puttygen"),
            (encode().decode().encode("utf-16"), "text in UTF-16"),
            (encode() + encode(), "there are 2 private keys in it; give one of them"),
            (damaged, "the OpenSSH private key is damaged"),
        ):
            with pytest.raises(KeyLoadError, match=re.escape(words)):
                provider.load_key(source)

    def test_not_rsa(self, provider: BatchingProvider) -> None:
        for other in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
            encoded = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            with pytest.raises(KeyLoadError, match="not an RSA key"):
                provider.load_key(encoded)
            with pytest.raises(KeyLoadError, match="not an RSA key"):
                provider.load_key(other)
            with pytest.raises(KeyLoadError, match="not an RSA key"):
                provider.load_key(other.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))

    def test_a_public_key(self, provider: BatchingProvider) -> None:
        for encoded in (public_pem(private_key(2048)), public_der(private_key(2048))):
            with pytest.raises(KeyLoadError, match="public key"):
                provider.load_key(encoded)

    @pytest.mark.parametrize("bits", [1024, 4104])
    def test_a_size_that_is_not_served(self, provider: BatchingProvider, bits: int) -> None:
        with pytest.raises(KeyLoadError, match=f"has {bits} bits; it must have 2048 to 4096"):
            provider.load_key(private_key(bits))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"e": 65536}, "exponent is 65536; it must be odd"),
            ({"e": 1}, "exponent is 1; it must be odd and at least 3"),
            ({"e": 3}, "do not fit together"),
            ({"d": 12345678901}, "do not fit together"),
            ({"p": 3}, "do not fit together"),
            ({"n": (1 << 2047) + 1}, "do not fit together"),
            ({"n": 1 << 2047}, "modulus is even"),
        ],
    )
    def test_numbers_that_do_not_fit(self, provider: BatchingProvider, changes: dict[str, int], reason: str) -> None:
        with pytest.raises(KeyLoadError, match=reason):
            provider.load_key(der_with(**changes))

    @pytest.mark.parametrize("check_primes", [False, True])
    @pytest.mark.parametrize("name", ["n", "e", "d", "p", "q", "dp", "dq", "qinv"])
    def test_a_number_that_is_not_the_keys(self, provider: BatchingProvider, name: str, check_primes: bool) -> None:
        """Hazard: with one wrong CRT parameter, a faulty signature gives the factors away."""
        with pytest.raises(KeyLoadError, match="do not fit together"):
            provider.load_key(der_with(**{name: numbers_of(private_key(2048))[name] + 2}), check_primes=check_primes)

    def test_swapped_factors(self, provider: BatchingProvider) -> None:
        numbers = numbers_of(private_key(2048))
        with pytest.raises(KeyLoadError, match="do not fit together"):
            provider.load_key(der_with(p=numbers["q"], q=numbers["p"]))

    def test_a_factor_that_is_no_prime(self, provider: BatchingProvider) -> None:
        """Its numbers fit as if it were one, so that only computing tells."""
        ours, other = private_key(2048).private_numbers(), private_key(3072).private_numbers()
        with pytest.raises(KeyLoadError, match="do not fit together"):
            provider.load_key(der_with(**numbers_from(ours.p * 65539, other.q)))

    def test_a_factor_that_only_looks_like_a_prime(self, provider: BatchingProvider) -> None:
        """Computing with it gives right results, but whoever made it can factor the modulus sooner."""
        forged = der_with(**numbers_from(CARMICHAEL, private_key(2048).private_numbers().q))
        key = provider.load_key(forged)
        assert pow(provider.private_op(key, 3), key.e, key.n) == 3
        with pytest.raises(KeyLoadError, match="do not fit together"):
            provider.load_key(forged, check_primes=True)

    def test_checking_and_skipping_exclude_each_other(self, provider: BatchingProvider) -> None:
        with pytest.raises(InputError, match="exclude each other"):
            provider.load_key(private_key(2048), check_primes=True, unsafe_skip_rsa_key_validation=True)

    def test_another_type(self, provider: BatchingProvider) -> None:
        with pytest.raises(KeyLoadError, match="not as int"):
            provider.load_key(5)  # type: ignore[arg-type]


class TestMany:
    def test_hundreds_are_loaded_and_used_in_one_call(self, provider: BatchingProvider) -> None:
        """Hazard: preparing all of them in one batch takes so long that a watchdog gives the backend up."""
        one = encode(Encoding.DER)
        keys = [provider.load_key(one, unsafe_skip_rsa_key_validation=True) for _ in range(500)]
        x = np.zeros((len(keys), 32), np.uint64)
        x[:, 0] = np.arange(len(keys))
        before = provider.stats().fallbacks
        powers = provider.modexp(provider.private_op(keys, x), keys[0].e, keys[0].n)
        assert np.array_equal(powers, x)
        assert provider.stats().fallbacks == before

    @pytest.mark.parametrize("name", ["d", "p", "q", "dp", "dq", "qinv"])
    def test_an_unchecked_key_whose_numbers_are_wrong_gives_no_wrong_result(
        self, provider: BatchingProvider, name: str
    ) -> None:
        changed = der_with(**{name: numbers_of(private_key(2048))[name] + 2})
        key = provider.load_key(changed, unsafe_skip_rsa_key_validation=True)
        good = provider.load_key(encode())
        futures = [provider.submit(which, 3) for which in (key, good) * 10]
        for future in futures[::2]:
            if future.exception(timeout=30) is None:
                assert pow(future.result(), key.e, key.n) == 3
            else:
                assert isinstance(future.exception(), OperationError)
        assert {pow(future.result(timeout=30), good.e, good.n) for future in futures[1::2]} == {3}


class TestKey:
    def test_repr_and_errors_show_no_secret(self, provider: BatchingProvider) -> None:
        numbers = private_key(2048).private_numbers()
        shown = repr(provider.load_key(private_key(2048)))
        for secret in (numbers.d, numbers.p, numbers.q):
            assert str(secret) not in shown
            assert f"{secret:x}" not in shown

    @pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy])
    def test_a_copy_is_the_key_itself(self, provider: BatchingProvider, copy_of: Callable[[object], object]) -> None:
        """Hazard: ``cryptography`` says that every RSAPrivateKey can be copied."""
        key = provider.load_key(private_key(2048))
        assert copy_of(key) is key

    @pytest.mark.parametrize("copy_of", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_pickling_and_copying_say_what_to_do(
        self, provider: BatchingProvider, copy_of: Callable[[object], object]
    ) -> None:
        """Hazard: a program hands one to another process, by multiprocessing."""
        with pytest.raises(TypeError, match="load it in the other process"):
            pickle.dumps(provider.load_key(private_key(2048)))
        with pytest.raises(TypeError, match="make and start one in the other process"):
            copy_of(provider)
        with pytest.raises(TypeError, match="take it from a provider of the other process"):
            copy_of(provider.library_context)

    def test_a_closed_key_is_refused(self, provider: BatchingProvider) -> None:
        key = provider.load_key(private_key(2048))
        key.close()
        key.close()
        with pytest.raises(ProviderClosedError, match="key is closed"):
            provider.private_op(key, 2)

    def test_a_forgotten_key_is_collected(self, provider: BatchingProvider) -> None:
        key = provider.load_key(private_key(2048))
        reference = weakref.ref(key)
        del key
        gc.collect()
        assert reference() is None

    def test_handles_are_not_used_twice(self, provider: BatchingProvider) -> None:
        handles = []
        for _ in range(20):
            key = provider.load_key(private_key(2048))
            handles.append(key.handle)
            key.close()
        assert len(set(handles)) == 20

    def test_a_key_of_another_provider_is_refused(self, provider: BatchingProvider) -> None:
        with BatchingProvider() as other:
            key = other.load_key(private_key(2048))
            with pytest.raises(InputError, match="another provider"):
                provider.private_op(key, 2)


def test_key_errors_are_value_errors_under_the_one_root() -> None:
    assert issubclass(KeyLoadError, GpuProviderError)
    assert issubclass(KeyLoadError, ValueError)


def test_der_with_writes_a_valid_key(provider: BatchingProvider) -> None:
    """Checks the tests above: without a change, the DER is the key."""
    assert isinstance(private_key(2048), rsa.RSAPrivateKey)
    assert provider.load_key(der_with()).bits == 2048
