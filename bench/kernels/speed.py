"""The kernels against OpenSSL's arithmetic, and against what the multiply-add unit allows: one pinned core.

There are two OpenSSLs: the one that gpu-provider is linked to, and the one that ``cryptography`` brings, which is newer
as a rule and computes RSA alone. Each round measures the limit, both and the kernels, one after the other, in CPU time.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from gpu_provider import kernels

from ..environment import openssl_linked, openssl_of_cryptography
from ..harness import Bench
from ..report import Curve, Result, Spread, Target
from .limit import exchange, mad52_rate, private_operation
from .operations import (
    EXPONENT_BITS,
    cryptography_private,
    linked_openssl,
    openssl_derive,
    openssl_private,
    ours_derive,
    ours_private,
)

EXCHANGE = f"FFDHE-2048, {EXPONENT_BITS} bits"
# At least so many times the rate of the linked OpenSSL, when that is 3.0, and so much of the limit.
TARGETS = {"RSA-2048": 2.05, "RSA-3072": 4.4, "RSA-4096": 4.4, EXCHANGE: 5.5}
SHARE = 0.9


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the tests measure less."""

    batch: int = 64
    keys: int = 4
    """Keys of each size, used in turn: making more takes longer than measuring."""
    batch_sizes: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 24, 32, 48, 64)


def measure(
    bench: Bench, *, rounds: int, seconds: float, sizes: Sizes = Sizes(), advance: Callable[[str, int], None]
) -> Result:
    """``seconds`` of CPU time for each measurement of each round, but at least one call, of however many operations."""
    result = Result(
        "kernels",
        f"Operations per second on one core, batches of {sizes.batch}, with blinding and verification",
        {"rounds": rounds, "seconds": seconds, **asdict(sizes), "isa": kernels.isa().name},
    )
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        compare(bench, result, sizes, advance, rounds=rounds, seconds=seconds)
    finally:
        os.sched_setaffinity(0, allowed)
    return result


def compare(
    bench: Bench, result: Result, sizes: Sizes, advance: Callable[[str, int], None], *, rounds: int, seconds: float
) -> None:
    library, linked, bundled = linked_openssl(), openssl_linked(), openssl_of_cryptography()
    lanes = kernels.lanes()
    limit = mad52_rate(bench) if kernels.isa() is kernels.Isa.IFMA else None
    if limit is None:
        result.notes.append("no AVX-512 IFMA: the portable code is measured, whose limit is another")
    result.notes.append(about_cryptography(linked, bundled))
    steps = len(TARGETS) * (rounds + 1) + 2 * rounds * len(sizes.batch_sizes)
    keys: dict[str, list[rsa.RSAPrivateKey]] = {}
    for subject in TARGETS:
        advance(f"{subject}, making keys", steps)
        if subject == EXCHANGE:
            theirs = {linked: openssl_derive(library)}
            ours, instructions = ours_derive(sizes.batch), exchange(EXPONENT_BITS)
        else:
            bits = int(subject.removeprefix("RSA-"))
            keys[subject] = [rsa.generate_private_key(65537, bits) for _ in range(sizes.keys)]
            theirs = {linked: openssl_private(library, keys[subject][0])}
            theirs.setdefault(bundled, cryptography_private(keys[subject][0]))
            ours, instructions = ours_private(keys[subject], sizes.batch), private_operation(bits)
        ours()
        for turn in range(rounds):
            advance(subject, steps)
            sample: dict[str, Any] = {"round": turn, "subject": subject}
            before = limit() if limit else 0.0
            for name, operation in theirs.items():
                sample[name] = rate(operation, 1, seconds)
            sample["kernels"] = rate(ours, sizes.batch, seconds)
            if limit:
                sample["mad52"] = (before + limit()) / 2
                sample["limit"] = sample["mad52"] / instructions * lanes
            result.samples.append(sample)
        rows(result, subject, list(theirs), with_limit=limit is not None)
    for subject in ("RSA-2048", "RSA-4096"):
        single = openssl_private(library, keys[subject][0])
        batches = {size: ours_private(keys[subject], size) for size in sizes.batch_sizes}
        for turn in range(rounds):
            base = rate(single, 1, seconds / 2)
            for size, ours in batches.items():
                advance(f"{subject}, batches of {size}", steps)
                ratio = rate(ours, size, seconds / 4) / base
                result.samples.append({"round": turn, "subject": subject, "batch": size, "ratio": ratio})
        points = [
            (float(size), Spread.of(result.values("ratio", subject=subject, batch=size))) for size in sizes.batch_sizes
        ]
        result.curves.append(Curve(subject, "operations in the batch", f"times the rate of {linked}", points))


def about_cryptography(linked: str, bundled: str) -> str:
    if bundled == linked:
        return f"cryptography uses {linked} too, so there is no newer OpenSSL to compare with"
    return (
        f"{bundled} is cryptography's, measured by PKCS#1 v1.5 signatures of a digest: the private operation, blinded"
        " and verified, and a few µs for padding and Python"
    )


def rows(result: Result, subject: str, baselines: Sequence[str], *, with_limit: bool) -> None:
    """The target is a ratio to the first of the baselines."""
    unit, rates = "operations/s", result.values("kernels", subject=subject)
    target, share = Target(TARGETS[subject], at_most=False), Target(SHARE, at_most=False)
    first, *others = [(name, result.values(name, subject=subject)) for name in baselines]
    result.add_row(subject, "kernels", unit, rates, to=first, target=target)
    for other in others:
        result.add_row(subject, "kernels", unit, rates, to=other)
    if with_limit:
        limits = result.values("limit", subject=subject)
        result.add_row(subject, "kernels", unit, rates, to=("limit", limits), target=share)
        result.add_row(subject, "limit", unit, limits)
    for name, values in (first, *others):
        result.add_row(subject, name, unit, values)


def rate(call: Callable[[], Any], per_call: int, seconds: float) -> float:
    """Operations per second of CPU time, so that what else runs on the machine does not count."""
    calls, start = 0, time.thread_time()
    while True:
        call()
        calls += 1
        if (spent := time.thread_time() - start) >= seconds:
            return calls * per_call / spent
