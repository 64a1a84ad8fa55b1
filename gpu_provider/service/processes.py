"""The processes that are connected to the service. Their requests are C's business; here they come and go."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from gpu_provider.errors import BackendError
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from _cffi_backend import FFI

    from gpu_provider.client import Client
    from gpu_provider.library.keys import Key
    from gpu_provider.service.config import ServiceConfig
    from gpu_provider.service.metrics import ProgramCounts, ServiceMetrics

__all__ = ["Processes"]

_CREDENTIALS = struct.Struct("iII")  # struct ucred
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


class Processes:
    """Accepts processes and answers their messages, on the event loop's thread."""

    def __init__(self, client: Client, config: ServiceConfig, room: int, metrics: ServiceMetrics) -> None:
        """``room``: most requests of all processes that are in ``client`` at a time. BackendError if there is no
        descriptor or memory for it."""
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
            except OSError as error:  # no descriptor, most likely; the program's connection waits
                self._metrics.accept_failures += 1
                _log.warning("can't accept a program now", reason=os.strerror(error.errno or 0))
                self._pause(listener)
                return
            self._add(connection)

    def _pause(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())

        def again() -> None:
            if self._listener is listener:
                loop.add_reader(listener.fileno(), self._accept, listener)

        loop.call_later(_PAUSE_SECONDS, again)

    def _add(self, connection: socket.socket) -> None:
        with connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, _ = _CREDENTIALS.unpack(credentials)
            if len(self._processes) >= self._most:
                self._metrics.refused["max_processes"] += 1
                _log.warning("program refused: there are max_processes already", pid=pid, uid=uid)
                return
            connection.setblocking(False)
            descriptor = connection.detach()
        remote = lib.gp_remote_new(self._remotes, descriptor, self._limits)
        if remote == ffi.NULL:
            error = ffi.errno
            self._metrics.refused["no_descriptors" if error in {errno.EMFILE, errno.ENFILE} else "no_memory"] += 1
            _log.warning("program refused", pid=pid, uid=uid, reason=os.strerror(error))
            return
        process = _Process(remote, descriptor, pid, uid, self._metrics.connected(remote, pid, uid))
        self._processes.add(process)
        _log.info("program connected", pid=pid, uid=uid, programs=len(self._processes))
        asyncio.get_running_loop().add_reader(descriptor, self._serve, process)

    def _serve(self, process: _Process) -> None:
        error = lib.gp_remote_serve(process.remote)
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
        asyncio.get_running_loop().remove_reader(process.descriptor)
        self._processes.discard(process)
        stats = process.counts.end(process.remote, end)
        lib.gp_remote_close(process.remote)
        _log.info(
            "program disconnected",
            pid=process.pid,
            uid=process.uid,
            reason=reason,
            requests=stats.requests,
            failed=stats.failed,
            programs=len(self._processes),
        )
