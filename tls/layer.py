"""TLSLayer: a Connection between two parts of asyncio, the transport below and the application's protocol above."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from gpu_provider.tls.aio_errors import as_connection_error, unexpected_end
from gpu_provider.tls.application import Application
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
from gpu_provider.tls.notify import LoopNotifier
from gpu_provider.tls.ssl_object import SSLObject
from gpu_provider.tls.transport import State, TLSTransport

_BUFFER_SIZE = 256 * 1024
_HELD_LIMIT = 64 * 1024
_DISCARD_LIMIT = 256 * 1024
"""How many bytes may still arrive after ``close()``: those that were on their way. A peer that sends more is not
listening."""
_CLOSED_WRITES = 5
"""Writes to a closed transport that are ignored; further ones are logged, as asyncio does."""
_LINGER_SECONDS = 2.0
_ROUNDS = 8
"""How often one connection may hand bytes up before others get their turn."""

_log = logging.getLogger("gpu_provider.tls.aio")

ProtocolFactory = Callable[[], asyncio.BaseProtocol]
Connected = tuple[TLSTransport, asyncio.BaseProtocol]


class Timeouts(NamedTuple):
    """Seconds for a whole handshake, and for the peer's close_notify after ``close()``."""

    handshake: float
    shutdown: float


_AGREED: dict[str, Callable[[SSLObject], object]] = {
    "ssl_object": lambda agreed: agreed,
    "cipher": SSLObject.cipher,
    "compression": SSLObject.compression,
    "peercert": SSLObject.getpeercert,
}


