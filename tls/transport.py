"""TLSTransport, which the application's protocol gets in ``connection_made``."""

from __future__ import annotations

import enum
from asyncio import constants, transports
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from gpu_provider.tls.layer import TLSLayer

__all__ = ["State", "TLSTransport"]


class State(enum.Enum):
    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    """Our close_notify is sent. What still comes is thrown away until the peer's arrives: if we closed with unread
    bytes, the kernel would reset the connection, and the peer could lose what we sent last."""
    CLOSED = enum.auto()


class TLSTransport(transports._FlowControlMixin):
    """Behaves as asyncio's TLS transport does, with the differences that :mod:`gpu_provider.tls.aio` lists.

    ``get_extra_info`` knows asyncio's names: ``sslcontext`` (here the Context), ``ssl_object`` (with the methods of
    ``ssl.SSLObject`` that ask for what was agreed), ``cipher``, ``compression``, ``peercert`` (``ssl``'s dictionary);
    ``tls_connection`` (the Connection, as long as it is open); and the names of the transport below, such as
    ``peername`` and ``socket``.
    """

    # The event loop looks at these before ``sendfile`` and ``start_tls``. ``sendfile`` also insists on the base class,
    # although nothing of it is used: the limits and their state are those of the transport below.
    _sendfile_compatible = constants._SendfileMode.FALLBACK
    _start_tls_compatible = True

    def __init__(self, layer: TLSLayer, loop: asyncio.AbstractEventLoop) -> None:
        self._layer = layer
        self._loop = loop

    @property
    def _protocol_paused(self) -> bool:  # ``sendfile`` reads this
        return self._layer.app.writing_paused

    def _force_close(self, exc: BaseException | None) -> None:  # asyncio's own TLS over this transport calls it
        self._layer.abort(exc)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._layer.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._layer.app.set(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast("asyncio.BaseProtocol", self._layer.app.protocol)

    def is_closing(self) -> bool:
        return self._layer.state is not State.OPEN

    def close(self) -> None:
        self._layer.close()

    def abort(self) -> None:
        self._layer.abort()

    def is_reading(self) -> bool:
        return self._layer.state is State.OPEN and not self._layer.reading_paused

    def pause_reading(self) -> None:
        self._layer.pause_reading()

    def resume_reading(self) -> None:
        self._layer.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._layer.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._layer.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._layer.write_eof()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._layer.state is not State.CLOSED:  # uvloop's would raise
            self._layer.below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._layer.below.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._layer.below.get_write_buffer_limits()
