"""Private set intersection by Diffie-Hellman (Meadows 1986; Huberman, Franklin, Hogg 1999) in the group ffdhe2048.

Two parties learn which items both have, and nothing of the others', as long as both follow the protocol:

    ours, theirs = Party(provider, items), Party(provider, other_items)
    there = theirs.raise_again(ours.blinded())       # sent, in our order
    back = ours.raise_again(theirs.blinded())        # sent, shuffled
    ours.common(there, back)                         # the items that both have
"""

from __future__ import annotations

import decimal
import hashlib
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpu_provider import BatchingProvider

_SECRET_BITS = 256


def group_ffdhe2048() -> int:
    """RFC 7919, appendix A.1: p = 2^2048 - 2^1984 + (floor(2^1918 e) + 560316) 2^64 - 1, where (p - 1) / 2 is prime."""
    with decimal.localcontext(prec=700):
        floor = int(decimal.Decimal(1).exp() * 2**1918)
    return 2**2048 - 2**1984 + (floor + 560316) * 2**64 - 1


class Party:
    """One side, with a secret exponent for this one intersection. Both sides call the provider only for batches."""

    def __init__(self, provider: BatchingProvider, items: Sequence[bytes]) -> None:
        self._provider = provider
        self._items = items
        self._p = group_ffdhe2048()
        # All of one length, which the time of an exponentiation depends on.
        self._secret = secrets.randbits(_SECRET_BITS) | 1 << _SECRET_BITS - 1

    def blinded(self) -> list[int]:
        """h(item)^secret, for the other side."""
        return self._provider.modexp([self._hashed(item) for item in self._items], self._secret, self._p)

    def raise_again(self, blinded: Sequence[int]) -> list[int]:
        """What the other side has blinded, blinded a second time, in the same order. Raises ValueError."""
        if not all(1 < number < self._p - 1 for number in blinded):
            raise ValueError("the other side sent a number that is not an element of the group")
        return self._provider.modexp(blinded, self._secret, self._p)

    def common(self, ours: Sequence[int], theirs: Sequence[int]) -> list[bytes]:
        """Our items that both have. ``ours``: our numbers, blinded by both, in our order; ``theirs``: likewise, in any
        order."""
        both = set(theirs)
        return [item for item, number in zip(self._items, ours, strict=True) if number in both]

    def _hashed(self, item: bytes) -> int:
        """An element of the subgroup of squares, whose order is prime; of which power of 2 nobody knows."""
        wide = hashlib.shake_256(item).digest((2048 + 128) // 8)
        return pow(int.from_bytes(wide, "big"), 2, self._p)
