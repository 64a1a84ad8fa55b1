"""asyncio's functions with a Context in place of ``ssl``; :mod:`gpu_provider.tls.aio` says what differs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from gpu_provider.tls.connection import Connection
from gpu_provider.tls.context import Context
from gpu_provider.tls.info import a_labels, ip_address
from gpu_provider.tls.layer import Connected, ProtocolFactory, Timeouts, TLSLayer
from gpu_provider.tls.transport import TLSTransport

__all__ = [
    "connect_accepted_socket",
    "create_connection",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "open_connection",
    "start_server",
    "start_tls",
]

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)

HANDSHAKE_TIMEOUT = 60.0
SHUTDOWN_TIMEOUT = 30.0


async def create_server(
    protocol_factory: ProtocolFactory,
    host: Any = None,
    port: Any = None,
    *,
    context: Context,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    shutdown_timeout: float = SHUTDOWN_TIMEOUT,
    **options: Any,
) -> asyncio.Server:
    """Serves TLS: ``loop.create_server`` with a Context instead of ``ssl``, and its other options (``sock``,
    ``backlog``, ``reuse_port``, ``start_serving`` …).

    The timeouts are seconds for a whole handshake, and for the peer's close_notify after ``transport.close()``. Failed
    handshakes are logged (``gpu_provider.tls.aio``, DEBUG). Raises OSError if the address can't be used.
    """
    layer = _server_layers(protocol_factory, context, handshake_timeout, shutdown_timeout, options)
    return await asyncio.get_running_loop().create_server(layer, host, port, **options)


async def create_unix_server(
    protocol_factory: ProtocolFactory,
    path: Any = None,
    *,
    context: Context,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    shutdown_timeout: float = SHUTDOWN_TIMEOUT,
    **options: Any,
) -> asyncio.Server:
    """:func:`create_server` on a Unix socket."""
    layer = _server_layers(protocol_factory, context, handshake_timeout, shutdown_timeout, options)
    return await asyncio.get_running_loop().create_unix_server(layer, path, **options)


async def create_connection(
    protocol_factory: Callable[[], ProtocolT],
    host: Any = None,
    port: Any = None,
    *,
    context: Context,
    server_hostname: str | None = None,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    shutdown_timeout: float = SHUTDOWN_TIMEOUT,
    **options: Any,
) -> tuple[TLSTransport, ProtocolT]:
    """Connects with TLS: ``loop.create_connection`` with a Context instead of ``ssl``, and its other options (``sock``,
    ``local_addr``, ``family`` …).

    ``server_hostname`` (default: ``host``) is sent as the server's name and must be in the certificate, unless the
    context says otherwise. ``""``: no name, for a context that does not check it. Raises OSError if the connection
    fails or ends early (ConnectionAbortedError after ``handshake_timeout`` seconds), Error if the handshake fails,
    ValueError for a name that can't be one. Safe to cancel.
    """
    name = (host or None) if server_hostname is None else server_hostname
    if name is None:
        raise ValueError("server_hostname is needed without a host")
    _refuse_ssl(options)
    timeouts = _timeouts(handshake_timeout, shutdown_timeout)
    layer, done = _awaited_layer(protocol_factory, _client(context, name), timeouts, name)
    loop = asyncio.get_running_loop()
    return await _connect(loop.create_connection(lambda: layer, host, port, **options), layer, done)


async def create_unix_connection(
    protocol_factory: Callable[[], ProtocolT],
    path: Any = None,
    *,
    context: Context,
    server_hostname: str | None = None,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    shutdown_timeout: float = SHUTDOWN_TIMEOUT,
    **options: Any,
) -> tuple[TLSTransport, ProtocolT]:
    """:func:`create_connection` to a Unix socket, where the server's name must be given."""
    if server_hostname is None:
        raise ValueError("server_hostname is needed on a Unix socket")
    _refuse_ssl(options)
    timeouts = _timeouts(handshake_timeout, shutdown_timeout)
    layer, done = _awaited_layer(protocol_factory, _client(context, server_hostname), timeouts, server_hostname)
    loop = asyncio.get_running_loop()
    return await _connect(loop.create_unix_connection(lambda: layer, path, **options), layer, done)


