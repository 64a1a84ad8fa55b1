"""The request queue's two sides in C (``native/queue``), with NumPy arrays in place of pointers.

Safe from any thread. In a forked child nothing of the parent's client is usable; see :meth:`Client.check_process`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gpu_provider.errors import BackendError, ProviderClosedError
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    import numpy as np
    from _cffi_backend import FFI
    from numpy.typing import NDArray

__all__ = [
    "CLASSES",
    "MAX_BYTES",
    "Client",
    "QueueCounters",
    "SmallBatch",
    "class_bytes",
    "class_of",
    "openssl_error",
    "u8",
    "u16",
    "u32",
    "u64",
]

CLASSES: int = lib.GP_CLASSES
"""Number of size classes."""
MAX_BYTES: int = lib.GP_MAX_BYTES
"""Bytes of the largest number in the queue."""


def class_bytes(class_index: int) -> int:
    """Bytes per row of a size class: GP_CLASS_BYTES."""
    return (class_index + 4) * 64


def class_of(modulus_bytes: int) -> int:
    """The size class of a modulus."""
    return -(-modulus_bytes // 64) - 4


def u8(array: NDArray[np.uint8]) -> FFI.CData:
    """The address of a C-contiguous array, which it keeps alive."""
    return _address("uint8_t[]", array)


def u16(array: NDArray[np.uint16]) -> FFI.CData:
    """The address of a C-contiguous array, which it keeps alive."""
    return _address("uint16_t[]", array)


def u32(array: NDArray[np.uint32]) -> FFI.CData:
    """The address of a C-contiguous array, which it keeps alive."""
    return _address("uint32_t[]", array)


def u64(array: NDArray[np.uint64]) -> FFI.CData:
    """The address of a C-contiguous array, which it keeps alive."""
    return _address("uint64_t[]", array)


def _address(kind: str, array: Any) -> FFI.CData:
    # Of the array, not of array.data: CPython 3.11 crashes when it collects a memoryview that has a user in a cycle of
    # garbage, and an exception that is kept makes such a cycle of the frames that it came through.
    return ffi.from_buffer(kind, array)


def openssl_error() -> str:
    """The oldest error in this thread's OpenSSL queue, as text; empties the queue."""
    code = lib.ERR_get_error()
    lib.ERR_clear_error()
    if code == 0:
        return "no reason given"
    buffer = ffi.new("char[256]")
    lib.ERR_error_string_n(code, buffer, 256)
    text = ffi.string(buffer)
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


@dataclass(frozen=True, slots=True)
class QueueCounters:
    """Since the client was made, but for those from ``in_use`` on, which are now."""

    submitted: int
    completed: int
    failed: int
    retries: int
    orphaned: int
    direct: int
    in_use: int
    in_line: int
    """Requests in the wait queue."""
    keys: int
    kernel_keys: int
    """Keys in the table with constants for the kernels; OpenSSL computes with the others."""
    locked_keys: int
    """Keys whose constants are in locked memory."""


class Crowd(NamedTuple):
    """``struct gp_crowd``: the most requests that were under way at the same time, waiting or computed."""

    of_class: int
    """Since a batch of the size class was taken."""
    of_all: int
    """Since any batch was taken."""


class SmallBatch(NamedTuple):
    """``struct gp_small_batch``: a batch that ``gp_consumer_wait`` computed."""

    class_index: int
    requests: int
    failed: int
    again: int
    """Requests computed again by OpenSSL, because the kernels failed."""
    newest_ns: int
    """When the last of its requests was submitted."""
    held_ns: int
    """How long its requests waited for company, though they could have been computed."""
    waited_ns: int
    executed_ns: int
    crowd: Crowd


class Client:
    """A ``gp_client`` and its ``gp_consumer``. Library contexts and keys keep references to the former in C."""

    def __init__(self, depth: int) -> None:
        """Makes a queue of ``depth`` slots. BackendError if the system gives no memory or descriptor for it."""
        pointer = lib.gp_client_new(depth)
        if pointer == ffi.NULL:
            raise BackendError(f"a request queue of {depth} slots can't be made: {os.strerror(ffi.errno)}")
        self.pointer = ffi.gc(pointer, lib.gp_client_free)
        consumer = lib.gp_consumer_new(pointer)
        if consumer == ffi.NULL:
            raise MemoryError
        self.consumer = ffi.gc(consumer, lib.gp_consumer_free)
        self.keys = lib.gp_client_keys(pointer)
        """The ``gp_key_table``."""
        self.cpu = lib.gp_client_cpu(pointer)
        """The ``gp_cpu``."""
        self._small_batches = ffi.new("struct gp_small_batch[]", lib.GP_SMALL_BATCHES)
        self._process = os.getpid()

    @property
    def in_own_process(self) -> bool:
        """False in a forked child, where the threads that serve the queue don't exist."""
        return os.getpid() == self._process

    def check_process(self) -> None:
        """ProviderClosedError in a forked child."""
        if not self.in_own_process:
            raise ProviderClosedError(
                f"this provider was made in process {self._process}, and its threads do not exist in the forked "
                f"process {os.getpid()}: make and start a new BatchingProvider after the fork"
            )

    def counters(self) -> QueueCounters:
        stats: Any = ffi.new("struct gp_client_stats *")
        consumed: Any = ffi.new("struct gp_consumer_stats *")
        lib.gp_client_get_stats(self.pointer, stats)
        lib.gp_consumer_get_stats(self.consumer, consumed)
        return QueueCounters(
            submitted=stats.submitted,
            completed=consumed.completed,
            failed=consumed.failed,
            retries=stats.retries,
            orphaned=stats.orphaned,
            direct=stats.direct,
            in_use=stats.in_use,
            in_line=stats.queued,
            keys=stats.keys,
            kernel_keys=stats.kernel_keys,
            locked_keys=stats.locked_keys,
        )

    def small_batches(self, *, take: bool) -> list[SmallBatch]:
        """Those that were not taken yet, oldest first. One thread at a time. When there are too many, the core computes
        no more."""
        count = lib.gp_consumer_small_batches(self.consumer, self._small_batches, take)
        return [
            SmallBatch(
                one.class_index,
                one.requests,
                one.failed,
                one.again,
                one.newest_ns,
                one.held_ns,
                one.waited_ns,
                one.executed_ns,
                Crowd(one.crowd.of_class, one.crowd.of_all),
            )
            for one in self._small_batches[0:count]
        ]

    def wake(self) -> None:
        """Has the batching thread look again."""
        lib.gp_client_wake_consumer(self.pointer)
