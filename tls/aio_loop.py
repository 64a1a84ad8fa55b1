"""Event loops whose ``ssl`` also takes a Context."""

import asyncio
from typing import Any

from gpu_provider.tls import aio_calls
from gpu_provider.tls.context import Context

__all__ = ["EventLoop", "LoopMixin"]


class LoopMixin(asyncio.AbstractEventLoop):
    """Makes the ``ssl`` and ``sslcontext`` parameters of an event loop class accept a Context. Python's own contexts
    work as before.

    ::

        class Loop(aio.LoopMixin, uvloop.Loop):
            pass

    Everything that asks the loop for TLS then runs over this package unchanged: ``asyncio.start_server``,
    ``StreamWriter.start_tls``, HTTP servers.
    """

    async def create_server(
        self, protocol_factory: Any, host: Any = None, port: Any = None, *, ssl: Any = None, **options: Any
    ) -> asyncio.Server:
        if isinstance(ssl, Context):
            return await aio_calls.create_server(protocol_factory, host, port, context=ssl, **_our_names(options))
        return await super().create_server(protocol_factory, host, port, ssl=ssl, **options)

    async def create_unix_server(
        self, protocol_factory: Any, path: Any = None, *, ssl: Any = None, **options: Any
    ) -> asyncio.Server:
        if isinstance(ssl, Context):
            return await aio_calls.create_unix_server(protocol_factory, path, context=ssl, **_our_names(options))
        return await super().create_unix_server(protocol_factory, path, ssl=ssl, **options)

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, *, ssl: Any = None, **options: Any
    ) -> tuple[Any, Any]:
        if isinstance(ssl, Context):
            return await aio_calls.create_connection(protocol_factory, host, port, context=ssl, **_our_names(options))
        return await super().create_connection(protocol_factory, host, port, ssl=ssl, **options)

    async def create_unix_connection(
        self, protocol_factory: Any, path: Any = None, *, ssl: Any = None, **options: Any
    ) -> tuple[Any, Any]:
        if isinstance(ssl, Context):
            return await aio_calls.create_unix_connection(protocol_factory, path, context=ssl, **_our_names(options))
        return await super().create_unix_connection(protocol_factory, path, ssl=ssl, **options)

    async def connect_accepted_socket(
        self, protocol_factory: Any, sock: Any, *, ssl: Any = None, **options: Any
    ) -> tuple[Any, Any]:
        if not isinstance(ssl, Context):
            return await super().connect_accepted_socket(protocol_factory, sock, ssl=ssl, **options)

        def connecting(factory: Any) -> Any:
            return super(LoopMixin, self).connect_accepted_socket(factory, sock)

        return await aio_calls.connect_accepted_socket(connecting, protocol_factory, ssl, **_our_names(options))

    async def start_tls(self, transport: Any, protocol: Any, sslcontext: Any, **options: Any) -> Any:
        if isinstance(sslcontext, Context):
            return await aio_calls.start_tls(transport, protocol, sslcontext, **_our_names(options))
        return await super().start_tls(transport, protocol, sslcontext, **options)


class EventLoop(LoopMixin, asyncio.SelectorEventLoop):
    """asyncio's event loop, which accepts a Context."""


def _our_names(options: dict[str, Any]) -> dict[str, Any]:
    """Replaces asyncio's names of the timeouts by ours; for asyncio, None means the default."""
    for name in ("handshake_timeout", "shutdown_timeout"):
        if (value := options.pop(f"ssl_{name}", None)) is not None:
            options[name] = value
    return options
