"""Signatures, decryptions and verifications of many messages: a part of BatchingProvider's interface."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

from cryptography.hazmat.primitives.asymmetric import rsa

from gpu_provider.library.keys import Key, check_key
from gpu_provider.library.many import compute, compute_async, rows_of
from gpu_provider.library.pieces import DecryptPiece, SignPiece, VerifyPiece
from gpu_provider.library.schemes import DecryptionScheme, SignatureScheme

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding

    from gpu_provider.client import Client
    from gpu_provider.engine.engine import Engine
    from gpu_provider.library.many import MakePiece, Progress
    from gpu_provider.library.operands import BytesLike
    from gpu_provider.library.pieces import PublicKey
    from gpu_provider.library.schemes import Algorithm

__all__ = ["ManyOperations"]

PrivateKeys: TypeAlias = "Key | Iterable[Key]"
PublicKeys: TypeAlias = "PublicKey | Iterable[PublicKey]"
Work: TypeAlias = "tuple[MakePiece, Iterator[Any]]"


class ManyOperations(ABC):
    """Nine methods: each operation waits on the thread, or gives a future, or is awaited. What they have in common:

    Keys are one key for all rows, or an iterable of as many. Messages, signatures and ciphertexts are any iterables of
    bytes-like objects. They are taken in order, some hundreds at a time, and none is kept: what is in memory are some
    thousands of digests or ciphertexts, and the results. ``progress`` is called with the number of rows that are done,
    again and again, from the same thread that takes the rows; if it raises, or taking a row does, the call ends with
    that exception.

    A row that fails does not affect the others. When all are done, RowsError has the error of each that failed, as
    ``cryptography`` would have raised it, and the results of the others.
    """

    _client: Client
    _engine: Engine

    @abstractmethod
    def _check_running(self) -> None: ...

    @abstractmethod
    def _check_may_wait(self) -> None: ...

    # ---- signing ----

    def sign_many(
        self,
        keys: PrivateKeys,
        messages: Iterable[BytesLike],
        padding: AsymmetricPadding,
        algorithm: Algorithm,
        *,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """Signs each message, as ``RSAPrivateKey.sign()`` of ``cryptography`` does. Waits for the signatures: one for
        each message, in order, as long as its key's modulus.

        ``keys``: of this provider. See :class:`ManyOperations` for how messages are taken, and ``progress``. Raises
        TypeError, ValueError and UnsupportedAlgorithm for a padding or algorithm that ``cryptography`` refuses,
        InputError, RowsError, ProviderClosedError. Any thread but a future's callback.
        """
        return self._wait(self._signing(keys, messages, padding, algorithm), progress)

    def submit_sign_many(
        self,
        keys: PrivateKeys,
        messages: Iterable[BytesLike],
        padding: AsymmetricPadding,
        algorithm: Algorithm,
        *,
        progress: Progress | None = None,
    ) -> Future[list[bytes]]:
        """Like :meth:`sign_many`, but returns a future at once. A new thread takes the messages, calls ``progress`` and
        runs the future's callbacks. After the future is cancelled it takes some thousands of messages at most."""
        return self._submit(self._signing(keys, messages, padding, algorithm), progress)

    async def sign_many_async(
        self,
        keys: PrivateKeys,
        messages: Iterable[BytesLike],
        padding: AsymmetricPadding,
        algorithm: Algorithm,
        *,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """Like :meth:`sign_many`, for coroutines. The messages are taken, and ``progress`` is called, on the event
        loop's thread, with turns for other coroutines in between. Cancelling it gives up what has not begun."""
        return await self._await(self._signing(keys, messages, padding, algorithm), progress)

    def _signing(
        self, keys: PrivateKeys, messages: Iterable[BytesLike], padding: AsymmetricPadding, algorithm: Algorithm
    ) -> Work:
        make = functools.partial(SignPiece, self._client, SignatureScheme(padding, algorithm))
        return make, self._private_rows_of(keys, messages=messages)

    # ---- decryption ----

    def decrypt_many(
        self,
        keys: PrivateKeys,
        ciphertexts: Iterable[BytesLike],
        padding: AsymmetricPadding,
        *,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """Decrypts each ciphertext, as :meth:`gpu_provider.Key.decrypt` does. Waits for the messages: one for each
        ciphertext, in order.

        ``keys``: of this provider. See :class:`ManyOperations` for how ciphertexts are taken, and ``progress``. Raises
        TypeError and UnsupportedAlgorithm for a padding that ``cryptography`` refuses, InputError, RowsError,
        ProviderClosedError. Any thread but a future's callback.
        """
        return self._wait(self._decrypting(keys, ciphertexts, padding), progress)

    def submit_decrypt_many(
        self,
        keys: PrivateKeys,
        ciphertexts: Iterable[BytesLike],
        padding: AsymmetricPadding,
        *,
        progress: Progress | None = None,
    ) -> Future[list[bytes]]:
        """Like :meth:`decrypt_many`, but returns a future at once: see :meth:`submit_sign_many`."""
        return self._submit(self._decrypting(keys, ciphertexts, padding), progress)

    async def decrypt_many_async(
        self,
        keys: PrivateKeys,
        ciphertexts: Iterable[BytesLike],
        padding: AsymmetricPadding,
        *,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """Like :meth:`decrypt_many`, for coroutines: see :meth:`sign_many_async`."""
        return await self._await(self._decrypting(keys, ciphertexts, padding), progress)

    def _decrypting(self, keys: PrivateKeys, ciphertexts: Iterable[BytesLike], padding: AsymmetricPadding) -> Work:
        make = functools.partial(DecryptPiece, self._client, DecryptionScheme(padding))
        return make, self._private_rows_of(keys, ciphertexts=ciphertexts)

    # ---- verification ----

    def verify_many(
        self,
        keys: PublicKeys,
        signatures: Iterable[BytesLike],
        messages: Iterable[BytesLike],
        padding: AsymmetricPadding,
        algorithm: Algorithm,
        *,
        progress: Progress | None = None,
    ) -> list[bool]:
        """Whether each signature is one of its message, where ``RSAPublicKey.verify()`` of ``cryptography`` raises
        InvalidSignature if it is not. Waits for the verdicts: one for each signature, in order.

        ``keys``: of a provider, or RSA public keys of ``cryptography`` of up to 8192 bits. See :class:`ManyOperations`
        for how signatures and messages are taken, and ``progress``. Raises TypeError and UnsupportedAlgorithm for a
        padding or algorithm that ``cryptography`` refuses, InputError, RowsError, ProviderClosedError. Any thread but a
        future's callback.
        """
        return self._wait(self._verifying(keys, signatures, messages, padding, algorithm), progress)

    def submit_verify_many(
        self,
        keys: PublicKeys,
        signatures: Iterable[BytesLike],
        messages: Iterable[BytesLike],
        padding: AsymmetricPadding,
        algorithm: Algorithm,
        *,
        progress: Progress | None = None,
    ) -> Future[list[bool]]:
        """Like :meth:`verify_many`, but returns a future at once: see :meth:`submit_sign_many`."""
        return self._submit(self._verifying(keys, signatures, messages, padding, algorithm), progress)

    async def verify_many_async(
        self,
        keys: PublicKeys,
        signatures: Iterable[BytesLike],
        messages: Iterable[BytesLike],
        padding: AsymmetricPadding,
        algorithm: Algorithm,
        *,
        progress: Progress | None = None,
    ) -> list[bool]:
        """Like :meth:`verify_many`, for coroutines: see :meth:`sign_many_async`."""
        return await self._await(self._verifying(keys, signatures, messages, padding, algorithm), progress)

    def _verifying(
        self,
        keys: PublicKeys,
        signatures: Iterable[BytesLike],
        messages: Iterable[BytesLike],
        padding: AsymmetricPadding,
        algorithm: Algorithm,
    ) -> Work:
        make = functools.partial(VerifyPiece, SignatureScheme(padding, algorithm, signing=False))
        return make, rows_of(keys, (Key, rsa.RSAPublicKey), signatures=signatures, messages=messages)

    def _private_rows_of(self, keys: PrivateKeys, **columns: Iterable[BytesLike]) -> Iterator[Any]:
        if isinstance(keys, Key):
            check_key(self._client, keys)
        return rows_of(keys, Key, **columns)

    # ---- the three ways of waiting ----

    def _wait(self, work: Work, progress: Progress | None) -> list[Any]:
        self._check_running()
        self._check_may_wait()
        return compute(self._engine, *work, progress)

    def _submit(self, work: Work, progress: Progress | None) -> Future[list[Any]]:
        self._check_running()
        future: Future[list[Any]] = Future()

        def tell(done: int) -> None:
            if future.cancelled():
                raise CancelledError
            if progress is not None:
                progress(done)

        executor = ThreadPoolExecutor(1, thread_name_prefix="gpu-provider-many")
        computed = executor.submit(compute, self._engine, *work, tell)
        computed.add_done_callback(functools.partial(_pass_on, future))
        executor.shutdown(wait=False)
        return future

    async def _await(self, work: Work, progress: Progress | None) -> list[Any]:
        self._check_running()
        return await compute_async(self._engine, *work, progress)


def _pass_on(future: Future[list[Any]], computed: Future[list[Any]]) -> None:
    error = computed.exception()
    with contextlib.suppress(InvalidStateError):  # it has been cancelled
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(computed.result())
