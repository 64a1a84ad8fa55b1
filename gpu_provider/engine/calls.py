"""Calls with many rows, which bypass the request queue: the workers compute them in chunks."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpu_provider.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Backend
    from gpu_provider.kinds import Kind

__all__ = ["Call", "Operands"]

_NOT_COMPUTED = "rows of the call could not be computed: out of memory, or a key whose numbers do not fit together"

Operands: TypeAlias = "tuple[NDArray[Any], ...]"
"""Arrays with one row per operation."""


class Call(ABC):
    """One call: its operands, and its result in the making."""

    def __init__(
        self, *, kind: Kind, operands: Operands, row_bytes: int, units_per_row: int, variant: Hashable = None
    ) -> None:
        """``row_bytes``: bytes per row of the result. ``units_per_row``: how many operations a row counts as in the
        kind's cost curve. ``variant``: what else must be the same in calls that are computed together."""
        self.kind = kind
        self.operands = operands
        self.rows = len(operands[0])
        self.shape = (variant, *(operand.shape[-1] for operand in operands if operand.ndim > 1))
        """Calls of the same kind and shape are computed together."""
        self.row_bytes = row_bytes
        self.units_per_row = units_per_row
        self.next_row = 0
        self.given_up = False
        """Nobody waits for it any more. Set by the thread that did; the batching thread then drops the call."""
        self.computed = np.zeros(self.rows, bool)
        """[rows] Which rows have a result. Some may even if the call has failed."""
        self._outputs = np.zeros((self.rows, row_bytes), np.uint8)
        self._missing = self.rows
        self._lock = threading.Lock()
        self._ended = threading.Lock()  # taken by whoever ends it
        # Not a Future: see library.futures.PendingFutures.compute().
        self._outcome: SimpleQueue[Exception | None] = SimpleQueue()
        self.tell: Callable[[Exception | None], object] = self._outcome.put
        """Called when the call ends, on a thread of the provider. Must not block."""

    @abstractmethod
    def compute(self, backend: Backend, operands: Operands, outputs: NDArray[np.uint8], ok: NDArray[np.uint8]) -> int:
        """Fills ``outputs`` from rows of operands, of this call and of others that are computed together with it, and
        sets ``ok`` to 1 where there is a result. Runs on a worker's thread. Returns how many results were wrong; raises
        what the backend raises."""

    @property
    def result(self) -> NDArray[np.uint8]:
        """[rows, row_bytes], least significant byte first, once the call has ended; zeros in rows that are not
        :attr:`computed`."""
        return self._outputs

    def wait(self) -> NDArray[np.uint8]:
        """Waits for the result and returns it. Only once, and only if ``tell`` was not replaced. Raises what the call
        failed with."""
        error = self._outcome.get()
        if error is None:
            return self.result
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame

    def give_up(self) -> None:
        """Says that what is not launched yet need not be computed. Any thread."""
        self.given_up = True

    def deliver(self, rows: slice | NDArray[np.intp], outputs: NDArray[np.uint8], ok: NDArray[np.bool_]) -> None:
        """Stores the results of some rows, each row once. Those that are not ``ok`` have none, and fail the call when
        its last row is delivered; ``outputs`` is empty if that is all of them. Any thread of the provider."""
        self.computed[rows] = ok
        if ok.all():
            self._outputs[rows] = outputs
        elif ok.any():
            self._outputs[np.arange(self.rows)[rows][ok]] = outputs[ok]
        with self._lock:
            self._missing -= len(ok)
            done = self._missing == 0
        if done:
            self._end(None if self.computed.all() else OperationError(_NOT_COMPUTED))

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
