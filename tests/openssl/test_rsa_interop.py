"""RSA through the provider against ``cryptography`` and against numbers: every kind of key, padding and digest.

Everything runs twice: with the module loaded from its file, where OpenSSL computes at once, and in the library context
of a batching provider.
"""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import evp
import evp_outcome
import pytest
import rsa_keys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_provider import BatchingProvider

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE = b"sixteen handshakes in one batch"
HASHES: dict[str, hashes.HashAlgorithm] = {
    "SHA1": hashes.SHA1(),  # noqa: S303
    "SHA2-224": hashes.SHA224(),
    "SHA2-256": hashes.SHA256(),
    "SHA2-384": hashes.SHA384(),
    "SHA2-512": hashes.SHA512(),
    "SHA2-512/224": hashes.SHA512_224(),
    "SHA2-512/256": hashes.SHA512_256(),
    "SHA3-224": hashes.SHA3_224(),
    "SHA3-256": hashes.SHA3_256(),
    "SHA3-384": hashes.SHA3_384(),
    "SHA3-512": hashes.SHA3_512(),
}
# 1024 and 5120 bits are left to OpenSSL; 2049 bits makes PSS's encoding a byte shorter than the modulus.
KEYS: list[tuple[int, Literal[3, 65537]]] = [
    (1024, 65537),
    (2048, 65537),
    (2048, 3),
    (2049, 65537),
    (2056, 65537),
    (3000, 3),
    (3072, 65537),
    (4096, 65537),
    (5120, 65537),
]


@pytest.fixture(scope="module", params=["module", "batched"])
def libctx(request: pytest.FixtureRequest) -> Iterator[int]:
    with evp_outcome.our_library_context(request.param) as context:
        yield context


def pss(algorithm: hashes.HashAlgorithm, salt_length: int | None = None) -> padding.PSS:
    return padding.PSS(padding.MGF1(algorithm), algorithm.digest_size if salt_length is None else salt_length)


def loaded(libctx: int, key: rsa.RSAPrivateKey) -> evp.Key:
    return evp.Key.load(libctx, rsa_keys.private_der(key))


