"""TLS under any asyncio protocol: asyncio's own calls, with a Context.

::

    server = await aio.create_server(factory, "0.0.0.0", 8443, context=context)
    transport, protocol = await aio.create_connection(factory, "host.example", 443, context=client_context)

A program that makes these calls itself, such as an HTTP server, runs unchanged on an event loop that takes a Context
as ``ssl``: see :class:`LoopMixin`.

A protocol sees the same calls in the same order as with asyncio's own TLS, and gets the same answers, except for this
(``tests/tls/test_aio_contract*.py`` hold the two beside each other):

- *pauses*: handshakes pause in async jobs instead of holding up the loop.
- *late protocol*: the protocol is made when the handshake is done, not before.
- *half-close*: ``write_eof`` sends close_notify and reading goes on; ``eof_received`` may return True to go on writing.
- *truncation*: a peer that ends without close_notify shows as ``connection_lost(ConnectionResetError)``, not as a
  proper end of the data. After ``close()`` it no longer matters how the peer ends.
- *late data*: what arrives after ``close()`` is thrown away, and after 256 KiB the connection is ended. asyncio hands
  some of it to the protocol, or ends with an error.
- *errors*: where TLS fails, the exception is a :class:`gpu_provider.tls.Error` and an ``ssl.SSLError`` both, also for
  a certificate that can't be verified.
- *no name*: ``server_hostname=""`` is refused if the context checks names; asyncio then checks none.
- *empty buffer*: ``get_buffer`` must not return one; asyncio takes it for the end of the data.
- *limits*: the write buffer's size and limits are those of the transport below, in encrypted bytes: 64 KiB by default,
  where asyncio has 512 KiB.
- *closed*: a closing transport is not reading; ``connection_lost`` can still ask for the peer's name.
- *late write*: a write to a closed transport is reported by ``gpu_provider.tls.aio``'s logger.
- *context*: ``sslcontext`` is the Context; ``ssl_object`` has what was agreed, and neither keys nor read and write.

Below is a transport of the loop's (plain TCP, or any other stream), above is the application's protocol, and between
them a :class:`Connection` over memory BIOs. It runs in ``SSL_MODE_ASYNC`` until the handshake is done. Private keys
are not used after that (no renegotiation, no post-handshake authentication), so that reads and writes never pause.
"""

from gpu_provider.tls.aio_calls import (
    create_connection,
    create_server,
    create_unix_connection,
    create_unix_server,
    open_connection,
    start_server,
    start_tls,
)
from gpu_provider.tls.aio_loop import EventLoop, LoopMixin
from gpu_provider.tls.notify import LoopNotifier
from gpu_provider.tls.transport import TLSTransport

__all__ = [
    "EventLoop",
    "LoopMixin",
    "LoopNotifier",
    "TLSTransport",
    "create_connection",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "open_connection",
    "start_server",
    "start_tls",
]
