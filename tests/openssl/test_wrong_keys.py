"""Private keys whose numbers do not belong together: no wrong result may leave.

A wrong signature can give the factors away. OpenSSL verifies what it computes with the factors, and computes a wrong
result again with d, but that it does not verify.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import evp
import evp_outcome
import pytest
import rsa_keys
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from gpu_provider import BatchingProvider

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE = b"message"
REFUSED = r"private part does not belong|private operation failed"
CRT = {
    "rsa-factor1": "p",
    "rsa-factor2": "q",
    "rsa-exponent1": "dmp1",
    "rsa-exponent2": "dmq1",
    "rsa-coefficient1": "iqmp",
}
SCHEMES = {
    "pkcs1": {"digest": "SHA256"},
    "pss": {"digest": "SHA256"} | evp.pss(),
    "none": {"rsa_padding_mode": "none"},
    "x931": {"digest": "SHA256", "rsa_padding_mode": "x931"},
    "left to the default provider": {"digest": "RIPEMD160"},
}


@pytest.fixture(scope="module", params=["module", "batched"])
def libctx(request: pytest.FixtureRequest) -> Iterator[int]:
    with evp_outcome.our_library_context(request.param) as context:
        yield context


def key_with(libctx: int, changes: dict[str, int], *, crt: bool = True) -> evp.Key:
    """A key with these numbers added to its own. Nothing is refused yet: to try it would cost an operation."""
    numbers = rsa_keys.private_key(2048).private_numbers()
    parts = {"n": numbers.public_numbers.n, "e": numbers.public_numbers.e, "d": numbers.d}
    if crt:
        parts |= {name: getattr(numbers, attribute) for name, attribute in CRT.items()}
    key = evp.Key.from_numbers(libctx, **{name: value + changes.get(name, 0) for name, value in parts.items()})
    assert key.provider == evp.NAME
    return key


def assert_computes_nothing(key: evp.Key) -> None:
    for name, options in SCHEMES.items():
        data = bytes(255) + b"\2" if name == "none" else bytes(20 if "RIPEMD160" in options.values() else 32)
        with pytest.raises(evp.EvpError, match=REFUSED):
            key.sign(data, options)
    for digest, options in (("SHA256", {}), ("SHA256", evp.pss()), ("RIPEMD160", {})):
        with pytest.raises(evp.EvpError, match=REFUSED):
            key.digest_sign(digest, MESSAGE, options)
    for options in ({}, evp.oaep(), {"rsa_padding_mode": "none"}):
        with pytest.raises(evp.EvpError, match=REFUSED):
            key.decrypt(bytes(255) + b"\2", options)
    with pytest.raises(evp.EvpError, match=REFUSED):
        key.decrypt_premaster(bytes(255) + b"\2", 0x0303)


@pytest.mark.parametrize("change", [2, -2, 1 << 2000])
def test_wrong_private_exponent_without_factors(libctx: int, change: int) -> None:
    key = key_with(libctx, {"d": change}, crt=False)
    assert_computes_nothing(key)
    assert not key.valid("pairwise")


@pytest.mark.parametrize("name", ["rsa-exponent1", "rsa-exponent2", "rsa-coefficient1"])
def test_wrong_private_exponent_behind_a_wrong_crt_parameter(libctx: int, name: str) -> None:
    assert_computes_nothing(key_with(libctx, {"d": 2, name: 2}))


@pytest.mark.parametrize("name", ["rsa-exponent1", "rsa-exponent2", "rsa-coefficient1"])
def test_wrong_crt_parameter_with_the_right_private_exponent(libctx: int, name: str) -> None:
    """OpenSSL computes with d then, and the result is right."""
    theirs = rsa_keys.private_key(2048)
    key = key_with(libctx, {name: 2})
    assert key.digest_sign("SHA256", MESSAGE, {}) == theirs.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    assert key.decrypt(theirs.public_key().encrypt(MESSAGE, padding.PKCS1v15()), {}) == MESSAGE


def test_wrong_private_exponent_that_is_not_needed(libctx: int) -> None:
    """With factors, OpenSSL has no use for d."""
    theirs = rsa_keys.private_key(2048)
    key = key_with(libctx, {"d": 2})
    assert key.digest_sign("SHA256", MESSAGE, {}) == theirs.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())


def test_wrong_key_costs_other_keys_nothing() -> None:
    """It is no fault of the backend, which must stay in use."""
    theirs = rsa_keys.private_key(2048)
    with BatchingProvider() as provider:
        libctx = provider.library_context.pointer
        wrong, right = key_with(libctx, {"d": 2}, crt=False), key_with(libctx, {})
        for _ in range(5):
            with pytest.raises(evp.EvpError, match="private operation failed"):
                wrong.digest_sign("SHA256", MESSAGE, {})
            expected = theirs.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())
            assert right.digest_sign("SHA256", MESSAGE, {}) == expected
        stats = provider.stats()
        assert (stats.completed, stats.failed, stats.fallbacks) == (10, 5, 0)
        del wrong, right
