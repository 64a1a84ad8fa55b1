"""TLS over OpenSSL's async jobs, with pyOpenSSL's names: many connections wait for one batch of RSA operations.

``Context`` and ``Connection`` wrap libssl's objects; ``gpu_provider.tls.aio`` runs asyncio protocols over them.
"""

from gpu_provider.status import AsyncStatus
from gpu_provider.tls import constants as _constants
from gpu_provider.tls.connection import Connection, set_async_job_limit
from gpu_provider.tls.constants import *  # noqa: F403
from gpu_provider.tls.context import AsyncCallback, Context
from gpu_provider.tls.drain import drain_closed_connections
from gpu_provider.tls.errors import (
    CallbackError,
    CertificateError,
    Error,
    FloodError,
    PrivateKeyError,
    SysCallError,
    WantAsyncError,
    WantAsyncJobError,
    WantReadError,
    WantWriteError,
    ZeroReturnError,
)
from gpu_provider.tls.info import Alert, Session
from gpu_provider.tls.notify import LoopNotifier
from gpu_provider.tls.subject import Subject
from gpu_provider.tls.tickets import TicketKeys

__all__ = [  # noqa: PLE0604  the constants' names are strings too
    "Alert",
    "AsyncCallback",
    "AsyncStatus",
    "CallbackError",
    "CertificateError",
    "Connection",
    "Context",
    "Error",
    "FloodError",
    "LoopNotifier",
    "PrivateKeyError",
    "Session",
    "Subject",
    "SysCallError",
    "TicketKeys",
    "WantAsyncError",
    "WantAsyncJobError",
    "WantReadError",
    "WantWriteError",
    "ZeroReturnError",
    "drain_closed_connections",
    "set_async_job_limit",
    *(name for name in vars(_constants) if not name.startswith("_")),
]
