"""Pieces of calls with many messages: each takes some rows, says what must be computed, and what became of each row.

A row that can't be computed has an exception in place of its result, and its neighbours don't notice.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa

from gpu_provider.errors import GpuProviderError, InputError
from gpu_provider.library.keys import Key, check_ciphertext, check_key
from gpu_provider.library.modexp import modexp_call
from gpu_provider.library.operands import MAX_BITS, is_bytes, limbs_of
from gpu_provider.library.private_rows import keys_of_rows, private_calls

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Rows
    from gpu_provider.client import Client
    from gpu_provider.engine.calls import Call
    from gpu_provider.library.operands import BytesLike
    from gpu_provider.library.private_rows import PrivateCall
    from gpu_provider.library.schemes import DecryptionScheme, SignatureScheme

__all__ = ["DecryptPiece", "Piece", "PublicKey", "SignPiece", "VerifyPiece"]

PublicKey: TypeAlias = "Key | rsa.RSAPublicKey"


class Piece(ABC):
    """Has read its rows when it is made, and kept no message. Its calls are submitted then. When all of them have
    ended, :meth:`finish` is called, and in any case :meth:`release`. One thread at a time."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self.outcomes: list[Any] = []
        """Of each row: the result or an exception."""
        self._places: list[int] = []  # of the rows that are computed, among all
        self.calls: list[Call] = []
        for row in rows:
            try:
                outcome = self._read(*row)
            except (TypeError, ValueError, GpuProviderError) as error:
                outcome = error
            if outcome is None:
                self._places.append(len(self.outcomes))
            self.outcomes.append(outcome)
        if self._places:
            self._start()

    @abstractmethod
    def _read(self, *row: Any) -> Any:
        """Keeps what is to be computed of a row and returns None, or returns its result. Raises what is wrong with
        it, and has kept nothing then."""

    @abstractmethod
    def _start(self) -> None:
        """Makes the calls."""

    @abstractmethod
    def finish(self, errors: Sequence[Exception | None]) -> None:
        """Fills in the outcomes. ``errors``: what each of the calls ended with."""

    def release(self) -> None:
        for call in self.calls:
            call.give_up()


class _PrivatePiece(Piece):
    """Rows of private operations, whichever size classes their keys have."""

    def __init__(self, client: Client, rows: Iterable[Any]) -> None:
        self._client = client
        self._keys: list[Key] = []
        self._pins = contextlib.ExitStack()
        self._parts: list[tuple[NDArray[np.intp], PrivateCall]] = []
        super().__init__(rows)

    def _submit(self, inputs: Rows) -> None:
        of_rows = keys_of_rows(self._client, self._keys, len(inputs))
        self._pins.enter_context(of_rows.pinned())
        self._parts = private_calls(self._client, of_rows, inputs)
        self.calls = [call for _, call in self._parts]

    def finish(self, errors: Sequence[Exception | None]) -> None:
        for (rows, call), error in zip(self._parts, errors, strict=True):
            results = self._results(call, [self._keys[row] for row in rows.tolist()])
            for row, computed, result in zip(rows.tolist(), call.computed.tolist(), results, strict=True):
                self.outcomes[self._places[row]] = result if computed else error

    @abstractmethod
    def _results(self, call: PrivateCall, keys: Sequence[Key]) -> Sequence[bytes | Exception]:
        """One for each row of the call. Where it was not computed, whatever."""

    def release(self) -> None:
        super().release()
        self._pins.close()


