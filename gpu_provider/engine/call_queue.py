"""The calls that wait for the engine, from their submission until the last of their rows is launched."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING

from gpu_provider.engine.chunk_job import ChunkJob, Part
from gpu_provider.engine.scheduler import Waiting
from gpu_provider.errors import OperationError, ProviderClosedError

if TYPE_CHECKING:
    from gpu_provider.engine.calls import Call
    from gpu_provider.kinds import Kind

__all__ = ["CallQueue"]


class CallQueue:
    """Any thread submits; the rest is the batching thread's, unless said otherwise.

    No lock: a signal handler, or what the garbage collector runs, may close the provider while its thread is in the
    middle of submitting.
    """

    def __init__(self) -> None:
        self._submitted: deque[Call] = deque()
        self._calls: dict[Kind, deque[Call]] = {}
        self._since_ns: dict[Kind, int] = {}

    def submit(self, call: Call) -> None:
        """Any thread."""
        self._submitted.append(call)

    def fail_submitted(self) -> None:
        """Ends what was submitted after the batching thread had ended. Any thread."""
        while self._submitted:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._submitted.popleft().fail(ProviderClosedError("the provider is closed"))

    @property
    def any_submitted(self) -> bool:
        """Whether :meth:`take_in` has something to do."""
        return bool(self._submitted)

    def __bool__(self) -> bool:
        """Whether rows that were taken in wait to be launched."""
        return bool(self._calls)

    def take_in(self) -> None:
        """Takes in what was submitted, and ends calls that were given up."""
        while self._submitted:
            call = self._submitted.popleft()
            if call.kind not in self._calls:
                self._calls[call.kind] = deque()
                self._since_ns[call.kind] = time.monotonic_ns()
            self._calls[call.kind].append(call)
        dropped = {call for calls in self._calls.values() for call in calls if call.given_up}
        if dropped:
            left = {kind: deque(call for call in calls if call not in dropped) for kind, calls in self._calls.items()}
            self._calls = {kind: calls for kind, calls in left.items() if calls}
        for call in dropped:
            call.fail(OperationError("nobody waits for the call"))

    def clear(self) -> list[Call]:
        """Takes out all that were taken in."""
        calls = [call for calls in self._calls.values() for call in calls]
        self._calls.clear()
        return calls

    def waiting(self) -> list[Waiting]:
        """What the scheduler must know of the calls."""
        return [
            Waiting(
                kind, sum(call.rows - call.next_row for call in calls), self._since_ns[kind], calls[0].units_per_row
            )
            for kind, calls in self._calls.items()
        ]

    def next(self, kind: Kind) -> Call | None:
        """The call whose turn it is to have a chunk launched."""
        calls = self._calls.get(kind)
        return calls[0] if calls else None

    def take(self, call: Call, rows: int) -> ChunkJob:
        """At most ``rows`` rows of ``call``, which :meth:`next` returned, and of calls of its shape behind it. Then it
        is the others' turn. Each chunk counts as submitted when the one before it was launched: so a long call waits
        like one more connection, neither before all others nor behind them for ever."""
        calls, parts = self._calls[call.kind], []
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
            del self._calls[call.kind]
        self._since_ns[call.kind] = time.monotonic_ns()
        return ChunkJob(parts)
