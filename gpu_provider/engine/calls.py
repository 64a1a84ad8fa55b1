"""Library calls with many rows, which bypass the request queue: the workers compute them in chunks."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from gpu_provider.engine.scheduler import Waiting
from gpu_provider.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Backend
    from gpu_provider.engine.jobs import Buffers

__all__ = ["Call", "CallQueue", "ChunkJob", "Operands", "Part"]

Operands: TypeAlias = "tuple[NDArray[Any], ...]"
"""Arrays with a row for each operation."""


class Call(ABC):
    """One call: its operands, and its result in the making."""

    def __init__(self, *, kind: int, work: int, operands: Operands, row_bytes: int, units_per_row: int) -> None:
        """``kind``: which cost curve it goes by, and what it is counted as. ``work``: the kind of work that it is to
        the scheduler, which mixes with no other in a batch. ``row_bytes``: of the result. ``units_per_row``: operations
        of that cost curve."""
        self.kind = kind
        self.work = work
        self.operands = operands
        self.rows = len(operands[0])
        self.row_bytes = row_bytes
        self.units_per_row = units_per_row
        self.next_row = 0
        self.given_up = False
        """Nobody waits for it any more. Set by the thread that did; the batching thread takes it out."""
        self._outputs = np.zeros((self.rows, row_bytes), np.uint8)
        self._missing = self.rows
        self._lock = threading.Lock()
        self._ended = threading.Lock()  # taken by whoever ends it
        # Not a Future: see PendingFutures.compute().
        self._outcome: SimpleQueue[Exception | None] = SimpleQueue()
        self.tell: Callable[[Exception | None], object] = self._outcome.put
        """Is called when the call ends, on a thread of the provider, and must not block."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Calls of the same work and shape are computed together."""
        return tuple(operand.shape[-1] for operand in self.operands if operand.ndim > 1)

    @abstractmethod
    def compute(self, backend: Backend, operands: Operands, outputs: NDArray[np.uint8], ok: NDArray[np.uint8]) -> int:
        """Fills ``outputs`` from some rows of operands, of this call and of others that are computed together with it,
        and sets ``ok`` to 1 where there is a result. On a worker's thread. Returns how many results were wrong; raises
        what the backend raises."""

    @property
    def result(self) -> NDArray[np.uint8]:
        """[rows, row_bytes], least significant byte first, once the call has ended without an error."""
        return self._outputs

    def wait(self) -> NDArray[np.uint8]:
        """The result. Once, and unless ``tell`` was replaced. Raises what the call failed with."""
        error = self._outcome.get()
        if error is None:
            return self.result
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame

    def give_up(self) -> None:
        """What is not launched yet need not be computed. Any thread."""
        self.given_up = True

    def deliver(self, rows: slice | NDArray[np.intp], outputs: NDArray[np.uint8]) -> None:
        """Takes in the results of some rows, each once. Any thread of the provider."""
        self._outputs[rows] = outputs
        with self._lock:
            self._missing -= len(outputs)
            done = self._missing == 0
        if done:
            self._end(None)

    def end_without_rows(self) -> None:
        self._end(None)

    def fail(self, error: Exception) -> None:
        """Ends the call with an error, unless it has ended. Any thread."""
        self._end(error)

    @property
    def ended(self) -> bool:
        return self._ended.locked()

    def _end(self, error: Exception | None) -> None:
        if self._ended.acquire(blocking=False):
            self.release()
            self.tell(error)

    def release(self) -> None:  # noqa: B027 - most have nothing to release
        """Called once, when the call ends."""


class Part(NamedTuple):
    """Some rows of a call."""

    call: Call
    rows: slice | NDArray[np.intp]
    size: int


