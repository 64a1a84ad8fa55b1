"""Published signatures, computed by the kernels alone: CAVP's and Wycheproof's PKCS#1 v1.5 vectors."""

from __future__ import annotations

import hashlib

import cryptography_vectors
import pytest
import wycheproof
from cryptography.hazmat.primitives.asymmetric import rsa
from kernel_oracle import Numbers, isa_or_skip, private_op

from gpu_provider import kernels

ISAS = [kernels.Isa.PORTABLE, kernels.Isa.IFMA]

# DigestInfo before the digest: RFC 8017, 9.2, note 1.
PREFIX = {
    "SHA1": "3021300906052b0e03021a05000414",
    "SHA224": "302d300d06096086480165030402040500041c",
    "SHA256": "3031300d060960864801650304020105000420",
    "SHA384": "3041300d060960864801650304020205000430",
    "SHA512": "3051300d060960864801650304020305000440",
    "SHA512224": "302d300d06096086480165030402050500041c",
    "SHA512256": "3031300d060960864801650304020605000420",
}
pytestmark = [pytest.mark.timeout(200), pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)]


def encode(message: bytes, digest: str, size: int) -> int:
    """EMSA-PKCS1-v1_5."""
    name = digest.replace("-", "").replace("/", "").upper()
    hashed = hashlib.new(
        {"SHA512224": "sha512_224", "SHA512256": "sha512_256"}.get(name, name.lower()), message
    ).digest()
    info = bytes.fromhex(PREFIX[name]) + hashed
    return int.from_bytes(b"\x00\x01" + b"\xff" * (size - len(info) - 3) + b"\x00" + info, "big")


def recover(n: int, e: int, d: int) -> Numbers:
    return Numbers.from_primes(*rsa.rsa_recover_prime_factors(n, e, d), e)


def check(vectors: list[tuple[Numbers, int, int]], isa: kernels.Isa) -> None:
    """(key, encoded message, signature)"""
    if isa is kernels.Isa.PORTABLE:
        vectors = vectors[::7]
    loaded = {key: key.load() for key, _, _ in vectors}
    signatures, ok = private_op([loaded[key] for key, _, _ in vectors], [x for _, x, _ in vectors], 512, isa)
    assert all(ok)
    assert signatures == [signature for _, _, signature in vectors]


def test_cavp_signatures(isa: kernels.Isa) -> None:
    vectors, fields, keys = [], {}, {}
    path = "asymmetric/RSA/FIPS_186-2/SigGen15_186-2.txt"
    with cryptography_vectors.open_vector_file(path, "r") as file:
        for line in file:
            name, equals, value = line.strip().partition(" = ")
            if not equals:
                continue
            fields[name] = value
            if name == "S":
                n, e, d = (int(fields[part], 16) for part in ("n", "e", "d"))
                key = keys[n] if n in keys else keys.setdefault(n, recover(n, e, d))
                size = (n.bit_length() + 7) // 8
                vectors.append((key, encode(bytes.fromhex(fields["Msg"]), fields["SHAAlg"], size), int(value, 16)))
    assert len(vectors) == 250
    check(vectors, isa_or_skip(isa))


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_wycheproof_signatures(bits: int, isa: kernels.Isa) -> None:
    vectors, keys = [], {}
    for group, test in wycheproof.cases(f"rsa_pkcs1_{bits}_sig_gen_test.json"):
        private = group["privateKey"]
        numbers = tuple(int(private[name], 16) for name in ("modulus", "publicExponent", "privateExponent"))
        key = keys[numbers] if numbers in keys else keys.setdefault(numbers, recover(*numbers))
        encoded = encode(bytes.fromhex(test["msg"]), group["sha"], (key.n.bit_length() + 7) // 8)
        vectors.append((key, encoded, int(test["sig"], 16)))
    check(vectors, isa_or_skip(isa))
