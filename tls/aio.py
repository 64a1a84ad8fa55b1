"""TLS under any asyncio protocol: asyncio's own calls, with a Context.

::

    server = await aio.create_server(factory, "0.0.0.0", 8443, context=context)
    transport, protocol = await aio.create_connection(factory, "host.example", 443, context=client_context)

A program that makes these calls itself, such as an HTTP server, runs unchanged on an event loop that takes a Context
as ``ssl``: see :class:`LoopMixin`.

A protocol sees the same calls in the same order as with asyncio's own TLS, and gets the same answers, except for this
(``tests/tls/test_aio_contract*.py`` hold the two beside each other):

- *pauses*: handshakes pause in async jobs instead of blocking the loop.
- *late protocol*: the protocol is created when the handshake is done, not before.
- *half-close*: ``write_eof`` sends close_notify and reading goes on; ``eof_received`` may return True to go on writing.
- *truncation*: if a peer ends without close_notify, the protocol gets ``connection_lost(ConnectionResetError)`` and not
  a proper end of the data. After ``close()`` it no longer matters how the peer ends.
- *late data*: what arrives after ``close()`` is thrown away, and after 256 KiB the connection is ended. asyncio hands
  some of it to the protocol, or ends with an error.
- *errors*: if TLS fails, the exception is both a :class:`gpu_provider.tls.Error` and an ``ssl.SSLError``, also for a
  certificate that can't be verified.
- *no name*: ``server_hostname=""`` is refused if the context checks names; asyncio then checks none.
- *empty buffer*: ``get_buffer`` must not return an empty buffer; asyncio treats that as the end of the data.
- *limits*: the write buffer's size and limits are those of the transport below, in encrypted bytes: 64 KiB by default,
  where asyncio has 512 KiB.
- *closed*: a closing transport is not reading; ``connection_lost`` can still ask for the peer's name.
- *late write*: the logger ``gpu_provider.tls.aio`` reports a write to a closed transport.
- *context*: ``sslcontext`` is the Context; ``ssl_object`` has what was agreed, and neither keys nor read and write.

The loop's transport (plain TCP, or any other stream) is below, the application's protocol above, and between them a
:class:`Connection` over memory BIOs. It runs in ``SSL_MODE_ASYNC`` until the handshake is done. No private key is used
after that (there is no renegotiation and no post-handshake authentication), so reads and writes never pause.
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
