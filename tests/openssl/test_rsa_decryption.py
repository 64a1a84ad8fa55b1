"""What decryption does with bad padding: it must not tell, or tell all kinds of it alike.

PKCS#1 v1.5 with implicit rejection is compared with the algorithm of draft-irtf-cfrg-rsa-guidance written down here,
and with ``cryptography``, whose OpenSSL has it too; the system's OpenSSL 3.0 has not.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import TYPE_CHECKING

import evp
import evp_outcome
import pytest
import rsa_keys
from cryptography.hazmat.primitives.asymmetric import padding, rsa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZES = [2048, 2049, 2056, 3000, 4096]
TLS_1_2, TLS_1_1 = 0x0303, 0x0302


@pytest.fixture(scope="module", params=["module", "batched"])
def libctx(request: pytest.FixtureRequest) -> Iterator[int]:
    with evp_outcome.our_library_context(request.param) as context:
        yield context


def encrypt_encoded(key: rsa.RSAPrivateKey, encoded: bytes) -> bytes:
    """The ciphertext that decrypts to this encoded message, be it padded well or not."""
    public = key.public_key().public_numbers()
    assert int.from_bytes(encoded, "big") < public.n
    return pow(int.from_bytes(encoded, "big"), public.e, public.n).to_bytes(len(encoded), "big")


def _prf(key: bytes, label: bytes, size: int) -> bytes:
    bits = (size * 8).to_bytes(2, "big")
    blocks = (size + 31) // 32
    output = b"".join(hmac.digest(key, i.to_bytes(2, "big") + label + bits, "sha256") for i in range(blocks))
    return output[:size]


def guidance_decrypt(key: rsa.RSAPrivateKey, ciphertext: bytes) -> bytes:
    """PKCS#1 v1.5 decryption of draft-irtf-cfrg-rsa-guidance, section 7."""
    numbers, size = key.private_numbers(), len(ciphertext)
    encoded = pow(int.from_bytes(ciphertext, "big"), numbers.d, numbers.public_numbers.n).to_bytes(size, "big")
    kdk = hmac.digest(hashlib.sha256(numbers.d.to_bytes(size, "big")).digest(), ciphertext, "sha256")
    candidates, message = _prf(kdk, b"length", 256), _prf(kdk, b"message", size)
    longest = size - 10
    mask = (1 << longest.bit_length()) - 1
    length = 0
    for i in range(0, 256, 2):
        candidate = int.from_bytes(candidates[i : i + 2], "big") & mask
        if candidate < longest:
            length = candidate
    separator = encoded.find(0, 2)
    if encoded[:2] == b"\0\2" and separator >= 10:
        return encoded[separator + 1 :]
    return message[size - length :]


def nonzero(size: int) -> bytes:
    return bytes(1 + byte % 255 for byte in os.urandom(size))


BAD_PADDING: dict[str, Callable[[int], bytes]] = {
    "first byte not 0": lambda size: b"\1\2" + nonzero(size - 6) + b"\0abc",
    "type 1": lambda size: b"\0\1" + b"\xff" * (size - 6) + b"\0abc",
    "type 0": lambda size: bytes(size - 3) + b"abc",
    "no separator": lambda size: b"\0\2" + nonzero(size - 2),
    "seven bytes of padding": lambda size: b"\0\2" + nonzero(7) + b"\0" + nonzero(size - 10),
    "no padding": lambda size: b"\0\2\0" + nonzero(size - 3),
    "zero": bytes,
}
GOOD_PADDING: dict[str, Callable[[int], bytes]] = {
    "eight bytes of padding": lambda size: b"\0\2" + nonzero(8) + b"\0" + nonzero(size - 11),
    "empty message": lambda size: b"\0\2" + nonzero(size - 3) + b"\0",
    "zeros in the message": lambda size: b"\0\2" + nonzero(size - 13) + bytes(11),
}


@pytest.fixture
def rejecting(tmp_path: Path) -> Iterator[int]:
    """A library context whose module is set to reject implicitly, in whatever version of OpenSSL."""
    with evp.LibraryContext.configured(tmp_path / "openssl.cnf", "implicit-rejection = 1") as context:
        yield context.pointer


@pytest.mark.parametrize("bits", [1024, *SIZES])
@pytest.mark.parametrize("encoding", [*BAD_PADDING, *GOOD_PADDING])
def test_implicit_rejection_as_the_draft_says(rejecting: int, bits: int, encoding: str) -> None:
    theirs, size = rsa_keys.private_key(bits), (bits + 7) // 8
    ours = evp.Key.load(rejecting, rsa_keys.private_der(theirs))
    encoded = (BAD_PADDING | GOOD_PADDING)[encoding](size)
    ciphertext = encrypt_encoded(theirs, encoded)
    message = ours.decrypt(ciphertext, {})
    assert message == guidance_decrypt(theirs, ciphertext)
    assert message == theirs.decrypt(ciphertext, padding.PKCS1v15())
    assert message == ours.decrypt(ciphertext, {})
    if encoding in GOOD_PADDING:
        assert encoded.endswith(b"\0" + message)


