"""The processes that are connected to the service. Their requests are C's business; here they come and go."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import structlog

from gpu_provider.errors import BackendError
from gpu_provider.native import ffi, lib
from gpu_provider.observe.repeated import RepeatedWarnings
from gpu_provider.service.admission import Admission, Peer

if TYPE_CHECKING:
    import socket

    from _cffi_backend import FFI

    from gpu_provider.client import Client
    from gpu_provider.library.keys import Key
    from gpu_provider.service.config import ServiceConfig
    from gpu_provider.service.metrics import ProgramCounts, ServiceMetrics

__all__ = ["Processes"]

_ACCEPT_BURST = 64
_PAUSE_SECONDS = 0.1
_log = structlog.stdlib.get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Process:
    remote: FFI.CData
    descriptor: int
    pid: int
    uid: int
    counts: ProgramCounts


class _Refusal(NamedTuple):
    kind: str
    """As the metrics name it."""
    reason: str


class Processes:
    """Accepts processes and answers their messages, on the event loop's thread. What one of them lacks descriptors or
    memory for ends this one alone."""

    def __init__(self, client: Client, config: ServiceConfig, room: int, metrics: ServiceMetrics) -> None:
        """``room``: most requests of all processes that are in ``client`` at a time. Raises ConfigError if a user or
        group does not exist, BackendError if there is no descriptor or memory for it."""
        self._client = client  # whose requests are completed as long as there are any
        self._remotes = lib.gp_remotes_new(client.pointer, room)
        if self._remotes == ffi.NULL:
            raise BackendError(f"the service can't wait for programs: {os.strerror(ffi.errno)}")
        self._limits = ffi.new(
            "struct gp_remote_limits *",
            {
                "requests": config.process_requests,
                "keys": config.process_keys,
                "descriptors": config.process_descriptors,
            },
        )
        self._most = config.max_processes
        self._admission = Admission(config)
        self._warnings = RepeatedWarnings()
        self._metrics = metrics
        self._processes: set[_Process] = set()
        self._listener: socket.socket | None = None

    def set_room(self, room: int) -> None:
        lib.gp_remotes_set_room(self._remotes, room)

    def name_key(self, name: str, key: Key) -> None:
        """Programs use the key by this name from now on."""
        if not lib.gp_remotes_name_key(self._remotes, name.encode(), key.handle):
            raise BackendError(f"there is no memory for the key {name!r}")

    def start(self, listener: socket.socket) -> None:
        """The listener stays the caller's, who closes it after :meth:`close`."""
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def close(self) -> None:
        """Ends all connections. The programs notice, and compute by themselves."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener = None
        for process in tuple(self._processes):
            self._end(process, "service_end", "the service ends")

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_BURST):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            except (OSError, MemoryError) as error:  # the program's connection waits
                self._metrics.accept_failures += 1
                self._warn("can't accept a program now", _shortage(error).reason)
                with contextlib.suppress(MemoryError):
                    self._pause(listener)
                return
            self._add(connection)

    def _pause(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            if self._listener is listener:
                loop.add_reader(listener.fileno(), self._accept, listener)

        loop.call_later(_PAUSE_SECONDS, again)
        loop.remove_reader(listener.fileno())

    def _add(self, connection: socket.socket) -> None:
        peer = None
        with connection:
            try:
                peer = Peer.of(connection)
                refusal = self._refusal(connection, peer)
                if refusal is None:
                    self._connect(connection, peer)
            except (OSError, MemoryError) as error:
                refusal = _shortage(error)
        if refusal is not None:
            self._metrics.refused[refusal.kind] += 1
            self._warn("program refused", refusal.reason, peer)

    def _refusal(self, connection: socket.socket, peer: Peer) -> _Refusal | None:
        """Why the process may not be connected."""
        if not self._admission.admits(connection, peer):
            return _Refusal("not_allowed", "neither allow_users nor allow_groups names its user")
        if len(self._processes) >= self._most:
            return _Refusal("max_processes", "there are max_processes already")
        return None

    def _connect(self, connection: socket.socket, peer: Peer) -> None:
        """Raises OSError or MemoryError; nothing is left of it then."""
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        descriptor = connection.detach()
        remote = lib.gp_remote_new(self._remotes, descriptor, self._limits)
        if remote == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        counts = None
        try:
            counts = self._metrics.connected(remote, peer.pid, peer.uid)
            process = _Process(remote, descriptor, peer.pid, peer.uid, counts)
            loop.add_reader(descriptor, self._serve, process)
            self._processes.add(process)
        except (OSError, MemoryError):
            with contextlib.suppress(MemoryError):
                loop.remove_reader(descriptor)
            if counts is not None:
                counts.forget(remote)
            lib.gp_remote_close(remote)
            raise
        with contextlib.suppress(MemoryError):
            _log.info("program connected", pid=peer.pid, uid=peer.uid, programs=len(self._processes))

    def _serve(self, process: _Process) -> None:
        try:
            error = lib.gp_remote_serve(process.remote)
        except (OSError, MemoryError) as shortage:
            self._end(process, "error", _shortage(shortage).reason)
            return
        if error in {errno.ECONNRESET, errno.EPIPE}:
            self._end(process, "closed", "it has closed the connection")
        elif error == errno.EPROTO:
            self._end(process, "protocol_error", "it does not keep to the protocol")
        elif error == errno.ENOBUFS:
            self._end(process, "unread_answers", "it does not read its answers")
        elif error:
            self._end(process, "error", os.strerror(error))

    def _end(self, process: _Process, end: str, reason: str) -> None:
        """``end``: the reason as the metrics name it."""
        self._processes.discard(process)
        with contextlib.suppress(MemoryError):
            asyncio.get_running_loop().remove_reader(process.descriptor)
        with contextlib.suppress(MemoryError):
            stats = process.counts.end(process.remote, end)
            _log.info(
                "program disconnected",
                pid=process.pid,
                uid=process.uid,
                reason=reason,
                requests=stats.requests,
                failed=stats.failed,
                programs=len(self._processes),
            )
        process.counts.forget(process.remote)
        lib.gp_remote_close(process.remote)

    def _warn(self, event: str, reason: str, peer: Peer | None = None) -> None:
        details = {} if peer is None else {"pid": peer.pid, "uid": peer.uid}
        with contextlib.suppress(MemoryError):
            self._warnings.warn(event, reason=reason, **details)


def _shortage(error: OSError | MemoryError) -> _Refusal:
    if isinstance(error, MemoryError):
        return _Refusal("no_memory", "out of memory")
    kind = "no_descriptors" if error.errno in {errno.EMFILE, errno.ENFILE} else "no_memory"
    return _Refusal(kind, os.strerror(error.errno or 0))
