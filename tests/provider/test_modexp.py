"""modexp() against Python's pow, and finite-field Diffie-Hellman against ``cryptography``."""

from __future__ import annotations

import array
import asyncio
import math
import operator
import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import dh
from hypothesis import given, settings
from hypothesis import strategies as st
from limb_arrays import limbs, numbers
from rsa_keys import private_key

from gpu_provider import BatchingProvider, InputError, ProviderClosedError, ProviderConfig
from gpu_provider.testing import HeldBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider() as provider:
        yield provider


odd_moduli = st.integers(1, (1 << 2100) - 1).map(lambda half: 2 * half + 1)
any_moduli = st.one_of(
    st.integers(1, 100),
    odd_moduli,
    st.integers(1, 1 << 600),
    st.builds(operator.lshift, odd_moduli, st.integers(1, 300)),
    st.builds(operator.lshift, st.just(1), st.integers(0, 1000)),
)


class TestResults:
    @settings(deadline=None)
    @given(modulus=odd_moduli, data=st.data())
    def test_agrees_with_pow(self, provider: BatchingProvider, modulus: int, data: st.DataObject) -> None:
        base = data.draw(st.integers(0, modulus - 1))
        exponent = data.draw(st.integers(0, 1 << 300))
        assert provider.modexp(base, exponent, modulus) == pow(base, exponent, modulus)

    @settings(deadline=None)
    @given(
        rows=st.lists(st.tuples(st.integers(), any_moduli, st.integers(-1 << 70, 1 << 70)), min_size=1, max_size=6),
        public=st.booleans(),
    )
    def test_bases_exponents_and_moduli_of_every_sort_agree_with_pow(
        self, provider: BatchingProvider, rows: list[tuple[int, int, int]], public: bool
    ) -> None:
        """Even moduli, powers of two, 1; bases negative, wide, without an inverse; exponents of both signs."""
        rows = [
            (base, modulus, exponent if has_inverse(base, modulus) else abs(exponent))
            for base, modulus, exponent in rows
        ]
        bases, moduli, exponents = zip(*rows, strict=True)
        expected = [pow(base, exponent, modulus) for base, modulus, exponent in rows]
        assert provider.modexp(bases, exponents, moduli, public_exponents=public) == expected
        assert provider.modexp(bases[0], exponents[0], moduli[0], public_exponents=public) == expected[0]

    def test_arrays_are_reduced_too(self, provider: BatchingProvider) -> None:
        bases, moduli = [(1 << 575) + 7, 5, 1 << 64, 6], [(1 << 127) - 1, 1 << 70, (1 << 64) + 2, 1]
        result = provider.modexp(limbs(bases, 9), 3, limbs(moduli, 2))
        assert numbers(result) == [pow(base, 3, modulus) for base, modulus in zip(bases, moduli, strict=True)]
        one_base = provider.modexp(limbs(bases[:1], 9), 3, limbs(moduli, 2))
        assert numbers(one_base) == [pow(bases[0], 3, modulus) for modulus in moduli]

    @pytest.mark.parametrize("bits", [256, 257, 512, 1024, 6144, 8184, 8192])
    @pytest.mark.parametrize("count", [1, 20])
    def test_every_size(self, provider: BatchingProvider, bits: int, count: int) -> None:
        source = random.Random(bits)  # noqa: S311 (test data)
        moduli = [source.getrandbits(bits) | 1 << bits - 1 for _ in range(count)]
        bases = [source.getrandbits(bits) for _ in moduli]
        exponents = [source.getrandbits(60) for _ in moduli]
        assert provider.modexp(bases, exponents, moduli) == list(map(pow, bases, exponents, moduli))

    @pytest.mark.parametrize("exponent", [0, 1, 3, 17, 65537, (1 << 64) - 1, (1 << 64) + 1, (1 << 300) + 1])
    def test_public_exponents(self, provider: BatchingProvider, exponent: int) -> None:
        modulus = (1 << 2048) - 1942289
        bases = [3 << 1999, 5 << 1777, *range(20)]
        expected = [pow(base, exponent, modulus) for base in bases]
        assert provider.modexp(bases, exponent, modulus, public_exponents=True) == expected
        several = [exponent, 2, 65537] * 7
        assert provider.modexp(7, several, modulus, public_exponents=True) == [pow(7, e, modulus) for e in several]

    @pytest.mark.parametrize("public", [False, True])
    def test_by_openssl_alone(self, public: bool) -> None:
        """Hazard: what is kept of a modulus for the next row, whether that has the same one, an even one, or 1."""
        odd, other = (1 << 521) - 1, (1 << 2048) - 1942289
        moduli = [odd, odd, odd - 1, odd, odd - 1, odd - 1, other, 1, odd, 1 << 64, other, other]
        exponents = [65537, 3, 65537, 0, -5, 1 << 80, 17, 2, 1, 65537, 5, (1 << 300) - 1]
        with BatchingProvider(ProviderConfig(backend="libcrypto")) as provider:
            result = provider.modexp(7, exponents, moduli, public_exponents=public)
        assert result == [pow(7, exponent, modulus) for exponent, modulus in zip(exponents, moduli, strict=True)]

    @settings(deadline=None)
    @given(rows=st.lists(st.tuples(odd_moduli, st.integers(0), st.integers(0, 1 << 200)), min_size=1, max_size=20))
    def test_sequences_of_all_sizes_agree_with_pow(
        self, provider: BatchingProvider, rows: list[tuple[int, int, int]]
    ) -> None:
        moduli = [modulus for modulus, _, _ in rows]
        bases = [base % modulus for modulus, base, _ in rows]
        exponents = [exponent for _, _, exponent in rows]
        expected = [pow(*row) for row in zip(bases, exponents, moduli, strict=True)]
        assert provider.modexp(bases, exponents, moduli) == expected
        arrays = (limbs(bases, 33), limbs(exponents, 5), limbs(moduli, 33))
        result = provider.modexp(*arrays)
        assert result.shape == arrays[2].shape
        assert result.dtype == np.uint64
        assert numbers(result) == expected

    @pytest.mark.parametrize("exponent", [0, 1, 2, (1 << 64) - 1, 1 << 64])
    @pytest.mark.parametrize("modulus", [3, (1 << 64) - 1, (1 << 64) + 1, (1 << 4096) - 1, (1 << 8192) - 1])
    def test_edges(self, provider: BatchingProvider, exponent: int, modulus: int) -> None:
        bases = [0, 1, 2, modulus - 2, modulus - 1]
        assert provider.modexp(bases, exponent, modulus) == [pow(base, exponent, modulus) for base in bases]

    def test_one_operand_serves_all_rows(self, provider: BatchingProvider) -> None:
        assert provider.modexp(2, [1, 2, 3], 1000003) == [2, 4, 8]
        assert provider.modexp([2, 3], 2, [7, 5]) == [4, 4]
        assert provider.modexp([5], 2, 7) == [4]
        assert provider.modexp(5, 2, 7) == 4
        array = provider.modexp(limbs([2, 3, 4], 2), 3, limbs([1000003], 1)[0])
        assert (array.shape, numbers(array)) == ((3, 1), [8, 27, 64])

    def test_wide_bases_that_are_small_are_taken(self, provider: BatchingProvider) -> None:
        assert numbers(provider.modexp(limbs([2], 9), 10, 10001)) == [1024]

    def test_arrays_need_not_be_contiguous(self, provider: BatchingProvider) -> None:
        moduli = limbs([1000003, 5, 1000033, 5], 2)[::2]
        assert numbers(provider.modexp(limbs([2, 3], 2), 30, moduli)) == [pow(2, 30, 1000003), pow(3, 30, 1000033)]


