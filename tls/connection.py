"""Connection: one TLS connection, an SSL, that can pause.

On pausing and going on
-----------------------
Every operation of a non-blocking TLS connection may stop half way, for one of three reasons, and the remedy is always
the same: make the same call again, later. What differs is when, and how much of the first call is still alive.

*WantRead, WantWrite.* The transport has no bytes, or accepts none. libssl has put its own state in order and returned;
nothing of the call is left on any stack. The caller may do something else on the connection in between: read while a
write waits.

*WantAsync.* The operation needs an RSA result that somebody else is computing. libssl ran it in an async job, a fibre
with a stack of its own, and that stack is frozen in the middle of the operation, with pointers to the caller's
buffers on it. All the rules here follow from that:

- The job is resumed by making the same call. libssl ignores the arguments of the second call and goes on with those
  of the first. So this class keeps the buffer of a paused read or write itself, checks that the second call asks for
  the same function and size, and hands over what the first call's buffer received.
- No other operation may start meanwhile: libssl would resume the frozen job and take its result for the new call's.
  Trying is an Error that names the paused operation. Mode changes have to wait too.
- A job belongs to the thread that started it (OpenSSL's job pools are thread-local), so another thread can't resume it.
- The job can't be thrown away. SSL_free would leak its stack, and the callback, still to come, would find freed
  memory. So a connection closed in flight is kept, out of reach of its peer, until the job has ended: see drain.py.

*WantAsyncJob.* There is no free job. Nothing has begun, so there is nothing to keep; the call is made again once
another connection's operation has ended.

The wake-up (the async callback, or a readable wait descriptor) is a hint that the call can be made again, not a
promise. It can come before the first call has even returned WantAsync, and more than once. Resuming too early is
harmless: the provider's loop looks at its own request and pauses again. So nothing here counts wake-ups.

libssl wires the callback up once, at the connection's first operation in async mode; one that is set later would
silently never be called. Here that is an Error.
"""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from gpu_provider.tls import constants, drain
from gpu_provider.tls._ssl import ffi, lib
from gpu_provider.tls.errors import CallbackError, Error, WantReadError, check, operation_error, why
from gpu_provider.tls.info import ConnectionInfo, descriptors_of
from gpu_provider.tls.notify import LoopNotifier, Notifier, dispatcher, new_id

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from gpu_provider.tls.context import AsyncCallback, Context

__all__ = ["Connection", "set_async_job_limit"]

_log = logging.getLogger("gpu_provider.tls")

_HANDSHAKE: int = lib.GP_HANDSHAKE
_READ: int = lib.GP_READ
_WRITE: int = lib.GP_WRITE
_SHUTDOWN: int = lib.GP_SHUTDOWN
_NAMES = {_HANDSHAKE: "do_handshake", _READ: "recv", _WRITE: "send", _SHUTDOWN: "shutdown"}
_WANT_READ: int = lib.SSL_ERROR_WANT_READ
_WANT_ASYNC: int = lib.SSL_ERROR_WANT_ASYNC
_FATAL = frozenset((lib.SSL_ERROR_SSL, lib.SSL_ERROR_SYSCALL, lib.GP_ERROR_FLOOD))
_NULL = ffi.NULL
lib.gp_job_stacks_guard()  # before the process's first job, which begins with an operation of a connection
_operate = lib.gp_connection_operate
_buffer = ffi.buffer
_from_buffer = ffi.from_buffer
_release = ffi.release
_allocate = ffi.new_allocator(should_clear_after_alloc=False)


def set_async_job_limit(maximum: int, initial: int = 0) -> None:
    """ASYNC_init_thread: allows the calling thread's connections at most ``maximum`` async jobs (0: no limit) and makes
    ``initial`` of them at once. Call it once, before the thread's first async operation."""
    if maximum < 0 or initial < 0:
        raise ValueError(f"the job limits must not be negative: {maximum}, {initial}")
    lib.ERR_clear_error()
    check(lib.ASYNC_init_thread(maximum, initial), "the thread's async jobs")


