"""Private keys for library calls. (Keys for TLS reach the provider through OpenSSL instead.)"""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from gpu_provider.errors import InputError, KeyLoadError, ProviderClosedError
from gpu_provider.library.key_formats import to_unencrypted, what_it_is
from gpu_provider.library.operands import is_bytes, to_int
from gpu_provider.library.public_part import NOT_EXPORTABLE, Placeholder, PublicPart
from gpu_provider.library.schemes import DecryptionScheme, SignatureScheme
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding

    from gpu_provider.client import Client
    from gpu_provider.library.key_formats import KeySource
    from gpu_provider.library.operands import BytesLike, Integer
    from gpu_provider.library.schemes import Algorithm
    from gpu_provider.provider import BatchingProvider

__all__ = ["Key", "check_ciphertext", "check_key", "load"]

_MIN_EXPONENT = 3


class Key(PublicPart):
    """An RSA private key in a provider's key table. Made by :meth:`gpu_provider.BatchingProvider.load_key`.

    It is an ``RSAPrivateKey`` of the ``cryptography`` package: its certificate builders, PyJWT and others take it, with
    the paddings and errors that they know. The operations of all threads and coroutines that wait at the same time are
    computed together. In a process forked from the provider's they raise ProviderClosedError.

    Holds the public numbers only. The private ones are in OpenSSL's memory, which wipes them when the key is closed (or
    collected) and the last request that uses it is done; they can't be exported. Any thread.
    """

    def __init__(self, client: Client, handle: int, n: int, e: int) -> None:
        super().__init__(n, e)
        self.client = client
        self.handle = handle
        """The key's number in the provider's key table; never 0 and never used twice."""
        self.provider: BatchingProvider | None = None
        """What computes :meth:`sign` and :meth:`decrypt`; None: nothing does."""
        self._remove = weakref.finalize(self, _remove, client, handle)
        self._remove.atexit = False

    def close(self) -> None:
        """Removes the key from the table. Requests that were submitted before still finish. May be called again."""
        self._remove()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return not self._remove.alive

    def to_row(self, x: Integer | BytesLike) -> tuple[bytes, bool]:
        """``x`` as the queue takes it, ``self.bytes`` long, least significant byte first; and whether it was bytes.

        Raises InputError unless it is an integer or big-endian bytes with 0 <= x < n, ProviderClosedError for a closed
        key.
        """
        self.check_open()
        if is_bytes(x) and memoryview(x).nbytes > self.bytes:
            raise InputError(f"the input is {memoryview(x).nbytes} bytes long, but the key takes at most {self.bytes}")
        number = to_int(x, "the input")
        if number < 0:
            raise InputError("the input is negative; it must be from 0 to the key's modulus less one")
        if number >= self.n:
            raise InputError(f"the input is not less than the key's {self.bits}-bit modulus; reduce it or pad it first")
        return number.to_bytes(self.bytes, "little"), is_bytes(x)

    def check_open(self) -> None:
        """Raises ProviderClosedError for a closed key."""
        if self.closed:
            raise self._closed_error()

    def _closed_error(self) -> ProviderClosedError:
        return ProviderClosedError(f"this {self.bits}-bit key is closed; load it again")

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Keeps the key in the key table, even if it is closed meanwhile. Raises ProviderClosedError if it is closed
        already."""
        if not lib.gp_key_table_pin(self.client.keys, self.handle, ffi.new("uint32_t *")):
            raise self._closed_error()
        try:
            yield
        finally:
            lib.gp_client_unpin_key(self.client.pointer, self.handle, 1)

    # ---- as an RSAPrivateKey ----

    @property
    def placeholder(self) -> Placeholder:
        """A key for other packages, whose signatures are zeros for ``sign_many()`` to replace."""
        return Placeholder(self.n, self.e)

    def sign(self, data: BytesLike, padding: AsymmetricPadding, algorithm: Algorithm) -> bytes:
        """A signature, as long as the modulus: see ``RSAPrivateKey.sign()``. Waits for it, and for room in the queue.

        ``padding``: ``PKCS1v15()``, with SHA-1, SHA-2, SHA-3 or ``NoDigestInfo()``; or ``PSS``. ``algorithm`` may be
        ``Prehashed``. Raises TypeError, ValueError and UnsupportedAlgorithm as ``cryptography`` does, OperationError,
        ProviderClosedError.
        """
        encoded = SignatureScheme(padding, algorithm).encode_one(self.bits, data)
        return self._computing().private_op(self, encoded)

    async def sign_async(self, data: BytesLike, padding: AsymmetricPadding, algorithm: Algorithm) -> bytes:
        """Like :meth:`sign`, for coroutines."""
        encoded = SignatureScheme(padding, algorithm).encode_one(self.bits, data)
        return await self._computing().private_op_async(self, encoded)

    def decrypt(self, ciphertext: BytesLike, padding: AsymmetricPadding) -> bytes:
        """The message: see ``RSAPrivateKey.decrypt()``. Waits for it, and for room in the queue.

        ``padding``: ``OAEP``, or ``PKCS1v15()`` with implicit rejection: then bad padding is no error, but gives a
        message that nobody can foretell, always the same one for the same ciphertext. Raises TypeError, ValueError and
        UnsupportedAlgorithm as ``cryptography`` does, OperationError, ProviderClosedError.
        """
        scheme, provider = DecryptionScheme(padding), self._computing()
        check_ciphertext(self, ciphertext)
        with self.pinned():
            return scheme.decode_one(self.client, self.handle, ciphertext, provider.private_op(self, ciphertext))

    async def decrypt_async(self, ciphertext: BytesLike, padding: AsymmetricPadding) -> bytes:
        """Like :meth:`decrypt`, for coroutines."""
        scheme, provider = DecryptionScheme(padding), self._computing()
        check_ciphertext(self, ciphertext)
        with self.pinned():
            power = await provider.private_op_async(self, ciphertext)
            return scheme.decode_one(self.client, self.handle, ciphertext, power)

    def _computing(self) -> BatchingProvider:
        self.client.check_process()
        if self.provider is None:
            raise ProviderClosedError("this key belongs to no provider; load it with BatchingProvider.load_key()")
        return self.provider

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Key can't be pickled: load it in the other process, with a provider of its own")

    def __repr__(self) -> str:
        return f"<Key RSA {self.bits} bits, e={self.e}, handle {self.handle:#x}{', closed' if self.closed else ''}>"


def _remove(client: Client, handle: int) -> None:
    lib.gp_client_remove_key(client.pointer, handle)


def check_key(client: Client, key: object, name: str = "the key") -> None:
    """Raises InputError unless it is a key in this client's table."""
    if not isinstance(key, Key):
        raise InputError(f"{name} is of type {type(key).__name__}; it must be one that load_key() returned")
    if key.client is not client:
        raise InputError("the key was loaded by another provider; load it with this one")