def test_short_ciphertexts_reject_implicitly_as_the_numbers_that_they_are(rejecting: int) -> None:
    theirs = rsa_keys.private_key(2048)
    ours = evp.Key.load(rejecting, rsa_keys.private_der(theirs))
    for ciphertext in (b"\7", b"\7" * 200, b"\7" * 255):
        assert ours.decrypt(ciphertext, {}) == guidance_decrypt(theirs, ciphertext.rjust(256, b"\0"))


def test_random_ciphertexts_decrypt_as_the_draft_says(rejecting: int) -> None:
    theirs = rsa_keys.private_key(2048)
    ours = evp.Key.load(rejecting, rsa_keys.private_der(theirs))
    n = theirs.public_key().public_numbers().n
    for _ in range(60):
        ciphertext = (int.from_bytes(os.urandom(256), "big") % n).to_bytes(256, "big")
        assert ours.decrypt(ciphertext, {}) == guidance_decrypt(theirs, ciphertext)


def test_a_program_can_not_undo_the_setting(rejecting: int) -> None:
    theirs = rsa_keys.private_key(2048)
    ours = evp.Key.load(rejecting, rsa_keys.private_der(theirs))
    no_rejection = ("implicit-rejection", evp_outcome.UNSIGNED, 0)
    with ours.operation("decrypt") as context, evp_outcome.params([no_rejection]) as array:
        assert evp_outcome.lib.EVP_PKEY_CTX_set_params(context, array) == 0
    assert "set to reject implicitly always" in evp_outcome.describe(evp_outcome.errors())
    ciphertext = encrypt_encoded(theirs, BAD_PADDING["type 1"](256))
    with ours.operation("decrypt") as context:
        evp_outcome.lib.EVP_PKEY_CTX_set_rsa_padding(context, evp_outcome.NO_REJECTION)
        done = evp_outcome.call("EVP_PKEY_decrypt", context, ciphertext, 256, capacity=256)
    assert done.result <= 0 or guidance_decrypt(theirs, ciphertext) == done.written


@pytest.mark.parametrize(("value", "strict"), [("1", True), ("yes", True), ("0", False)])
def test_any_value_but_0_is_the_strict_one(tmp_path: Path, value: str, strict: bool) -> None:
    """OpenSSL goes on without a provider that fails to start, so a value that makes no sense can't be an error."""
    theirs = rsa_keys.private_key(2048)
    with evp.LibraryContext.configured(tmp_path / "openssl.cnf", f"implicit-rejection = {value}") as context:
        ours = evp.Key.load(context.pointer, rsa_keys.private_der(theirs))
        with ours.operation("decrypt") as operation, evp_outcome.params([("implicit-rejection", 2, 0)]) as array:
            accepted = evp_outcome.lib.EVP_PKEY_CTX_set_params(operation, array) == 1
        assert accepted != strict
        del ours


@pytest.mark.parametrize("encoding", BAD_PADDING)
def test_bad_padding_is_all_alike(libctx: int, encoding: str) -> None:
    """Bleichenbacher's attack lives on telling one kind from another. The version of OpenSSL decides whether it is an
    error or an invented message.
    """
    theirs = rsa_keys.private_key(2048)
    ours = evp.Key.load(libctx, rsa_keys.private_der(theirs))
    ciphertext = encrypt_encoded(theirs, BAD_PADDING[encoding](256))
    with ours.operation("decrypt") as context:
        done = evp_outcome.call("EVP_PKEY_decrypt", context, ciphertext, 256, capacity=256)
    if done.result == 1:
        assert done.written == guidance_decrypt(theirs, ciphertext)
    else:
        reasons = evp_outcome.describe(done.errors)
        assert reasons.count("error:") == 2
        assert "pkcs decoding error" in reasons
        assert "padding check failed" in reasons
        assert not done.written, "the buffer was written to"


# ---- OAEP ----


