"""With our provider in place, a program must see what OpenSSL's default provider does in the same version of OpenSSL.

Each case is done by both, at the edges of what is accepted and beyond, and everything that a program could look at is
compared: the value returned, the output, what the call left of the output buffer, and every error in the queue.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from contextlib import contextmanager
from ctypes import byref, c_size_t, c_void_p
from typing import TYPE_CHECKING, Final

import evp_outcome as eo
import pytest
import rsa_keys
from evp_outcome import (
    INTEGER,
    NO_REJECTION,
    NONE,
    OAEP,
    OCTET_STRING,
    PKCS1,
    PSS,
    TLS,
    UNSIGNED,
    UTF8_STRING,
    X931,
    lib,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import evp
    from cryptography.hazmat.primitives.asymmetric import rsa

SECRET: Final = b"s" * 46
BITS: Final = [1024, 2048, 2049, 4096]
DIGEST_BYTES: Final = {
    "MD5": 16,
    "SHA1": 20,
    "SHA256": 32,
    "SHA384": 48,
    "SHA512": 64,
    "SHA512-256": 32,
    "SHA3-256": 32,
    "MD5-SHA1": 36,
    "RIPEMD160": 20,
    "SM3": 32,
}
X931_DIGESTS: Final = ["SHA1", "SHA256", "SHA384", "SHA512"]


@pytest.fixture(scope="module", params=["module", "batched"])
def libctxs(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    with eo.library_contexts(request.param) as both:
        yield both


@pytest.mark.parametrize("bits", BITS)
def test_signing(libctxs: tuple[int, int], bits: int) -> None:
    keys, size = eo.keys_of(libctxs, bits), (bits + 7) // 8
    edges = [0, 1, 16, 20, 31, 32, 36, 48, 64, size - 12, size - 11, size - 10, size - 1, size, size + 1]
    for mode, name in itertools.product((PKCS1, NONE, X931, OAEP, TLS), (None, *DIGEST_BYTES)):
        if mode == X931 and name not in X931_DIGESTS:
            continue  # setting it fails: what a program that went on signed nobody could verify
        settings = [*([eo.digest(name)] if name else []), eo.padding(mode)]
        for length in edges if name in {None, "SHA256"} else [DIGEST_BYTES[str(name)], size]:
            for capacity in (None, size - 1, size, size + 1) if length in {32, size} else (size,):
                eo.assert_alike(keys, eo.done, "sign", settings, b"\1" * length, capacity)


@pytest.mark.parametrize("bits", BITS)
def test_raw_operations(libctxs: tuple[int, int], bits: int) -> None:
    keys, size = eo.keys_of(libctxs, bits), (bits + 7) // 8
    n = rsa_keys.private_key(bits).public_key().public_numbers().n
    for name, value in itertools.product(("sign", "decrypt", "encrypt"), (0, 1, n - 1, n, n + 1, (1 << 8 * size) - 1)):
        eo.assert_alike(keys, eo.done, name, [eo.padding(NONE)], value.to_bytes(size, "big"), size)


def signed_with_salt(
    key: evp.Key, settings: list[eo.Setting], data: bytes, size: int, signatures: list[bytes]
) -> list[eo.Outcome]:
    with eo.operation(key, "sign", settings) as context:
        done = eo.call("EVP_PKEY_sign", context, data, len(data), capacity=size)
        signatures.append(done.written)
        kinds = (INTEGER, UTF8_STRING)
        return [done.without_output, *(eo.got("EVP_PKEY_CTX_get_params", context, "saltlen", kind) for kind in kinds)]


def verified(key: evp.Key, settings: list[eo.Setting], signature: bytes, data: bytes) -> eo.Outcome:
    with eo.operation(key, "verify", settings) as context:
        return eo.outcome(lib.EVP_PKEY_verify(context, signature, len(signature), data, len(data)))


@pytest.mark.parametrize("bits", BITS)
def test_pss(libctxs: tuple[int, int], bits: int) -> None:
    """The salt is random: what one signs, both must verify, with each spelling of the salt's length."""
    keys, size = eo.keys_of(libctxs, bits), (bits + 7) // 8
    lengths = [(INTEGER, length) for length in (-4, -3, -2, -1, 0, 20, size - 35, size - 34, size - 33)]
    salts: list[list[eo.Setting]] = [[], *([("saltlen", *length)] for length in lengths)]
    salts += [[("saltlen", UTF8_STRING, text)] for text in ("digest", "max", "auto", "20")]
    for name, mgf1, salt in itertools.product(("SHA1", "SHA256", "SHA512"), (None, "SHA384"), salts):
        first: list[eo.Setting] = [eo.digest(name), eo.padding(PSS)]
        first += [("mgf1-digest", UTF8_STRING, mgf1)] if mgf1 else []
        data, signatures = bytes(DIGEST_BYTES[name]), list[bytes]()
        eo.assert_alike(keys, signed_with_salt, first + salt, data, size, signatures)
        for signature, tried in itertools.product(signatures, ([], [("saltlen", INTEGER, -1)], salt)):
            eo.assert_alike(keys, verified, [*first, *tried], signature, data)


