"""private_op() over arrays, against Python's pow: any mix of keys, any backend, and what a backend fails."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from limb_arrays import limbs, numbers
from rsa_keys import private_key

from gpu_provider import BatchingProvider, InputError, ProviderClosedError, ProviderConfig
from gpu_provider.testing import HeldBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from gpu_provider import Key

SIZES = (2048, 2056, 3072, 4096)


def check(result: NDArray[np.uint64], keys: list[Key], xs: list[int]) -> None:
    """Only one number below n, raised to e, is x."""
    assert result.dtype == np.uint64
    for y, key, x in zip(numbers(result), keys, xs, strict=True):
        assert y < key.n
        assert pow(y, key.e, key.n) == x


def below(key: Key, source: random.Random) -> int:
    return source.randrange(key.n)


@pytest.fixture(params=["cpu", "libcrypto"])
def provider(request: pytest.FixtureRequest) -> Iterator[BatchingProvider]:
    with BatchingProvider(ProviderConfig(backend=request.param)) as provider:
        yield provider


class TestResults:
    @pytest.mark.parametrize("bits", SIZES)
    @pytest.mark.parametrize("rows", [1, 2, 9])
    def test_one_key_for_all_rows(self, provider: BatchingProvider, bits: int, rows: int) -> None:
        key, source = provider.load_key(private_key(bits)), random.Random(bits)  # noqa: S311 (test data)
        xs = [0, 1, key.n - 1, *(below(key, source) for _ in range(rows))][-rows:]
        width = -(-bits // 64)
        result = provider.private_op(key, limbs(xs, width))
        assert result.shape == (rows, width)
        check(result, [key] * rows, xs)

    def test_a_key_for_each_row(self, provider: BatchingProvider) -> None:
        source = random.Random(1)  # noqa: S311 (test data)
        loaded = [provider.load_key(private_key(bits)) for bits in SIZES]
        keys = [source.choice(loaded) for _ in range(50)]
        xs = [below(key, source) for key in keys]
        result = provider.private_op(keys, limbs(xs, 64))
        assert result.shape == (50, 64)
        check(result, keys, xs)

    def test_a_single_row_narrow_rows_and_views(self, provider: BatchingProvider) -> None:
        key = provider.load_key(private_key(2048))
        xs = [5, 7, 11]
        check(provider.private_op(key, limbs(xs, 1)), [key] * 3, xs)
        check(provider.private_op(key, limbs(xs[:1], 40)[0]), [key], xs[:1])
        check(provider.private_op(key, limbs([5, 0, 7, 0, 11], 32)[::2]), [key] * 3, xs)
        check(provider.private_op(key, np.asfortranarray(limbs(xs, 32))), [key] * 3, xs)

    def test_the_input_is_left_as_it_was(self, provider: BatchingProvider) -> None:
        key, x = provider.load_key(private_key(2048)), limbs([3, 4], 32)
        before = x.copy()
        provider.private_op(key, x)
        assert np.array_equal(x, before)
        assert x.flags.writeable

    def test_no_rows(self, provider: BatchingProvider) -> None:
        key = provider.load_key(private_key(2048))
        for keys, width in ((key, 32), ([], 1), ([key], 32)):
            result = provider.private_op(keys, np.zeros((0, 1), np.uint64))
            assert (result.shape, result.dtype) == ((0, width), np.uint64)


class TestErrors:
    @pytest.fixture
    def key(self, provider: BatchingProvider) -> Key:
        return provider.load_key(private_key(2048))

    def test_the_row_and_the_reason_are_named(self, provider: BatchingProvider, key: Key) -> None:
        row = limbs([key.n], 32)
        for operand, reason in (
            (np.concatenate([limbs([1], 32), row]), "the input at index 1 is not less than its key's 2048-bit modulus"),
            (limbs([1 << 3000], 64), "the input is not less than its key's 2048-bit modulus"),
            (np.zeros((2, 2), np.int64), "dtype int64"),
            (np.zeros((2, 2, 2), np.uint64), "shape"),
            (np.zeros((1, 0), np.uint64), "shape"),
            (np.zeros((1, 129), np.uint64), "1 to 128 limbs"),
        ):
            with pytest.raises(InputError, match=reason):
                provider.private_op(key, operand)

    def test_keys(self, provider: BatchingProvider, key: Key) -> None:
        with pytest.raises(InputError, match="2 keys for 3 rows"):
            provider.private_op([key, key], limbs([1, 2, 3], 32))
        with pytest.raises(InputError, match="0 keys for 1 rows"):
            provider.private_op([], limbs([1], 32))
        with pytest.raises(InputError, match="a key is of type str"):
            provider.private_op(["key"], limbs([1], 32))  # type: ignore[list-item]
        with pytest.raises(InputError, match="the key is of type int"):
            provider.private_op(5, limbs([1], 32))  # type: ignore[call-overload]
        with pytest.raises(InputError, match="the key is of type NoneType"):
            provider.submit(None, 1)  # type: ignore[call-overload]
        with pytest.raises(InputError, match="several keys take an array"):
            provider.private_op([key], 1)  # type: ignore[call-overload]
        with BatchingProvider() as other, pytest.raises(InputError, match="another provider"):
            other.private_op(key, limbs([1], 32))
        key.close()
        with pytest.raises(ProviderClosedError, match="closed"):
            provider.private_op(key, limbs([1], 32))

    def test_after_close(self, provider: BatchingProvider, key: Key) -> None:
        provider.close()
        with pytest.raises(ProviderClosedError):
            provider.private_op(key, limbs([1], 32))


@pytest.mark.gpu_provider(backend_timeout=0.5, max_batch=4)
class TestBackends:
    """Hazard: a backend fails in the middle of a call."""

    @pytest.mark.parametrize("fault", [HeldBackend.fail_next, HeldBackend.lie_next, HeldBackend.hang_next])
    def test_rows_that_fail_are_computed_again(
        self, held_provider: BatchingProvider, held_backend: HeldBackend, fault: Callable[[HeldBackend], None]
    ) -> None:
        key = held_provider.load_key(private_key(2048))
        held_backend.release_all()
        fault(held_backend)
        xs = list(range(2, 22))
        check(held_provider.private_op(key, limbs(xs, 32)), [key] * 20, xs)
        assert held_provider.stats().fallbacks >= 1

    def test_a_key_that_is_closed_meanwhile_serves_the_call_to_its_end(
        self, held_provider: BatchingProvider, held_backend: HeldBackend
    ) -> None:
        key = held_provider.load_key(private_key(2048))
        with ThreadPoolExecutor() as pool:
            call = pool.submit(held_provider.private_op, key, limbs([2, 3, 4, 5, 6], 32))
            held_backend.wait_for_batch()
            key.close()
            held_backend.release_all()
            check(call.result(timeout=20), [key] * 5, [2, 3, 4, 5, 6])
        assert held_provider.stats().fallbacks == 0

    def test_requests_from_the_queue_are_served_in_the_middle_of_a_long_call(
        self, held_provider: BatchingProvider, held_backend: HeldBackend
    ) -> None:
        key = held_provider.load_key(private_key(2048))
        with ThreadPoolExecutor() as pool:
            call = pool.submit(held_provider.private_op, key, limbs([2] * 40, 32))
            assert held_backend.wait_for_batch().requests == 4
            future = held_provider.submit(key, 3)
            for _ in range(2):
                held_backend.release()
                batch = held_backend.wait_for_batch()
                if batch.requests == 1:
                    break
            assert batch.requests == 1
            assert not call.done()
            held_backend.release_all()
            assert pow(future.result(timeout=20), key.e, key.n) == 3
            check(call.result(timeout=20), [key] * 40, [2] * 40)
