"""Library calls with many rows, which do not go through the request queue: a call's way through the lanes in chunks."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gpu_provider.errors import OperationError
from gpu_provider.scheduler import Waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Backend
    from gpu_provider.jobs import Buffers

__all__ = ["Call", "CallQueue", "ChunkJob", "Rows"]

Rows: TypeAlias = "slice | NDArray[np.intp]"
"""Which rows of a call."""


class Call(ABC):
    """One call: its operands, and its result in the making."""

    def __init__(self, *, kind: int, work: int, rows: int, row_bytes: int, units_per_row: int) -> None:
        """``kind``: which cost curve it goes by, and what it is counted as. ``work``: the kind of work that it is to
        the scheduler, which mixes with no other in a batch. ``units_per_row``: operations of that cost curve."""
        self.kind = kind
        self.work = work
        self.rows = rows
        self.units_per_row = units_per_row
        self.next_row = 0
        self.result: Future[NDArray[np.uint8]] = Future()
        """[rows, row_bytes], least significant byte first."""
        self.row_bytes = row_bytes
        self._outputs = np.zeros((rows, row_bytes), np.uint8)
        self._missing = rows
        self._lock = threading.Lock()

    @abstractmethod
    def compute(self, backend: Backend, rows: Rows, outputs: NDArray[np.uint8], ok: NDArray[np.uint8]) -> int:
        """Fills ``outputs``, and sets ``ok`` to 1 where there is a result. On a lane's thread. Returns how many results
        were wrong; raises what the backend raises."""

    def deliver(self, rows: Rows, outputs: NDArray[np.uint8]) -> None:
        """Takes in the results of some rows, each once. Any thread."""
        self._outputs[rows] = outputs
        with self._lock:
            self._missing -= len(outputs)
            done = self._missing == 0
        if done and not self.result.done():
            self.result.set_result(self._outputs)

    def fail(self, error: Exception) -> None:
        """Ends the call with an error, once. Any thread."""
        with self._lock:
            if not self.result.done():
                self.result.set_exception(error)


class ChunkJob:
    """Some rows of a call: a job for a lane."""

    __slots__ = ("_call", "_claim", "_ok", "_outputs", "_rows", "buffers", "cost_units", "count", "kind", "started_ns")

    def __init__(self, call: Call, rows: Rows, count: int) -> None:
        self.kind = call.kind
        self.count = count
        self.cost_units = count * call.units_per_row
        self.started_ns = 0
        self.buffers: Buffers | None = None
        self._call = call
        self._rows = rows
        self._outputs = np.empty((0, 0), np.uint8)
        self._ok = np.zeros(count, np.uint8)
        self._claim = threading.Lock()

    def claim(self) -> bool:
        return self._claim.acquire(blocking=False)

    def compute(self, backend: Backend) -> int:
        # Arrays of this attempt alone: a backend that hangs may write into them for ever.
        outputs = np.zeros((self.count, self._call.row_bytes), np.uint8)
        ok = np.zeros(self.count, np.uint8)
        wrong = self._call.compute(backend, self._rows, outputs, ok)
        self._outputs, self._ok = outputs, ok
        return wrong

    def succeeded(self) -> int:
        return int(np.count_nonzero(self._ok))

    def finish(self) -> None:
        if self._ok.all():
            self._call.deliver(self._rows, self._outputs)
        else:
            self._call.fail(OperationError("rows of the call could not be computed: out of memory"))
        self._wipe()

    def split_off_failed(self, largest: int, whole: bool) -> Sequence[ChunkJob]:
        failed = np.ones(self.count, bool) if whole else self._ok == 0
        rows = np.arange(self._call.rows)[self._rows]
        if not failed.all():
            self._call.deliver(rows[~failed], self._outputs[~failed])
            self._wipe()
        left = rows[failed]
        step = max(1, largest // self._call.units_per_row)
        chunks = [left[start : start + step] for start in range(0, len(left), step)]
        return [ChunkJob(self._call, chunk, len(chunk)) for chunk in chunks]

    def _wipe(self) -> None:
        self._outputs.fill(0)  # may be decrypted secrets, or shared ones


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
        """At most so many rows of :meth:`next`'s call; then it is the turn of the one after it. Each chunk counts as
        submitted when the one before it was launched: a long call then waits like one more connection, before none and
        after none for ever."""
        calls = self._calls[call.work]
        start, stop = call.next_row, min(call.rows, call.next_row + rows)
        call.next_row = stop
        calls.rotate(-1)
        if stop == call.rows:
            calls.pop()
        if not calls:
            del self._calls[call.work]
        self._since_ns[call.work] = time.monotonic_ns()
        return ChunkJob(call, slice(start, stop), stop - start)

    def clear(self) -> list[Call]:
        """Takes all of them out."""
        calls = [call for calls in self._calls.values() for call in calls]
        self._calls.clear()
        return calls