@pytest.mark.parametrize("bits", [1024, 2048])
def test_verifying_and_recovering(libctxs: tuple[int, int], bits: int) -> None:
    keys, size = eo.keys_of(libctxs, bits), (bits + 7) // 8
    for mode, name in itertools.product((PKCS1, NONE, X931, OAEP), (None, "SHA256", "MD5-SHA1", "RIPEMD160")):
        settings = [*([eo.digest(name)] if name else []), eo.padding(mode)]
        data = b"\1" * (size if mode == NONE else DIGEST_BYTES.get(name or "", 32))
        signature = eo.done(keys[0], "sign", settings, data, size).written or bytes(size)
        for tried in (signature, signature[:-1], signature + b"\0", bytes(size), b"\xff" * size, b""):
            for text in (data, data[1:], data + b"x"):
                eo.assert_alike(keys, verified, settings, tried, text)
            for capacity in (None, 0, 20, 32, size - 1, size):
                eo.assert_alike(keys, eo.done, "verify_recover", settings, tried, capacity)


def ciphertexts(key: rsa.RSAPrivateKey) -> list[bytes]:
    """Of well and badly padded messages, and what is no ciphertext at all."""
    public = key.public_key().public_numbers()
    size = (public.n.bit_length() + 7) // 8
    padded = b"\0\2" + b"\7" * (size - 6) + b"\0abc"
    premaster = b"\0\2" + b"\7" * (size - 51) + b"\0\3\3" + SECRET
    good = [padded, premaster, b"\0\2" + b"\7" * 8 + b"\0" + b"m" * (size - 11), b"\0\2" + b"\7" * (size - 3) + b"\0"]
    bad = [bytes(size), b"\0\1" + padded[2:], padded.replace(b"\0a", b"\1a"), b"\0\2\7\7\0" + padded[5:]]
    values = [pow(int.from_bytes(text, "big"), public.e, public.n) for text in (*good, *bad)]
    values += [0, 1, public.n - 1, public.n, public.n + 1, (1 << 8 * size) - 1]
    whole = [value.to_bytes(size, "big") for value in values]
    return [*whole, b"", b"\1", b"\7" * (size - 1), bytes(size + 1), b"\0" + whole[0], b"\7" * (2 * size)]