async def start_tls(
    transport: asyncio.WriteTransport,
    protocol: asyncio.BaseProtocol,
    context: Context,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    shutdown_timeout: float = SHUTDOWN_TIMEOUT,
) -> TLSTransport:
    """Starts TLS on an existing connection (STARTTLS, a proxy's tunnel), as ``loop.start_tls``. The transport may be a
    TLSTransport itself, which uvloop's own ``start_tls`` refuses. From now on the protocol must use the transport that
    this returns; its ``connection_made`` is not called again.

    Raises as :func:`create_connection` does, and has then closed ``transport``.
    """
    if transport.is_closing():
        raise ConnectionResetError("start_tls() on a transport that is closing")
    timeouts = _timeouts(handshake_timeout, shutdown_timeout)
    name = None if server_side else server_hostname
    connection = _server(context) if server_side else _client(context, name)
    layer, done = _awaited_layer(lambda: protocol, connection, timeouts, name, upgraded=True)
    loop = asyncio.get_running_loop()
    below = cast("asyncio.Transport", transport)
    below.pause_reading()  # until the layer has its transport
    below.set_protocol(layer)
    loop.call_soon(layer.connection_made, below)
    loop.call_soon(below.resume_reading)
    try:
        return (await done)[0]
    except BaseException:
        layer.give_up()
        below.abort()
        raise


async def connect_accepted_socket(
    connecting: Callable[[ProtocolFactory], Awaitable[tuple[Any, Any]]],
    protocol_factory: ProtocolFactory,
    context: Context,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    shutdown_timeout: float = SHUTDOWN_TIMEOUT,
) -> tuple[TLSTransport, Any]:
    """``loop.connect_accepted_socket``: ``connecting`` gives the socket a transport below, with a protocol of ours."""
    timeouts = _timeouts(handshake_timeout, shutdown_timeout)
    layer, done = _awaited_layer(protocol_factory, _server(context), timeouts)
    return await _connect(connecting(lambda: layer), layer, done)


async def start_server(
    client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
    host: Any = None,
    port: Any = None,
    *,
    limit: int = 2**16,
    **options: Any,
) -> asyncio.Server:
    """``asyncio.start_server`` over :func:`create_server`, with its options."""
    loop = asyncio.get_running_loop()

    def factory() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        return asyncio.StreamReaderProtocol(reader, client_connected_cb, loop=loop)

    return await create_server(factory, host, port, **options)


async def open_connection(
    host: Any = None, port: Any = None, *, limit: int = 2**16, **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """``asyncio.open_connection`` over :func:`create_connection`, with its options."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await create_connection(lambda: protocol, host, port, **options)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _timeouts(handshake_timeout: float, shutdown_timeout: float) -> Timeouts:
    for name, value in (("handshake_timeout", handshake_timeout), ("shutdown_timeout", shutdown_timeout)):
        if value <= 0:
            raise ValueError(f"{name} must be a positive number of seconds, not {value}")
    return Timeouts(handshake_timeout, shutdown_timeout)


def _refuse_ssl(options: dict[str, Any]) -> None:
    if options.get("ssl") is not None:
        raise TypeError("ssl can't be given beside context: it would be TLS within TLS")


def _server_layers(
    factory: ProtocolFactory, context: Context, handshake: float, shutdown: float, options: dict[str, Any]
) -> Callable[[], TLSLayer]:
    _refuse_ssl(options)
    timeouts = _timeouts(handshake, shutdown)
    return lambda: TLSLayer(factory, _server(context), timeouts=timeouts)


def _server(context: Context) -> Connection:
    connection = Connection(context)
    connection.set_accept_state()
    return connection


def _client(context: Context, name: str | None) -> Connection:
    connection = Connection(context)
    connection.set_connect_state()
    if name:
        if context.check_hostname:
            connection.set_verify_host(name)
        if ip_address(name) is None:  # RFC 6066, 3: no addresses
            connection.set_tlsext_host_name(a_labels(name))
    connection.decide_verification()
    return connection


def _awaited_layer(
    factory: ProtocolFactory,
    connection: Connection,
    timeouts: Timeouts,
    name: str | None = None,
    upgraded: bool = False,
) -> tuple[TLSLayer, asyncio.Future[Connected]]:
    """A layer, and the end of its handshake. If that fails after its caller was cancelled, nobody is told."""
    done: asyncio.Future[Connected] = asyncio.get_running_loop().create_future()
    done.add_done_callback(lambda done: done.cancelled() or done.exception())
    return TLSLayer(factory, connection, timeouts=timeouts, server_hostname=name, done=done, upgraded=upgraded), done


async def _connect(connecting: Any, layer: TLSLayer, done: asyncio.Future[Connected]) -> tuple[TLSTransport, Any]:
    try:
        below, _ = await connecting
    except BaseException:
        layer.give_up()
        raise
    try:
        return await done
    except BaseException:
        layer.give_up()
        below.abort()
        raise
