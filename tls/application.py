"""Calls the application's protocol above the TLS."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider.tls.transport import TLSTransport

__all__ = ["Application"]


class Application:
    """An exception of the protocol ends its own connection, through ``failed``, and no other. It is reported as asyncio
    does: an OSError is not reported at all."""

    def __init__(self, loop: asyncio.AbstractEventLoop, failed: Callable[[BaseException], None]) -> None:
        self._loop = loop
        self._failed: Callable[[BaseException], None] | None = failed
        self.transport: TLSTransport | None = None
        self.protocol: asyncio.BaseProtocol | None = None
        self.buffered: asyncio.BufferedProtocol | None = None
        self.connected = False
        """Between ``connection_made`` and ``connection_lost``."""
        self.writing_paused = False

    def set(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol
        self.buffered = protocol if isinstance(protocol, asyncio.BufferedProtocol) else None

    def connect(self, transport: TLSTransport) -> None:
        self.transport = transport
        if not self.connected:
            self.connected = True
            self._call(cast("asyncio.BaseProtocol", self.protocol).connection_made, transport)

    def give(self, data: bytes) -> None:
        self._call(cast("asyncio.Protocol", self.protocol).data_received, data)

    def get_buffer(self, protocol: asyncio.BufferedProtocol) -> Any:
        return self._call(_buffer_of, protocol)

    def filled(self, protocol: asyncio.BufferedProtocol, count: int) -> None:
        self._call(protocol.buffer_updated, count)

    def end(self) -> bool:
        """Whether the protocol wants to go on writing."""
        return bool(self._call(cast("asyncio.Protocol", self.protocol).eof_received))

    def pause_writing(self) -> None:
        if self.connected and not self.writing_paused:
            self.writing_paused = True
            self._tell("pause_writing")

    def resume_writing(self) -> None:
        """Does nothing unless writing was paused: asyncio's streams don't expect that."""
        if self.connected and self.writing_paused:
            self.writing_paused = False
            self._tell("resume_writing")

    def lose(self, error: BaseException | None) -> None:
        protocol, self.protocol, self.buffered = self.protocol, None, None
        self.transport = self._failed = None  # a cycle, which would keep the connection until a garbage collection
        if self.connected and protocol is not None:
            self.connected = False
            protocol.connection_lost(cast("Exception | None", error))

    def report(self, callback: Callable[..., Any], error: BaseException) -> None:
        self._loop.call_exception_handler(
            {
                "message": f"the protocol's {getattr(callback, '__qualname__', callback)}() raised",
                "exception": error,
                "transport": self.transport,
                "protocol": self.protocol,
            }
        )

    def _call(self, callback: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return callback(*arguments)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  asyncio's contract: whatever it is
            if not isinstance(error, OSError):
                self.report(callback, error)
            if self._failed is not None:
                self._failed(error)
            return None

    def _tell(self, name: str) -> None:
        """Whatever ``pause_writing`` or ``resume_writing`` raises, the connection goes on."""
        callback = getattr(self.protocol, name)
        try:
            callback()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  asyncio's contract
            self.report(callback, error)


def _buffer_of(protocol: asyncio.BufferedProtocol) -> Any:
    room = protocol.get_buffer(-1)
    with memoryview(room) as view:
        if view.readonly or view.nbytes == 0:
            raise RuntimeError(f"get_buffer() returned {'a read-only' if view.readonly else 'an empty'} buffer")
    return room
