"""The library's own requests: which future waits for which tag of the queue."""

from __future__ import annotations

import itertools
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gpu_provider.client import MAX_BYTES, u8, u64
from gpu_provider.errors import OperationError, ProviderClosedError, QueueFullError
from gpu_provider.native import lib

if TYPE_CHECKING:
    from gpu_provider.client import Client
    from gpu_provider.keys import BytesLike, Key

__all__ = ["PendingFutures", "Result"]

Result: TypeAlias = "int | bytes"
_AT_ONCE = 64
_CLOSED = "the provider was closed before the request could be computed"


class PendingFutures:
    """Any thread. A dict alone, no lock: each of its operations here is atomic under the GIL."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._tags = itertools.count(1)
        self._waiting: dict[int, tuple[Future[Result], Key, bool]] = {}

    def submit(self, key: Key, x: int | BytesLike, wait_for_room: bool) -> Future[Result]:
        """Submits x^d mod n. Raises QueueFullError unless ``wait_for_room``, ProviderClosedError, InputError.

        The future's own ``cancel()`` works until its result is there; the request is then computed all the same.
        """
        row = key.to_row(x)
        future: Future[Result] = Future()
        tag = next(self._tags)
        self._waiting[tag] = (future, key, not isinstance(x, int))
        result = lib.gp_client_submit(self._client.pointer, key.handle, row, tag, wait_for_room)
        if result == lib.GP_SUBMIT_OK:
            return future
        self._waiting.pop(tag, None)
        if result == lib.GP_SUBMIT_FULL:
            raise QueueFullError("the request queue is full: submit again later, or use private_op(), which waits")
        if result == lib.GP_SUBMIT_CLOSED:
            raise ProviderClosedError("the provider is closed")
        if key.closed:
            raise ProviderClosedError(f"this {key.bits}-bit key is closed; load it again")
        raise MemoryError("no memory for a place in line")

    def deliver(self) -> None:
        """Ends the futures whose requests are finished. Their done-callbacks run on this thread."""
        while self._waiting:
            tags, ok = np.empty(_AT_ONCE, np.uint64), np.empty(_AT_ONCE, np.uint8)
            outputs = np.empty((_AT_ONCE, MAX_BYTES), np.uint8)
            count = lib.gp_consumer_take_finished(self._client.pointer, _AT_ONCE, u64(tags), u8(ok), u8(outputs))
            for tag, status, row in zip(tags[:count].tolist(), ok[:count].tolist(), outputs, strict=False):
                self._end(*self._waiting.pop(tag), status, row.tobytes())
            outputs.fill(0)
            if count < _AT_ONCE:
                return

    def fail_all(self) -> None:
        """Ends whatever is left when the provider is closed."""
        for tag in list(self._waiting):
            future, _, _ = self._waiting.pop(tag)
            _set(future, ProviderClosedError(_CLOSED))

    @staticmethod
    def _end(future: Future[Result], key: Key, as_bytes: bool, status: int, row: bytes) -> None:
        if status == lib.GP_FINISHED_OK:
            _set(future, row[key.bytes - 1 :: -1] if as_bytes else int.from_bytes(row[: key.bytes], "little"))
        elif status == lib.GP_FINISHED_CLOSED:
            _set(future, ProviderClosedError(_CLOSED))
        else:
            _set(future, OperationError("the request failed: no backend could compute it, OpenSSL included"))


def _set(future: Future[Result], outcome: Result | Exception) -> None:
    try:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass  # cancelled meanwhile
