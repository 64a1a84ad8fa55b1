"""Private keys for library calls. (Keys for TLS reach the provider through OpenSSL instead.)"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from gpu_provider.errors import InputError, KeyLoadError, ProviderClosedError
from gpu_provider.library.key_formats import to_unencrypted, what_it_is
from gpu_provider.library.operands import is_bytes, to_int
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from gpu_provider.client import Client
    from gpu_provider.library.key_formats import KeySource
    from gpu_provider.library.operands import BytesLike, Integer

__all__ = ["Key", "check_key", "load"]

_MIN_EXPONENT = 3


class Key:
    """An RSA private key in a provider's key table. Made by :meth:`gpu_provider.BatchingProvider.load_key`.

    Holds the public numbers only. The private ones are in OpenSSL's memory, which wipes them when the key is closed (or
    collected) and the last request that uses it is done. Any thread.
    """

    __slots__ = ("__weakref__", "_remove", "bits", "bytes", "client", "e", "handle", "n")

    def __init__(self, client: Client, handle: int, n: int, e: int) -> None:
        self.client = client
        self.handle = handle
        """The key's number in the provider's key table; never 0 and never used twice."""
        self.n = n
        """The modulus."""
        self.e = e
        """The public exponent."""
        self.bits = n.bit_length()
        self.bytes = (self.bits + 7) // 8
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
        if self.closed:
            raise ProviderClosedError(f"this {self.bits}-bit key is closed; load it again")
        if is_bytes(x) and memoryview(x).nbytes > self.bytes:
            raise InputError(f"the input is {memoryview(x).nbytes} bytes long, but the key takes at most {self.bytes}")
        number = to_int(x, "the input")
        if number < 0:
            raise InputError("the input is negative; it must be from 0 to the key's modulus less one")
        if number >= self.n:
            raise InputError(f"the input is not less than the key's {self.bits}-bit modulus; reduce it or pad it first")
        return number.to_bytes(self.bytes, "little"), is_bytes(x)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Key can't be pickled or copied: load it in the other process, with a provider of its own")

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


def load(
    client: Client,
    source: KeySource,
    password: bytes | str | None = None,
    *,
    check_primes: bool = False,
    unsafe_skip_rsa_key_validation: bool = False,
) -> Key:
    """See :meth:`gpu_provider.BatchingProvider.load_key`."""
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
