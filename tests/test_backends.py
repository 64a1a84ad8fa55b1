"""The libcrypto backend by itself, and the C check of results."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rsa_keys import private_key

from gpu_provider import BackendError, Key, keys
from gpu_provider.backends.base import Batch
from gpu_provider.backends.libcrypto import LibcryptoBackend
from gpu_provider.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def client() -> Client:
    return Client(4)


@pytest.fixture
def backend(client: Client) -> Iterator[LibcryptoBackend]:
    backend = LibcryptoBackend(2)
    backend.open(client)
    yield backend
    backend.close()


def batch_of(requests: list[tuple[Key, int]], class_bytes: int) -> Batch:
    inputs = np.zeros((len(requests), class_bytes), np.uint8)
    for row, (_, x) in zip(inputs, requests, strict=True):
        row[:] = np.frombuffer(x.to_bytes(class_bytes, "little"), np.uint8)
    return Batch(
        class_bytes=class_bytes,
        keys=np.array([key.handle for key, _ in requests], np.uint64),
        inputs=inputs,
        outputs=np.full_like(inputs, 0xAA),
        ok=np.zeros(len(requests), np.uint8),
    )


def results(batch: Batch) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in batch.outputs]


def mixed(client: Client) -> tuple[list[tuple[Key, int]], list[int]]:
    source = random.Random(2)  # noqa: S311 (test data)
    requests, expected = [], []
    for bits in (2056, 2560):
        key = keys.load(client, private_key(bits))
        for _ in range(3):
            x = source.randrange(key.n)
            requests.append((key, x))
            expected.append(pow(x, private_key(bits).private_numbers().d, key.n))
    return requests, expected


def test_a_batch_of_mixed_keys_agrees_with_pow(client: Client, backend: LibcryptoBackend) -> None:
    requests, expected = mixed(client)
    batch = batch_of(requests, 320)
    backend.private_op(batch)
    assert batch.ok.tolist() == [1] * 6
    assert results(batch) == expected
    assert client.verify(batch) == 0


def test_a_handle_without_a_key_fails_its_row_alone(client: Client, backend: LibcryptoBackend) -> None:
    requests, expected = mixed(client)
    batch = batch_of(requests, 320)
    batch.keys[2] = 12345678
    backend.private_op(batch)
    assert batch.ok.tolist() == [1, 1, 0, 1, 1, 1]
    assert results(batch)[3:] == expected[3:]
    assert not batch.outputs[2].any()


@pytest.mark.parametrize("change", ["bit", "zero", "input", "too large"])
def test_the_check_finds_what_is_wrong_and_only_that(client: Client, backend: LibcryptoBackend, change: str) -> None:
    requests, _ = mixed(client)
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
    assert client.verify(batch) == 1
    assert batch.ok.tolist() == [1, 0, 1, 1, 1, 1]


def test_it_takes_as_many_batches_as_there_are_cores() -> None:
    assert LibcryptoBackend().lanes == len(os.sched_getaffinity(0))
    assert LibcryptoBackend(3).lanes == 3


def test_closed_it_says_so() -> None:
    with pytest.raises(BackendError, match="not open"):
        LibcryptoBackend(1).private_op(batch_of([], 256))
