"""The recipes give what phe gives, and the intersection of two sets."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import pytest

phe = pytest.importorskip("phe", reason="python-paillier comes with the [bench] extra")

from bench.recipes import paillier, psi  # noqa: E402
from gpu_provider import BatchingProvider  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider() as provider:
        yield provider


def test_paillier(provider: BatchingProvider) -> None:
    public, private = phe.generate_paillier_keypair(n_length=1024)
    values = [0, 1, -5, 3.25, 10**20, -(2**40)]
    encrypted = paillier.encrypt(provider, public, values)
    assert [private.decrypt(number) for number in encrypted] == values
    assert paillier.decrypt(provider, private, map(public.encrypt, values)) == values
    assert paillier.decrypt(provider, private, [encrypted[1] + encrypted[2], encrypted[3] * -2]) == [-4, -6.5]
    assert paillier.encrypt(provider, public, []) == []
    again = paillier.encrypt(provider, public, [1, 1])
    assert len({number.ciphertext(be_secure=False) for number in (*again, encrypted[1])}) == 3
    sent = again[0].ciphertext()
    assert again[0].ciphertext() == sent == again[0].ciphertext(be_secure=False), "it is masked already"
    other, _ = phe.generate_paillier_keypair(n_length=1024)
    with pytest.raises(ValueError, match="another key"):
        paillier.decrypt(provider, private, [other.encrypt(1)])


def test_intersection(provider: BatchingProvider) -> None:
    items = [hashlib.sha256(bytes([number])).digest() for number in range(30)]
    ours, theirs = psi.Party(provider, items[:20]), psi.Party(provider, items[12:])
    there = theirs.raise_again(ours.blinded())
    back = ours.raise_again(theirs.blinded())
    random.shuffle(back)
    assert ours.common(there, back) == items[12:20]
    assert not set(ours.blinded()) & set(theirs.blinded())
    for number in (0, 1, psi.group_ffdhe2048() - 1, psi.group_ffdhe2048()):
        with pytest.raises(ValueError, match="not an element"):
            ours.raise_again([number])


def test_the_group_is_that_of_rfc_7919() -> None:
    p = psi.group_ffdhe2048()
    assert hex(p).startswith("0xffffffffffffffffadf85458a2bb4a9aafdc5620273d3cf1")
    assert hex(p).endswith("886b423861285c97ffffffffffffffff")
    assert pow(2, (p - 1) // 2, p) == 1
