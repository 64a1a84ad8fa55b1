"""The C client of the request queue (``native/client.h``), with NumPy arrays in place of pointers.

Safe from any thread. In a forked child nothing of the parent's client is usable; see :meth:`Client.check_process`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_provider.errors import BackendError, ProviderClosedError
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    import numpy as np
    from _cffi_backend import FFI
    from numpy.typing import NDArray

    from gpu_provider.backends.base import Batch

__all__ = [
    "CLASSES",
    "MAX_BYTES",
    "TIME_BOUNDS",
    "Client",
    "QueueCounters",
    "SmallCounters",
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
TIME_BOUNDS: tuple[float, ...] = tuple(lib.gp_time_bounds_ns[i] / 1e9 for i in range(lib.GP_TIME_BOUNDS))
"""Upper bounds, in seconds, of the buckets in which times are counted."""


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
    """``struct gp_client_stats``: since the client was made, but for those from ``in_use`` on, which are now."""

    submitted: int
    completed: int
    failed: int
    retries: int
    orphaned: int
    direct: int
    in_use: int
    in_line: int
    keys: int
    kernel_keys: int
    """Of those, with constants for the kernels; OpenSSL computes with the others."""
    locked_keys: int
    """Of those, in locked memory."""


@dataclass(frozen=True, slots=True)
class SmallCounters:
    """``struct gp_small_stats``: batches of one size class that ``gp_consumer_wait`` computed itself."""

    requests: int
    failed: int
    again: int
    """Computed again by OpenSSL, because the kernels failed."""
    sizes: tuple[int, ...]
    """Batches of 1, 2, … requests."""
    waited: tuple[int, ...]
    """Batches by time from submission to launch: per bucket of TIME_BOUNDS, and those above the last."""
    waited_ns: int
    executed: tuple[int, ...]
    executed_ns: int


class Client:
    """Owns one reference to a ``gp_client``; library contexts and keys keep further ones in C."""

    def __init__(self, depth: int) -> None:
        """Makes a queue of ``depth`` slots. BackendError if the system gives no memory or descriptor for it."""
        pointer = lib.gp_client_new(depth)
        if pointer == ffi.NULL:
            raise BackendError(f"a request queue of {depth} slots can't be made: {os.strerror(ffi.errno)}")
        self.pointer = ffi.gc(pointer, lib.gp_client_free)
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
        stats = ffi.new("struct gp_client_stats *")
        lib.gp_client_get_stats(self.pointer, stats)
        return QueueCounters(**{name: getattr(stats, name) for name in QueueCounters.__slots__})

    def small_counters(self) -> list[SmallCounters]:
        """By size class."""
        stats = ffi.new("struct gp_small_stats[]", CLASSES)
        lib.gp_client_get_small_stats(self.pointer, stats)
        return [
            SmallCounters(
                one.requests,
                one.failed,
                one.again,
                tuple(one.sizes),
                tuple(one.waited),
                one.waited_ns,
                tuple(one.executed),
                one.executed_ns,
            )
            for one in stats
        ]

    def private_op(self, batch: Batch) -> None:
        """Computes a batch by OpenSSL on this thread, without the GIL: ``Backend.private_op`` for libcrypto."""
        lib.gp_libcrypto_private(
            self.pointer,
            len(batch),
            u64(batch.keys),
            u8(batch.inputs),
            u8(batch.outputs),
            batch.class_bytes,
            u8(batch.ok),
        )

    def verify(self, batch: Batch) -> int:
        """Clears ``ok[i]`` where ``outputs[i]^e mod n`` is not ``inputs[i]``. Returns how many it cleared."""
        return lib.gp_libcrypto_verify(
            self.pointer,
            len(batch),
            u64(batch.keys),
            u8(batch.inputs),
            u8(batch.outputs),
            batch.class_bytes,
            u8(batch.ok),
        )

    def wake(self) -> None:
        """Has the batching thread look again."""
        lib.gp_consumer_wake(self.pointer)
