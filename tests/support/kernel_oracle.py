"""RSA keys with chosen numbers, batches through the kernels, and what Python's integers say about them."""

from __future__ import annotations

import functools
import random
import subprocess
from dataclasses import dataclass

import numpy as np
import pytest
from rsa_keys import private_key

from gpu_provider import kernels


@dataclass(frozen=True)
class Numbers:
    """One RSA key. The kernels get these seven numbers and no others."""

    n: int
    e: int
    p: int
    q: int
    dp: int
    dq: int
    qinv: int

    @classmethod
    def of(cls, bits: int, e: int = 65537) -> Numbers:
        numbers = private_key(bits).private_numbers()
        return cls.from_primes(numbers.p, numbers.q, e)

    @classmethod
    def from_primes(cls, p: int, q: int, e: int) -> Numbers:
        return cls(p * q, e, p, q, pow(e, -1, p - 1), pow(e, -1, q - 1), pow(q, -1, p))

    def load(self) -> kernels.PrivateKey:
        return kernels.PrivateKey(n=self.n, e=self.e, p=self.p, q=self.q, dp=self.dp, dq=self.dq, qinv=self.qinv)

    def private(self, x: int) -> int:
        sp, sq = pow(x, self.dp, self.p), pow(x, self.dq, self.q)
        return sq + self.q * ((sp - sq) * self.qinv % self.p)


@functools.cache
def prime(bits: int, e: int = 1, seed: int = 0) -> int:
    """A prime of exactly that many bits, with e prime to p - 1. The same one for the same seed."""
    source = random.Random(f"{bits} {e} {seed}")  # noqa: S311
    while True:
        candidate = source.getrandbits(bits - 2) | 3 << bits - 2 | 1
        if all(candidate % small for small in (3, 5, 7, 11, 13, 17, 19, 23)) and pow(2, candidate - 1, candidate) == 1:
            try:
                pow(e, -1, candidate - 1)
            except ValueError:
                continue
            if is_prime(candidate):
                return candidate


def is_prime(candidate: int) -> bool:
    output = subprocess.run(["openssl", "prime", str(candidate)], check=True, capture_output=True, timeout=30).stdout
    return b"is prime" in output


def isa_or_skip(isa: kernels.Isa) -> kernels.Isa:
    try:
        return kernels.isa(isa)
    except kernels.UnsupportedError as error:
        pytest.skip(str(error))


def rows(numbers: list[int], stride: int) -> np.ndarray:
    data = b"".join(number.to_bytes(stride, "little") for number in numbers)
    return np.frombuffer(data, np.uint8).reshape(len(numbers), stride)


def integers(array: np.ndarray) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in array]


def private_op(
    keys: list[kernels.PrivateKey], inputs: list[int], stride: int, isa: kernels.Isa
) -> tuple[list[int], list[int]]:
    """Results and verdicts. The outputs start out as garbage, as a buffer used again does."""
    outputs, ok = np.full((len(inputs), stride), 0xA5, np.uint8), np.full(len(inputs), 7, np.uint8)
    kernels.private_op(keys, rows(inputs, stride), outputs, ok, isa=isa)
    return integers(outputs), ok.tolist()


def modexp(
    bases: list[int],
    exponents: list[int],
    moduli: list[int],
    stride: int,
    isa: kernels.Isa,
    *,
    exponent_bits: int | None = None,
    public_exponents: bool = False,
) -> tuple[list[int], list[int]]:
    longest = max([exponent_bits or 1, *(e.bit_length() for e in exponents)])
    width = (longest + 7) // 8
    outputs, ok = np.full((len(bases), stride), 0xA5, np.uint8), np.full(len(bases), 7, np.uint8)
    kernels.modexp(
        rows(bases, stride),
        rows(exponents, width),
        rows(moduli, stride),
        outputs,
        ok,
        exponent_bits=exponent_bits,
        public_exponents=public_exponents,
        isa=isa,
    )
    return integers(outputs), ok.tolist()
