"""General modular exponentiation of the kernels against Python's ``pow``."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import check_powers
from kernel_oracle import isa_or_skip, modexp, prime

from gpu_provider import kernels

ISAS = [kernels.Isa.PORTABLE, kernels.Isa.IFMA]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> kernels.Isa:
    return isa_or_skip(request.param)


def check(
    bases: list[int],
    exponents: list[int],
    moduli: list[int],
    isa: kernels.Isa,
    *,
    stride: int = 256,
) -> None:
    outputs, ok = modexp(bases, exponents, moduli, stride, isa)
    assert ok == [1] * len(bases)
    assert outputs == [pow(b, e, m) for b, e, m in zip(bases, exponents, moduli, strict=True)]


@pytest.mark.parametrize("bits", [64, 256, 264, 512, 520, 1032, 1040, 2048, 2056, 3000, 3072, 4096, 6144, 8192])
def test_edge_moduli_and_bases(bits: int, isa: kernels.Isa) -> None:
    """Moduli of the fewest and the most ones, and small ones in a wide row."""
    moduli = [
        (1 << bits - 1) + 1,
        (1 << bits) - 1,
        (1 << bits) - 3,
        3,
        (1 << 52) - 1,
        (1 << 52) + 1,
        (1 << bits // 2) + 1,
    ]
    source = random.Random(bits)  # noqa: S311
    for modulus in moduli:
        bases = [0, 1, modulus - 1, modulus, modulus // 2, (1 << bits) - 1, source.getrandbits(bits), 1 << bits - 1]
        exponents = [source.getrandbits(61) for _ in bases]
        check(bases, exponents, [modulus] * len(bases), isa, stride=(bits + 7) // 8)


def test_exponents(isa: kernels.Isa) -> None:
    modulus = prime(2048)
    exponents = [0, 1, 2, 3, 15, 16, 17, (1 << 225) - 1, 1 << 224, 1 << 64, (1 << 64) - 1, (1 << 60) - 1]
    check([modulus // 3] * len(exponents), exponents, [modulus] * len(exponents), isa)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 7, 8, 60, 61, 64, 65, 225])
def test_exponent_length(bits: int, isa: kernels.Isa) -> None:
    """Only this many bits count, whatever the bits above them."""
    modulus, exponent = prime(2048), (1 << 232) - 1
    outputs, _ok = modexp([3], [exponent], [modulus], 256, isa, exponent_bits=bits)
    assert outputs == [pow(3, exponent % (1 << bits), modulus)]


@pytest.mark.parametrize("bits", [1, 17, 63, 64, 65, 225])
@pytest.mark.parametrize("count", [1, 20])
def test_public_exponents(bits: int, count: int, isa: kernels.Isa) -> None:
    """Few bits set, many, and none: by single bits or by windows. A row's bits must not reach its neighbours."""
    source = random.Random(bits)  # noqa: S311
    top = 1 << bits - 1
    exponents = [(top | 1, top, 0, 1, 2 * top - 1, source.getrandbits(bits))[i % 6] for i in range(count)]
    for modulus in (prime(2048), (1 << 256) - 189, (1 << 1024) + 643):
        stride = -(-modulus.bit_length() // 8)
        for some in (exponents, [top | 1] * count):
            bases = [source.randrange(modulus) for _ in some]
            outputs, ok = modexp(bases, some, [modulus] * count, stride, isa, exponent_bits=bits, public_exponents=True)
            assert ok == [1] * count
            assert outputs == [pow(base, exponent, modulus) for base, exponent in zip(bases, some, strict=True)]


def test_full_length_exponents(isa: kernels.Isa) -> None:
    for bits in (256, 512, 1024, 2048, 4096):
        modulus = (1 << bits) - 189
        check([5, modulus - 2], [modulus - 2, (1 << bits) - 1], [modulus] * 2, isa, stride=bits // 8)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17, 33])
def test_batches_of_any_size_with_their_own_moduli(count: int, isa: kernels.Isa) -> None:
    source = random.Random(count)  # noqa: S311
    moduli = [source.getrandbits(2048) | 1 for _ in range(count)]
    bases = [source.randrange(modulus) for modulus in moduli]
    check(bases, [source.getrandbits(40) for _ in moduli], moduli, isa)


def test_even_and_tiny_moduli_are_refused_alone(isa: kernels.Isa) -> None:
    outputs, ok = modexp([7] * 5, [5] * 5, [10, 0, 1, 3, 2**2047], 256, isa)
    assert (outputs, ok) == ([0, 0, 0, pow(7, 5, 3), 0], [0, 0, 0, 1, 0])


def test_rows_that_are_too_wide_or_empty(isa: kernels.Isa) -> None:
    with pytest.raises(kernels.UnsupportedError):
        modexp([1], [1], [3], 1025, isa)
    with pytest.raises(kernels.UnsupportedError):
        modexp([1], [1], [3], 256, isa, exponent_bits=8 * 1025)


def test_random_numbers(isa: kernels.Isa) -> None:
    cases = 320 if isa is kernels.Isa.IFMA else 64
    assert sum(check_powers(isa, cases)) == cases


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    isa=st.sampled_from(ISAS),
    stride=st.one_of(st.integers(1, 140), st.integers(1, 1024)),
    count=st.integers(1, 20),
)
def test_any_numbers(data: st.DataObject, isa: kernels.Isa, stride: int, count: int) -> None:
    if isa is kernels.Isa.IFMA:
        isa_or_skip(isa)
    source = random.Random(data.draw(st.integers(0, 2**32)))  # noqa: S311
    length = data.draw(st.integers(1, 8 * stride))
    moduli = [(source.getrandbits(length) | 3) for _ in range(count)]
    bases = [source.getrandbits(8 * stride) for _ in range(count)]
    exponents = [source.getrandbits(source.randrange(1, 40)) for _ in range(count)]
    moduli = [modulus if modulus.bit_length() <= 8 * stride else 3 for modulus in moduli]
    check(bases, exponents, moduli, isa, stride=stride)
