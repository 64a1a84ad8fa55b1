"""Calls with many messages, piece by piece: while some pieces are computed, the next one is prepared.

How the caller waits is not known here: :func:`steps` yields what is to be waited for, and the functions below wait on
the thread, or in a coroutine.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from gpu_provider.errors import GpuProviderError, InputError, ProviderClosedError, RowsError
from gpu_provider.library.futures import RequestFuture
from gpu_provider.library.operands import is_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from gpu_provider.engine.calls import Call
    from gpu_provider.engine.engine import Engine
    from gpu_provider.library.pieces import Piece

__all__ = ["MakePiece", "Progress", "compute", "compute_async", "rows_of"]

ROWS_OF_A_PIECE = 256  # a millisecond of an event loop's time
PIECES_IN_FLIGHT = 16

MakePiece: TypeAlias = "Callable[[Iterable[Any]], Piece]"
Progress: TypeAlias = "Callable[[int], object]"
"""Called with the number of rows that are done."""

_Wait = TypeVar("_Wait")
_END = object()


def rows_of(keys: Any, key_types: type | tuple[type, ...], **columns: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """A tuple for each row: its key, and an element of each of the columns. ``keys``: one key for all rows, or as many
    as there are rows. Raises InputError, and when it comes to the end of one column before that of another."""
    for name, column in columns.items():
        if is_bytes(column) or not isinstance(column, Iterable) or isinstance(column, str):
            raise InputError(f"{name} must be a list of bytes, or another iterable, not {type(column).__name__}")
    if isinstance(keys, key_types):
        return ((keys, *row) for row in _together(columns))
    if isinstance(keys, Iterable):
        return _together({"keys": keys, **columns})
    raise InputError(f"the key is of type {type(keys).__name__}; give a key, or one for each row")


def _together(columns: dict[str, Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
    for row, values in enumerate(itertools.zip_longest(*columns.values(), fillvalue=_END)):
        for name, value in zip(columns, values, strict=True):
            if value is _END:
                others = " and ".join(other for other in columns if other != name)
                raise InputError(f"there are only {row} {name}, but more {others}; give as many of each")
        yield values


def compute(engine: Engine, make: MakePiece, rows: Iterator[Any], progress: Progress | None) -> list[Any]:
    """Waits on this thread."""

    def watch(call: Call) -> SimpleQueue[Exception | None]:
        ended: SimpleQueue[Exception | None] = SimpleQueue()
        call.tell = ended.put
        return ended

    running = _steps(engine, make, rows, progress, watch)
    try:
        ended = next(running)
        while True:
            ended = running.send(ended.get() if ended is not None else None)
    except StopIteration as done:
        return _results(done.value)
    finally:
        running.close()


async def compute_async(engine: Engine, make: MakePiece, rows: Iterator[Any], progress: Progress | None) -> list[Any]:
    """Takes the rows and prepares the pieces on the event loop's thread. Cancelling it gives up what is not begun."""

    def watch(call: Call) -> RequestFuture:
        ended = RequestFuture()
        call.tell = ended.end
        return ended

    running = _steps(engine, make, rows, progress, watch)
    try:
        ended = next(running)
        while True:
            error = None
            try:
                await (asyncio.wrap_future(ended) if ended is not None else asyncio.sleep(0))
            except GpuProviderError as failure:
                error = failure
            ended = running.send(error)
    except StopIteration as done:
        return _results(done.value)
    finally:
        running.close()


def _steps(
    engine: Engine, make: MakePiece, rows: Iterator[Any], progress: Progress | None, watch: Callable[[Call], _Wait]
) -> Generator[_Wait | None, Exception | None, list[Any]]:
    """Yields what ``watch`` has made of each call, to be told what the call ended with; and None after the preparation
    of each piece, when others may have their turn. Returns the rows' outcomes."""
    pieces: deque[tuple[Piece, list[_Wait]]] = deque()
    outcomes: list[Any] = []
    more = True
    try:
        while True:
            if more and len(pieces) < PIECES_IN_FLIGHT:
                piece = make(itertools.islice(rows, ROWS_OF_A_PIECE))
                more = len(piece.outcomes) == ROWS_OF_A_PIECE
                if piece.outcomes:
                    pieces.append((piece, [watch(call) for call in piece.calls]))
                    engine.submit(piece.calls)
                yield None
                continue
            if not pieces:
                return outcomes
            piece, waits = pieces[0]
            errors = []
            for wait in waits:
                error = yield wait
                if isinstance(error, ProviderClosedError):
                    raise error
                errors.append(error)
            piece.finish(errors)
            outcomes += piece.outcomes
            pieces.popleft()[0].release()
            if progress is not None:
                progress(len(outcomes))
    finally:
        for piece, _ in pieces:
            piece.release()


def _results(outcomes: list[Any]) -> list[Any]:
    errors = {row: outcome for row, outcome in enumerate(outcomes) if isinstance(outcome, Exception)}
    if errors:
        raise RowsError([None if row in errors else outcome for row, outcome in enumerate(outcomes)], errors)
    return outcomes
