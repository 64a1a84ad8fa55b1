"""modexp() against gmpy2 and Python's pow, in calls of 64 numbers: one pinned core, CPU time, with what Python adds.

gmpy2 gets its own numbers, made beforehand; gpu-provider gets Python's, and returns them.
"""

import os
import random
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gmpy2
import phe

from gpu_provider import BatchingProvider, ProviderConfig, kernels

from .harness import Bench
from .recipes import paillier, psi
from .report import Result, Target

BATCH = 64
SIZES = (256, 512, 1024, 2048, 3072, 4096, 6144, 8192)
LONG = (6144, 8192)
AT_LEAST, AT_LEAST_LONG = 1.0, 2.0
"""Times the rate of gmpy2's powmod: of every size, and of the long ones with AVX-512 IFMA."""
OURS = "gpu-provider"
_UNIT = "operations/s"

Subjects = dict[str, tuple[Callable[[], Any], int]]
"""What is measured in one case: a call, and how many operations it is. Ours first, then its baselines."""


def measure(
    bench: Bench,
    *,
    rounds: int,
    seconds: float,
    sizes: Sequence[int] = SIZES,
    paillier_bits: Sequence[int] = (2048, 3072),
    advance: Callable[[str, int], None],
) -> Result:
    """``seconds`` of CPU time for each measurement of each round, but at least one call."""
    result = Result(
        "modexp",
        f"Exponentiations per second of CPU time, {BATCH} in a call",
        {"rounds": rounds, "seconds": seconds, "batch": BATCH, "isa": kernels.isa().name, "gmpy2": gmpy2.version()},
    )
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        with BatchingProvider(ProviderConfig(backend="cpu", threads=1)) as provider:
            cases = {f"{bits} bits": powers(provider, bits) for bits in sizes}
            cases["2048 bits, one exponent"] = one_exponent(provider, 2048)
            cases["2048 bits, e = 65537"] = public_exponent(provider, 2048)
            cases["2048 bits, 64 threads, one number a call"] = threads(
                provider, 2048, bench.enter_context(ThreadPoolExecutor(BATCH))
            )
            for bits in paillier_bits:
                cases[f"Paillier-{bits}, encryption"] = encryption(provider, bits)
                cases[f"Paillier-{bits}, decryption"] = decryption(provider, bits)
            cases["PSI, 2048 bits"] = intersection(provider)
            steps = rounds * sum(map(len, cases.values()))
            for case, subjects in cases.items():
                subjects[OURS][0]()  # measures where the kernels win
                for turn in range(rounds):
                    for subject, (call, operations) in subjects.items():
                        advance(f"{case}, {subject}", steps)
                        sample = {"round": turn, "case": case, "subject": subject}
                        result.samples.append(sample | {"rate": rate(call, operations, seconds)})
                rows(result, case, list(subjects))
    finally:
        os.sched_setaffinity(0, allowed)
    if kernels.isa() is not kernels.Isa.IFMA:
        result.notes.append("no AVX-512 IFMA: OpenSSL computes what the portable kernels would take longer for")
    return result


def rate(call: Callable[[], Any], operations: int, seconds: float) -> float:
    """Operations per second of CPU time of all threads."""
    calls, start = 0, time.process_time()
    while True:
        call()
        calls += 1
        if (spent := time.process_time() - start) >= seconds:
            return calls * operations / spent


def rows(result: Result, case: str, subjects: Sequence[str]) -> None:
    rates = {subject: result.values("rate", case=case, subject=subject) for subject in subjects}
    ours, first, *others = subjects
    fast = any(case == f"{bits} bits" for bits in LONG) and kernels.isa() is kernels.Isa.IFMA
    target = Target(AT_LEAST_LONG if fast else AT_LEAST, at_most=False)
    result.add_row(case, ours, _UNIT, rates[ours], to=(first, rates[first]), target=target)
    for other in others:
        result.add_row(case, ours, _UNIT, rates[ours], to=(other, rates[other]))
    for subject in (first, *others):
        result.add_row(case, subject, _UNIT, rates[subject])


