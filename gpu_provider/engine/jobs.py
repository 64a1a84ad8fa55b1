"""What a worker computes: a batch of RSA operations from the queue, or a chunk of a call (``chunk_job.py``).

A job is finished by whoever claims it first: the worker whose backend returned, or the watchdog. A backend that hangs
may write into the job's arrays long after that. So the watchdog works on copies, and a worker that lost its job gets
new buffers.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_provider.backends.base import Batch
from gpu_provider.backends.libcrypto import libcrypto_verify
from gpu_provider.client import MAX_BYTES, Crowd, class_bytes, u8, u64
from gpu_provider.native import lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Backend
    from gpu_provider.client import Client
    from gpu_provider.kinds import Kind, RequestKind

__all__ = ["Buffers", "Job", "RsaJob", "refuse_waiting"]


class Job(ABC):
    """One unit of work for one worker."""

    def __init__(self, kind: Kind, count: int, cost_units: int, buffers: Buffers | None = None) -> None:
        """``count``: in requests, for counters. ``cost_units``: in operations, for cost curves. ``buffers``: the
        worker's, if the job uses them."""
        self.kind = kind
        self.count = count
        self.cost_units = cost_units
        self.buffers = buffers
        self.started_ns = 0
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """True for the first caller, who has to finish the job; False for everyone else."""
        return self._claim.acquire(blocking=False)

    def wanted(self) -> bool:
        """Whether anybody still waits for it. TLS connections do; a cancelled future's request is computed anyway."""
        return True

    @abstractmethod
    def compute(self, backend: Backend) -> int:
        """Runs on the worker's thread. Returns how many results were wrong, and drops them. Raises what the backend
        raises; then there are no results at all."""

    @abstractmethod
    def succeeded(self) -> int:
        """How many requests have a result (after ``compute`` has returned or raised)."""

    @abstractmethod
    def finish(self) -> None:
        """Delivers every request, as ERR where there is no result. Nothing may be done with the job after that."""

    @abstractmethod
    def split_off_failed(self, largest: int, whole: bool) -> Sequence[Job]:
        """Delivers what succeeded, and returns the rest as jobs of at most ``largest`` operations, with arrays of their
        own. ``whole``: nothing counts as having succeeded."""


