"""The admin port: ``/livez``, ``/readyz`` and ``/metrics`` over plain HTTP.

Three fixed answers need no framework. The port is for the operator's own network: by default it listens on 127.0.0.1
only.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gpu_provider.addresses import named, parse_address

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from prometheus_client import CollectorRegistry

    from gpu_provider.addresses import Address

__all__ = ["SERVICE_ADDRESS", "TERMINATOR_ADDRESS", "AdminServer", "parse_admin"]

TERMINATOR_ADDRESS = "127.0.0.1:9180"
SERVICE_ADDRESS = "127.0.0.1:9181"
"""The defaults. They differ, since both may run on one host."""

_TEXT = "text/plain; charset=utf-8"
_REQUEST_SECONDS = 5.0
_MOST_HEADER_LINES = 100
_MOST_REQUESTS = 8
"""The most at a time; a further one ends the oldest. The terminator leaves the descriptors for so many free."""

Answer = tuple[HTTPStatus, str, bytes]


def parse_admin(text: str) -> Address | None:
    """Reads the setting ``admin``: HOST:PORT, or ``off``. Raises ConfigError."""
    if text == "off":
        return None
    with named("admin"):
        return parse_address(text, any_host=True)


class AdminServer:
    """Serves listening sockets. ``is_ready()`` returns whether the process is ready, and one line that says why."""

    def __init__(
        self,
        registry: CollectorRegistry,
        is_ready: Callable[[], tuple[bool, str]],
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``refresh`` is awaited before each answer."""
        self._registry = registry
        self._is_ready = is_ready
        self._refresh = refresh
        self._servers: list[asyncio.Server] = []
        self._requests: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def start(self, listeners: list[socket.socket]) -> None:
        for listener in listeners:
            self._servers.append(await asyncio.start_server(self._accept, sock=listener))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this as a task
        self._requests[task] = None
        if len(self._requests) > _MOST_REQUESTS:
            next(iter(self._requests)).cancel()
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                await self._serve(reader, writer)
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            pass  # the client went away, was too slow to send or to read, or sent a line beyond the reader's limit
        except MemoryError:
            pass  # there may be enough for the next request
        except asyncio.CancelledError:
            pass  # only this class cancels; asyncio would report a cancelled task as failed
        finally:
            self._requests.pop(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readline()).decode("latin-1").split()
        for _ in range(_MOST_HEADER_LINES):
            if (await reader.readline()).strip() == b"":
                break
        if self._refresh is not None:
            await self._refresh()
        status, content_type, body = self._answer(request)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode("latin-1"))
        if request[:1] != ["HEAD"]:
            writer.write(body)
        await writer.drain()

    def _answer(self, request: list[str]) -> Answer:
        if len(request) != 3 or not request[2].startswith("HTTP/1."):
            return HTTPStatus.BAD_REQUEST, _TEXT, b"not an HTTP/1 request\n"
        method, target, _ = request
        if method not in {"GET", "HEAD"}:
            return HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"only GET and HEAD\n"
        match target.partition("?")[0]:
            case "/livez":
                return HTTPStatus.OK, _TEXT, b"alive\n"
            case "/readyz":
                ready, why = self._is_ready()
                return HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{why}\n".encode()
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        return HTTPStatus.NOT_FOUND, _TEXT, b"there are /livez, /readyz and /metrics\n"