def mgf1(seed: bytes, size: int) -> bytes:
    blocks = (hashlib.sha256(seed + i.to_bytes(4, "big")).digest() for i in range((size + 31) // 32))
    return b"".join(blocks)[:size]


def xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def oaep_encode(size: int, block: bytes, first: int = 0) -> bytes:
    seed = os.urandom(32)
    masked_block = xor(block, mgf1(seed, len(block)))
    encoded = bytes([first]) + xor(seed, mgf1(masked_block, 32)) + masked_block
    assert len(encoded) == size
    return encoded


LABEL_HASH = hashlib.sha256(b"").digest()


def test_oaep_decodes_the_longest_and_shortest_message(libctx: int) -> None:
    theirs = rsa_keys.private_key(2048)
    ours = evp.Key.load(libctx, rsa_keys.private_der(theirs))
    for message in (b"", b"\1", bytes(190), nonzero(190), b"\1" * 190, nonzero(189)):
        block = LABEL_HASH + bytes(190 - len(message)) + b"\1" + message
        assert ours.decrypt(encrypt_encoded(theirs, oaep_encode(256, block)), evp.oaep("sha256")) == message


def test_oaep_errors_are_all_alike(libctx: int) -> None:
    """Manger's attack lives on telling a wrong first byte from other bad padding."""
    theirs = rsa_keys.private_key(2048)
    ours = evp.Key.load(libctx, rsa_keys.private_der(theirs))
    good = LABEL_HASH + bytes(180) + b"\1" + bytes(10)
    bad = [
        oaep_encode(256, good, first=1),
        oaep_encode(256, xor(good, b"\1" + bytes(222))),
        oaep_encode(256, LABEL_HASH + bytes(191)),
        oaep_encode(256, LABEL_HASH + bytes(100) + b"\2" + bytes(79) + b"\1" + bytes(10)),
        oaep_encode(256, LABEL_HASH + b"\xff" * 191),
    ]
    errors = set()
    for encoded in bad:
        if int.from_bytes(encoded, "big") < theirs.public_key().public_numbers().n:
            with pytest.raises(evp.EvpError) as caught:
                ours.decrypt(encrypt_encoded(theirs, encoded), evp.oaep("sha256"))
            errors.add(str(caught.value))
    assert len(errors) == 1
    assert "oaep decoding error" in errors.pop()
    assert ours.decrypt(encrypt_encoded(theirs, oaep_encode(256, good)), evp.oaep("sha256")) == bytes(10)


def test_oaep_with_a_digest_too_long_for_the_key_is_refused(libctx: int) -> None:
    ours = evp.Key.load(libctx, rsa_keys.private_der(rsa_keys.private_key(1024)))
    with pytest.raises(evp.EvpError):
        ours.decrypt(bytes(128), evp.oaep("sha512"))


# ---- the TLS premaster secret ----


def tls_message(version: int, size: int = 256) -> tuple[bytes, bytes]:
    premaster = version.to_bytes(2, "big") + os.urandom(46)
    return b"\0\2" + nonzero(size - 51) + b"\0" + premaster, premaster


@pytest.mark.parametrize("bits", SIZES)
def test_premaster_of_a_good_message(libctx: int, bits: int) -> None:
    theirs = rsa_keys.private_key(bits)
    ours = evp.Key.load(libctx, rsa_keys.private_der(theirs))
    encoded, premaster = tls_message(TLS_1_2, (bits + 7) // 8)
    ciphertext = encrypt_encoded(theirs, encoded)
    assert ours.decrypt_premaster(ciphertext, TLS_1_2) == premaster
    assert ours.decrypt_premaster(ciphertext, TLS_1_1, TLS_1_2) == premaster
    assert ours.decrypt_premaster(ciphertext, TLS_1_1) != premaster


def test_premaster_of_a_bad_message_is_random(libctx: int) -> None:
    theirs = rsa_keys.private_key(2048)
    ours = evp.Key.load(libctx, rsa_keys.private_der(theirs))
    good, premaster = tls_message(TLS_1_2)
    bad = [
        b"\0\1" + good[2:],
        good[:2] + b"\0" + good[3:],
        good[:206] + b"\0" + good[207:],
        good[:207] + b"\1" + good[208:],
        good[:208] + b"\3\2" + good[210:],
        good[:209] + b"\0" + good[210:],
        bytes(256),
    ]
    assert ours.decrypt_premaster(encrypt_encoded(theirs, good), TLS_1_2) == premaster
    for encoded in bad:
        ciphertext = encrypt_encoded(theirs, encoded)
        first, second = ours.decrypt_premaster(ciphertext, TLS_1_2), ours.decrypt_premaster(ciphertext, TLS_1_2)
        assert len(first) == len(second) == 48
        assert first != second
        assert not {first, second} & {premaster, encoded[-48:]}


def test_premaster_needs_the_clients_version(libctx: int) -> None:
    theirs = rsa_keys.private_key(2048)
    ours = evp.Key.load(libctx, rsa_keys.private_der(theirs))
    with pytest.raises(evp.EvpError, match="bad tls client version"):
        ours.decrypt_premaster(encrypt_encoded(theirs, tls_message(TLS_1_2)[0]), 0)
