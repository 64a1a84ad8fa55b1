"""The library's own requests in the queue: who waits for which tag, and the futures that end with them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpu_provider.client import MAX_BYTES, u8, u64
from gpu_provider.errors import OperationError, ProviderClosedError, QueueFullError
from gpu_provider.native import lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider.client import Client
    from gpu_provider.library.keys import Key
    from gpu_provider.library.operands import BytesLike, Integer

__all__ = ["PendingFutures", "RequestFuture", "Result"]

Result: TypeAlias = "int | bytes"
Outcome: TypeAlias = "Result | Exception"
_AT_ONCE = 64
_PATIENCE_SECONDS = 0.1
_CLOSED = "the provider was closed before the request could be computed"


class RequestFuture(Future[Any]):
    """A future whose callbacks may raise anything: neither the provider's thread that runs them nor the other callbacks
    are affected."""

    _ended_by = 0

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        super().add_done_callback(functools.partial(_call, fn))

    def end(self, outcome: Outcome | None) -> None:
        """Sets the result or the error, unless the future has been cancelled. On a thread of the provider."""
        # The application's thread may never release the lock, if a signal handler raised inside the Condition's
        # __enter__ or __exit__, or called close() meanwhile. Then another thread waits for it.
        if self._condition.acquire(timeout=_PATIENCE_SECONDS):
            self._condition.release()
            self._end(outcome)
            return
        late = threading.Thread(target=self._end, args=[outcome], name="gpu-provider-late-future", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread can be started any more when the interpreter ends
            late.start()

    def _end(self, outcome: Outcome | None) -> None:
        self._ended_by = threading.get_ident()
        try:
            if isinstance(outcome, Exception):
                self.set_exception(outcome)
            else:
                self.set_result(outcome)
        except InvalidStateError:
            pass  # it has been cancelled


def _call(callback: Callable[[Future[Any]], object], future: RequestFuture) -> None:
    try:
        callback(future)
    except Exception:
        raise  # Future logs it
    except BaseException as error:
        if future._ended_by != threading.get_ident():
            raise  # the application's own thread, which added the callback late or cancelled the future
        # SystemExit, KeyboardInterrupt, a test's failure: Future logs an Exception, but anything else would end this
        # thread, which others wait for.
        raise RuntimeError(f"a future's callback raised {type(error).__name__} on a thread of the provider") from error


class PendingFutures:
    """Any thread. There is no lock: each operation on the dict is atomic under the GIL."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._tags = itertools.count(1)
        self._waiting: dict[int, tuple[Callable[[Outcome], None], Key, bool]] = {}

    def submit(self, key: Key, x: Integer | BytesLike, wait_for_room: bool) -> RequestFuture:
        """Submits x^d mod n. Raises QueueFullError unless ``wait_for_room``, ProviderClosedError, InputError.

        The future's own ``cancel()`` works until its result is there; the request is then computed all the same.
        """
        future = RequestFuture()
        self._submit(key, x, wait_for_room, future.end)
        return future

    def compute(self, key: Key, x: Integer | BytesLike) -> Result:
        """Returns x^d mod n. Waits for it, and for room in the queue. Raises what :meth:`submit` raises, and
        OperationError."""
        # Not with a future: a signal handler that raises inside a Condition's __enter__ or __exit__ leaves the lock
        # taken for ever, and the worker that ends the future would wait for it.
        outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._submit(key, x, True, outcomes.put)
        outcome = outcomes.get()
        if not isinstance(outcome, Exception):
            return outcome
        try:
            raise outcome
        finally:
            del outcome  # its traceback refers to this frame

    def _submit(self, key: Key, x: Integer | BytesLike, wait_for_room: bool, end: Callable[[Outcome], None]) -> None:
        row, as_bytes = key.to_row(x)
        tag = next(self._tags)
        self._waiting[tag] = (end, key, as_bytes)
        result = lib.gp_client_submit(self._client.pointer, key.handle, row, tag, wait_for_room)
        if result == lib.GP_SUBMIT_OK:
            return
        self._waiting.pop(tag, None)
        if result == lib.GP_SUBMIT_FULL:
            raise QueueFullError("the request queue is full: submit again later, or use private_op(), which waits")
        if result == lib.GP_SUBMIT_CLOSED:
            raise ProviderClosedError("the provider is closed")
        if key.closed:
            raise ProviderClosedError(f"this {key.bits}-bit key is closed; load it again")
        raise MemoryError("no memory for a place in the wait queue")

    def deliver(self) -> None:
        """Ends the requests that are finished. Runs the done-callbacks of their futures on this thread."""
        while self._waiting:
            tags, ok = np.empty(_AT_ONCE, np.uint64), np.empty(_AT_ONCE, np.uint8)
            outputs = np.empty((_AT_ONCE, MAX_BYTES), np.uint8)
            count = lib.gp_client_take_finished(self._client.pointer, _AT_ONCE, u64(tags), u8(ok), u8(outputs))
            for tag, status, row in zip(tags[:count].tolist(), ok[:count].tolist(), outputs, strict=False):
                end, key, as_bytes = self._waiting.pop(tag)
                end(_outcome(key, as_bytes, status, row.tobytes()))
            outputs.fill(0)
            if count < _AT_ONCE:
                return

    def fail_all(self) -> None:
        """Ends all requests that are left when the provider is closed."""
        for tag in list(self._waiting):
            end, _, _ = self._waiting.pop(tag)
            end(ProviderClosedError(_CLOSED))


def _outcome(key: Key, as_bytes: bool, status: int, row: bytes) -> Outcome:
    if status == lib.GP_FINISHED_OK:
        return row[key.bytes - 1 :: -1] if as_bytes else int.from_bytes(row[: key.bytes], "little")
    if status == lib.GP_FINISHED_CLOSED:
        return ProviderClosedError(_CLOSED)
    return OperationError("the request failed: no backend could compute it, OpenSSL included")