class ChunkJob:
    """Some rows of one call, or of several of the same work and shape: a job for a worker."""

    __slots__ = ("_claim", "_ok", "_outputs", "_parts", "buffers", "cost_units", "count", "kind", "started_ns")

    def __init__(self, parts: Sequence[Part]) -> None:
        call = parts[0].call
        self.kind = call.kind
        self.count = sum(part.size for part in parts)
        self.cost_units = self.count * call.units_per_row
        self.started_ns = 0
        self.buffers: Buffers | None = None
        self._parts = parts
        self._outputs = np.empty((0, 0), np.uint8)
        self._ok = np.zeros(self.count, np.uint8)
        self._claim = threading.Lock()

    def claim(self) -> bool:
        return self._claim.acquire(blocking=False)

    def wanted(self) -> bool:
        return not all(part.call.ended or part.call.given_up for part in self._parts)

    def compute(self, backend: Backend) -> int:
        # Arrays of this attempt alone: a backend that hangs may write into them for ever.
        call = self._parts[0].call
        outputs = np.zeros((self.count, call.row_bytes), np.uint8)
        ok = np.zeros(self.count, np.uint8)
        if len(self._parts) == 1:
            wrong = call.compute(backend, _rows_of(self._parts[0]), outputs, ok)
        else:
            gathered = tuple(np.concatenate(some) for some in zip(*map(_rows_of, self._parts), strict=True))
            try:
                wrong = call.compute(backend, gathered, outputs, ok)
            finally:
                for operand in gathered:
                    operand.fill(0)  # may be secret
        self._outputs, self._ok = outputs, ok
        return wrong

    def succeeded(self) -> int:
        return int(np.count_nonzero(self._ok))

    def finish(self) -> None:
        for part, own in self._own_rows():
            if self._ok[own].all():
                part.call.deliver(part.rows, self._outputs[own])
            else:
                part.call.fail(OperationError("rows of the call could not be computed: out of memory"))
        self._wipe()

    def split_off_failed(self, largest: int, whole: bool) -> Sequence[ChunkJob]:
        jobs = []
        for part, own in self._own_rows():
            failed = np.ones(part.size, bool) if whole else self._ok[own] == 0
            rows = np.arange(part.call.rows)[part.rows]
            if not failed.all():
                part.call.deliver(rows[~failed], self._outputs[own][~failed])
            left = rows[failed]
            step = max(1, largest // part.call.units_per_row)
            chunks = (left[start : start + step] for start in range(0, len(left), step))
            jobs += [ChunkJob([Part(part.call, chunk, len(chunk))]) for chunk in chunks]
        if not whole:
            self._wipe()
        return jobs

    def _own_rows(self) -> Iterator[tuple[Part, slice]]:
        """Each part, and its rows within this job."""
        start = 0
        for part in self._parts:
            yield part, slice(start, start + part.size)
            start += part.size

    def _wipe(self) -> None:
        self._outputs.fill(0)  # may be decrypted secrets, or shared ones


def _rows_of(part: Part) -> Operands:
    return tuple(operand[part.rows] for operand in part.call.operands)


class CallQueue:
    """The calls that have rows which were not launched yet. Not locked."""

    def __init__(self) -> None:
        self._calls: dict[int, deque[Call]] = {}  # by work
        self._since_ns: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, call: Call) -> None:
        if call.work not in self._calls:
            self._calls[call.work] = deque()
            self._since_ns[call.work] = time.monotonic_ns()
        self._calls[call.work].append(call)

    def waiting(self) -> list[Waiting]:
        """For the scheduler, by work."""
        return [
            Waiting(
                work, sum(call.rows - call.next_row for call in calls), self._since_ns[work], calls[0].units_per_row
            )
            for work, calls in self._calls.items()
        ]

    def next(self, work: int) -> Call | None:
        """The call whose turn it is to have a chunk launched."""
        calls = self._calls.get(work)
        return calls[0] if calls else None

    def take(self, call: Call, rows: int) -> ChunkJob:
        """At most so many rows of :meth:`next`'s call, and of those of its shape that wait behind it; then it is the
        turn of the others. Each chunk counts as submitted when the one before it was launched: a long call then waits
        like one more connection, before none and after none for ever."""
        calls, parts = self._calls[call.work], []
        others: list[Call] = []
        unfinished: list[Call] = []
        while calls and rows:
            candidate = calls.popleft()
            if candidate.shape != call.shape:
                others.append(candidate)
                continue
            start, stop = candidate.next_row, min(candidate.rows, candidate.next_row + rows)
            candidate.next_row = stop
            rows -= stop - start
            parts.append(Part(candidate, slice(start, stop), stop - start))
            if stop < candidate.rows:
                unfinished.append(candidate)
        calls.extendleft(reversed(others))
        calls.extend(unfinished)
        if not calls:
            del self._calls[call.work]
        self._since_ns[call.work] = time.monotonic_ns()
        return ChunkJob(parts)

    def remove(self, unwanted: Callable[[Call], bool]) -> Iterable[Call]:
        """Takes those out that are ``unwanted``, and returns them."""
        removed = [call for calls in self._calls.values() for call in calls if unwanted(call)]
        if removed:
            left = {work: deque(call for call in calls if not unwanted(call)) for work, calls in self._calls.items()}
            self._calls = {work: calls for work, calls in left.items() if calls}
        return removed

    def clear(self) -> list[Call]:
        """Takes all of them out."""
        calls = [call for calls in self._calls.values() for call in calls]
        self._calls.clear()
        return calls
