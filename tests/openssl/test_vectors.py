"""Published vectors through the provider: CAVP's, RSA Laboratories' and Wycheproof's."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import cryptography_vectors
import evp
import pytest
import wycheproof

if TYPE_CHECKING:
    from collections.abc import Iterator

RSA_VECTORS = Path("asymmetric/RSA")


@pytest.fixture(scope="module")
def libctx() -> Iterator[int]:
    with evp.LibraryContext() as context:
        yield context.pointer


def lines(name: str) -> Iterator[str]:
    with cryptography_vectors.open_vector_file(str(RSA_VECTORS / name), "r") as file:
        for line in file:
            yield line.strip()


# ---- CAVP: "name = value" lines; a vector ends with S or, in verification, with Result ----


def cavp(name: str, last: str) -> Iterator[dict[str, str]]:
    vector: dict[str, str] = {}
    for line in lines(name):
        key, equals, value = line.partition(" = ")
        if equals and not line.startswith("[") and not line.startswith("#"):
            vector[key] = value
            if key == last:
                yield dict(vector)


def numbers(vector: dict[str, str], *names: str) -> dict[str, int]:
    return {name: int(vector[name], 16) for name in names}


def test_cavp_pkcs1_signature_generation(libctx: int) -> None:
    """Keys of n, e and d alone: without the CRT parameters."""
    count = 0
    for vector in cavp("FIPS_186-2/SigGen15_186-2.txt", "S"):
        key = evp.Key.from_numbers(libctx, **numbers(vector, "n", "e", "d"))
        assert key.provider == evp.NAME
        signature = key.digest_sign(vector["SHAAlg"], bytes.fromhex(vector["Msg"]), {})
        assert signature.hex() == vector["S"].lower()
        count += 1
    assert count == 250


@pytest.mark.parametrize("name", ["SigGenPSS_186-2.txt", "SigGenPSS_186-3.rsp", "SigGen15_186-3.rsp"])
def test_cavp_generated_signatures_verify(libctx: int, name: str) -> None:
    options = evp.pss("auto") if "PSS" in name else {}
    count = 0
    for vector in cavp(f"FIPS_186-2/{name}", "S"):
        key = evp.Key.from_numbers(libctx, **numbers(vector, "n", "e"))
        message, signature = bytes.fromhex(vector["Msg"]), bytes.fromhex(vector["S"])
        assert key.digest_verify(vector["SHAAlg"], signature, message, options)
        count += 1
    assert count == 250


@pytest.mark.parametrize("name", ["SigVer15_186-3.rsp", "SigVerPSS_186-3.rsp"])
def test_cavp_signature_verification(libctx: int, name: str) -> None:
    verdicts = []
    for vector in cavp(f"FIPS_186-2/{name}", "Result"):
        key = evp.Key.from_numbers(libctx, **numbers(vector, "n", "e"))
        message, signature = bytes.fromhex(vector["Msg"]), bytes.fromhex(vector["S"])
        options = evp.pss(len(bytes.fromhex(vector["SaltVal"]))) if "PSS" in name else {}
        verdicts.append(key.digest_verify(vector["SHAAlg"], signature, message, options))
        assert verdicts[-1] == vector["Result"].startswith("P"), vector["Result"]
    assert len(verdicts) == 450
    assert 0 < verdicts.count(True) < 450


# ---- RSA Laboratories' vectors: "# Name:" lines, each followed by hexadecimal digits ----


def rsa_laboratories(name: str) -> Iterator[dict[str, bytes]]:
    """One dict per example: the key's numbers, and what the example gives."""
    values: dict[str, bytes] = {}
    heading = ""
    for line in lines(name):
        if line.startswith("#"):
            if heading in {"signature", "encryption"} and heading in values:
                yield dict(values)
                values.pop(heading)
            heading = line.strip("#: ").lower()
            values.pop(heading, None)
        elif line and heading:
            digits = line.replace(" ", "")
            values[heading] = values.get(heading, b"") + bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2))
    if heading in values:
        yield dict(values)


def laboratory_key(libctx: int, vector: dict[str, bytes]) -> evp.Key:
    names = {"n": "modulus", "e": "public exponent", "d": "exponent"}
    return evp.Key.from_numbers(libctx, **{short: int.from_bytes(vector[name], "big") for short, name in names.items()})


