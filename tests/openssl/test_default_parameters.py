"""With our provider in place, a program must find the parameters of OpenSSL's default provider in the same version.

Lists are compared, and for each value that might be set: whether it is taken, the errors queued, and what can be read
then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import evp
import evp_outcome as eo
import pytest
import rsa_keys
from evp_outcome import INTEGER, OCTET_STRING, UNSIGNED, UTF8_STRING, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

OPERATIONS: Final = ["sign", "verify", "verify_recover", "encrypt", "decrypt"]
DIGESTS: Final = [
    "SHA1",
    "SHA256",
    "SHA512-256",
    "MD5-SHA1",
    "RIPEMD160",
    "SHAKE128",
    "MD4",
    "NULL",
    "none",
    "",
    "x" * 60,
]
PADDINGS: Final = ["pkcs1", "none", "oaep", "oeap", "x931", "pss", "sslv23", "no", ""]
SALTS: Final = ["digest", "max", "auto", "auto-digestmax", "20", "x", ""]
VALUES: Final[dict[str, list[tuple[int, eo.Value]]]] = {
    "pad-mode": [
        *((INTEGER, mode) for mode in range(-1, 10)),
        (UNSIGNED, 1),
        *((UTF8_STRING, name) for name in PADDINGS),
    ],
    "saltlen": [*((INTEGER, size) for size in (-5, -4, -3, -2, -1, 0, 9999)), *((UTF8_STRING, name) for name in SALTS)],
    "digest": [*((UTF8_STRING, name) for name in DIGESTS), (INTEGER, 1)],
    "mgf1-digest": [*((UTF8_STRING, name) for name in DIGESTS), (OCTET_STRING, b"SHA1")],
    "properties": [(UTF8_STRING, "provider=default")],
    "digest-props": [(UTF8_STRING, "provider=default")],
    "mgf1-properties": [(UTF8_STRING, "provider=none")],
    "oaep-label": [(OCTET_STRING, b""), (OCTET_STRING, b"a\0label"), (UTF8_STRING, "label"), (INTEGER, 1)],
    "tls-client-version": [(UNSIGNED, 0), (UNSIGNED, 0x0303), (INTEGER, 3), (UTF8_STRING, "3")],
    "tls-negotiated-version": [(UNSIGNED, 0x0302), (UTF8_STRING, "")],
    "implicit-rejection": [(UNSIGNED, 0), (UNSIGNED, 1), (UNSIGNED, 7), (INTEGER, -1), (UTF8_STRING, "0")],
    "algorithm-id": [(OCTET_STRING, b"")],
    "no-such": [(INTEGER, 1)],
}


@pytest.fixture(scope="module", params=["module", "batched"])
def libctxs(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    with eo.library_contexts(request.param) as both:
        yield both


def key_parameter(key: evp.Key, name: str, data_type: int) -> eo.Outcome:
    return eo.got("EVP_PKEY_get_params", key.pointer, name, data_type)


@pytest.mark.parametrize("private", [True, False], ids=["private", "public"])
def test_key_parameters(libctxs: tuple[int, int], private: bool) -> None:
    keys = eo.keys_of(libctxs, 2048, private=private)
    theirs, ours = (eo.listed(lib.EVP_PKEY_gettable_params(key.pointer)) for key in keys)
    assert theirs == ours
    for name, data_type in [*theirs, ("no-such", INTEGER)]:
        eo.assert_alike(keys, key_parameter, name, data_type)


def test_what_keys_are_made_from(libctxs: tuple[int, int]) -> None:
    lists = []
    for libctx in libctxs:
        context = lib.EVP_PKEY_CTX_new_from_name(libctx, b"RSA", None)
        assert lib.EVP_PKEY_fromdata_init(context) == 1
        selections = (0, 0x84, evp.PUBLIC_KEY, evp.KEY_PAIR)
        lists.append([eo.listed(lib.EVP_PKEY_fromdata_settable(context, selection)) for selection in selections])
        lib.EVP_PKEY_CTX_free(context)
    assert lists[0] == lists[1]


def test_generation_parameters(libctxs: tuple[int, int]) -> None:
    values = [("bits", (511, 512, 0)), ("primes", (2, 3, 6, 0)), ("e", (0, 2, 3, 65537))]
    outcomes = []
    for libctx in libctxs:
        context = lib.EVP_PKEY_CTX_new_from_name(libctx, b"RSA", None)
        assert lib.EVP_PKEY_keygen_init(context) == 1
        found: list[object] = [eo.listed(lib.EVP_PKEY_CTX_settable_params(context))]
        for name, value in [(name, value) for name, several in values for value in several]:
            with eo.params([(name, UNSIGNED, value)]) as array:
                found.append((name, value, eo.outcome(lib.EVP_PKEY_CTX_set_params(context, array))))
        outcomes.append(found)
        lib.EVP_PKEY_CTX_free(context)
    assert outcomes[0] == outcomes[1]


def set_and_read(key: evp.Key, operation: str, first: list[eo.Setting], setting: eo.Setting) -> list[eo.Outcome]:
    with eo.operation(key, operation, first) as context:
        readable = eo.listed(lib.EVP_PKEY_CTX_gettable_params(context))
        with eo.params([setting]) as array:
            outcomes = [eo.outcome(lib.EVP_PKEY_CTX_set_params(context, array))]
        return outcomes + [eo.got("EVP_PKEY_CTX_get_params", context, *parameter) for parameter in readable]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_parameters(libctxs: tuple[int, int], operation: str) -> None:
    """Each value is set alone, and after each padding."""
    keys = eo.keys_of(libctxs, 2048)
    lists = []
    for key in keys:
        with eo.operation(key, operation) as context:
            gettable = eo.listed(lib.EVP_PKEY_CTX_gettable_params(context))
            lists.append((gettable, eo.listed(lib.EVP_PKEY_CTX_settable_params(context))))
    assert lists[0] == lists[1]
    for mode in (None, eo.PKCS1, eo.NONE, eo.OAEP, eo.X931, eo.PSS, eo.TLS):
        first = [] if mode is None else [eo.padding(mode)]
        for name, values in VALUES.items():
            for value in values:
                eo.assert_alike(keys, set_and_read, operation, first, (name, *value))


def checked(key: evp.Key) -> list[eo.Outcome]:
    outcomes = []
    for what in ("pairwise_check", "private_check", "public_check", "public_check_quick", "check", "param_check"):
        context = lib.EVP_PKEY_CTX_new_from_pkey(key.libctx, key.pointer, None)
        outcomes.append(eo.outcome(getattr(lib, f"EVP_PKEY_{what}")(context)))
        lib.EVP_PKEY_CTX_free(context)
    return outcomes


def test_checks_of_keys(libctxs: tuple[int, int]) -> None:
    numbers = rsa_keys.private_key(2048).private_numbers()
    n, e, d = numbers.public_numbers.n, numbers.public_numbers.e, numbers.d
    for n_and_more in ((n, e), (n, e, d), (n, e, d + 2), (n - 1, e), (n, 1)):
        parts = dict(zip("ned", n_and_more, strict=False))
        eo.assert_alike([evp.Key.from_numbers(libctx, **parts) for libctx in libctxs], checked)


def test_keys_that_can_not_be_made(libctxs: tuple[int, int]) -> None:
    for parts in ({"n": 3}, {"e": 3}, {"d": 3}, {"n": 0, "e": 0}, {"n": 3233, "e": 17}, {"n": 1 << 20000, "e": 3}):
        outcomes = []
        for libctx in libctxs:
            try:
                outcomes.append(str(evp.Key.from_numbers(libctx, **parts).bits))
            except evp.EvpError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]