class Buffers:
    """Arrays for one batch, with their addresses in C. A worker uses them for all of its batches."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.handles = np.empty(size, np.uint64)
        self.keys = np.empty(size, np.uint64)
        self.submitted_ns = np.empty(size, np.uint64)
        self.ok = np.empty(size, np.uint8)
        self.inputs = np.empty(size * MAX_BYTES, np.uint8)
        self.outputs = np.zeros(size * MAX_BYTES, np.uint8)
        self.handles_pointer = u64(self.handles)
        self.keys_pointer = u64(self.keys)
        self.submitted_pointer = u64(self.submitted_ns)
        self.ok_pointer = u8(self.ok)
        self.inputs_pointer = u8(self.inputs)
        self.outputs_pointer = u8(self.outputs)
        # A backend that used its inputs as scratch space would have its results verified against the wrong numbers.
        self.readonly_keys = self.keys.view()
        self.readonly_keys.flags.writeable = False
        self.readonly_inputs = self.inputs.view()
        self.readonly_inputs.flags.writeable = False


def refuse_waiting(client: Client, kind: RequestKind, buffers: Buffers) -> None:
    """Ends all waiting requests of a kind with ERR, without allocating memory. The batching thread only."""
    while taken := _take(client, kind, buffers.size, buffers):
        _refuse(client, kind, taken, buffers)


def _take(client: Client, kind: RequestKind, count: int, buffers: Buffers) -> int:
    taken: int = lib.gp_consumer_take(
        client.consumer,
        kind.class_index,
        min(count, buffers.size),
        buffers.handles_pointer,
        buffers.keys_pointer,
        buffers.inputs_pointer,
        buffers.submitted_pointer,
    )
    return taken


def _refuse(client: Client, kind: RequestKind, count: int, buffers: Buffers) -> None:
    buffers.ok.fill(0)
    width = class_bytes(kind.class_index)
    lib.gp_consumer_complete(
        client.consumer, count, buffers.handles_pointer, buffers.outputs_pointer, width, buffers.ok_pointer
    )


class RsaJob(Job):
    """The first ``count`` requests of ``buffers``, all of one kind."""

    kind: RequestKind

    def __init__(self, client: Client, kind: RequestKind, buffers: Buffers, count: int) -> None:
        super().__init__(kind, count, count, buffers)
        self.held_ns = 0
        """How long they waited for company, though they could have been computed."""
        self.crowd = Crowd(0, 0)
        """How many were under way before they were taken."""
        width = class_bytes(kind.class_index)
        self.batch = Batch(
            class_bytes=width,
            keys=buffers.readonly_keys[:count],
            inputs=buffers.readonly_inputs[: count * width].reshape(count, width),
            outputs=buffers.outputs[: count * width].reshape(count, width),
            ok=buffers.ok[:count],
        )
        self.batch.ok.fill(0)
        self._client = client

    @classmethod
    def take(cls, client: Client, kind: RequestKind, count: int, buffers: Buffers) -> RsaJob | None:
        """Takes up to ``count`` waiting requests out of the queue; None if all were orphaned. The batching thread
        only."""
        held_ns = lib.gp_consumer_held_ns(client.consumer, kind.class_index)
        crowd: Any = lib.gp_consumer_crowd(client.consumer, kind.class_index)
        taken = _take(client, kind, count, buffers)
        if not taken:
            return None
        try:
            job = cls(client, kind, buffers, taken)
        except MemoryError:
            # The requests have left the queue, and nobody else knows of them.
            _refuse(client, kind, taken, buffers)
            raise
        job.held_ns, job.crowd = held_ns, Crowd(crowd.of_class, crowd.of_all)
        return job

    @property
    def oldest_submitted_ns(self) -> int:
        """When its first request was submitted (CLOCK_MONOTONIC); the queue is first in, first out."""
        return int(self._arrays.submitted_ns[0])

    @property
    def newest_submitted_ns(self) -> int:
        """The same for its last request."""
        return int(self._arrays.submitted_ns[self.count - 1])

    def compute(self, backend: Backend) -> int:
        try:
            backend.private_op(self.batch)
            return 0 if backend.verifies else libcrypto_verify(self._client, self.batch)
        except BaseException:
            self.batch.ok.fill(0)  # whatever it wrote before it raised was not verified
            raise

    def succeeded(self) -> int:
        return int(np.count_nonzero(self.batch.ok))

    def finish(self) -> None:
        arrays = self._arrays
        lib.gp_consumer_complete(
            self._client.consumer,
            self.count,
            arrays.handles_pointer,
            arrays.outputs_pointer,
            self.batch.class_bytes,
            arrays.ok_pointer,
        )
        self.batch.outputs.fill(0)  # may be decrypted secrets
        self.buffers = None

    def split_off_failed(self, largest: int, whole: bool) -> Sequence[RsaJob]:
        failed = np.ones(self.count, bool) if whole else self.batch.ok == 0
        if not failed.all():
            self._copy(np.flatnonzero(~failed), with_results=True).finish()
        rows = np.flatnonzero(failed)
        jobs = [self._copy(rows[start : start + largest], with_results=False) for start in range(0, len(rows), largest)]
        if not whole:
            self.batch.outputs.fill(0)  # may be decrypted secrets
        return jobs

    def _copy(self, rows: NDArray[np.intp], with_results: bool) -> RsaJob:
        arrays = self._arrays
        inputs = self.batch.inputs[rows]
        copy = Buffers(len(inputs))
        copy.handles[:] = arrays.handles[: self.count][rows]
        copy.keys[:] = arrays.keys[: self.count][rows]
        copy.submitted_ns[:] = arrays.submitted_ns[: self.count][rows]
        copy.inputs[: inputs.size] = inputs.ravel()
        job = RsaJob(self._client, self.kind, copy, len(inputs))
        if with_results:
            job.batch.outputs[:] = self.batch.outputs[rows]
            job.batch.ok[:] = 1
        return job

    @property
    def _arrays(self) -> Buffers:
        if self.buffers is None:
            raise RuntimeError("the job is finished")
        return self.buffers
