"""The padding schemes of ``cryptography``, as the C core takes them. What it refuses is refused with its exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding as paddings
from cryptography.hazmat.primitives.asymmetric import utils

from gpu_provider.client import u8, u32, u64
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Rows
    from gpu_provider.client import Client
    from gpu_provider.library.operands import BytesLike

__all__ = ["Algorithm", "DecryptionScheme", "SignatureScheme"]

Algorithm: TypeAlias = "hashes.HashAlgorithm | utils.Prehashed | utils.NoDigestInfo"

_NO_DIGEST_INFO = getattr(utils, "NoDigestInfo", ())  # older versions of cryptography have none
_TOO_LONG = (
    "Digest or salt length too long for key size. Use a larger key or shorter salt length if you are specifying a PSS "
    "salt"
)
_SALT_AS_DIGEST, _SALT_ANY, _SALT_LONGEST = -1, -2, -3  # OpenSSL's numbers


class _Scheme:
    """A ``struct gp_rows_scheme``. Immutable; any thread."""

    def __init__(
        self,
        padding: int,
        digest: str | None,
        mgf: paddings.MGF | None = None,
        salt_length: int = 0,
        label: bytes | None = None,
    ) -> None:
        self._digest = digest
        names = (digest, None if mgf is None else _mgf1_digest(mgf))
        self._keeps = [ffi.NULL if name is None else ffi.new("char[]", name.encode()) for name in names]
        self._keeps.append(ffi.new("uint8_t[]", label or b""))
        digest_name, mgf1_name, label_bytes = self._keeps
        self._c = ffi.new(
            "struct gp_rows_scheme *",
            [padding, digest_name, mgf1_name, salt_length, label_bytes, len(label or b"")],
        )

    def _check(self, result: int) -> None:
        if result == lib.GP_ROWS_UNKNOWN_DIGEST:
            raise UnsupportedAlgorithm(f"{self._digest} is not supported by this backend for RSA")
        if result == lib.GP_ROWS_MEMORY:
            raise MemoryError


class SignatureScheme(_Scheme):
    """PKCS #1 v1.5 or PSS with a hash algorithm."""

    def __init__(self, padding: paddings.AsymmetricPadding, algorithm: Algorithm, *, signing: bool = True) -> None:
        """Raises TypeError, ValueError or UnsupportedAlgorithm where ``RSAPrivateKey.sign()`` does, or with ``signing``
        False ``RSAPublicKey.verify()``; and UnsupportedAlgorithm for MD5 and SM3 with PKCS #1 v1.5."""
        self._prehashed = isinstance(algorithm, utils.Prehashed)
        hashed = algorithm._algorithm if isinstance(algorithm, utils.Prehashed) else algorithm
        raw = isinstance(hashed, _NO_DIGEST_INFO) and isinstance(padding, paddings.PKCS1v15)
        if not raw and not isinstance(hashed, hashes.HashAlgorithm):
            raise TypeError("Expected instance of hashes.HashAlgorithm.")
        self._algorithm = hashed if isinstance(hashed, hashes.HashAlgorithm) else None
        digest = None if self._algorithm is None else _digest_name(self._algorithm)
        if isinstance(padding, paddings.PKCS1v15):
            super().__init__(lib.GP_ROWS_PKCS1, digest)
        elif isinstance(padding, paddings.PSS):
            super().__init__(lib.GP_ROWS_PSS, digest, padding.mgf, _salt_length(padding, signing))
        else:
            raise _wrong_padding(padding)
        self.encode([], [], 0)  # refuses an unknown digest

    def digest(self, data: BytesLike) -> bytes:
        """What of a message is encoded. Raises TypeError, and ValueError for a prehashed one of the wrong length."""
        if self._algorithm is None:
            return bytes(memoryview(data))
        if self._prehashed:
            digest = bytes(memoryview(data))
            if len(digest) != self._algorithm.digest_size:
                raise ValueError("The provided data must be the same length as the hash algorithm's digest size.")
            return digest
        context = hashes.Hash(self._algorithm)
        context.update(data)
        return context.finalize()

    def encode(self, bits: Sequence[int], digests: Sequence[bytes], stride: int) -> tuple[Rows, NDArray[np.bool_]]:
        """The encoded messages for moduli of ``bits`` bits, [n, stride] with the least significant byte first; and for
        which of them there is one: :meth:`too_long` is the error of the others."""
        rows, ok = np.empty((len(bits), stride), np.uint8), np.empty(len(bits), np.uint8)
        self._check(lib.gp_rows_encode(self._c, len(bits), *_columns(bits, digests), u8(rows), stride, u8(ok)))
        return rows, ok.astype(bool)

    def encode_one(self, bits: int, data: BytesLike) -> bytes:
        """The encoding of one message, most significant byte first, as long as the modulus. Raises TypeError and
        ValueError."""
        rows, ok = self.encode([bits], [self.digest(data)], -(-bits // 8))
        if not ok[0]:
            raise self.too_long()
        return rows[0, ::-1].tobytes()

    def are_encodings(self, bits: Sequence[int], digests: Sequence[bytes], powers: Rows) -> list[bool]:
        """Whether signatures raised to e, as [n, bytes] with the least significant byte first, are encodings of the
        digests."""
        ok = np.empty(len(bits), np.uint8)
        stride = powers.shape[1]
        self._check(lib.gp_rows_check(self._c, len(bits), *_columns(bits, digests), u8(powers), stride, u8(ok)))
        return ok.astype(bool).tolist()

    @staticmethod
    def too_long() -> ValueError:
        return ValueError(_TOO_LONG)


class DecryptionScheme(_Scheme):
    """PKCS #1 v1.5 with implicit rejection, as OpenSSL since 3.2 and so ``cryptography`` have it, or OAEP."""

    def __init__(self, padding: paddings.AsymmetricPadding) -> None:
        """Raises TypeError and UnsupportedAlgorithm where ``RSAPrivateKey.decrypt()`` does."""
        if isinstance(padding, paddings.PKCS1v15):
            super().__init__(lib.GP_ROWS_PKCS1, None)
        elif isinstance(padding, paddings.OAEP):
            super().__init__(lib.GP_ROWS_OAEP, _digest_name(padding.algorithm), padding.mgf, label=padding._label)
        else:
            raise _wrong_padding(padding)

    def decode(
        self, client: Client, handles: NDArray[np.uint64], ciphertexts: Rows, powers: Rows
    ) -> list[bytes | ValueError]:
        """The messages in ``powers``, which are ``ciphertexts`` raised to d by the keys with ``handles``; all [n,
        bytes], least significant byte first. The time tells the lengths of messages, and where an error is, but not
        why. The keys must be in the client's table."""
        messages = np.zeros_like(powers)
        sizes, ok = np.empty(len(powers), np.uint32), np.empty(len(powers), np.uint8)
        arrays = (u64(handles), u8(ciphertexts), u8(powers), powers.shape[1], u8(messages), u32(sizes), u8(ok))
        try:
            self._check(lib.gp_rows_decode(self._c, client.keys, len(powers), *arrays))
            return [
                message[:size].tobytes() if good else self.failed()
                for message, size, good in zip(messages, sizes.tolist(), ok.tolist(), strict=True)
            ]
        finally:
            messages.fill(0)

    def decode_one(self, client: Client, handle: int, ciphertext: BytesLike, power: bytes) -> bytes:
        """The message of one ciphertext; numbers as long as the modulus, most significant byte first. Raises
        ValueError."""
        ciphertexts, powers = (np.frombuffer(number, np.uint8)[None, ::-1].copy() for number in (ciphertext, power))
        try:
            (message,) = self.decode(client, np.array([handle], np.uint64), ciphertexts, powers)
        finally:
            powers.fill(0)
        if isinstance(message, ValueError):
            raise message
        return message

    @staticmethod
    def failed() -> ValueError:
        return ValueError("Decryption failed")


def _columns(bits: Sequence[int], digests: Sequence[bytes]) -> tuple[Any, Any, Any]:
    sizes = np.fromiter(map(len, digests), np.uint32, len(digests))
    return u32(np.array(bits, np.uint32)), ffi.from_buffer("uint8_t[]", b"".join(digests)), u32(sizes)


def _digest_name(algorithm: hashes.HashAlgorithm) -> str:
    if isinstance(algorithm, hashes.ExtendableOutputFunction):
        raise UnsupportedAlgorithm(f"{algorithm.name} is not supported by this backend for RSA")
    return algorithm.name


def _mgf1_digest(mgf: paddings.MGF) -> str:
    if not isinstance(mgf, paddings.MGF1):
        raise UnsupportedAlgorithm("Only MGF1 is supported.")
    return _digest_name(mgf._algorithm)


def _salt_length(padding: paddings.PSS, signing: bool) -> int:
    length = padding._salt_length
    if isinstance(length, int):
        return length
    if length is paddings.PSS.DIGEST_LENGTH:
        return _SALT_AS_DIGEST
    if length is paddings.PSS.MAX_LENGTH:
        return _SALT_LONGEST
    if signing:
        raise ValueError("PSS salt length can only be set to Auto when verifying")
    return _SALT_ANY


def _wrong_padding(padding: object) -> Exception:
    if isinstance(padding, paddings.AsymmetricPadding):
        return UnsupportedAlgorithm(f"{padding.name} is not supported by this backend.")
    return TypeError("Padding must be an instance of AsymmetricPadding.")