def check_ciphertext(key: Key, ciphertext: object) -> int:
    """The ciphertext as a number. Raises what ``RSAPrivateKey.decrypt()`` does, before it decrypts anything."""
    if not is_bytes(ciphertext):
        raise TypeError(f"a ciphertext is bytes, not {type(ciphertext).__name__}")
    if memoryview(ciphertext).nbytes != key.bytes:
        raise ValueError("Ciphertext length must be equal to key size.")
    number = to_int(ciphertext, "the ciphertext")
    if number >= key.n:
        raise DecryptionScheme.failed()
    return number


def load(
    client: Client,
    source: KeySource,
    password: bytes | str | None = None,
    *,
    check_primes: bool = False,
    unsafe_skip_rsa_key_validation: bool = False,
) -> Key:
    """See :meth:`gpu_provider.BatchingProvider.load_key`."""
    if isinstance(source, Key):
        raise KeyLoadError(NOT_EXPORTABLE)
    if check_primes and unsafe_skip_rsa_key_validation:
        raise InputError("check_primes and unsafe_skip_rsa_key_validation exclude each other; give one of them")
    encoded = to_unencrypted(source, password)
    checks = lib.GP_CHECK_PRIMES if check_primes else lib.GP_CHECK_NUMBERS
    if unsafe_skip_rsa_key_validation:
        checks = lib.GP_CHECK_NOTHING
    info: Any = ffi.new("gp_key_info *")
    result = lib.gp_embedded_load_key(client.pointer, encoded, len(encoded), checks, info)
    n = int.from_bytes(ffi.buffer(info.modulus, info.bytes), "little")
    e = int.from_bytes(ffi.buffer(info.exponent, info.exponent_bytes), "little")
    if result == lib.GP_LOAD_OK:
        return Key(client, info.handle, n, e)
    if result == lib.GP_LOAD_UNREADABLE:
        raise KeyLoadError(what_it_is(encoded))
    raise _load_error(result, info.bits, n, e)


def _load_error(result: int, bits: int, n: int, e: int) -> KeyLoadError:
    if result == lib.GP_LOAD_INVALID and n and n % 2 == 0:
        return KeyLoadError(f"the RSA key's {bits}-bit modulus is even; this is not a valid key")
    if result == lib.GP_LOAD_INVALID and n and (e % 2 == 0 or e < _MIN_EXPONENT):
        return KeyLoadError(f"the RSA key's public exponent is {e}; it must be odd and at least {_MIN_EXPONENT}")
    return KeyLoadError(
        {
            lib.GP_LOAD_NOT_RSA: "not an RSA key; only RSA private keys can be used here",
            lib.GP_LOAD_NOT_PRIVATE: "a public key; the private key is needed",
            lib.GP_LOAD_SIZE: f"the RSA key has {bits} bits; it must have 2048 to 4096",
            lib.GP_LOAD_INVALID: "the RSA key's numbers do not fit together; the file is damaged or was made up",
            lib.GP_LOAD_MEMORY: "out of memory, or more than 65536 keys",
        }[result]
    )
