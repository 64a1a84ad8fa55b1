"""TLS under any asyncio protocol, as ``loop.create_server(ssl=…)`` and ``loop.create_connection(ssl=…)`` have it.

::

    server = await aio.create_server(factory, "0.0.0.0", 8443, context=context)
    transport, protocol = await aio.create_connection(factory, "host.example", 443, context=client_context)

Differences from asyncio's own: handshakes pause in async jobs instead of holding up the loop; half-close works
(``write_eof`` sends close_notify and reading goes on; ``eof_received`` may return True to go on writing); a peer that
ends without close_notify shows as ``connection_lost(ConnectionResetError)``, not as a proper end of the data; a
server makes its protocol when the handshake is done.

Below is a transport of the loop's (plain TCP, or any other stream), above is the application's protocol, and between
them a :class:`Connection` over memory BIOs. It runs in ``SSL_MODE_ASYNC`` until the handshake is done. Private keys
are not used after that (no renegotiation, no post-handshake authentication), so that reads and writes never pause.
"""

import asyncio
import ipaddress
from typing import Any

from gpu_provider.tls.connection import Connection
from gpu_provider.tls.context import Context
from gpu_provider.tls.layer import ProtocolFactory, TLSLayer, TLSTransport
from gpu_provider.tls.notify import LoopNotifier

__all__ = ["LoopNotifier", "TLSTransport", "create_connection", "create_server"]

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
) -> asyncio.AbstractServer:
    """Serves TLS: ``loop.create_server`` with a Context instead of ``ssl``, and its other options (``sock``,
    ``backlog``, ``reuse_port``, ``start_serving`` …).

    Timeouts in seconds: for a whole handshake, and for the peer's close_notify after ``transport.close()``. Failed
    handshakes are logged (``gpu_provider.tls.aio``, DEBUG). Raises OSError if the address can't be used.
    """

    def layer() -> TLSLayer:
        connection = Connection(context)
        connection.set_accept_state()
        return TLSLayer(
            protocol_factory, connection, handshake_timeout=handshake_timeout, shutdown_timeout=shutdown_timeout
        )

    return await asyncio.get_running_loop().create_server(layer, host, port, **options)


async def create_connection(
    protocol_factory: ProtocolFactory,
    host: Any = None,
    port: Any = None,
    *,
    context: Context,
    server_hostname: str | None = None,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    shutdown_timeout: float = SHUTDOWN_TIMEOUT,
    **options: Any,
) -> tuple[TLSTransport, asyncio.BaseProtocol]:
    """Connects with TLS: ``loop.create_connection`` with a Context instead of ``ssl``, and its other options (``sock``,
    ``local_addr``, ``family`` …).

    ``server_hostname`` (default: ``host``) is sent as the server's name and, if the context verifies peers, must be
    in the certificate; ``""`` for neither. Raises OSError if the connection fails or ends early
    (ConnectionAbortedError after ``handshake_timeout`` seconds), Error if the handshake fails. Safe to cancel.
    """
    loop = asyncio.get_running_loop()
    connection = Connection(context)
    connection.set_connect_state()
    name = server_hostname if server_hostname is not None else host
    if name is None:
        raise ValueError("server_hostname is needed without a host")
    if name:
        _expect(connection, name)
    done: asyncio.Future[TLSTransport] = loop.create_future()
    layer = TLSLayer(
        protocol_factory,
        connection,
        handshake_timeout=handshake_timeout,
        shutdown_timeout=shutdown_timeout,
        done=done,
    )
    try:
        below, _ = await loop.create_connection(lambda: layer, host, port, **options)
    except BaseException:
        connection.close()
        raise
    try:
        transport = await done
    except BaseException:
        below.abort()
        raise
    return transport, transport.get_protocol()


def _expect(connection: Connection, name: str) -> None:
    connection.set_verify_host(name)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        connection.set_tlsext_host_name(name.encode("idna"))  # RFC 6066, 3: not for addresses