class SignPiece(_PrivatePiece):
    """Of each row: the key and the message."""

    def __init__(self, client: Client, scheme: SignatureScheme, rows: Iterable[tuple[Key, BytesLike]]) -> None:
        self._scheme = scheme
        self._digests: list[bytes] = []
        super().__init__(client, rows)

    def _read(self, key: Key, message: BytesLike) -> None:
        check_key(self._client, key)
        key.check_open()
        self._digests.append(self._scheme.digest(message))
        self._keys.append(key)

    def _start(self) -> None:
        bits = [key.bits for key in self._keys]
        encoded, fits = self._scheme.encode(bits, self._digests, -(-max(bits) // 64) * 8)
        for row in np.flatnonzero(~fits).tolist():
            self.outcomes[self._places[row]] = self._scheme.too_long()
        kept = np.flatnonzero(fits).tolist()
        self._keys = [self._keys[row] for row in kept]
        self._places = [self._places[row] for row in kept]
        if kept:
            self._submit(encoded[fits])

    def _results(self, call: PrivateCall, keys: Sequence[Key]) -> Sequence[bytes]:
        width, numbers = call.row_bytes, call.result[:, ::-1].tobytes()
        return [
            numbers[end - key.bytes : end] for key, end in zip(keys, range(width, len(numbers) + 1, width), strict=True)
        ]


class DecryptPiece(_PrivatePiece):
    """Of each row: the key and the ciphertext."""

    def __init__(self, client: Client, scheme: DecryptionScheme, rows: Iterable[tuple[Key, BytesLike]]) -> None:
        self._scheme = scheme
        self._numbers: list[int] = []
        super().__init__(client, rows)

    def _read(self, key: Key, ciphertext: BytesLike) -> None:
        check_key(self._client, key)
        key.check_open()
        self._numbers.append(check_ciphertext(key, ciphertext))
        self._keys.append(key)

    def _start(self) -> None:
        self._submit(_to_rows(self._numbers, max(key.bits for key in self._keys)))

    def _results(self, call: PrivateCall, keys: Sequence[Key]) -> Sequence[bytes | Exception]:
        handles, ciphertexts = call.operands
        try:
            return self._scheme.decode(self._client, handles, ciphertexts, call.result)
        finally:
            call.result.fill(0)


class VerifyPiece(Piece):
    """Of each row: the key, the signature and the message. The outcome is whether they belong together."""

    def __init__(self, scheme: SignatureScheme, rows: Iterable[tuple[PublicKey, BytesLike, BytesLike]]) -> None:
        self._scheme = scheme
        self._digests: list[bytes] = []
        self._signatures: list[int] = []
        self._keys: list[tuple[int, int]] = []  # n and e
        self._latest: tuple[PublicKey, tuple[int, int]] | None = None
        super().__init__(rows)

    def _read(self, key: PublicKey, signature: BytesLike, message: BytesLike) -> bool | None:
        if self._latest is None or self._latest[0] is not key:
            self._latest = key, _public_numbers(key)
        n, e = self._latest[1]
        if not is_bytes(signature):
            raise TypeError(f"a signature is bytes, not {type(signature).__name__}")
        digest, number = self._scheme.digest(message), int.from_bytes(signature, "big")
        if memoryview(signature).nbytes != -(-n.bit_length() // 8) or number >= n:
            return False
        self._digests.append(digest)
        self._signatures.append(number)
        self._keys.append((n, e))
        return None

    def _start(self) -> None:
        moduli, exponents = zip(*self._keys, strict=True)
        if len(set(self._keys)) == 1:
            moduli, exponents = moduli[:1], exponents[:1]
        widths = [max(number.bit_length() for number in numbers) for numbers in (moduli, exponents)]
        rows = (_to_rows(self._signatures, widths[0]), _to_rows(exponents, widths[1]), _to_rows(moduli, widths[0]))
        self.calls = [modexp_call(*map(limbs_of, rows), public_exponents=True)]

    def finish(self, errors: Sequence[Exception | None]) -> None:
        if not self.calls:
            return
        (call,), (error,) = self.calls, errors
        verdicts = self._scheme.are_encodings([n.bit_length() for n, _ in self._keys], self._digests, call.result)
        for place, computed, verdict in zip(self._places, call.computed.tolist(), verdicts, strict=True):
            self.outcomes[place] = verdict if computed else error


def _public_numbers(key: PublicKey) -> tuple[int, int]:
    if isinstance(key, Key):
        return key.n, key.e
    if not isinstance(key, rsa.RSAPublicKey):
        raise InputError(
            f"a key is of type {type(key).__name__}; it must be one that load_key() returned, or an RSA public key of "
            "the cryptography package"
        )
    numbers = key.public_numbers()
    if numbers.n % 2 == 0 or numbers.n.bit_length() > MAX_BITS:
        raise InputError(f"a key's modulus is even, or has more than {MAX_BITS} bits")
    return numbers.n, numbers.e


def _to_rows(numbers: Sequence[int], bits: int) -> Rows:
    width = -(-bits // 64) * 8
    data = b"".join([number.to_bytes(width, "little") for number in numbers])
    return np.frombuffer(data, np.uint8).reshape(len(numbers), width)