class Socket(Protocol):
    """What a Connection uses of a socket."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Connection(ConnectionInfo):
    """One end of a TLS connection, over ``socket`` (blocking or not), or over memory BIOs if that is None: bytes from
    the peer go in by :meth:`bio_write`, bytes for the peer come out by :meth:`bio_read`.

    Names and behaviour are pyOpenSSL's where it has the same thing, except that a client verifies its server unless
    told otherwise: see :class:`Context`. Use it from one thread at a time, and from the same thread as long as an
    operation is paused. A paused connection is kept alive until it is resumed or closed: close it.

    Every operation may raise WantReadError, WantWriteError, WantAsyncError and WantAsyncJobError (see the top of this
    module), ZeroReturnError, SysCallError, CallbackError once, and Error.
    """

    __slots__ = (
        "__weakref__", "_arg", "_callback", "_context", "_error", "_home", "_id", "_names", "_notifier", "_on_ready",
        "_paused", "_rbio", "_socket", "_started", "_status", "_wbio",
    )  # fmt: skip

    def __init__(self, context: "Context", socket: Socket | None = None) -> None:
        self._ssl: Any = None
        ssl = lib.gp_connection_new(context.pointer, -1 if socket is None else socket.fileno())
        if ssl == _NULL:
            raise Error(f"no SSL: {why()}")
        self._ssl = ssl
        self._context = context
        self._names = names = context.server_names
        if names is not None and not lib.gp_names_use(ssl, names.pointer):
            raise MemoryError("server names")
        self._socket = socket
        if socket is None:
            self._rbio = lib.SSL_get_rbio(ssl)
            self._wbio = lib.SSL_get_wbio(ssl)
        self._paused: tuple[int, Any, int] | None = None
        self._home: drain.Home | None = None
        self._error: Error | None = None
        self._started = False
        self._verify_chosen = False
        self._verify_host = self._resumes = None
        self._status = 0  # the SSL_ERROR value of the last operation
        self._notifier: Notifier | None = None
        self._id = 0
        self._on_ready: Callable[[], object] | None = None
        self._callback: AsyncCallback | None = None
        self._arg = context.async_callback_arg
        if context.async_callback is not None:
            self._listen(dispatcher())
            self._callback = context.async_callback

    # ---- operations ----

    def _run(self, operation: int, buffer: Any = _NULL, size: int = 0) -> int:
        """Runs one libssl operation, or the rest of a paused one. Returns how many bytes it moved, or whether both
        sides have shut down."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if drain.parked:
            drain.current_home().drain()
        ssl = self._pointer()
        paused = self._paused
        if paused is not None:
            self._check_resume(paused, operation, size)
            buffer = paused[1]
        if not self._started:
            self.decide_verification()
            self._started = True
        notifier = self._notifier
        if notifier is not None:
            notifier.waiting[self._id] = self
        result: int = _operate(ssl, operation, buffer, size)
        self._status = status = result & 0xFF
        if status == _WANT_ASYNC:
            if paused is None:
                self._paused = (operation, buffer, size)
                self._home = drain.current_home()
            raise operation_error(ssl, status)
        self._paused = None
        if notifier is not None:
            notifier.waiting.pop(self._id, None)
        done = result >> 8
        if status:
            if not done:
                raise operation_error(ssl, status)
            if status in _FATAL:  # behind bytes that were read or written: the next call raises it
                self._error = operation_error(ssl, status)
        return done

    def decide_verification(self) -> None:
        """Has a client verify its server if nothing else was chosen, before its first operation. Raises ValueError if
        that would leave the server's name unchecked."""
        context = self._context
        if self.is_server():
            return
        if not (self._verify_chosen or context.verify_chosen):
            self.set_verify(constants.VERIFY_PEER)
        if self.get_verify_mode() & constants.VERIFY_PEER:
            context.trust_by_default()
            if context.check_hostname and self._verify_host is None:
                raise ValueError(
                    "a client that verifies its server needs the server's name: call set_verify_host(), or set the "
                    "context's check_hostname to False to accept a trusted certificate of any name"
                )
            if self._resumes is not None and self._resumes.verified != self._verified():
                raise ValueError(
                    f"the session to resume was not verified for {self._verify_host!r}: resuming shows no certificate"
                )

    def want_read(self) -> bool:
        """Whether the last operation ended because the transport had no more bytes, even if it returned some. If not,
        call a recv that did not fill its buffer again: more may be here, or an error."""
        return self._status == _WANT_READ

    @property
    def failure(self) -> Error | None:
        """The error that the next call raises at once. It was met behind the bytes that the last call returned, and no
        further event will tell of it."""
        return self._error

    def _check_resume(self, paused: tuple[int, Any, int], operation: int, size: int) -> None:
        if paused[0] != operation or paused[2] != size:
            same = f"{_NAMES[paused[0]]} of {paused[2]} bytes" if paused[2] else _NAMES[paused[0]]
            raise Error(f"an operation is paused: only the same {same} can be called now, not {_NAMES[operation]}")
        home = self._home
        if home is not None and home.identity != threading.get_ident():
            raise Error(f"this {_NAMES[operation]} was paused on another thread, which alone can resume it")

    def do_handshake(self) -> None:
        """Continues the handshake; returns when it is done."""
        self._run(_HANDSHAKE)

    def recv(self, bufsiz: int) -> bytes:
        """1 to ``bufsiz`` decrypted bytes."""
        paused = self._paused
        if bufsiz < 1:
            raise ValueError(f"recv needs room for at least 1 byte, not {bufsiz}")
        buffer = _allocate("char[]", bufsiz) if paused is None else paused[1]
        return bytes(_buffer(buffer, self._run(_READ, buffer, bufsiz)))

    def recv_into(self, buffer: "WriteableBuffer", nbytes: int | None = None) -> int:
        """Decrypts into ``buffer`` and returns how many bytes, at least 1. Without ``SSL_MODE_ASYNC``, and unless the
        socket blocks, it decrypts what has arrived until the buffer is full, but stops after some tens of records
        (:meth:`want_read` tells whether more may be here); otherwise up to one record of 16 KiB. If paused, the bytes
        go into the buffer of the first call, so pass the same one again."""
        view = _from_buffer("char[]", buffer, require_writable=True)
        return self._run_on(_READ, view, len(view) if nbytes is None else min(nbytes, len(view)))

    def send(self, data: "ReadableBuffer") -> int:
        """Encrypts the beginning of ``data`` and returns how many bytes it accepted: at least 1 unless ``data`` is
        empty. Send the rest next: its first record may be encrypted already. If paused, the data of the first call is
        sent; pass the same again."""
        view = _from_buffer(data)
        return self._run_on(_WRITE, view, len(view)) if len(view) else 0

    def _run_on(self, operation: int, view: Any, size: int) -> int:
        """Runs an operation on a caller's buffer, which it releases as soon as libssl has no pointer to it. The caller
        may want to resize it, and CPython crashes when it collects an exported memoryview with an exception's frames.
        """
        held = self._paused
        try:
            if size < 1:
                raise ValueError("recv_into needs room for at least 1 byte")
            if held is not None and operation == _READ and held[1] != view:
                raise Error("an operation is paused: call the same one again, with the same buffer")
            return self._run(operation, view, size)
        finally:
            if self._paused is None or held is not None:
                _release(view)
            if self._paused is None and held is not None:
                _release(held[1])

    def sendall(self, data: "ReadableBuffer") -> None:
        """Sends all of ``data``. For memory BIOs and blocking sockets, where nothing is ever half done."""
        with memoryview(data) as view, view.cast("B") as left:
            sent = 0
            while sent < len(left):
                sent += self.send(left[sent:])

    def shutdown(self) -> bool:
        """Sends close_notify; True once the peer's has come too."""
        return self._run(_SHUTDOWN) == 1

    def close(self) -> None:
        """Frees the connection at once, without telling the peer (that is :meth:`shutdown`), and closes its socket.

        It can be called at any time, even with an operation in flight. The SSL is then kept, cut off from the peer,
        until its request is done and its job has ended. A loop finishes its own connections; others are finished by
        the thread that ran the operation, in a later call of this package or in :func:`drain_closed_connections`. A
        closed connection's callback is not called. Closing twice is harmless.
        """
        self._free()
        self._callback = self._on_ready = None
        if self._socket is not None:
            self._socket.close()

    def _free(self) -> None:
        ssl, self._ssl = self._ssl, None
        if ssl is None:
            return
        paused, home, notifier = self._paused, self._home, self._notifier
        if paused is None:
            lib.SSL_free(ssl)
            return
        assert home is not None  # noqa: S101  set with it
        self._paused = None
        if not lib.gp_connection_cut_off(ssl):
            raise MemoryError("closing a connection in flight")
        one = drain.Parked(ssl, paused, home, (self._context, self._names))
        if notifier is not None and notifier.ring >= 0:
            one.wait_for_callback(notifier.waiting, self._id, looked_after=isinstance(notifier, LoopNotifier))
        elif notifier is not None:
            one.abandon()
        else:
            one.wait_for_descriptors(descriptors_of(ssl))

    def __del__(self) -> None:
        self._free()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Connection can't be pickled or copied: it belongs to its thread and its socket")

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- the transport ----

    def fileno(self) -> int:
        """The socket's descriptor; -1 over memory BIOs."""
        return -1 if self._socket is None else self._socket.fileno()

    def bio_write(self, data: "ReadableBuffer", nbytes: int | None = None) -> int:
        """Accepts bytes that came from the peer, the first ``nbytes`` or all of ``data``; returns how many."""
        self._need_memory()
        with _from_buffer(data) as view:
            size: int = len(view) if nbytes is None else min(nbytes, len(view))
            if size and lib.BIO_write(self._rbio, view, size) != size:
                raise MemoryError("TLS input")
        return size

    def bio_read(self, bufsiz: int) -> bytes:
        """1 to ``bufsiz`` bytes to be sent to the peer. Raises WantReadError if there are none."""
        self._need_memory()
        count = min(lib.BIO_ctrl_pending(self._wbio), bufsiz)
        if count == 0:
            raise WantReadError
        buffer = _allocate("char[]", count)
        return bytes(_buffer(buffer, lib.BIO_read(self._wbio, buffer, count)))

    def bio_pending(self) -> int:
        """How many bytes :meth:`bio_read` could return."""
        self._need_memory()
        return int(lib.BIO_ctrl_pending(self._wbio))

    def bio_shutdown(self) -> None:
        """Says that the peer will send nothing more."""
        self._need_memory()
        lib.BIO_set_mem_eof_return(self._rbio, 0)

    def _need_memory(self) -> None:
        self._pointer()
        if self._socket is not None:
            raise Error("this connection works on a socket, not on memory BIOs")

    # ---- settings ----

    def get_context(self) -> "Context":
        return self._context

    def set_mode(self, mode: int) -> int:
        """Adds mode bits, such as ``SSL_MODE_ASYNC``; returns all that are set. Not while an operation is paused."""
        self._refuse_paused("set_mode")
        return int(lib.SSL_set_mode(self._pointer(), mode))

    def clear_mode(self, mode: int) -> int:
        """Removes mode bits; returns all that are left. Not while an operation is paused."""
        self._refuse_paused("clear_mode")
        return int(lib.SSL_clear_mode(self._pointer(), mode))

    def _refuse_paused(self, what: str) -> None:
        if self._paused is not None:
            raise Error(f"an operation is paused: {what} has to wait until {_NAMES[self._paused[0]]} has ended")

    # ---- asynchronous operation ----

    def set_async_callback(self, callback: "AsyncCallback | None") -> None:
        """SSL_set_async_callback: replaces the callback inherited from the context. ``callback(connection, arg)`` is
        called on the dispatcher thread when the operation can be resumed or should be retried
        (:meth:`get_async_status` tells which). It should only schedule that. It is not called for an operation that
        was resumed early and has ended. What it raises is logged, and the connection's next call raises CallbackError.
        None: use wait descriptors instead.

        Raises Error after the first operation, when OpenSSL would ignore the callback.
        """
        self._refuse_late()
        if callback is None:
            lib.gp_wakeup_detach(self._pointer())
            self._notifier = None
        else:
            if not callable(callback):
                raise TypeError(f"the async callback must be callable, not {callback!r}")
            self._listen(dispatcher())
        self._callback, self._on_ready = callback, None

    def set_async_callback_arg(self, arg: Any) -> None:
        """SSL_set_async_callback_arg: any object. It is read when the callback is called, so it may change at any
        time."""
        self._pointer()
        self._arg = arg

    def attach(self, notifier: LoopNotifier, on_ready: Callable[[], object]) -> None:
        """:meth:`LoopNotifier.attach`."""
        self._refuse_late()
        self._listen(notifier)
        self._callback, self._on_ready = None, on_ready

    def _listen(self, notifier: Notifier) -> None:
        self._id = self._id or new_id()
        check(lib.gp_wakeup_attach(self._pointer(), notifier.ring, self._id), "async callback")
        self._notifier = notifier

    def _refuse_late(self) -> None:
        if self._started:
            raise Error("the async callback must be set before the first operation: OpenSSL ignores it afterwards")

    def wake(self) -> None:
        """Calls the callback. The notifier calls this."""
        notifier = self._notifier
        if self._ssl is None or notifier is None or self._id not in notifier.waiting:
            return
        if self._on_ready is not None:
            self._on_ready()
            return
        callback = self._callback
        if callback is None:
            return
        try:
            callback(self, self._arg)
        except BaseException as error:  # noqa: BLE001  even SystemExit: this thread serves all connections
            _log.exception("the async callback %r raised; the connection's next call reports it", callback)
            kept = CallbackError(f"the async callback {callback!r} raised {type(error).__name__}")
            kept.__cause__ = error
            self._error = kept