@pytest.mark.parametrize("bits", BITS)
def test_decrypting(libctxs: tuple[int, int], bits: int) -> None:
    keys, size = eo.keys_of(libctxs, bits), (bits + 7) // 8
    oaep: list[list[eo.Setting]] = [
        [],
        [eo.digest("SHA256")],
        [eo.digest("RIPEMD160")],
        [("mgf1-digest", UTF8_STRING, "SHA512"), ("oaep-label", OCTET_STRING, b"a\0label")],
        [eo.digest("SHA512")],
        [eo.digest("SHAKE128")],
    ]
    rejection: list[list[eo.Setting]] = [[], *([("implicit-rejection", UNSIGNED, value)] for value in (0, 1))]
    several = [[eo.padding(mode), *more] for mode in (PKCS1, NO_REJECTION, X931, 0, 99) for more in rejection]
    several += [[eo.padding(NONE)], *([eo.padding(OAEP), *more] for more in oaep)]
    for settings in several:
        own = eo.done(keys[0], "encrypt", settings, b"hello", size).written
        for capacity in (None, 0, 47, 48, size - 11, size - 1, size, size + 1) if own else ():
            eo.assert_alike(keys, eo.done, "decrypt", settings, own, capacity)
        for ciphertext in ciphertexts(rsa_keys.private_key(bits)):
            eo.assert_alike(keys, eo.done, "decrypt", settings, ciphertext, size)


def test_decrypting_whatever_comes(libctxs: tuple[int, int]) -> None:
    keys = eo.keys_of(libctxs, 2048)
    n = rsa_keys.private_key(2048).public_key().public_numbers().n
    for mode, _ in itertools.product((PKCS1, NONE, OAEP), range(20)):
        ciphertext = (int.from_bytes(os.urandom(256), "big") % n).to_bytes(256, "big")
        eo.assert_alike(keys, eo.done, "decrypt", [eo.padding(mode)], ciphertext, 256)


def premaster(key: evp.Key, settings: list[eo.Setting], ciphertext: bytes, capacity: int | None) -> eo.Outcome:
    """A wrong one becomes random bytes."""
    done = eo.done(key, "decrypt", settings, ciphertext, capacity)
    return done if SECRET in done.written else done.without_output


@pytest.mark.parametrize("bits", BITS)
def test_premaster_secrets(libctxs: tuple[int, int], bits: int) -> None:
    keys, size = eo.keys_of(libctxs, bits), (bits + 7) // 8
    for client, negotiated in itertools.product((None, 0, 0x0303, 0x0301, 0x10303), (None, 0x0303, 0x0302)):
        settings = [eo.padding(TLS)]
        settings += [("tls-client-version", UNSIGNED, client)] if client is not None else []
        settings += [("tls-negotiated-version", UNSIGNED, negotiated)] if negotiated is not None else []
        for ciphertext in ciphertexts(rsa_keys.private_key(bits)):
            for capacity in (None, 47, 48, size):
                eo.assert_alike(keys, premaster, settings, ciphertext, capacity)


def encrypted(key: evp.Key, mode: int, length: int, capacity: int | None) -> eo.Outcome:
    done = eo.done(key, "encrypt", [eo.padding(mode)], b"\1" * length, capacity)
    return done if mode == NONE else done.without_output


@pytest.mark.parametrize("bits", BITS)
def test_encrypting(libctxs: tuple[int, int], bits: int) -> None:
    keys, size = eo.keys_of(libctxs, bits), (bits + 7) // 8
    lengths = (0, 1, size - 42, size - 41, size - 11, size - 10, size - 1, size, size + 1)
    for mode, length, capacity in itertools.product((PKCS1, NONE, OAEP, X931, PSS), lengths, (None, size - 1, size)):
        eo.assert_alike(keys, encrypted, mode, length, capacity)


# ---- in what order, and with what key ----


