"""The exceptions of TLS in the form that asyncio's users expect."""

import errno
import ssl

from gpu_provider.tls.errors import Error, FloodError, SysCallError

__all__ = ["SSLError", "as_connection_error", "unexpected_end"]


def unexpected_end() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "the peer ended the connection without close_notify")


class SSLError(Error, ssl.SSLError):
    """An Error that programs written for asyncio also catch, as ``ssl.SSLError`` or OSError."""


class _FloodError(FloodError, SSLError):
    """A FloodError for the same programs."""


def as_connection_error(error: Error) -> Exception:
    """The exception that asyncio's users expect for ``error``."""
    if isinstance(error, SysCallError):
        failure: Exception = unexpected_end()
    else:
        failure = (_FloodError if isinstance(error, FloodError) else SSLError)(ssl.SSL_ERROR_SSL, str(error))
    failure.__cause__ = error
    return failure