OAEP_DIGESTS = ["sha1", "sha224", "sha256", "sha384", "sha512"]
OAEP_FILES = {
    f"oaep-custom/oaep-{mgf1}-{digest}.txt": evp.oaep(digest, mgf1)
    for mgf1 in OAEP_DIGESTS
    for digest in OAEP_DIGESTS
    if (mgf1, digest) != ("sha1", "sha1")
}


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("pkcs-1v2-1d2-vec/oaep-vect.txt", evp.oaep("sha1"), 60),
        ("pkcs1v15crypt-vectors.txt", {}, 300),
        *((name, options, 60) for name, options in OAEP_FILES.items()),
    ],
)
def test_rsa_laboratories_decryption(libctx: int, name: str, options: dict[str, str], count: int) -> None:
    vectors = list(rsa_laboratories(name))
    assert len(vectors) == count
    for vector in vectors:
        assert laboratory_key(libctx, vector).decrypt(vector["encryption"], options) == vector["message"]


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [("pkcs1v15sign-vectors.txt", {}, 300), ("pkcs-1v2-1d2-vec/pss-vect.txt", evp.pss(20), 60)],
)
def test_rsa_laboratories_signatures(libctx: int, name: str, options: dict[str, str], count: int) -> None:
    vectors = list(rsa_laboratories(name))
    assert len(vectors) == count
    for vector in vectors:
        key = laboratory_key(libctx, vector)
        message = vector.get("message to be signed", vector.get("message", b""))
        assert key.digest_verify("SHA1", vector["signature"], message, options)
        if not options:
            assert key.digest_sign("SHA1", message, options) == vector["signature"]


# ---- Wycheproof ----


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_wycheproof_pkcs1_decryption(tmp_path: Path, bits: int) -> None:
    """Invalid padding must give a message that is not the padded one, not an error, where implicit rejection is set."""
    name = f"rsa_pkcs1_{bits}_test.json"
    with evp.LibraryContext.configured(tmp_path / "openssl.cnf", "implicit-rejection = 1") as context:
        for group, tests in groupby(wycheproof.cases(name), itemgetter(0)):
            key = evp.Key.load(context.pointer, bytes.fromhex(group["privateKeyPkcs8"]))
            for _, test in tests:
                ciphertext, message = bytes.fromhex(test["ct"]), bytes.fromhex(test["msg"])
                if test["result"] == "valid":
                    assert key.decrypt(ciphertext, {}) == message, test
                elif not 0 < len(ciphertext) <= bits // 8 or int.from_bytes(ciphertext, "big") >= key.number("n"):
                    with pytest.raises(evp.EvpError):
                        key.decrypt(ciphertext, {})
                else:
                    rejected = key.decrypt(ciphertext, {})
                    assert rejected == key.decrypt(ciphertext, {})
                    assert rejected != message or not message, test
            del key


@pytest.mark.parametrize("name", wycheproof.names("rsa_oaep_"))
def test_wycheproof_oaep_decryption(libctx: int, name: str) -> None:
    """``acceptable`` leaves the verdict open."""
    for group, tests in groupby(wycheproof.cases(name), itemgetter(0)):
        key = evp.Key.load(libctx, bytes.fromhex(group["privateKeyPkcs8"]))
        for _, test in tests:
            digests = group["sha"], group["mgfSha"]
            options = evp.oaep(*digests, label=bytes.fromhex(test["label"]))
            if test["result"] == "valid":
                assert key.decrypt(bytes.fromhex(test["ct"]), options) == bytes.fromhex(test["msg"]), test
            elif test["result"] == "invalid":
                with pytest.raises(evp.EvpError):
                    key.decrypt(bytes.fromhex(test["ct"]), options)


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_wycheproof_signature_generation(libctx: int, bits: int) -> None:
    for group, tests in groupby(wycheproof.cases(f"rsa_pkcs1_{bits}_sig_gen_test.json"), itemgetter(0)):
        key = evp.Key.load(libctx, bytes.fromhex(group["privateKeyPkcs8"]))
        for _, test in tests:
            message, digest = bytes.fromhex(test["msg"]), group["sha"]
            assert key.digest_sign(digest, message, {}).hex() == test["sig"], test


@pytest.mark.parametrize("name", wycheproof.names("rsa_signature_", "rsa_pss_"))
def test_wycheproof_verification(libctx: int, name: str) -> None:
    """``acceptable`` leaves the verdict open."""
    for group, tests in groupby(wycheproof.cases(name), itemgetter(0)):
        key = evp.Key.load(libctx, bytes.fromhex(group["publicKeyDer"]))
        for _, test in tests:
            options = evp.pss(group["sLen"], group["mgfSha"]) if "pss" in name else {}
            verdict = key.digest_verify(group["sha"], bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]), options)
            if test["result"] != "acceptable":
                assert verdict == (test["result"] == "valid"), test
