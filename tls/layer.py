"""The asyncio side of a Connection: the protocol of the transport below, and the transport of the protocol above."""

import asyncio
import enum
import errno
import logging
import threading
from collections.abc import Callable
from typing import Any, cast

from gpu_provider.tls.connection import Connection
from gpu_provider.tls.constants import RECEIVED_SHUTDOWN, SSL_MODE_ASYNC
from gpu_provider.tls.errors import (
    Error,
    SysCallError,
    WantAsyncError,
    WantAsyncJobError,
    WantReadError,
    ZeroReturnError,
)
from gpu_provider.tls.info import SSLObject
from gpu_provider.tls.notify import LoopNotifier

_BUFFER_SIZE = 256 * 1024
_HELD_LIMIT = 64 * 1024
_ROUNDS = 8
"""Times that one connection may hand bytes up before others get their turn."""

_log = logging.getLogger("gpu_provider.tls.aio")

ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class _Scratch(threading.local):
    """Where bytes pass through, shared by a thread's connections: whoever fills it empties it before returning."""

    def __init__(self) -> None:
        self.buffer = bytearray(_BUFFER_SIZE)


_scratch = _Scratch()


class _State(enum.Enum):
    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    """Our close_notify is sent; what still comes is thrown away until the peer's arrives. To close with unread bytes
    would make the kernel reset the connection, and take what we sent last with it."""
    CLOSED = enum.auto()


