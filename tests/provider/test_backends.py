"""The backends of the processor alone, and the C check of results."""

from __future__ import annotations

import functools
import os
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from batches import batch_of, results
from rsa_keys import private_key, program_key

from gpu_provider import BackendError, Key
from gpu_provider.backends.cpu import CpuBackend
from gpu_provider.backends.libcrypto import LibcryptoBackend, libcrypto_verify
from gpu_provider.client import Client
from gpu_provider.kernels import Isa
from gpu_provider.library import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpu_provider.backends.base import Backend

    Mixed = tuple[list[tuple[Key, int]], list[int]]


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(4)


@pytest.fixture(scope="module")
def key(client: Client) -> Key:
    return keys.load(client, private_key(2048))


BACKENDS: dict[str, Callable[[], LibcryptoBackend | CpuBackend]] = {
    "libcrypto": lambda: LibcryptoBackend(2),
    "cpu, as measured": lambda: CpuBackend(2),
    "cpu, kernels alone": lambda: CpuBackend(2, smallest=1),
    "cpu, portable kernels alone": lambda: CpuBackend(2, smallest=1, isa=Isa.PORTABLE),
}


@pytest.fixture(params=BACKENDS)
def backend(client: Client, request: pytest.FixtureRequest) -> Iterator[LibcryptoBackend | CpuBackend]:
    backend = BACKENDS[request.param]()
    backend.open(client)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def mixed(client: Client) -> Mixed:
    """Requests and their results."""
    source = random.Random(2)  # noqa: S311 (test data)
    requests, expected = [], []
    for bits in (2056, 2560):
        key = keys.load(client, private_key(bits))
        for _ in range(3):
            x = source.randrange(key.n)
            requests.append((key, x))
            expected.append(pow(x, private_key(bits).private_numbers().d, key.n))
    return requests, expected


def test_a_batch_of_mixed_keys_agrees_with_pow(client: Client, backend: Backend, mixed: Mixed) -> None:
    requests, expected = mixed
    batch = batch_of(requests, 320)
    backend.private_op(batch)
    assert batch.ok.tolist() == [1] * 6
    assert results(batch) == expected
    assert libcrypto_verify(client, batch) == 0


def test_a_handle_without_a_key_fails_its_row_alone(backend: Backend, mixed: Mixed) -> None:
    requests, expected = mixed
    batch = batch_of(requests, 320)
    batch.keys[2] = 12345678
    backend.private_op(batch)
    assert batch.ok.tolist() == [1, 1, 0, 1, 1, 1]
    assert results(batch)[3:] == expected[3:]
    assert not batch.outputs[2].any()


@pytest.mark.parametrize("change", ["bit", "zero", "input", "too large"])
def test_the_check_finds_what_is_wrong_and_only_that(
    client: Client, backend: Backend, mixed: Mixed, change: str
) -> None:
    requests, _ = mixed
    batch = batch_of(requests, 320)
    backend.private_op(batch)
    if change == "bit":
        batch.outputs[1, 100] ^= 0x10
    elif change == "zero":
        batch.outputs[1] = 0
    elif change == "input":
        batch.outputs[1] = batch.inputs[1]
    else:
        wrong = results(batch)[1] + requests[1][0].n  # right modulo n, but not below it
        batch.outputs[1] = np.frombuffer(wrong.to_bytes(320, "little"), np.uint8)
    assert libcrypto_verify(client, batch) == 1
    assert batch.ok.tolist() == [1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("smallest", [1, 3])
def test_batches_of_any_size(client: Client, key: Key, smallest: int, count: int) -> None:
    """Groups, padded groups, remainders for OpenSSL, and the edge of a chunk: no row may be lost or computed twice."""
    backend = CpuBackend(2, smallest=smallest)
    backend.open(client)
    d = private_key(2048).private_numbers().d
    batch = batch_of([(key, x) for x in range(2, count + 2)], 256)
    backend.private_op(batch)
    assert batch.ok.all()
    got = results(batch)
    assert [pow(result, key.e, key.n) for result in got] == list(range(2, count + 2))
    assert got[-1] == pow(count + 1, d, key.n)


PRIMES = "rsa_keygen_primes:"
EXPONENT = "rsa_keygen_pubexp:"


@pytest.mark.parametrize("options", [[PRIMES + "3"], [EXPONENT + str(2**64 + 13)]], ids=["three primes", "long e"])
def test_a_key_that_the_kernels_do_not_take_is_computed_among_others(client: Client, options: list[str]) -> None:
    """With two of three primes the result would be wrong, with a truncated e the check would."""
    backend = CpuBackend(2, smallest=1)
    backend.open(client)
    arguments = [part for option in ["rsa_keygen_bits:2048", *options] for part in ("-pkeyopt", option)]
    odd, plain = keys.load(client, program_key("RSA", *arguments)), keys.load(client, private_key(2048))
    batch = batch_of([(odd, 3), (plain, 4), (odd, 5), (odd, 6), (plain, 7), (plain, 8)], 256)
    backend.private_op(batch)
    assert batch.ok.tolist() == [1] * 6
    wanted = zip([odd, plain, odd, odd, plain, plain], results(batch), strict=True)
    assert [pow(result, key.e, key.n) for key, result in wanted] == [3, 4, 5, 6, 7, 8]


def test_keys_loaded_before_and_after_it_is_opened(client: Client) -> None:
    backend = CpuBackend(2, smallest=1)
    before = keys.load(client, private_key(2048))
    backend.open(client)
    after = keys.load(client, private_key(2048))
    batch = batch_of([(before, 2), (after, 2)], 256)
    backend.private_op(batch)
    assert len(set(results(batch))) == 1
    assert pow(results(batch)[0], before.e, before.n) == 2


power = functools.cache(pow)  # every backend gets the same numbers


@pytest.mark.parametrize("bits", [8, 512, 2048, 2056, 4096, 8192])
@pytest.mark.parametrize("count", [1, 9])
def test_exponentiations_agree_with_pow(backend: Backend, bits: int, count: int) -> None:
    source = random.Random(bits)  # noqa: S311 (test data)
    moduli = [source.getrandbits(bits) | 1 << (bits - 1) | 1 for _ in range(count)]
    bases = [source.randrange(modulus) for modulus in moduli]
    exponents = [source.getrandbits(130) for _ in range(count)]
    rows = [
        np.array([list(number.to_bytes(width, "little")) for number in numbers], np.uint8)
        for numbers, width in ((bases, bits // 8), (exponents, 17), (moduli, bits // 8))
    ]
    outputs = np.zeros_like(rows[0])
    backend.modexp(*rows, outputs)
    assert [int.from_bytes(row.tobytes(), "little") for row in outputs] == list(map(power, bases, exponents, moduli))


@pytest.mark.parametrize("kind", [LibcryptoBackend, CpuBackend])
def test_it_takes_as_many_batches_as_there_are_cores(kind: type[LibcryptoBackend | CpuBackend]) -> None:
    assert kind().workers == len(os.sched_getaffinity(0))
    assert kind(3).workers == 3


@pytest.mark.parametrize("kind", [LibcryptoBackend, CpuBackend])
def test_closed_it_says_so(kind: type[LibcryptoBackend | CpuBackend]) -> None:
    with pytest.raises(BackendError, match="not open"):
        kind(1).private_op(batch_of([], 256))
