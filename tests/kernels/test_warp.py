"""The multi-thread kernels' host build, which is the source that GPUs run, against Python's ``pow``.

``GPK_LONG_CASES=10000`` asks for a long run of the random test.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_oracle import Numbers, integers, prime, rows

from bench.gpu.host_device import host_kernels, run_on_host
from gpu_provider import kernels
from gpu_provider.kernels.launch import (
    MODEXP_LAUNCH,
    PRIVATE_LAUNCH,
    Kernel,
    Operation,
    key_record,
    modulus_record,
)

KERNELS = host_kernels()
PRIVATE = [kernel for kernel in KERNELS if kernel.operation is Operation.PRIVATE]
MODEXP = [kernel for kernel in KERNELS if kernel.operation is Operation.MODEXP]
SMALL = [kernel for kernel in PRIVATE if kernel.class_bytes == 256]
SIZES = {256: [2048], 384: [2056, 3000, 3072], 512: [4096]}
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not KERNELS, reason="this processor lacks AVX2 or FMA, which the host build needs"),
]


def named(kernel: Kernel) -> str:
    return kernel.name


def run(kernel: Kernel, **fields: int | np.ndarray) -> None:
    """Computes all rows. ``fields``: those of the launch structure, with arrays for addresses."""
    arguments = np.zeros(1, MODEXP_LAUNCH if kernel.operation is Operation.MODEXP else PRIVATE_LAUNCH)
    for name, value in fields.items():
        arguments[name] = value.ctypes.data if isinstance(value, np.ndarray) else value
    run_on_host(kernel, arguments.ctypes.data)


class Launch:
    """What a device's memory would hold: keys' records, and a pair for each row."""

    def __init__(self, kernel: Kernel, keys: list[Numbers], rows_of: list[int], seed: int = 1) -> None:
        self.kernel, self.keys = kernel, keys
        self.records = np.zeros((len(keys), kernel.record_bytes), np.uint8)
        for record, key in zip(self.records, keys, strict=True):
            load(record, kernel, key)
        count = len(rows_of)
        self.rows = np.array(rows_of, np.uint32)
        self.pairs = np.zeros((count, kernel.pair_bytes), np.uint8)
        self.pair_of_row = np.arange(count, dtype=np.uint32)[::-1].copy()
        self.public = {
            "exponent_bits": max(max(key.p, key.q).bit_length() for key in keys),
            "any_e": int(np.bitwise_or.reduce(np.array([key.e for key in keys], np.uint64))),
        }
        make = next(k for k in KERNELS if k.name == kernel.name.replace("private", "make_pairs"))
        noise = random.Random(seed).randbytes(count * kernel.class_bytes)  # noqa: S311
        random_rows = np.frombuffer(noise, np.uint8).reshape(count, kernel.class_bytes)
        run(make, **self.memory(), inputs=random_rows)

    def memory(self) -> dict[str, Any]:
        where = {"count": len(self.rows), "record_of_row": self.rows, "pair_of_row": self.pair_of_row}
        return {"records": self.records, "pairs": self.pairs, **where, **self.public}

    def run(self, inputs: list[int]) -> tuple[list[int], list[int]]:
        outputs = np.full((len(inputs), self.kernel.class_bytes), 0xA5, np.uint8)
        ok = np.full(len(inputs), 7, np.uint8)
        numbers = rows(inputs, self.kernel.class_bytes)
        run(self.kernel, **self.memory(), inputs=numbers, outputs=outputs, ok=ok)
        return integers(outputs), ok.tolist()

    def check(self, inputs: list[int]) -> None:
        outputs, ok = self.run(inputs)
        assert ok == [1] * len(inputs)
        assert outputs == [self.keys[i].private(x) for i, x in zip(self.rows, inputs, strict=True)]


def load(record: np.ndarray, kernel: Kernel, key: Numbers) -> None:
    numbers = {"n": key.n, "e": key.e, "p": key.p, "q": key.q, "dp": key.dp, "dq": key.dq, "qinv": key.qinv}
    key_record(record, kernel.radix_bits, kernel.class_bytes, **numbers)


def edges(key: Numbers) -> list[int]:
    ones = (1 << key.n.bit_length() - 1) - 1
    return [0, 1, 2, key.n - 1, key.p, key.q * (key.p - 1), key.p - 1, key.q + 1, ones, (1 << 52) - 1, 1 << 1040]


@pytest.mark.parametrize("kernel", PRIVATE, ids=named)
def test_edge_inputs(kernel: Kernel) -> None:
    for bits in SIZES[kernel.class_bytes]:
        key = Numbers.of(bits)
        inputs = edges(key)
        Launch(kernel, [key], [0] * len(inputs)).check(inputs)


@pytest.mark.parametrize("kernel", SMALL, ids=named)
def test_every_row_of_a_warp_with_its_own_key_and_exponent(kernel: Kernel) -> None:
    """Rows of a warp square together, so that a short public exponent waits for a long one."""
    cases = [(e, 0) for e in (3, 65537, 2**32 + 1, 2**64 - 1)] + [(65537, seed) for seed in (2, 4, 6, 8)]
    keys = [Numbers.from_primes(prime(1024, e, seed), prime(1024, e, seed + 1), e) for e, seed in cases]
    Launch(kernel, keys, list(range(8))).check([key.n // (i + 3) for i, key in enumerate(keys)])


@pytest.mark.parametrize("kernel", SMALL, ids=named)
@pytest.mark.parametrize(("longer", "shorter"), [(1024, 1000), (1024, 524)])
def test_primes_of_unequal_length(kernel: Kernel, longer: int, shorter: int) -> None:
    """Sums of two residues of a short prime stay far below R, those of a long one above it."""
    p, q = prime(longer, 65537), prime(shorter, 65537, seed=1)
    keys = [Numbers.from_primes(p, q, 65537), Numbers.from_primes(q, p, 65537)]
    Launch(kernel, keys, [0, 1, 0, 1]).check([keys[0].n - 1, p, q, keys[0].n // 5])


@pytest.mark.parametrize("kernel", SMALL, ids=named)
def test_moduli_just_below_the_radix(kernel: Kernel) -> None:
    """Radix 2^32 has no spare bit in this class. In these primes and n carries run through many ones."""
    p, q = 2**1024 - 105, 2**1024 - 179
    key = Numbers.from_primes(p, q, 65537)
    Launch(kernel, [key], [0] * 6).check([key.n - 1, p, q, key.n - p, 2**2000 - 1, key.n - 2])


@pytest.mark.parametrize("kernel", SMALL, ids=named)
def test_short_private_exponents(kernel: Kernel) -> None:
    key = Numbers.of(2048)
    short = replace(key, dp=5, dq=3, e=65537)
    outputs, ok = Launch(kernel, [short, key], [0, 1]).run([7, 7])
    assert (outputs, ok) == ([0, key.private(7)], [0, 1])


@pytest.mark.parametrize("kernel", SMALL, ids=named)
@pytest.mark.parametrize("part", ["p", "q", "dp", "dq", "qinv"])
def test_a_corrupted_key_is_caught(kernel: Kernel, part: str) -> None:
    """One wrong result would reveal the factors (Boneh, DeMillo, Lipton): nothing of it may come out."""
    good = Numbers.of(2048)
    bad = replace(good, **{part: getattr(good, part) ^ 1 << 77})
    outputs, ok = Launch(kernel, [bad, good], [0, 1]).run([12345, 12345])
    assert (outputs, ok) == ([0, good.private(12345)], [0, 1])


@pytest.mark.parametrize("kernel", SMALL, ids=named)
def test_any_corrupted_byte_of_a_record_or_a_pair_is_caught_or_harmless(kernel: Kernel) -> None:
    key, source = Numbers.of(2048), random.Random(7)  # noqa: S311
    launch = Launch(kernel, [key] * 8, list(range(8)))
    expected = key.private(99)
    for memory in (launch.records, launch.pairs):
        for row in memory:
            row[source.randrange(len(row)) // 8 * 8] ^= 1 << source.randrange(8)
    outputs, ok = launch.run([99] * 8)
    assert all(output == (expected if verdict else 0) for output, verdict in zip(outputs, ok, strict=True))
    assert sum(ok) <= 2


@pytest.mark.parametrize("kernel", SMALL, ids=named)
def test_inputs_not_below_the_modulus(kernel: Kernel) -> None:
    key = Numbers.of(2048)
    outputs, ok = Launch(kernel, [key], [0] * 4).run([key.n, key.n + 1, 2**2048 - 1, 3])
    assert (outputs, ok) == ([0, 0, 0, key.private(3)], [0, 0, 0, 1])


@pytest.mark.parametrize("kernel", SMALL, ids=named)
def test_rows_that_fill_the_last_warp_touch_nothing(kernel: Kernel) -> None:
    """They repeat the last row: its pair must be squared once, and no row beyond the last be written."""
    key = Numbers.of(2048)
    for count in (1, kernel.rows - 1, kernel.rows + 1):
        launch = Launch(kernel, [key], [0] * count)
        before = launch.pairs.copy()
        for _ in range(3):
            launch.check([key.n // (i + 2) for i in range(count)])
        assert not (launch.pairs == before).all(axis=1).any()


@pytest.mark.parametrize("kernel", SMALL, ids=named)
def test_no_rows(kernel: Kernel) -> None:
    assert Launch(kernel, [Numbers.of(2048)], []).run([]) == ([], [])


@pytest.mark.parametrize("kernel", PRIVATE, ids=named)
def test_random_keys_and_inputs(kernel: Kernel) -> None:
    cases = int(os.environ.get("GPK_LONG_CASES", "0")) or 16
    source = random.Random(kernel.name)  # noqa: S311
    keys = [Numbers.of(bits) for bits in SIZES[kernel.class_bytes]]
    for seed in range(0, cases, 64):
        chosen = [source.randrange(len(keys)) for _ in range(min(64, cases - seed))]
        inputs = [source.randrange(keys[i].n) for i in chosen]
        outputs, ok = Launch(kernel, keys, chosen, seed).run(inputs)
        assert ok == [1] * len(chosen)
        assert all(pow(y, keys[i].e, keys[i].n) == x for i, x, y in zip(chosen, inputs, outputs, strict=True))
        assert outputs[0] == keys[chosen[0]].private(inputs[0])


def mod_exp(kernel: Kernel, bases: list[int], exponents: list[int], moduli: list[int], exponent_bits: int) -> list[int]:
    distinct = sorted(set(moduli))
    records = np.zeros((len(distinct), kernel.record_bytes), np.uint8)
    for record, modulus in zip(records, distinct, strict=True):
        modulus_record(record, kernel.radix_bits, kernel.class_bytes, modulus)
    outputs = np.full((len(bases), kernel.class_bytes), 0xA5, np.uint8)
    width = (max(exponent.bit_length() for exponent in exponents) + 31) // 32 * 4 or 4
    run(
        kernel,
        count=len(bases),
        exponent_bits=exponent_bits,
        exponent_stride=max(width, (exponent_bits + 31) // 32 * 4),
        modulus_of_row=np.array([distinct.index(modulus) for modulus in moduli], np.uint32),
        moduli=records,
        bases=rows(bases, kernel.class_bytes),
        exponents=rows(exponents, max(width, (exponent_bits + 31) // 32 * 4)),
        outputs=outputs,
    )
    return integers(outputs)


@pytest.mark.parametrize("kernel", MODEXP, ids=named)
def test_edge_moduli_and_bases(kernel: Kernel) -> None:
    bits, source = 8 * kernel.class_bytes, random.Random(3)  # noqa: S311
    kinds = [
        (1 << bits - 1) + 1,
        (1 << bits) - 1,
        (1 << bits) - 3,
        3,
        (1 << 52) - 1,
        (1 << 1000) + 1,
        (1 << bits - 2) - 1,
    ]
    cases = [
        (base, source.getrandbits(61), modulus)
        for modulus in kinds
        for base in (0, 1, modulus - 1, modulus, modulus // 2, (1 << bits) - 1, source.getrandbits(bits))
    ]
    bases, exponents, moduli = (list(column) for column in zip(*cases, strict=True))
    assert mod_exp(kernel, bases, exponents, moduli, 61) == [pow(b, e, m) for b, e, m in cases]


@pytest.mark.parametrize("kernel", MODEXP, ids=named)
@pytest.mark.parametrize("bits", [1, 3, 4, 5, 31, 32, 33, 64, 225])
def test_exponent_length(kernel: Kernel, bits: int) -> None:
    """Only this many bits count, whatever the bits above them."""
    exponent, modulus = (1 << 230) - 1, (1 << 8 * kernel.class_bytes) - 105
    assert mod_exp(kernel, [3], [exponent], [modulus], bits) == [pow(3, exponent % (1 << bits), modulus)]


@pytest.mark.parametrize("kernel", MODEXP, ids=named)
def test_squares_of_the_largest_limbs(kernel: Kernel) -> None:
    """What counts twice in a square is added separately, or doubled beforehand, which may overflow first. The bases are
    chosen by their Montgomery form, which is what the kernel squares."""
    bits, source = 8 * kernel.class_bytes, random.Random(5)  # noqa: S311
    limbs = (kernel.record_bytes // (8 if kernel.radix_bits == 52 else 4) - 4) // 3
    full = (1 << kernel.radix_bits) - 1
    kinds = [[full], [0, full], [full >> 1 ^ full], [full - 1, 1], [full, full, 0, 1 << kernel.radix_bits - 1]]
    numbers = [sum(source.choice(kind) << kernel.radix_bits * i for i in range(limbs)) for kind in kinds * 12]
    moduli = [(1 << bits) - source.choice((1, 3, 105, (1 << bits // 2) - 1, (1 << bits - 2) + 1)) for _ in numbers]
    r = 1 << kernel.radix_bits * limbs
    bases = [number % modulus * pow(r, -1, modulus) % modulus for number, modulus in zip(numbers, moduli, strict=True)]
    exponents = [1 << source.randrange(kernel.window, 3 * kernel.window) for _ in numbers]
    assert mod_exp(kernel, bases, exponents, moduli, 3 * kernel.window) == list(map(pow, bases, exponents, moduli))


def test_full_length_exponents() -> None:
    for kernel in MODEXP:
        modulus = (1 << 8 * kernel.class_bytes) - 189
        exponent = (1 << 8 * kernel.class_bytes) - 1
        assert mod_exp(kernel, [5], [exponent], [modulus], exponent.bit_length()) == [pow(5, exponent, modulus)]


def test_what_does_not_fit_is_refused() -> None:
    kernel = SMALL[0]
    record = np.zeros(kernel.record_bytes, np.uint8)
    with pytest.raises(kernels.UnsupportedError, match="does not fit the kernels of 256 bytes"):
        load(record, kernel, Numbers.of(2056))
    with pytest.raises(ValueError, match="no RSA key"):
        load(record, kernel, replace(Numbers.of(2048), q=Numbers.of(2048).q + 1))
    with pytest.raises(ValueError, match="must be odd"):
        modulus_record(record, 32, 256, 10)
    with pytest.raises(kernels.UnsupportedError):
        modulus_record(record, 32, 256, 1 << 2048 | 1)
