"""RSA private operations of the kernels against Python's ``pow``, at the edges of every bound and of every size class.

``make test-long`` is a long run of the random test.
"""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
from kernel_cases import SIZES, check_private_operations
from kernel_oracle import Numbers, isa_or_skip, prime, private_op

from gpu_provider import kernels

ISAS = [kernels.Isa.PORTABLE, kernels.Isa.IFMA]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> kernels.Isa:
    return isa_or_skip(request.param)


def check(keys: list[Numbers], inputs: list[int], isa: kernels.Isa, stride: int | None = None) -> None:
    loaded = {key: key.load() for key in set(keys)}
    stride = stride or max((key.n.bit_length() + 7) // 8 for key in keys)
    outputs, ok = private_op([loaded[key] for key in keys], inputs, stride, isa)
    assert ok == [1] * len(keys)
    assert outputs == [key.private(x) for key, x in zip(keys, inputs, strict=True)]


def edges(key: Numbers) -> list[int]:
    """Zero in every ring, both ends, multiples of one prime only, neighbours of each prime, limbs and words of ones."""
    ones = (1 << key.n.bit_length() - 1) - 1
    return [
        0,
        1,
        2,
        key.n - 1,
        key.p,
        key.q,
        key.q * (key.p - 1),
        key.p - 1,
        key.p + 1,
        key.q - 1,
        key.q + 1,
        ones,
        (1 << 52) - 1,
        1 << key.n.bit_length() - 1,
        1 << 52 * (key.p.bit_length() // 52 + 1),
        key.n - key.p,
    ]


@pytest.mark.parametrize("bits", SIZES)
def test_edge_inputs(bits: int, isa: kernels.Isa) -> None:
    key = Numbers.of(bits)
    inputs = edges(key)
    if isa is kernels.Isa.PORTABLE:
        inputs = inputs[:: max(1, bits // 1024)]
    check([key] * len(inputs), inputs, isa)


@pytest.mark.parametrize("e", [3, 5, 65537, 2**32 + 1, 2**64 - 1])
def test_public_exponents(e: int, isa: kernels.Isa) -> None:
    key = Numbers.from_primes(prime(1024, e), prime(1024, e, seed=1), e)
    check([key] * 3, [2, key.n - 2, key.p], isa)


def test_public_exponents_mixed_in_one_vector(isa: kernels.Isa) -> None:
    """Its rows square together, so that a short exponent waits for a long one."""
    exponents = [3, 65537, 2**64 - 1, 17]
    keys = [Numbers.from_primes(prime(1024, e), prime(1024, e, seed=1), e) for e in exponents]
    check(keys, [key.n // 3 for key in keys], isa)


@pytest.mark.parametrize(("longer", "shorter"), [(1036, 1012), (1030, 1018), (1100, 948), (1600, 448)])
def test_primes_of_unequal_length(longer: int, shorter: int, isa: kernels.Isa) -> None:
    """The longer prime chooses the size class; Garner's step must not assume that q is below p, nor that it is not."""
    p, q = prime(longer, 65537), prime(shorter, 65537, seed=1)
    for key in (Numbers.from_primes(p, q, 65537), Numbers.from_primes(q, p, 65537)):
        check([key] * 4, [key.n - 1, key.p, key.q, key.n // 5], isa)


def test_short_private_exponent(isa: kernels.Isa) -> None:
    """A dP that is shorter than p still counts as long as p. p = (e dP + 1) / 2 with a long e."""
    e, source = 2**61 - 1, random.Random(5)  # noqa: S311
    while True:
        dp = source.getrandbits(964) | 1 << 963 | 1
        p = (e * dp + 1) // 2
        if p % 2 and all(p % small for small in (3, 5, 7, 11, 13)) and pow(3, p - 1, p) == 1:
            break
    assert dp.bit_length() <= p.bit_length() - 60
    key = Numbers.from_primes(p, prime(1024, e), e)
    assert key.dp == dp
    check([key] * 2, [key.n - 3, key.n // 7], isa)


def test_every_element_with_its_own_key(isa: kernels.Isa) -> None:
    keys = [
        Numbers.from_primes(prime(1024, 65537, seed=2 * i), prime(1024, 65537, seed=2 * i + 1), 65537) for i in range(8)
    ]
    check(keys, [key.n - 1 - i for i, key in enumerate(keys)], isa)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 17])
def test_batches_of_any_size(count: int, isa: kernels.Isa) -> None:
    key = Numbers.of(2048)
    check([key] * count, [key.n // (i + 2) for i in range(count)], isa)


def test_keys_of_all_sizes_mixed_in_one_batch(isa: kernels.Isa) -> None:
    keys = [Numbers.of(bits) for bits in (*SIZES, 1024, 2560, 3584)]
    order = [keys[i % len(keys)] for i in (0, 4, 1, 3, 2, 5, 6, 7, 0, 2, 4, 4)]
    check(order, [key.n // (i + 2) for i, key in enumerate(order)], isa, stride=512)


def test_no_rows(isa: kernels.Isa) -> None:
    assert private_op([], [], 256, isa) == ([], [])


def test_random_keys_and_inputs(isa: kernels.Isa) -> None:
    cases = 2000 if isa is kernels.Isa.IFMA else 40
    assert sum(check_private_operations(isa, cases)) == cases


@pytest.mark.parametrize("part", ["p", "q", "dp", "dq", "qinv"])
def test_a_corrupted_key_is_caught(part: str, isa: kernels.Isa) -> None:
    """One wrong result would reveal the factors (Boneh, DeMillo, Lipton): nothing of it may come out."""
    good = Numbers.of(2048)
    bad = replace(good, **{part: getattr(good, part) ^ 1 << 77})
    outputs, ok = private_op([bad.load(), good.load()], [12345, 12345], 256, isa)
    assert (outputs[0], ok) == (0, [0, 1])
    assert outputs[1] == good.private(12345)


def test_input_not_below_the_modulus(isa: kernels.Isa) -> None:
    key = Numbers.of(2048)
    loaded = key.load()
    inputs = [key.n, key.n + 1, (1 << 2048) - 1, 1 << 2090, 1 << 4000, 3]
    outputs, ok = private_op([loaded] * len(inputs), inputs, 512, isa)
    assert ok == [0, 0, 0, 0, 0, 1]
    assert outputs == [0, 0, 0, 0, 0, key.private(3)]


def test_row_narrower_than_the_key(isa: kernels.Isa) -> None:
    assert private_op([Numbers.of(2056).load()], [3], 256, isa) == ([0], [0])


def test_a_key_outlives_its_blinding_pairs() -> None:
    """Each is squared after use and replaced after 512 uses, so 8 of them last for 4,096 operations of a key."""
    isa = isa_or_skip(kernels.Isa.IFMA)
    key = Numbers.of(2048)
    loaded = key.load()
    for _ in range(5):
        outputs, ok = private_op([loaded] * 1000, list(range(1000)), 256, isa)
        assert all(ok)
    assert outputs[5] == key.private(5)


def test_threads_share_keys() -> None:
    """The blinding pairs are the only part of a key that changes."""
    isa = kernels.isa()
    keys = [Numbers.of(2048), Numbers.of(3072)]
    loaded = [key.load() for key in keys]
    expected = [keys[i % 2].private(i) for i in range(10)]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(3):
            outputs, _ok = private_op([loaded[i % 2] for i in range(10)], list(range(10)), 384, isa)
            wrong.extend(i for i in range(10) if outputs[i] != expected[i])

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "change",
    [
        {"e": 2**64 + 1},
        {"n": 2**4097 + 1, "p": 2**2049 + 1, "q": 2**2049 + 1},
        {"n": 2**512 + 1, "p": 2**256 + 1, "q": 2**256 + 1},
        {"p": 2**2100 + 1},
    ],
)
def test_unsupported_keys(change: dict[str, int]) -> None:
    with pytest.raises(kernels.UnsupportedError, match="the kernels take keys of 1024 to 4096 bits"):
        replace(Numbers.of(2048), **change).load()


@pytest.mark.parametrize("part", ["n", "p", "q", "e"])
def test_even_numbers_are_no_key(part: str) -> None:
    key = Numbers.of(2048)
    with pytest.raises(ValueError, match="no RSA key"):
        replace(key, **{part: getattr(key, part) + 1}).load()


def test_qinv_not_below_p_is_no_key() -> None:
    key = Numbers.of(2048)
    with pytest.raises(ValueError, match="no RSA key"):
        replace(key, qinv=key.p).load()


def test_rows_too_wide(isa: kernels.Isa) -> None:
    with pytest.raises(kernels.UnsupportedError, match="rows of 513 bytes"):
        private_op([Numbers.of(2048).load()], [1], 513, isa)
