"""What the TLS API raises. As in pyOpenSSL, the Want errors are states of a connection, not failures."""

import os
from typing import Any

from gpu_provider.errors import GpuProviderError
from gpu_provider.tls._ssl import ffi, lib

__all__ = [
    "CallbackError",
    "CertificateError",
    "Error",
    "FloodError",
    "PrivateKeyError",
    "SysCallError",
    "WantAsyncError",
    "WantAsyncJobError",
    "WantReadError",
    "WantWriteError",
    "ZeroReturnError",
]


class Error(GpuProviderError):
    """A TLS operation failed. The message has OpenSSL's reasons, first cause first."""


class WantReadError(Error):
    """The operation needs more bytes from the peer: call the same function again when there are some."""


class WantWriteError(Error):
    """The socket takes no more bytes now: call the same function again when it does."""


class WantAsyncError(Error):
    """The operation is paused: call the same function again, with the same arguments and on the same thread, when the
    async callback has run, or a wait descriptor is readable."""


class WantAsyncJobError(Error):
    """No async job is free (:func:`set_async_job_limit`): call again when another connection's operation has ended.
    Nothing of this operation has begun."""


class ZeroReturnError(Error):
    """The peer has closed its side of the connection properly (close_notify)."""


class FloodError(Error):
    """The peer sent too much that is not application data: key updates, tickets, requests to renegotiate, empty
    records. The connection is over. tls/flood.h says how much is too much."""


class SysCallError(Error):
    """The transport failed. ``args`` is ``(errno, text)``; errno -1 is an end of file without close_notify."""


class CallbackError(Error):
    """The connection's async callback raised; that exception is the ``__cause__``. This is raised once, from the next
    call on the connection, before the call does anything: simply make the same call again."""


class CertificateError(Error):
    """A certificate can't be read or used."""


class PrivateKeyError(Error):
    """A private key can't be read or used, or does not belong to the certificate. Never holds key material."""


def why(default: str = "no reason given") -> str:
    """Empties this thread's OpenSSL error queue: the reasons, first cause first."""
    found = []
    while error := lib.ERR_get_error():
        reason = lib.ERR_reason_error_string(error)
        found.append(ffi.string(reason).decode() if reason != ffi.NULL else f"error {error:#x}")
    return "; ".join(dict.fromkeys(found)) or default


def check(ok: int, doing: str) -> None:
    """Raises Error unless ``ok`` is 1, which most of OpenSSL's functions return for success."""
    if ok != 1:
        raise Error(f"{doing}: {why()}")


_WANTS: dict[int, type[Error]] = {
    lib.SSL_ERROR_WANT_READ: WantReadError,
    lib.SSL_ERROR_WANT_WRITE: WantWriteError,
    lib.SSL_ERROR_WANT_ASYNC: WantAsyncError,
    lib.SSL_ERROR_WANT_ASYNC_JOB: WantAsyncJobError,
    lib.SSL_ERROR_ZERO_RETURN: ZeroReturnError,
}
_SSL_ERROR_SYSCALL: int = lib.SSL_ERROR_SYSCALL
_FLOOD: int = lib.GP_ERROR_FLOOD


def operation_error(ssl: Any, error: int) -> Error:
    """The exception for an SSL_ERROR value. Call it right after the operation: it reads errno and the error queue."""
    want = _WANTS.get(error)
    if want is not None:
        return want()
    if error == _FLOOD:
        lib.ERR_clear_error()
        return FloodError("the peer keeps sending records without application data")
    errno = ffi.errno
    last = lib.ERR_peek_last_error()
    if error == _SSL_ERROR_SYSCALL and last == 0:
        if errno == 0:
            return SysCallError(-1, "Unexpected EOF")
        return SysCallError(errno, os.strerror(errno))
    if lib.ERR_GET_LIB(last) == lib.ERR_LIB_SSL and lib.ERR_GET_REASON(last) == lib.SSL_R_UNEXPECTED_EOF_WHILE_READING:
        lib.ERR_clear_error()
        return SysCallError(-1, "Unexpected EOF")
    text = why()
    if "certificate verify failed" in text:
        code = lib.SSL_get_verify_result(ssl)
        text += f" ({ffi.string(lib.X509_verify_cert_error_string(code)).decode()})"
    return Error(text)
