"""What is public of an RSA private key, and a stand-in that has nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding

    from gpu_provider.library.operands import BytesLike
    from gpu_provider.library.schemes import Algorithm

__all__ = ["NOT_EXPORTABLE", "Placeholder", "PublicPart"]

NOT_EXPORTABLE = (
    "a key that a provider has loaded can't be exported: its private numbers stay in the provider's key table; export "
    "it from where it was loaded from"
)


class PublicPart(rsa.RSAPrivateKey):
    """The part of ``cryptography``'s ``RSAPrivateKey`` that needs no private number."""

    def __init__(self, n: int, e: int) -> None:
        self.n = n
        self.e = e
        self.bits = n.bit_length()
        self.bytes = (self.bits + 7) // 8

    @property
    def key_size(self) -> int:
        """Bits of the modulus."""
        return self.bits

    def public_key(self) -> rsa.RSAPublicKey:
        """The public key, of the ``cryptography`` package. It computes by itself."""
        return rsa.RSAPublicNumbers(self.e, self.n).public_key()

    def private_numbers(self) -> NoReturn:
        """Raises UnsupportedAlgorithm: see :meth:`private_bytes`."""
        raise UnsupportedAlgorithm(NOT_EXPORTABLE)

    def private_bytes(self, *_: object, **__: object) -> NoReturn:
        """Raises UnsupportedAlgorithm: what is in the key table never leaves it."""
        raise UnsupportedAlgorithm(NOT_EXPORTABLE)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


class Placeholder(PublicPart):
    """Stands in for a key where another package signs one message after the other: its signatures are zeros, in whose
    place ``sign_many()`` puts real ones. Any thread."""

    def sign(self, data: BytesLike, padding: AsymmetricPadding, algorithm: Algorithm) -> bytes:
        """As many zeros as a signature has bytes. ``sign_many()`` says what is wrong with the arguments."""
        return bytes(self.bytes)

    def decrypt(self, ciphertext: BytesLike, padding: AsymmetricPadding) -> NoReturn:
        """Raises UnsupportedAlgorithm."""
        raise UnsupportedAlgorithm("a placeholder can't decrypt; use the key that it stands in for")