class TLSTransport(asyncio.Transport):
    """What the application's protocol gets in ``connection_made``. As asyncio's TLS transport, and ``can_write_eof``.

    ``get_extra_info`` knows ``tls_connection`` (the Connection), ``sslcontext`` (its Context), ``ssl_object`` (with the
    methods of ``ssl.SSLObject`` that servers look for), ``cipher``, ``peercert`` (a certificate of ``cryptography``),
    and the names of the transport below, such as ``peername`` and ``socket``.
    """

    def __init__(self, layer: "TLSLayer") -> None:
        super().__init__()
        self._layer = layer

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._layer.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._layer.set_app(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast("asyncio.BaseProtocol", self._layer.app)

    def is_closing(self) -> bool:
        return self._layer.state is not _State.OPEN

    def close(self) -> None:
        self._layer.close()

    def abort(self) -> None:
        self._layer.abort()

    def is_reading(self) -> bool:
        return self._layer.state is _State.OPEN and not self._layer.reading_paused

    def pause_reading(self) -> None:
        self._layer.pause_reading()

    def resume_reading(self) -> None:
        self._layer.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._layer.write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._layer.write_eof()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._layer.below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._layer.below.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._layer.below.get_write_buffer_limits()


class TLSLayer(asyncio.BufferedProtocol):
    """The protocol of the transport below."""

    below: asyncio.Transport

    def __init__(
        self,
        factory: ProtocolFactory,
        connection: Connection,
        *,
        handshake_timeout: float,
        shutdown_timeout: float,
        done: asyncio.Future[TLSTransport] | None = None,
    ) -> None:
        """``done``: a client's waiter, told of the end of the handshake; None in a server, where failures are
        logged."""
        self._loop = asyncio.get_running_loop()
        self._factory = factory
        self._connection = connection
        self._handshake_timeout = handshake_timeout
        self._shutdown_timeout = shutdown_timeout
        self._done = done
        self._timer: asyncio.TimerHandle | None = None
        self._error: BaseException | None = None
        self._held = 0
        self._starved = False  # of async jobs
        self._behind = False  # there is input that waits for the loop's next turn
        self._peer_is_slow = False
        self._unread_answers = 0
        self._wrote_eof = False
        self._peer_closed = False
        self._app_connected = False
        self.state = _State.HANDSHAKE
        self.reading_paused = False
        self.app: asyncio.BaseProtocol | None = None
        self._app_buffered: asyncio.BufferedProtocol | None = None
        self._notifier = LoopNotifier.of(self._loop)
        connection.set_mode(SSL_MODE_ASYNC)
        self._notifier.attach(connection, self._handshake)

    # ---- called by the transport below ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.below = cast("asyncio.Transport", transport)
        self._timer = self._loop.call_later(self._handshake_timeout, self._handshake_too_slow)
        self._handshake()

    def get_buffer(self, sizehint: int) -> bytearray:
        return _scratch.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._peer_closed:
            return  # nothing counts behind close_notify, and nobody would read it
        self._connection.bio_write(_scratch.buffer, nbytes)
        if self.state is _State.HANDSHAKE:
            if not self._waits_for_job():
                self._handshake()
            else:
                # Whoever sends on while its handshake waits for a batch must not fill our memory.
                self._held += nbytes
                if self._held > _HELD_LIMIT:
                    self.below.pause_reading()
        else:
            self._read()

    def eof_received(self) -> bool:
        """True: the transport below stays open, for writing or because not all has been read."""
        if self.state is _State.CLOSED:
            return False
        self._connection.bio_shutdown()
        if self.state is _State.HANDSHAKE:
            if not self._waits_for_job():
                self._handshake()
            else:
                self._fail(_unexpected_end())
            return False
        self._read()
        return self.state is _State.OPEN

    def pause_writing(self) -> None:
        self._peer_is_slow = True
        if self._app_connected and self.app is not None:
            self.app.pause_writing()

    def resume_writing(self) -> None:
        self._peer_is_slow = False
        if self._unread_answers > _HELD_LIMIT:
            self._read_later()
        self._unread_answers = 0
        if self._app_connected and self.app is not None:
            self.app.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        error = self._error or exc
        self.state = _State.CLOSED
        self._cancel_timer()
        self._connection.close()
        self._error = None  # its traceback refers to this object
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or _unexpected_end())
        if self._app_connected and self.app is not None:
            app, self.app, self._app_buffered = self.app, None, None
            self._app_connected = False
            app.connection_lost(cast("Exception | None", error))

    # ---- the handshake ----

    def _handshake(self) -> None:
        """Goes on with it: at the start, when bytes have come, and when the notifier says that a pause is over."""
        if self.state is not _State.HANDSHAKE:
            return
        self._starved = False
        try:
            self._connection.do_handshake()
        except (WantReadError, WantAsyncError):
            self._flush()
            return
        except WantAsyncJobError:
            self._starved = True
            self._notifier.when_job_ends(self._handshake)
            return
        except Error as error:
            self._flush()  # the alert
            self._fail(_as_connection_error(error))
            return
        finally:
            if self._held and not self._waits_for_job():
                self._held = 0
                self.below.resume_reading()
        self._flush()
        self._cancel_timer()
        self._connection.clear_mode(SSL_MODE_ASYNC)
        self.state = _State.OPEN
        self.set_app(self._factory())
        self._app_connected = True
        transport = TLSTransport(self)
        if self._done is not None and not self._done.done():
            self._done.set_result(transport)
        cast("asyncio.BaseProtocol", self.app).connection_made(transport)
        self._read()  # what came together with the end of the handshake

    def _waits_for_job(self) -> bool:
        return self._starved or self._connection.waiting_for_async()

    def _handshake_too_slow(self) -> None:
        self._error = ConnectionAbortedError(f"the TLS handshake took longer than {self._handshake_timeout} seconds")
        self._report(self._error)
        self.below.abort()

    # ---- reading ----

    def _read(self) -> None:
        """Hands decrypted bytes up until there are no more, or the protocol wants no more, or it is others' turn."""
        scratch = _scratch.buffer
        for _ in range(_ROUNDS):
            if self.state is _State.OPEN:
                # An error behind the last bytes needs no reader.
                if self._peer_closed or (self.reading_paused and self._connection.failure is None):
                    return
                buffered = self._app_buffered
                if buffered is None:
                    if not (count := self._receive(scratch)):
                        return
                    cast("asyncio.Protocol", self.app).data_received(bytes(memoryview(scratch)[:count]))
                else:
                    room = buffered.get_buffer(-1)
                    if not (count := self._receive(room)):
                        return
                    buffered.buffer_updated(count)
            elif self.state is not _State.CLOSING or not self._receive(scratch):
                return
        self._read_later()

    def _read_later(self) -> None:
        """In the loop's next turn. The transport below reads no more until all that is here has been dealt with."""
        if not self._behind and self.state in {_State.OPEN, _State.CLOSING}:
            self._behind = True
            self.below.pause_reading()
            self._loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        self._behind = False
        self._read()
        if (
            self.state in {_State.OPEN, _State.CLOSING}
            and not self._behind
            and not self.reading_paused
            and self._unread_answers <= _HELD_LIMIT
        ):
            self.below.resume_reading()

    def _receive(self, buffer: Any) -> int:
        """How many bytes were decrypted into ``buffer``; 0: no more for now, or ever."""
        try:
            return self._connection.recv_into(buffer)
        except WantReadError:
            answers = self._flush()  # to key updates
            if self._peer_is_slow:
                # Whoever asks on without reading the answers must not fill our memory.
                self._unread_answers += answers
                if self._unread_answers > _HELD_LIMIT:
                    self.below.pause_reading()
        except ZeroReturnError:
            self._peer_has_closed()
        except Error as error:
            self._flush()
            self._fail(_as_connection_error(error))
        return 0

    def _peer_has_closed(self) -> None:
        self._peer_closed = True
        if self.state is _State.CLOSING:
            self.below.close()
            return
        keep_open = cast("asyncio.Protocol", self.app).eof_received()
        if self._wrote_eof or not keep_open:
            self.close()

    def pause_reading(self) -> None:
        if self.state is _State.OPEN and not self.reading_paused:
            self.reading_paused = True
            self.below.pause_reading()

    def resume_reading(self) -> None:
        if self.state is _State.OPEN and self.reading_paused:
            self.reading_paused = False
            self._read_later()

    def set_app(self, protocol: asyncio.BaseProtocol) -> None:
        self.app = protocol
        self._app_buffered = protocol if isinstance(protocol, asyncio.BufferedProtocol) else None

    # ---- writing ----

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data must be bytes, bytearray or memoryview, not {type(data).__name__}")
        if self.state is not _State.OPEN or len(data) == 0:
            return
        if self._wrote_eof:
            raise RuntimeError("write() after write_eof()")
        try:
            self._connection.sendall(data)
        except Error as error:
            self._fail(_as_connection_error(error))
            return
        self._flush()

    def write_eof(self) -> None:
        if self.state is _State.OPEN and not self._wrote_eof and self._send_close_notify() and self._peer_closed:
            self.close()

    def _send_close_notify(self) -> bool:
        self._wrote_eof = True
        try:
            self._connection.shutdown()
        except Error as error:
            self._fail(_as_connection_error(error))
            return False
        self._flush()
        return True

    def _flush(self) -> int:
        """Sends what libssl has for the peer; returns how many bytes."""
        count = self._connection.bio_pending()
        if count and not self.below.is_closing():
            self.below.write(self._connection.bio_read(count))
        return count

    # ---- the end ----

    def close(self) -> None:
        if self.state is not _State.OPEN or not (self._wrote_eof or self._send_close_notify()):
            return
        self.state = _State.CLOSING
        self._timer = self._loop.call_later(self._shutdown_timeout, self.below.abort)
        if self._connection.get_shutdown() & RECEIVED_SHUTDOWN:
            self.below.close()
            return
        self.reading_paused = False
        self._read_later()

    def abort(self) -> None:
        if self.state is not _State.CLOSED:
            self.below.abort()

    def _fail(self, error: BaseException) -> None:
        """A fatal error: the alert, if any, is on its way; connection_lost will tell the protocol."""
        if self._error is None:
            self._error = error
        if self.state is _State.HANDSHAKE:
            self._report(error)
        self.state = _State.CLOSED
        self._cancel_timer()
        self._timer = self._loop.call_later(self._shutdown_timeout, self.below.abort)
        self.below.close()

    def _report(self, error: BaseException) -> None:
        if self._done is None:
            _log.debug("a TLS handshake with %s failed: %s", self.below.get_extra_info("peername"), error)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._connection.get_context()
        if self.state is not _State.CLOSED:
            match name:
                case "tls_connection":
                    return self._connection
                case "ssl_object":
                    return SSLObject(self._connection)
                case "cipher":
                    return SSLObject(self._connection).cipher()
                case "peercert":
                    return self._connection.get_peer_certificate()
        return self.below.get_extra_info(name, default)


def _unexpected_end() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "the peer ended the connection without close_notify")


def _as_connection_error(error: Error) -> Exception:
    """What asyncio's users expect to catch, where the peer or the network went away."""
    if isinstance(error, SysCallError):
        reset = _unexpected_end()
        reset.__cause__ = error
        return reset
    return error
