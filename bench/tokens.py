"""RS256 tokens: PyJWT with ``sign_many``, as in docs/library.md, beside PyJWT with a key of ``cryptography``."""

import time
from collections.abc import Callable

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from jwt.utils import base64url_encode

from gpu_provider import BatchingProvider, Key, ProviderConfig, kernels

from .environment import openssl_of_cryptography
from .harness import Bench, BenchError
from .report import Result, Target

SHARE_OF_ONE_BY_ONE = 0.31  # the goal with AVX-512 IFMA, for RSA-2048: 70 µs of 225
MANY, SINGLE = "sign_many", "PyJWT and cryptography"


def measure(_: Bench, *, rounds: int, tokens: dict[int, int], advance: Callable[[str, int], None]) -> Result:
    """``tokens``: how many a round makes, by key size. One by one, a tenth of them."""
    result = Result(
        "tokens",
        "RS256 tokens: JSON, hashing and encoding included",
        {"rounds": rounds, "tokens": tokens, "isa": kernels.isa().name, "openssl": openssl_of_cryptography()},
    )
    with BatchingProvider(ProviderConfig(backend="cpu")) as provider:
        for bits, count in tokens.items():
            private_key = rsa.generate_private_key(65537, bits)
            key = provider.load_key(private_key)
            check(key, many(provider, key, 16) + one_by_one(private_key, 16))
            for turn in range(rounds):
                advance(f"RSA-{bits}", rounds * len(tokens))
                sample: dict[str, float] = {"round": turn, "bits": bits}
                few = max(1, count // 10)
                sample |= timed("many", count, lambda: many(provider, key, count))  # noqa: B023 (called at once)
                sample |= timed("single", few, lambda: one_by_one(private_key, few))  # noqa: B023
                result.samples.append(sample)
            add_rows(result, bits)
    return result


def add_rows(result: Result, bits: int) -> None:
    case, unit = f"RSA-{bits}", "µs of CPU"
    many_us, single_us = (result.values(f"{way}_us", bits=bits) for way in ("many", "single"))
    target = Target(SHARE_OF_ONE_BY_ONE, goal=True) if bits == 2048 else None
    result.add_row(case, MANY, unit, many_us, to=(SINGLE, single_us), target=target)
    result.add_row(case, SINGLE, unit, single_us)
    result.add_row(case, MANY, "tokens/s", result.values("many_rate", bits=bits))
    result.add_row(case, SINGLE, "tokens/s", result.values("single_rate", bits=bits))


def timed(way: str, count: int, make: Callable[[], object]) -> dict[str, float]:
    """CPU time of all threads for each token, and tokens per second."""
    began, cpu = time.perf_counter(), time.process_time()
    make()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    return {f"{way}_us": cpu / count * 1e6, f"{way}_rate": count / wall}


def claims(number: int) -> dict[str, object]:
    return {"iss": "https://issuer.example", "sub": f"user {number}", "iat": 1764547200, "exp": 1764550800}


def many(provider: BatchingProvider, key: Key, count: int) -> list[str]:
    drafts = (jwt.encode(claims(number), key.placeholder, "RS256") for number in range(count))
    unsigned = [draft.rpartition(".")[0] for draft in drafts]
    messages = (text.encode() for text in unsigned)
    signatures = provider.sign_many(key, messages, padding.PKCS1v15(), hashes.SHA256())
    return [
        f"{text}.{base64url_encode(signature).decode()}" for text, signature in zip(unsigned, signatures, strict=True)
    ]


def one_by_one(private_key: rsa.RSAPrivateKey, count: int) -> list[str]:
    return [jwt.encode(claims(number), private_key, "RS256") for number in range(count)]


def check(key: Key, tokens: list[str]) -> None:
    for token in tokens:
        try:
            jwt.decode(token, key.public_key(), ["RS256"], options={"verify_exp": False})
        except jwt.InvalidTokenError as error:
            raise BenchError(f"a token is wrong: {error}") from error
