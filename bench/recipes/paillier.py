"""Paillier by ``phe`` (python-paillier), with the exponentiations of many numbers in common batches.

What comes out are phe's own objects, for phe's arithmetic and phe's keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phe import EncodedNumber, EncryptedNumber

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from phe import PaillierPrivateKey, PaillierPublicKey

    from gpu_provider import BatchingProvider


def encrypt(provider: BatchingProvider, key: PaillierPublicKey, values: Sequence[int | float]) -> list[EncryptedNumber]:
    """``[key.encrypt(value) for value in values]``."""
    randoms = [key.get_random_lt_n() for _ in values]
    masks = provider.modexp(randoms, key.n, key.nsquare)  # n is public, but too long to gain from it
    return [_masked(key, value, mask) for value, mask in zip(values, masks, strict=True)]


def _masked(key: PaillierPublicKey, value: float, mask: int) -> EncryptedNumber:
    encoded = EncodedNumber.encode(key, value)
    bare = key.raw_encrypt(encoded.encoding, r_value=1)  # 1 + n m: no exponentiation
    number = EncryptedNumber(key, bare * mask % key.nsquare, encoded.exponent)
    number._EncryptedNumber__is_obfuscated = True  # or ciphertext() would mask it again
    return number


def decrypt(
    provider: BatchingProvider, key: PaillierPrivateKey, numbers: Iterable[EncryptedNumber]
) -> list[int | float]:
    """``[key.decrypt(number) for number in numbers]``; by the Chinese remainder theorem, as there."""
    numbers = list(numbers)
    if any(number.public_key != key.public_key for number in numbers):
        raise ValueError("a number was encrypted with another key")
    ciphertexts = [number.ciphertext(be_secure=False) for number in numbers]
    # Both at once; a ciphertext below n^2 is reduced modulo p^2 and q^2.
    half_p = provider.submit_modexp(ciphertexts, key.p - 1, key.psquare)
    half_q = provider.submit_modexp(ciphertexts, key.q - 1, key.qsquare)
    plain = [
        key.crt(key.l_function(p, key.p) * key.hp % key.p, key.l_function(q, key.q) * key.hq % key.q)
        for p, q in zip(half_p.result(), half_q.result(), strict=True)
    ]
    return [
        EncodedNumber(key.public_key, value, number.exponent).decode()
        for value, number in zip(plain, numbers, strict=True)
    ]