@pytest.mark.parametrize(("bits", "e"), KEYS)
def test_every_key_size_signs_and_decrypts(libctx: int, bits: int, e: Literal[3, 65537]) -> None:
    theirs = rsa_keys.private_key(bits, e)
    ours = loaded(libctx, theirs)
    public = theirs.public_key()
    assert (ours.bits, ours.size, ours.number("e")) == (bits, (bits + 7) // 8, e)

    sha256 = hashes.SHA256()
    public.verify(ours.digest_sign("SHA256", MESSAGE, {}), MESSAGE, padding.PKCS1v15(), sha256)
    public.verify(ours.digest_sign("SHA256", MESSAGE, evp.pss()), MESSAGE, pss(sha256), sha256)
    assert ours.digest_verify("SHA256", theirs.sign(MESSAGE, pss(sha256), sha256), MESSAGE, evp.pss())
    assert ours.digest_verify("SHA256", theirs.sign(MESSAGE, padding.PKCS1v15(), sha256), MESSAGE, {})

    oaep = padding.OAEP(padding.MGF1(sha256), sha256, None)
    assert ours.decrypt(public.encrypt(MESSAGE, oaep), evp.oaep("sha256")) == MESSAGE
    assert theirs.decrypt(ours.encrypt(MESSAGE, evp.oaep("sha256")), oaep) == MESSAGE
    assert ours.decrypt(public.encrypt(MESSAGE, padding.PKCS1v15()), {}) == MESSAGE
    assert theirs.decrypt(ours.encrypt(MESSAGE, {}), padding.PKCS1v15()) == MESSAGE


@pytest.mark.parametrize("digest", HASHES)
def test_every_digest_in_pkcs1_and_pss(libctx: int, digest: str) -> None:
    theirs = rsa_keys.private_key(2048)
    ours, algorithm = loaded(libctx, theirs), HASHES[digest]
    for options, scheme in [({}, padding.PKCS1v15()), (evp.pss(), pss(algorithm))]:
        signature = ours.digest_sign(digest, MESSAGE, options)
        theirs.public_key().verify(signature, MESSAGE, scheme, algorithm)
        assert ours.digest_verify(digest, signature, MESSAGE, options)
        assert not ours.digest_verify(digest, signature, MESSAGE + b".", options)


@pytest.mark.parametrize(("salt", "expected"), [("0", 0), ("20", 20), ("digest", 32), ("max", 222), ("222", 222)])
def test_pss_salt_lengths(libctx: int, salt: str, expected: int) -> None:
    theirs = rsa_keys.private_key(2048)
    signature = loaded(libctx, theirs).digest_sign("SHA256", MESSAGE, evp.pss(salt))
    theirs.public_key().verify(signature, MESSAGE, pss(hashes.SHA256(), expected), hashes.SHA256())


def test_pss_with_another_mgf1_digest(libctx: int) -> None:
    theirs = rsa_keys.private_key(2048)
    signature = loaded(libctx, theirs).digest_sign("SHA256", MESSAGE, evp.pss("digest", "SHA512"))
    scheme = padding.PSS(padding.MGF1(hashes.SHA512()), 32)
    theirs.public_key().verify(signature, MESSAGE, scheme, hashes.SHA256())


def test_pss_signatures_differ_each_time(libctx: int) -> None:
    ours = loaded(libctx, rsa_keys.private_key(2048))
    assert len({ours.digest_sign("SHA256", MESSAGE, evp.pss()) for _ in range(5)}) == 5


@pytest.mark.parametrize("options", [{}, evp.pss(0)], ids=["pkcs1", "pss"])
def test_pieces_one_shot_and_copies_agree(libctx: int, options: dict[str, str]) -> None:
    """The streaming call finishes on a copy of the context, so a wrong dupctx shows as a wrong or missing signature."""
    ours = loaded(libctx, rsa_keys.private_key(2048))
    whole = ours.digest_sign("SHA384", b"stem and branch", options)
    assert ours.digest_sign_pieces("SHA384", [b"stem ", b"", b"and branch"], options) == whole
    assert ours.digest_verify_pieces("SHA384", whole, [b"st", b"em and branch"], options)
    assert not ours.digest_verify_pieces("SHA384", whole, [b"st", b"em and Branch"], options)
    other = ours.digest_sign("SHA384", b"stem and twig", options)
    copies = ours.digest_sign_branches("SHA384", b"stem and ", [b"branch", b"twig", b"branch"], options)
    assert copies == [whole, other, whole]


def test_signing_a_digest_value(libctx: int) -> None:
    theirs = rsa_keys.private_key(2048)
    ours = loaded(libctx, theirs)
    value = bytes(range(48))
    signature = ours.sign(value, {"digest": "SHA384"})
    theirs.public_key().verify(signature, value, padding.PKCS1v15(), Prehashed(hashes.SHA384()))
    assert ours.verify(signature, value, {"digest": "SHA384"})
    assert ours.verify_recover(signature, {"digest": "SHA384"}) == value


@pytest.mark.parametrize("size", [1, 36, 245])
def test_signing_data_without_a_digest_is_type_1_padding(libctx: int, size: int) -> None:
    theirs = rsa_keys.private_key(2048)
    ours, data = loaded(libctx, theirs), bytes(range(size))
    numbers = theirs.public_key().public_numbers()
    signature = ours.sign(data, {})
    opened = pow(int.from_bytes(signature, "big"), numbers.e, numbers.n).to_bytes(256, "big")
    assert opened == b"\0\1" + b"\xff" * (253 - size) + b"\0" + data
    assert ours.verify(signature, data, {})


def test_md5_sha1_of_old_tls_has_no_digest_info(libctx: int) -> None:
    ours = loaded(libctx, rsa_keys.private_key(2048))
    assert ours.sign(bytes(36), {"digest": "MD5-SHA1"}) == ours.sign(bytes(36), {})


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_raw_operation_is_pow(libctx: int, data: st.DataObject) -> None:
    bits, e = data.draw(st.sampled_from(KEYS))
    theirs = rsa_keys.private_key(bits, e)
    n, size = theirs.public_key().public_numbers().n, (bits + 7) // 8
    edges = st.sampled_from([0, 1, 2, n - 2, n - 1, 1 << (bits - 1)])
    x = data.draw(st.one_of(edges, st.integers(0, n - 1))) % n
    ours = loaded(libctx, theirs)
    expected = pow(x, theirs.private_numbers().d, n).to_bytes(size, "big")
    raw = {"rsa_padding_mode": "none"}
    assert ours.sign(x.to_bytes(size, "big"), raw) == expected
    assert ours.decrypt(x.to_bytes(size, "big"), raw) == expected


@pytest.mark.parametrize("digest", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("label", [b"", b"a label\0with a zero"], ids=["unlabelled", "labelled"])
def test_oaep_digests_and_labels(libctx: int, digest: str, label: bytes) -> None:
    theirs = rsa_keys.private_key(2048)
    ours = loaded(libctx, theirs)
    algorithms: dict[str, hashes.HashAlgorithm] = {
        "sha1": hashes.SHA1(),  # noqa: S303
        "sha256": hashes.SHA256(),
        "sha384": hashes.SHA384(),
        "sha512": hashes.SHA512(),
    }
    for mgf1_digest, mgf1_algorithm in algorithms.items():
        scheme = padding.OAEP(padding.MGF1(mgf1_algorithm), algorithms[digest], label or None)
        options = evp.oaep(digest, mgf1_digest, label)
        longest = 254 - 2 * algorithms[digest].digest_size
        for size in (0, 1, longest):
            text = bytes(range(256))[:size]
            assert ours.decrypt(theirs.public_key().encrypt(text, scheme), options) == text
        assert theirs.decrypt(ours.encrypt(MESSAGE, options), scheme) == MESSAGE
        with pytest.raises(evp.EvpError):
            ours.encrypt(bytes(longest + 1), options)


def test_copied_decryption_context_keeps_its_settings(libctx: int) -> None:
    """OpenSSL 3.0's own copy shares the OAEP label, which is then freed twice."""
    ours = loaded(libctx, rsa_keys.private_key(2048))
    options = evp.oaep("sha384", "sha256", b"label")
    assert ours.decrypt(ours.encrypt(MESSAGE, options), options, dup=True) == MESSAGE


def test_multi_prime_key(libctx: int) -> None:
    pem = rsa_keys.program_key("RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_keygen_primes:3")
    ours = evp.Key.load(libctx, pem)
    signature = ours.digest_sign("SHA256", MESSAGE, {})
    numbers = rsa.RSAPublicNumbers(ours.number("e"), ours.number("n"))
    numbers.public_key().verify(signature, MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    assert ours.number("rsa-factor3") > 1
    assert ours.copy().equals(ours)


def test_key_without_crt_parameters(libctx: int) -> None:
    theirs = rsa_keys.private_key(2048)
    numbers = theirs.private_numbers()
    ours = evp.Key.from_numbers(libctx, n=numbers.public_numbers.n, e=numbers.public_numbers.e, d=numbers.d)
    assert ours.provider == evp.NAME
    assert ours.digest_sign("SHA256", MESSAGE, {}) == theirs.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    assert ours.decrypt(theirs.public_key().encrypt(MESSAGE, padding.PKCS1v15()), {}) == MESSAGE


def test_public_key_verifies_and_encrypts_but_does_not_sign(libctx: int) -> None:
    theirs = rsa_keys.private_key(2048)
    ours = evp.Key.load(libctx, rsa_keys.public_der(theirs))
    signature = theirs.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    assert ours.digest_verify("SHA256", signature, MESSAGE, {})
    assert theirs.decrypt(ours.encrypt(MESSAGE, {}), padding.PKCS1v15()) == MESSAGE
    with pytest.raises(evp.EvpError):
        ours.digest_sign("SHA256", MESSAGE, {})
    with pytest.raises(evp.EvpError):
        ours.decrypt(bytes(256), {})


def test_generated_key(libctx: int) -> None:
    ours = evp.Key.generate(libctx, rsa_keygen_bits="2048", rsa_keygen_pubexp="17")
    assert (ours.provider, ours.bits, ours.security_bits, ours.number("e")) == (evp.NAME, 2048, 112, 17)
    signature = ours.digest_sign("SHA256", MESSAGE, evp.pss())
    public = rsa.RSAPublicNumbers(17, ours.number("n")).public_key()
    public.verify(signature, MESSAGE, pss(hashes.SHA256()), hashes.SHA256())
    with pytest.raises(InvalidSignature):
        public.verify(signature, MESSAGE[1:], pss(hashes.SHA256()), hashes.SHA256())


def test_key_checks_and_comparison(libctx: int) -> None:
    numbers = rsa_keys.private_key(2048).private_numbers()
    public = numbers.public_numbers
    made = evp.Key.from_numbers(libctx, n=public.n, e=public.e)
    generated = evp.Key.generate(libctx, rsa_keygen_bits="2048")
    assert [generated.valid(what) for what in ("pairwise", "private", "public")] == [True] * 3
    assert made.valid("public")
    assert not evp.Key.from_numbers(libctx, n=public.n - 1, e=public.e).valid("public")
    assert made.copy().equals(made)
    assert made.equals(loaded(libctx, rsa_keys.private_key(2048)))
    assert not made.equals(generated)


def test_raw_input_must_be_below_the_modulus(libctx: int) -> None:
    theirs = rsa_keys.private_key(2048)
    ours, n = loaded(libctx, theirs), theirs.public_key().public_numbers().n
    raw = {"rsa_padding_mode": "none"}
    for operation, x in itertools.product((ours.sign, ours.decrypt), (n, n + 1, (1 << 2048) - 1)):
        with pytest.raises(evp.EvpError):
            operation(x.to_bytes(256, "big"), raw)


def test_rsa_pss_keys_stay_with_the_default_provider(libctx: int) -> None:
    pem = rsa_keys.program_key("RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048")
    ours = evp.Key.load(libctx, pem)
    assert ours.provider == "default"
    assert ours.digest_verify("SHA256", ours.digest_sign("SHA256", MESSAGE, evp.pss()), MESSAGE, evp.pss())


@pytest.mark.parametrize("base", [False, True], ids=["default", "base"])
def test_module_is_what_computes(base: bool) -> None:
    """With the base provider in place of the default one, nobody else in the library context knows RSA."""
    theirs = rsa_keys.private_key(2048)
    with evp.LibraryContext(base=base) as context:
        ours = loaded(context.pointer, theirs)
        signature = ours.sign(bytes(32), {"digest": "SHA256"})
        assert base == (ours.provider == evp.NAME)
        del ours
    theirs.public_key().verify(signature, bytes(32), padding.PKCS1v15(), Prehashed(hashes.SHA256()))
    with pytest.raises(evp.EvpError), evp.LibraryContext(base=True, provider=False) as context:
        loaded(context.pointer, theirs)


@pytest.mark.parametrize("preference", [evp.PREFERENCE, f"?provider={evp.NAME}"])
def test_who_signs_for_a_program_with_a_query_of_its_own(preference: str) -> None:
    """Two queries for the property "provider" don't add up: the program's own replaces the preference."""
    with evp.LibraryContext(preference=preference) as context:
        ours = loaded(context.pointer, rsa_keys.private_key(2048))
        assert ours.who_signs() == evp.NAME
        if preference == evp.PREFERENCE:
            assert ours.who_signs("provider!=fips") == evp.NAME
            assert ours.who_signs("?fips=yes") == evp.NAME
        assert ours.who_signs("provider=default") == "default"
        assert ours.who_signs(f"provider={evp.NAME}") == evp.NAME
        assert ours.who_signs(f"{evp.NAME}.batched=yes") == evp.NAME
        del ours


@pytest.mark.parametrize("query", [f"provider={evp.NAME}", f"{evp.NAME}.batched=yes", "provider!=fips"])
def test_a_query_that_leaves_no_digest_leaves_signatures(query: str) -> None:
    theirs = rsa_keys.private_key(2048)
    with evp.LibraryContext() as context:
        ours = loaded(context.pointer, theirs)
        for options, scheme in [({}, padding.PKCS1v15()), (evp.pss(), pss(hashes.SHA256()))]:
            signature = ours.digest_sign("SHA256", MESSAGE, options, query=query)
            theirs.public_key().verify(signature, MESSAGE, scheme, hashes.SHA256())
        del ours


@pytest.mark.parametrize("digest", ["MD4", "RIPEMD160", "MD5"])
def test_digests_of_any_provider_in_the_program(digest: str) -> None:
    """MD4 is OpenSSL's legacy provider's alone."""
    answer = subprocess.run(["openssl", "version", "-m"], check=True, capture_output=True, text=True).stdout
    legacy = Path(answer.split('"')[1]) / "legacy.so"
    if not legacy.exists():
        pytest.skip("OpenSSL's legacy provider is not installed")
    der = rsa_keys.private_der(rsa_keys.private_key(2048))
    with (
        evp.LibraryContext(more=[str(legacy)]) as context,
        evp.LibraryContext(more=[str(legacy)], provider=False) as plain,
    ):
        ours, theirs = evp.Key.load(context.pointer, der), evp.Key.load(plain.pointer, der)
        assert (ours.who_signs(), theirs.who_signs()) == (evp.NAME, "default")
        signature = ours.digest_sign(digest, MESSAGE, {})
        assert signature == theirs.digest_sign(digest, MESSAGE, {})
        assert ours.digest_verify(digest, signature, MESSAGE, {})
        assert not ours.digest_verify(digest, signature, MESSAGE[1:], {})
        for one, other in ((ours, theirs), (theirs, ours)):
            assert other.digest_verify(digest, one.digest_sign(digest, MESSAGE, evp.pss()), MESSAGE, evp.pss())
            options = evp.oaep(digest)
            assert other.decrypt(one.encrypt(MESSAGE, options), options) == MESSAGE
        del ours, theirs


def test_batching_provider_gets_its_sizes_and_openssl_the_others() -> None:
    with BatchingProvider() as provider:
        libctx = provider.library_context.pointer
        ours = loaded(libctx, rsa_keys.private_key(2048))
        ours.digest_sign("SHA256", MESSAGE, {})
        ours.decrypt(ours.encrypt(MESSAGE, evp.oaep()), evp.oaep())
        small = loaded(libctx, rsa_keys.private_key(1024))
        small.digest_sign("SHA256", MESSAGE, {})
        stats = provider.stats()
        assert (stats.completed, stats.direct) == (2, 0)
        del ours, small