def has_inverse(base: int, modulus: int) -> bool:
    return math.gcd(base, modulus) == 1


class Index:
    """An integer of another library."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


class TestKindsOfNumbers:
    """Hazard: bytes are a sequence of small ints to Python, and a number to private_op()."""

    M = (1 << 127) - 1

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda number: memoryview(number[::-1])[::-1]])
    def test_bytes_are_one_big_endian_number(self, provider: BatchingProvider, kind: Callable[[bytes], bytes]) -> None:
        base, exponent, modulus = (
            kind(number) for number in (b"\x01\x00", b"\x01\x00\x01", b"\x00" + self.M.to_bytes(16, "big"))
        )
        expected = pow(256, 65537, self.M)
        assert provider.modexp(base, exponent, modulus) == expected.to_bytes(16, "big")
        assert provider.modexp(256, exponent, modulus) == expected
        assert provider.modexp(base, 65537, self.M) == expected.to_bytes(16, "big")
        assert provider.modexp([base, base], [exponent, 1], modulus) == [
            expected.to_bytes(16, "big"),
            (256).to_bytes(16, "big"),
        ]
        assert provider.modexp(base, [1, 2], [self.M, 65537]) == [
            (256).to_bytes(16, "big"),
            (256**2 % 65537).to_bytes(3, "big"),
        ]
        array = provider.modexp(limbs([256], 2), exponent, modulus)
        assert numbers(array) == [expected]

    def test_no_bytes_are_nought(self, provider: BatchingProvider) -> None:
        assert provider.modexp(b"", 3, 7) == b"\x00"
        assert provider.modexp(b"\x00", b"", 7) == b"\x01"

    @pytest.mark.parametrize("kind", [np.uint64, np.int8, np.intp, Index])
    def test_integers_of_other_libraries(self, provider: BatchingProvider, kind: Callable[[int], int]) -> None:
        assert provider.modexp(kind(5), kind(3), kind(7)) == 6
        assert type(provider.modexp(kind(5), kind(3), kind(7))) is int
        assert provider.modexp([kind(5), 2], kind(3), [7, kind(11)]) == [6, 8]

    def test_numbers_of_gmpy2(self, provider: BatchingProvider) -> None:
        mpz = pytest.importorskip("gmpy2", reason="gmpy2 comes with the [bench] extra").mpz
        assert provider.modexp(mpz(5), mpz(-3), mpz(7)) == pow(5, -3, 7)
        assert provider.modexp([mpz(5), mpz(1) << 300], mpz(3), [mpz(7), 11]) == [6, pow(2, 900, 11)]
        assert type(provider.modexp(mpz(5), 3, 7)) is int

    def test_sequences_of_every_sort(self, provider: BatchingProvider) -> None:
        for bases in ((2, 3), range(2, 4), array.array("Q", [2, 3]), array.array("B", [2, 3])):
            assert provider.modexp(bases, 2, 11) == [4, 9]

    def test_arrays_of_every_layout(self, provider: BatchingProvider) -> None:
        moduli = limbs([11, 13, 17], 2)
        read_only = moduli.copy()
        read_only.flags.writeable = False
        for same in (moduli[::-1][::-1], np.asfortranarray(moduli), read_only, np.hstack([moduli, moduli])[:, :2]):
            assert numbers(provider.modexp(limbs([2, 3, 4], 1), 5, same)) == [32 % 11, 243 % 13, 1024 % 17]


class TestAwaited:
    async def test_agrees_with_the_call_that_waits(self, provider: BatchingProvider) -> None:
        assert await provider.modexp_async(2, 5, 7) == 4
        assert await provider.modexp_async(b"\x02", 5, 7) == b"\x04"
        assert await provider.modexp_async([2, 3], [5, b"\x05"], 7) == [4, 5]
        assert await provider.modexp_async([], 5, 7) == []
        assert numbers(await provider.modexp_async(limbs([2, 3], 1), 5, 7)) == [4, 5]
        together = await asyncio.gather(*(provider.modexp_async(x, 65537, (1 << 127) - 1) for x in range(200)))
        assert together == [pow(x, 65537, (1 << 127) - 1) for x in range(200)]
        with pytest.raises(InputError, match="the modulus is 0"):
            await provider.modexp_async(2, 5, 0)

    async def test_operands_may_change_meanwhile(self, provider: BatchingProvider) -> None:
        bases = [2, 3]
        call = asyncio.ensure_future(provider.modexp_async(bases, 5, 7))
        await asyncio.sleep(0)
        bases.clear()
        assert await call == [4, 5]

    async def test_what_is_cancelled_is_not_computed(self, held_backend: HeldBackend) -> None:
        config = ProviderConfig(max_delay=3600, backend_timeout=50, max_batch=1)
        with BatchingProvider(config, backends=[held_backend]) as provider:
            call = asyncio.ensure_future(provider.modexp_async([3] * 1000, 5, 7))
            await asyncio.to_thread(held_backend.wait_for_batch)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            held_backend.release_all()
            assert await provider.modexp_async(3, 5, 7) == 5
            assert provider.stats().by_backend == {"held": 2}

    async def test_what_is_cancelled_is_not_computed_again_when_it_fails(
        self, held_provider: BatchingProvider, held_backend: HeldBackend
    ) -> None:
        call = asyncio.ensure_future(held_provider.modexp_async([3] * 64, 5, 7))
        await asyncio.to_thread(held_backend.wait_for_batch)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        held_backend.fail_next()
        held_backend.release_all()
        assert await held_provider.modexp_async(3, 5, 7) == 5
        assert held_provider.stats().by_backend.get("libcrypto", 0) <= 1

    async def test_the_provider_closed_meanwhile(
        self, held_provider: BatchingProvider, held_backend: HeldBackend
    ) -> None:
        call = asyncio.ensure_future(held_provider.modexp_async([3, 4], 5, 7))
        await asyncio.to_thread(held_backend.wait_for_batch)
        closing = asyncio.ensure_future(asyncio.to_thread(held_provider.close))
        held_backend.release_all()
        await closing
        assert await call == [5, 2]
        with pytest.raises(ProviderClosedError):
            await held_provider.modexp_async(3, 5, 7)


class TestCompany:
    """Calls that wait at the same time are computed together."""

    @staticmethod
    async def all_waiting(
        provider: BatchingProvider, backend: HeldBackend, moduli: list[int]
    ) -> list[asyncio.Task[int]]:
        first = asyncio.ensure_future(provider.modexp_async(3, 5, 7))
        await asyncio.to_thread(backend.wait_for_batch)
        others = [asyncio.ensure_future(provider.modexp_async(3, 200 + x, m)) for x, m in enumerate(moduli)]
        await asyncio.sleep(0)  # each runs until it waits
        return [first, *others]

    async def test_those_of_one_size_are_computed_together(
        self, held_provider: BatchingProvider, held_backend: HeldBackend
    ) -> None:
        moduli = [(1 << 127) - 1, (1 << 192) - 237, (1 << 128) - 159] * 10
        tasks = await self.all_waiting(held_provider, held_backend, moduli)
        held_backend.release_all()
        results = await asyncio.gather(*tasks)
        assert results == [5, *(pow(3, 200 + x, m) for x, m in enumerate(moduli))]
        batches = [held_backend.wait_for_batch() for _ in range(2)]
        assert sorted((batch.bits, batch.requests) for batch in batches) == [(128, 20), (192, 10)]

    async def test_those_of_one_turn_of_the_loop_are_computed_together(
        self, held_provider: BatchingProvider, held_backend: HeldBackend
    ) -> None:
        calls = asyncio.gather(*(held_provider.modexp_async(x, 5, 10007) for x in range(50)))
        assert (await asyncio.to_thread(held_backend.wait_for_batch)).requests == 50
        held_backend.release_all()
        assert await calls == [pow(x, 5, 10007) for x in range(50)]

    @pytest.mark.parametrize("fault", [HeldBackend.fail_next, HeldBackend.hang_next])
    async def test_what_fails_in_company_is_computed_again(
        self, held_backend: HeldBackend, fault: Callable[[HeldBackend], None]
    ) -> None:
        config = ProviderConfig(max_delay=3600, backend_timeout=0.5)
        with BatchingProvider(config, backends=[held_backend]) as provider:
            tasks = await self.all_waiting(provider, held_backend, [(1 << 127) - 1] * 10)
            held_backend.release()
            await asyncio.to_thread(held_backend.wait_for_batch)
            fault(held_backend)
            held_backend.release_all()
            assert await asyncio.gather(*tasks) == [5, *(pow(3, 200 + x, (1 << 127) - 1) for x in range(10))]
            assert provider.stats().fallbacks == 10
            held_backend.end_hang()

    async def test_a_long_call_and_short_ones_of_its_size_take_turns(self, held_backend: HeldBackend) -> None:
        config = ProviderConfig(max_delay=3600, backend_timeout=50, max_batch=4)
        with BatchingProvider(config, backends=[held_backend]) as provider:
            long = asyncio.ensure_future(provider.modexp_async([3] * 100, 5, 7))
            await asyncio.to_thread(held_backend.wait_for_batch)
            short = asyncio.ensure_future(provider.modexp_async([3, 4], 5, 7))
            await asyncio.sleep(0)
            for _ in range(3):
                held_backend.release()
                await asyncio.to_thread(held_backend.wait_for_batch)
            assert await asyncio.wait_for(short, 30) == [5, 2]
            assert not long.done()
            held_backend.release_all()
            assert await long == [5] * 100


class TestNothingToDo:
    """Hazard: a pipeline whose last batch is empty."""

    def test_an_empty_list(self, provider: BatchingProvider) -> None:
        assert provider.modexp([], 2, 7) == []
        assert provider.modexp(2, [], 7) == []
        assert provider.modexp((), [], ()) == []
        assert provider.modexp([], -2, 8, public_exponents=True) == []
        assert provider.modexp(7, [], 8) == []
        assert provider.modexp(b"\x02", 3, []) == []

    def test_an_empty_array(self, provider: BatchingProvider) -> None:
        result = provider.modexp(np.zeros((0, 4), np.uint64), 2, 1 << 200 | 1)
        assert (result.shape, result.dtype) == ((0, 4), np.uint64)
        result = provider.modexp(np.zeros((0, 4), np.uint64), [], np.zeros((0, 3), np.uint64))
        assert (result.shape, result.dtype) == ((0, 3), np.uint64)

    def test_one_operand_that_is_wrong_is_refused_all_the_same(self, provider: BatchingProvider) -> None:
        with pytest.raises(InputError, match="the modulus is 0"):
            provider.modexp([], 2, 0)


class TestRefused:
    @pytest.mark.parametrize(
        ("operands", "reason"),
        [
            (([1, 1], 2, [7, 0]), "the modulus at index 1 is 0"),
            ((0, 2, 0), "the modulus is 0"),
            ((1, 2, -7), "the modulus is negative"),
            ((6, -2, 8), "the base has no inverse"),
            (([3, 5, 7], [-1, -1, -1], 35), "the base at index 1 has no inverse"),
            (([5, 5], [1, -1], 35), "the base at index 1 has no inverse"),
            ((0, -1, 7), "the base has no inverse"),
            ((1, 2, (1 << 8192) + 1), "the modulus has 8193 bits; at most 8192"),
            ((1, 1 << 8192, 7), "the exponent has 8193 bits"),
            ((1, -1 << 8192, 7), "the exponent has 8193 bits"),
            (([1, 2], [1, 2, 3], 7), "2 bases for 3 operations"),
            (([], [2, 3], 7), "0 bases for 2 operations"),
            (("12", 2, 7), "the base must be an int, bytes, a sequence of either or a uint64 array, not str"),
            ((["12"], 2, 7), "the base must be an int or bytes, not str"),
            ((1.5, 2, 7), "the base must be .* not float"),
            (([2, 1.5], 2, 7), "the base at index 1 must be an int or bytes, not float"),
            ((Fraction(2), 2, 7), "not Fraction"),
            ((np.float64(2), 2, 7), "not float64"),
            ((np.bool_(True), 2, 7), "not bool"),
            ((True, 2, 7), "not bool"),
            ((2, None, 7), "the exponent must be .* not NoneType"),
            (([2, [3]], 2, 7), "the base at index 1 must be an int or bytes, not list"),
            (({2: 3}, 2, 7), "not dict"),
            (({2}, 2, 7), "not set"),
            ((iter([2]), 2, 7), "not list_iterator"),
            ((memoryview(np.ones((2, 2), np.uint8)), 2, 7), r"the base is a memoryview of shape \(2, 2\)"),
            ((memoryview(np.ones(2, np.uint64)), 2, 7), "it must be of bytes in one dimension"),
            ((np.ones((1, 1), ">u8"), 2, 7), "dtype >u8"),
            ((np.ones((1, 1), object), 2, 7), "dtype object"),
            ((np.array(5, np.uint64), 2, 7), r"shape \(\)"),
            ((np.zeros((2, 0), np.uint64), 2, 7), r"shape \(2, 0\)"),
            ((np.ma.masked_array([[1, 1]], [[0, 1]], np.uint64), 2, 7), "has a mask"),
            ((np.zeros((1, 2), np.int64), 2, 7), "dtype int64"),
            ((np.zeros((1, 1, 1), np.uint64), 2, 7), r"shape \(1, 1, 1\)"),
            ((np.zeros((1, 129), np.uint64), 2, 7), "1 to 128 limbs"),
        ],
    )
    def test_the_row_and_the_reason_are_named(
        self, provider: BatchingProvider, operands: tuple[object, object, object], reason: str
    ) -> None:
        with pytest.raises(InputError, match=reason):
            provider.modexp(*operands)  # type: ignore[call-overload]

    def test_no_number_is_shown(self, provider: BatchingProvider) -> None:
        with pytest.raises(InputError) as caught:
            provider.modexp(987654321987654321, -3, 987654321987654321)
        assert "987654321" not in str(caught.value)

    def test_after_close(self) -> None:
        provider = BatchingProvider()
        with provider:
            pass
        with pytest.raises(ProviderClosedError):
            provider.modexp(2, 3, 5)


# RFC 7919: p = 2^b - 2^(b-64) + (floor(2^(b-130) * e) + X) * 2^64 - 1; e by its series in exact integers.
FFDHE = {2048: 560316, 3072: 2625351, 4096: 5736041, 8192: 10965728}


def ffdhe_prime(bits: int) -> int:
    precision = bits + 64
    euler, term, index = 0, 1 << precision, 1
    while term:
        euler += term
        term //= index
        index += 1
    scaled = euler >> (precision - (bits - 130))
    return (1 << bits) - (1 << (bits - 64)) + (scaled + FFDHE[bits]) * (1 << 64) - 1


@pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")
class TestDiffieHellman:
    @pytest.mark.parametrize("bits", sorted(FFDHE))
    def test_shared_secrets_of_rfc_7919_groups_agree_with_cryptography(
        self, provider: BatchingProvider, bits: int
    ) -> None:
        p, source = ffdhe_prime(bits), random.Random(bits)  # noqa: S311 (test data)
        peer = dh.DHParameterNumbers(p, 2).parameters().generate_private_key()
        secrets = [source.randrange(1 << 224, 1 << 225) for _ in range(3)]
        public = provider.modexp([2] * 3, secrets, p)
        shared = provider.modexp([peer.public_key().public_numbers().y] * 3, secrets, p)
        for ours, secret in zip(public, shared, strict=True):
            theirs = peer.exchange(dh.DHPublicNumbers(ours, dh.DHParameterNumbers(p, 2)).public_key())
            assert secret == int.from_bytes(theirs, "big")


class TestBesideTls:
    """RSA requests and long modexp calls share the workers; neither waits until the other is done."""

    def test_a_request_is_served_in_the_middle_of_a_long_call(self, held_backend: HeldBackend) -> None:
        config = ProviderConfig(max_delay=3600, backend_timeout=50, max_batch=4)
        with BatchingProvider(config, backends=[held_backend]) as provider, ThreadPoolExecutor() as pool:
            key = provider.load_key(private_key(2048))
            call = pool.submit(provider.modexp, [3] * 40, 5, 7)
            assert held_backend.wait_for_batch().bits == 64
            future = provider.submit(key, 2)
            held_backend.release()
            second = held_backend.wait_for_batch()
            held_backend.release()
            third = held_backend.wait_for_batch()
            assert 2048 in {second.bits, third.bits}
            assert not call.done()
            held_backend.release_all()
            assert future.result(timeout=10) == pow(2, private_key(2048).private_numbers().d, key.n)
            assert call.result(timeout=10) == [5] * 40

    def test_calls_of_several_threads_take_turns(self, held_backend: HeldBackend) -> None:
        config = ProviderConfig(max_delay=3600, backend_timeout=50, max_batch=1)
        with BatchingProvider(config, backends=[held_backend]) as provider, ThreadPoolExecutor() as pool:
            long = pool.submit(provider.modexp, [3] * 30, 5, 7)
            held_backend.wait_for_batch()
            short = pool.submit(provider.modexp, [3], 5, (1 << 127) - 1)
            for _ in range(29):
                held_backend.release()
                if held_backend.wait_for_batch().bits == 128:
                    break
                assert not long.done()
            held_backend.release_all()
            assert short.result(timeout=10) == [243]
            assert long.result(timeout=10) == [5] * 30
