"""The kernels against OpenSSL's arithmetic, and against what the multiply-add unit allows: one pinned core.

Each round measures the limit, OpenSSL and the kernels, one after the other, in CPU time.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from gpu_provider import kernels

from ..harness import Bench
from ..report import Curve, Result, Spread, Target
from .limit import exchange, mad52_rate, private_operation
from .operations import EXPONENT_BITS, openssl, openssl_derive, openssl_private, ours_derive, ours_private

EXCHANGE = f"FFDHE-2048, {EXPONENT_BITS} bits"
# At least so many times OpenSSL 3.0's rate, and so much of the limit.
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
    library: Any = openssl.dlopen("libcrypto.so.3")
    lanes = kernels.lanes()
    limit = mad52_rate(bench) if kernels.isa() is kernels.Isa.IFMA else None
    if limit is None:
        result.notes.append("no AVX-512 IFMA: the portable code is measured, whose limit is another")
    steps = len(TARGETS) * (rounds + 1) + 2 * rounds * len(sizes.batch_sizes)
    keys: dict[str, list[rsa.RSAPrivateKey]] = {}
    for subject in TARGETS:
        advance(f"{subject}, making keys", steps)
        if subject == EXCHANGE:
            theirs, ours, instructions = openssl_derive(library), ours_derive(sizes.batch), exchange(EXPONENT_BITS)
        else:
            bits = int(subject.removeprefix("RSA-"))
            keys[subject] = [rsa.generate_private_key(65537, bits) for _ in range(sizes.keys)]
            theirs, ours = openssl_private(library, keys[subject][0]), ours_private(keys[subject], sizes.batch)
            instructions = private_operation(bits)
        ours()
        for turn in range(rounds):
            advance(subject, steps)
            sample: dict[str, Any] = {"round": turn, "subject": subject}
            before = limit() if limit else 0.0
            sample["openssl"] = rate(theirs, 1, seconds)
            sample["kernels"] = rate(ours, sizes.batch, seconds)
            if limit:
                sample["mad52"] = (before + limit()) / 2
                sample["limit"] = sample["mad52"] / instructions * lanes
            result.samples.append(sample)
        rows(result, subject, with_limit=limit is not None)
    for subject in ("RSA-2048", "RSA-4096"):
        theirs = openssl_private(library, keys[subject][0])
        batches = {size: ours_private(keys[subject], size) for size in sizes.batch_sizes}
        for turn in range(rounds):
            base = rate(theirs, 1, seconds / 2)
            for size, ours in batches.items():
                advance(f"{subject}, batches of {size}", steps)
                ratio = rate(ours, size, seconds / 4) / base
                result.samples.append({"round": turn, "subject": subject, "batch": size, "ratio": ratio})
        points = [
            (float(size), Spread.of(result.values("ratio", subject=subject, batch=size))) for size in sizes.batch_sizes
        ]
        result.curves.append(Curve(subject, "operations in the batch", "times OpenSSL's rate", points))


def rows(result: Result, subject: str, *, with_limit: bool) -> None:
    openssl_rates, rates = (result.values(key, subject=subject) for key in ("openssl", "kernels"))
    unit, target, share = "operations/s", Target(TARGETS[subject], at_most=False), Target(SHARE, at_most=False)
    result.add_row(subject, "kernels", unit, rates, to=("OpenSSL", openssl_rates), target=target)
    if with_limit:
        limits = result.values("limit", subject=subject)
        result.add_row(subject, "kernels", unit, rates, to=("limit", limits), target=share)
        result.add_row(subject, "limit", unit, limits)
    result.add_row(subject, "OpenSSL", unit, openssl_rates)


def rate(call: Callable[[], Any], per_call: int, seconds: float) -> float:
    """Operations per second of CPU time, so that what else runs on the machine does not count."""
    calls, start = 0, time.thread_time()
    while True:
        call()
        calls += 1
        if (spent := time.thread_time() - start) >= seconds:
            return calls * per_call / spent
