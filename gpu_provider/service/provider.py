"""The provider of a process whose RSA operations a service computes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from gpu_provider.errors import BackendError, ConfigError
from gpu_provider.native import ffi, lib
from gpu_provider.provider import LibraryContext

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

__all__ = ["ServiceProvider"]


class Computed(NamedTuple):
    """RSA private operations of this process, by what computed them."""

    by_service: int
    alone: int


class ServiceProvider:
    """For TLS contexts, in place of a BatchingProvider: ``gpu-provider service`` computes, and OpenSSL while the
    service can't be reached. It has no thread. A process has one service; in a forked child, OpenSSL computes.
    """

    _path: bytes | None = None
    """The process's."""

    def __init__(self, socket: Path, timeout_ms: int = 200) -> None:
        """``socket``: the service's; it need not be there yet. ``timeout_ms``: how long an operation may wait while the
        service completes none. Raises ConfigError if this process has another service, BackendError if OpenSSL can't
        load the provider."""
        path = os.fsencode(socket)
        if ServiceProvider._path not in {None, path}:
            raise ConfigError(f"service {str(socket)!r}: this process already uses {os.fsdecode(self._path or b'')!r}")
        ServiceProvider._path = path
        self.socket = socket
        self._arguments = ffi.new("char[]", path), timeout_ms
        pointer = lib.gp_embedded_libctx_of_service(*self._arguments)
        self.library_context = LibraryContext(pointer, self._arguments)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ServiceProvider can't be pickled or copied: make one in the other process")

    def fire_callbacks_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has the async callbacks of connections fired on this loop's thread, which must also run their operations.
        Without it those connections compute by themselves. Call it before the first operation. Raises BackendError."""
        descriptor = lib.gp_embedded_callbacks_descriptor(*self._arguments)
        if descriptor < 0:
            raise BackendError(f"the service can't be waited for: {os.strerror(ffi.errno)}")
        loop.add_reader(descriptor, lib.gp_embedded_fire_callbacks)

    @staticmethod
    def computed() -> Computed:
        by_service, alone = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        lib.gp_embedded_counts(by_service, alone)
        return Computed(by_service[0], alone[0])