class _Scratch(threading.local):
    """A buffer that a thread's connections share: whoever fills it empties it before returning."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_BUFFER_SIZE))  # asyncio's own TLS, as transport below, takes slices of it


_scratch = _Scratch()


class TLSLayer(asyncio.BufferedProtocol):
    """The protocol of the transport below."""

    below: asyncio.Transport

    def __init__(
        self,
        factory: ProtocolFactory,
        connection: Connection,
        *,
        timeouts: Timeouts,
        server_hostname: str | None = None,
        done: asyncio.Future[Connected] | None = None,
        upgraded: bool = False,
    ) -> None:
        """``done`` is told of the end of the handshake; if it is None, nobody waits and failures are logged.
        ``upgraded``: the protocol was connected before, and goes on with TLS."""
        self._loop = asyncio.get_running_loop()
        self._factory = factory
        self._connection = connection
        self._timeouts = timeouts
        self._server_hostname = server_hostname
        self._done = done
        self._timer: asyncio.TimerHandle | None = None
        self._error: BaseException | None = None
        self._held = 0
        self._discarded = 0
        self._closed_writes = 0
        self._starved = False  # of async jobs
        self._behind = False  # input waits for the loop's next turn
        self._unread_answers = 0
        self._wrote_eof = False
        self._peer_closed = False
        self._below_paused = False
        self._ssl_object: SSLObject | None = None
        self.state = State.HANDSHAKE
        self.reading_paused = False
        self.app = Application(self._loop, self.abort)
        if upgraded:
            self.app.set(factory())
            self.app.connected = True
        self._notifier = LoopNotifier.of(self._loop)
        connection.set_mode(SSL_MODE_ASYNC)
        self._notifier.attach(connection, self._handshake)

    # ---- called by the transport below ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.below = cast("asyncio.Transport", transport)
        if self.state is State.CLOSED:  # by give_up()
            self.below.abort()
            return
        self._timer = self._loop.call_later(self._timeouts.handshake, self._handshake_too_slow)
        self._handshake()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _scratch.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.state is State.CLOSED or self._peer_closed:
            return  # nobody would read what comes behind close_notify
        self._connection.bio_write(_scratch.buffer, nbytes)
        if self.state is State.HANDSHAKE:
            if not self._waits_for_job():
                self._handshake()
            else:
                # A peer that keeps sending while its handshake waits for a batch must not fill our memory.
                self._held += nbytes
                if self._held > _HELD_LIMIT:
                    self.below.pause_reading()
            return
        if self.state is State.CLOSING:
            self._discarded += nbytes
            if self._discarded > _DISCARD_LIMIT:
                self._end()
                return
        self._read()

    def eof_received(self) -> bool:
        """Returns True if the transport below must stay open, for writing or because not all has been read."""
        if self.state is State.CLOSED:
            return False
        self._connection.bio_shutdown()
        if self.state is State.HANDSHAKE:
            if not self._waits_for_job():
                self._handshake()
            else:
                self._fail(unexpected_end())
            return False
        self._read()
        return self.state is State.OPEN

    def pause_writing(self) -> None:
        self._below_paused = True
        if self.state is not State.CLOSED:
            self.app.pause_writing()

    def resume_writing(self) -> None:
        self._below_paused = False
        if self._unread_answers > _HELD_LIMIT:
            self._read_later()
        self._unread_answers = 0
        if self.state is not State.CLOSED:
            self.app.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        error = self._error or exc
        self.state = State.CLOSED
        self._cancel_timer()
        self._connection.close()
        done, self._done = self._done, None
        self._error = None  # its traceback refers to this object, as the waiter's result does
        if done is not None and not done.done():
            done.set_exception(error or unexpected_end())
        self.app.lose(error)

    # ---- the handshake ----

    def _handshake(self) -> None:
        """Continues the handshake: at the start, when bytes have come, and when the notifier says that a pause is
        over."""
        if self.state is not State.HANDSHAKE:
            return
        self._starved = False
        try:
            with self._notifier.turn:
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
            self._fail(as_connection_error(error))
            return
        finally:
            if self._held and not self._waits_for_job():
                self._held = 0
                self.below.resume_reading()
        self._flush()
        self._cancel_timer()
        self._connection.clear_mode(SSL_MODE_ASYNC)
        self._ssl_object = SSLObject(self._connection, self._server_hostname)
        self.state = State.OPEN
        self._connect_app()
        self._read()  # bytes that came with the end of the handshake

    def _connect_app(self) -> None:
        app = self.app
        if app.protocol is None:
            try:
                app.set(self._factory())
            except Exception as error:  # noqa: BLE001  the waiting caller's, or reported
                if self._done is None:
                    app.report(self._factory, error)
                self.abort(error)
                return
        protocol, transport = cast("asyncio.BaseProtocol", app.protocol), TLSTransport(self, self._loop)
        app.connect(transport)
        if self._error is not None:  # connection_made() raised
            return
        if self._done is not None and not self._done.done():
            self._done.set_result((transport, protocol))
        if self._below_paused and self.state is not State.CLOSED:
            app.pause_writing()

    def _waits_for_job(self) -> bool:
        return self._starved or self._connection.waiting_for_async()

    def _handshake_too_slow(self) -> None:
        error = ConnectionAbortedError(f"the TLS handshake took longer than {self._timeouts.handshake} seconds")
        self._report(error)
        self.abort(error)

    # ---- reading ----

    def _read(self) -> None:
        """Hands decrypted bytes up until there are no more, the protocol wants no more, or it is others' turn."""
        for _ in range(_ROUNDS):
            if self.state is State.OPEN:
                if not self._wants_bytes() or not self._hand_up():
                    return
            elif self.state is not State.CLOSING or not self._receive(_scratch.buffer):
                return
        self._read_later()

    def _wants_bytes(self) -> bool:
        """An error behind the last bytes is reported even if reading is paused."""
        return not self._peer_closed and (not self.reading_paused or self._connection.failure is not None)

    def _read_later(self) -> None:
        """Reads in the loop's next turn. Until then the transport below reads nothing."""
        if not self._behind and self.state in {State.OPEN, State.CLOSING}:
            self._behind = True
            self.below.pause_reading()
            self._loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        self._behind = False
        self._read()
        if (
            self.state in {State.OPEN, State.CLOSING}
            and not self._behind
            and not self.reading_paused
            and self._unread_answers <= _HELD_LIMIT
        ):
            self.below.resume_reading()

    def _hand_up(self) -> bool:
        """Hands bytes to the protocol once; returns False if there were none."""
        protocol = self.app.buffered
        if protocol is None:
            if count := self._receive(_scratch.buffer):
                self.app.give(bytes(_scratch.buffer[:count]))
            return bool(count)
        room = self.app.get_buffer(protocol)
        if self.state is not State.OPEN or not self._wants_bytes():  # since get_buffer()
            return True
        if count := self._receive(room):
            self.app.filled(protocol, count)
        return bool(count)

    def _receive(self, buffer: Any) -> int:
        """Decrypts into ``buffer`` and returns how many bytes; 0: no more for now, or ever."""
        try:
            return self._connection.recv_into(buffer)
        except WantReadError:
            answers = self._flush()  # to key updates
            if self._below_paused:
                # A peer that keeps asking without reading the answers must not fill our memory.
                self._unread_answers += answers
                if self._unread_answers > _HELD_LIMIT:
                    self.below.pause_reading()
        except ZeroReturnError:
            self._peer_has_closed()
        except Error as error:
            if self.state is State.CLOSING and isinstance(error, SysCallError):
                self._peer_has_closed()  # what it might have sent would be thrown away
            else:
                self._flush()
                self._fail(as_connection_error(error))
        return 0

    def _peer_has_closed(self) -> None:
        keep_open = False
        if not self._peer_closed:
            self._peer_closed = True
            keep_open = self.app.end()
        if self.state is State.CLOSING:
            self._end()
        elif self._wrote_eof or not keep_open:
            self.close()

    def pause_reading(self) -> None:
        if self.state is State.OPEN and not self.reading_paused:
            self.reading_paused = True
            self.below.pause_reading()

    def resume_reading(self) -> None:
        if self.state is State.OPEN and self.reading_paused:
            self.reading_paused = False
            self._read_later()

    # ---- writing ----

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data must be bytes, bytearray or memoryview, not {type(data).__name__}")
        if len(data) == 0:
            return
        if isinstance(data, memoryview) and not data.c_contiguous:
            data = data.tobytes()
        if self.state is not State.OPEN:
            if self._closed_writes >= _CLOSED_WRITES:
                _log.warning("write() on a TLS transport that is closed")
            self._closed_writes += 1
            return
        if self._wrote_eof:
            raise RuntimeError("write() after write_eof()")
        try:
            self._connection.sendall(data)
        except Error as error:
            self._fail(as_connection_error(error))
            return
        self._flush()

    def write_eof(self) -> None:
        if self.state is State.OPEN and not self._wrote_eof and self._send_close_notify() and self._peer_closed:
            self.close()

    def _send_close_notify(self) -> bool:
        self._wrote_eof = True
        try:
            self._connection.shutdown()
        except Error as error:
            self._fail(as_connection_error(error))
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
    #
    # The transport below is closed and aborted only from the event loop: within its call of resume_writing(), asyncio's
    # own transport would report the end of the connection twice.

    def close(self) -> None:
        if self.state is State.OPEN and not self._wrote_eof:
            self._send_close_notify()
        if self.state is not State.OPEN:  # sending failed, or the protocol's pause_writing() closed
            return
        self.state = State.CLOSING
        too_slow = TimeoutError(f"the TLS shutdown took longer than {self._timeouts.shutdown} seconds")
        self._timer = self._loop.call_later(self._timeouts.shutdown, self.abort, too_slow)
        if self._peer_closed or self._connection.get_shutdown() & RECEIVED_SHUTDOWN:
            self._end()
            return
        self.reading_paused = False
        self._read_later()

    def abort(self, error: BaseException | None = None) -> None:
        """``error`` is passed to the protocol's ``connection_lost``."""
        if self.state is not State.CLOSED:
            self._error = error
            self.state = State.CLOSED
            self._cancel_timer()
        self._loop.call_soon(self.below.abort)

    def give_up(self) -> None:
        """Called when nobody waits for the handshake any longer. The transport below may not be there yet."""
        self.state = State.CLOSED
        self._cancel_timer()
        self._connection.close()

    def _end(self) -> None:
        """Closes the transport below once it has sent what it holds. The timer bounds that."""
        self._loop.call_soon(self.below.close)

    def _fail(self, error: BaseException) -> None:
        """Ends the connection after a fatal error. The alert, if any, is on its way; connection_lost tells the
        protocol."""
        if self._error is None:
            self._error = error
        lingers = (
            self.state is State.HANDSHAKE
            and self._connection.is_server()
            and not self.app.connected
            and self.below.can_write_eof()
        )
        if self.state is State.HANDSHAKE:
            self._report(error)
        self.state = State.CLOSED
        self._cancel_timer()
        if lingers:
            # If this end were closed now, a client that is still sending would get a reset in place of the alert. What
            # it sends is thrown away until it has read the alert and closes. No protocol waits for that.
            self.below.write_eof()
            seconds = min(self._timeouts.shutdown, _LINGER_SECONDS)
        else:
            self._end()
            seconds = self._timeouts.shutdown
        self._timer = self._loop.call_later(seconds, self.below.abort)

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
        if name == "tls_connection" and self.state is not State.CLOSED:
            return self._connection
        if self._ssl_object is not None and name in _AGREED:
            return _AGREED[name](self._ssl_object)
        return self.below.get_extra_info(name, default)