def message_steps(
    key: evp.Key, name: str, settings: list[eo.Setting], signature: bytes, steps: str
) -> list[eo.Outcome]:
    """u: a piece of the message. s: the signature's size is asked for. f: finish. i: start again, without a digest.
    d: go on with a copy. c: the digest is changed.
    """
    context, options = lib.EVP_MD_CTX_new(), c_void_p()
    init, update = getattr(lib, f"EVP_Digest{name}Init_ex"), getattr(lib, f"EVP_Digest{name}Update")
    lib.ERR_clear_error()
    outcomes = [eo.outcome(init(context, byref(options), b"SHA256", key.libctx, None, key.pointer, None))]
    for setting in settings:
        with eo.params([setting]) as array:
            outcomes.append(eo.outcome(lib.EVP_PKEY_CTX_set_params(options, array)))
    for step in steps:
        if step == "u":
            outcomes.append(eo.outcome(update(context, b"abc", 3)))
        elif step == "f" and name == "Verify":
            outcomes.append(eo.outcome(lib.EVP_DigestVerifyFinal(context, signature, len(signature))))
        elif step in "fs":
            outcomes.append(eo.call("EVP_DigestSignFinal", context, capacity=256 if step == "f" else None))
        elif step == "i":
            outcomes.append(eo.outcome(init(context, byref(options), None, key.libctx, None, None, None)))
        elif step == "c":
            with eo.params([eo.digest("SHA512")]) as array:
                outcomes.append(eo.outcome(lib.EVP_PKEY_CTX_set_params(options, array)))
        else:
            copy = lib.EVP_MD_CTX_new()
            outcomes.append(eo.outcome(lib.EVP_MD_CTX_copy_ex(copy, context)))
            lib.EVP_MD_CTX_free(context)
            context, options = copy, c_void_p(lib.EVP_MD_CTX_get_pkey_ctx(copy))
    lib.EVP_MD_CTX_free(context)
    return outcomes


@pytest.mark.parametrize("name", ["Sign", "Verify"])
@pytest.mark.parametrize("mode", [None, X931, NONE, PSS])
def test_order_of_calls(libctxs: tuple[int, int], name: str, mode: int | None) -> None:
    keys = eo.keys_of(libctxs, 2048)
    settings = [eo.padding(mode)] if mode is not None else []
    settings += [("saltlen", INTEGER, 0)] if mode == PSS else []
    signature = message_steps(keys[0], "Sign", settings, b"", "uf")[-1].written
    plans = ["uf", "f", "ff", "uuf", "ufuf", "usf", "ufs", "udf", "dudf", "ufdf", "uif", "ufiuf", "cuf", "ucf", "ufcuf"]
    for steps in plans:
        eo.assert_alike(keys, message_steps, name, settings, signature, steps)


@pytest.mark.parametrize("name", ["sign", "decrypt"])
@pytest.mark.parametrize("mode", [PKCS1, NONE, OAEP, PSS, X931, TLS])
def test_a_public_key_has_no_private_operation(libctxs: tuple[int, int], name: str, mode: int) -> None:
    keys = eo.keys_of(libctxs, 2048, private=False)
    hashed = name == "sign" and mode != NONE
    settings = [*([eo.digest("SHA256")] if hashed else []), eo.padding(mode), ("tls-client-version", UNSIGNED, 0x0303)]
    eo.assert_alike(keys, eo.done, name, settings, bytes(32 if hashed else 256), 256)


@contextmanager
def encapsulation(key: evp.Key, name: str) -> Iterator[int]:
    context = lib.EVP_PKEY_CTX_new_from_pkey(key.libctx, key.pointer, None)
    assert getattr(lib, f"EVP_PKEY_{name}_init")(context, None) == 1
    assert lib.EVP_PKEY_CTX_set_kem_op(context, b"RSASVE") == 1
    yield context
    lib.EVP_PKEY_CTX_free(context)


def test_key_encapsulation(libctxs: tuple[int, int]) -> None:
    """We do not offer it: OpenSSL is to take the key to the default provider."""
    for key in eo.keys_of(libctxs, 2048):
        ciphertext, secret, opened = (ctypes.create_string_buffer(256) for _ in range(3))
        sizes = [c_size_t(256) for _ in range(3)]
        with encapsulation(key, "encapsulate") as context:
            assert lib.EVP_PKEY_encapsulate(context, ciphertext, byref(sizes[0]), secret, byref(sizes[1])) == 1
        with encapsulation(key, "decapsulate") as context:
            assert lib.EVP_PKEY_decapsulate(context, opened, byref(sizes[2]), ciphertext.raw, 256) == 1
        assert opened.raw == secret.raw