def numbers(bits: int) -> tuple[list[int], list[int], int]:
    """Bases, exponents and an odd modulus, all of so many bits."""
    source = random.Random(bits)  # noqa: S311 (test data)
    modulus = source.getrandbits(bits) | 1 << bits - 1 | 1
    return [source.randrange(modulus) for _ in range(BATCH)], [source.getrandbits(bits) for _ in range(BATCH)], modulus


def powers(provider: BatchingProvider, bits: int) -> Subjects:
    bases, exponents, modulus = numbers(bits)
    m, pairs = gmpy2.mpz(modulus), [(gmpy2.mpz(b), gmpy2.mpz(e)) for b, e in zip(bases, exponents, strict=True)]
    some = pairs[: max(1, 8192 // bits)]
    return {
        OURS: (lambda: provider.modexp(bases, exponents, modulus), BATCH),
        "gmpy2.powmod": (lambda: [gmpy2.powmod(b, e, m) for b, e in some], len(some)),
        "gmpy2.powmod_sec": (lambda: [gmpy2.powmod_sec(b, e | 1, m) for b, e in some], len(some)),
        "pow": (lambda: pow(bases[0], exponents[0], modulus), 1),
    }


def one_exponent(provider: BatchingProvider, bits: int) -> Subjects:
    bases, (exponent, *_), modulus = numbers(bits)
    m, e, some = gmpy2.mpz(modulus), gmpy2.mpz(exponent), [gmpy2.mpz(base) for base in bases[:8]]
    return {
        OURS: (lambda: provider.modexp(bases, exponent, modulus), BATCH),
        "gmpy2.powmod_base_list": (lambda: gmpy2.powmod_base_list(some, e, m), len(some)),
    }


def public_exponent(provider: BatchingProvider, bits: int) -> Subjects:
    bases, _, modulus = numbers(bits)
    m, some = gmpy2.mpz(modulus), [gmpy2.mpz(base) for base in bases]
    return {
        OURS: (lambda: provider.modexp(bases, 65537, modulus, public_exponents=True), BATCH),
        "gmpy2.powmod_base_list": (lambda: gmpy2.powmod_base_list(some, gmpy2.mpz(65537), m), BATCH),
        "pow": (lambda: [pow(base, 65537, modulus) for base in bases], BATCH),
    }


def threads(provider: BatchingProvider, bits: int, pool: ThreadPoolExecutor) -> Subjects:
    bases, exponents, modulus = numbers(bits)
    m = gmpy2.mpz(modulus)
    return {
        OURS: (
            lambda: list(pool.map(lambda b, e: provider.modexp(b, e, modulus), bases, exponents)),
            BATCH,
        ),
        "gmpy2.powmod": (lambda: list(pool.map(lambda b, e: gmpy2.powmod(b, e, m), bases, exponents)), BATCH),
    }


def encryption(provider: BatchingProvider, bits: int) -> Subjects:
    public, _ = phe.generate_paillier_keypair(n_length=bits)
    values = list(range(BATCH))
    return {
        OURS: (lambda: paillier.encrypt(provider, public, values), BATCH),
        "phe": (lambda: public.encrypt(1), 1),
    }


def decryption(provider: BatchingProvider, bits: int) -> Subjects:
    public, private = phe.generate_paillier_keypair(n_length=bits)
    encrypted = paillier.encrypt(provider, public, list(range(BATCH)))
    return {
        OURS: (lambda: paillier.decrypt(provider, private, encrypted), BATCH),
        "phe": (lambda: private.decrypt(encrypted[1]), 1),
    }


def intersection(provider: BatchingProvider) -> Subjects:
    party = psi.Party(provider, [secrets.token_bytes(16) for _ in range(BATCH)])
    blinded = party.blinded()
    p, exponent = gmpy2.mpz(psi.group_ffdhe2048()), gmpy2.mpz(secrets.randbits(256) | 1 << 255)
    theirs = [gmpy2.mpz(number) for number in blinded[:8]]
    return {
        OURS: (lambda: party.raise_again(blinded), BATCH),
        "gmpy2.powmod_base_list": (lambda: gmpy2.powmod_base_list(theirs, exponent, p), len(theirs)),
    }
