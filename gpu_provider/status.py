"""The status of a connection's asynchronous operation, as ``SSL_get_async_status`` reports it."""

import enum

__all__ = ["RETRY", "AsyncStatus"]


class AsyncStatus(enum.IntEnum):
    """OpenSSL's ``ASYNC_STATUS_*`` values."""

    UNSUPPORTED = 0
    """Not asynchronous here: OpenSSL's own implementation computed it, or nothing has been asked for yet."""
    ERR = 1
    """The request was submitted and failed."""
    OK = 2
    """The request was submitted and its result is there."""
    EAGAIN = 3
    """The queue was full: the same call has to be made again."""
    RETRY = 3
    """The name the rest of this project uses for EAGAIN."""


RETRY = AsyncStatus.EAGAIN
