"""Some rows of one call, or of several, as a job for a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpu_provider.engine.jobs import Job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Backend
    from gpu_provider.engine.calls import Call, Operands

__all__ = ["ChunkJob", "Part"]


class Part(NamedTuple):
    """Some rows of a call."""

    call: Call
    rows: slice | NDArray[np.intp]
    size: int


class ChunkJob(Job):
    """Some rows of one call, or of several of the same kind and shape."""

    def __init__(self, parts: Sequence[Part]) -> None:
        call = parts[0].call
        count = sum(part.size for part in parts)
        super().__init__(call.kind, count, count * call.units_per_row)
        self._parts = parts
        self._outputs = np.empty((0, 0), np.uint8)
        self._ok = np.zeros(count, np.uint8)

    def wanted(self) -> bool:
        return not all(part.call.ended or part.call.given_up for part in self._parts)

    def compute(self, backend: Backend) -> int:
        # New arrays for every attempt: a backend that hangs may write into them at any time later.
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
            part.call.deliver(part.rows, self._outputs[own], self._ok[own] != 0)
        self._wipe()

    def split_off_failed(self, largest: int, whole: bool) -> Sequence[ChunkJob]:
        jobs = []
        for part, own in self._own_rows():
            done = np.zeros(part.size, bool) if whole else self._ok[own] != 0
            rows = np.arange(part.call.rows)[part.rows]
            if done.any():
                part.call.deliver(rows[done], self._outputs[own][done], done[done])
            left = rows[~done]
            step = max(1, largest // part.call.units_per_row)
            chunks = (left[start : start + step] for start in range(0, len(left), step))
            jobs += [ChunkJob([Part(part.call, chunk, len(chunk))]) for chunk in chunks]
        if not whole:
            self._wipe()
        return jobs

    def _own_rows(self) -> Iterator[tuple[Part, slice]]:
        """Each part with its rows within this job."""
        start = 0
        for part in self._parts:
            yield part, slice(start, start + part.size)
            start += part.size

    def _wipe(self) -> None:
        self._outputs.fill(0)  # may be decrypted secrets, or shared ones


def _rows_of(part: Part) -> Operands:
    return tuple(operand[part.rows] for operand in part.call.operands)
