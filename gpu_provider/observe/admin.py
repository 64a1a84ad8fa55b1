"""The admin port over plain HTTP: ``/livez``, ``/readyz``, ``/metrics``, ``/failures``, and a page that shows them at
``/``.

A few fixed answers need no framework. The port is for the operator's own network: by default it listens on 127.0.0.1
only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gpu_provider.addresses import named, parse_address
from gpu_provider.observe.status_page import status_page

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from prometheus_client import CollectorRegistry

    from gpu_provider.addresses import Address

__all__ = ["SERVICE_ADDRESS", "TERMINATOR_ADDRESS", "AdminServer", "parse_admin"]

TERMINATOR_ADDRESS = "127.0.0.1:9180"
SERVICE_ADDRESS = "127.0.0.1:9181"
"""The defaults. They differ, since both may run on one host."""

_TEXT = {"Content-Type": "text/plain; charset=utf-8"}
_REQUEST_SECONDS = 5.0
_MOST_HEADER_LINES = 100
_PAUSE_SECONDS = 0.1
_MOST_REQUESTS = 8
"""The most at a time; a further one ends the oldest. The terminator leaves the descriptors for so many free."""

Answer = tuple[HTTPStatus, dict[str, str], bytes]
"""Status, headers and body."""


def parse_admin(text: str) -> Address | None:
    """Reads the setting ``admin``: HOST:PORT, or ``off``. Raises ConfigError."""
    if text == "off":
        return None
    with named("admin"):
        return parse_address(text, any_host=True)


class AdminServer:
    """Serves listening sockets. ``is_ready()`` returns whether the process is ready, and one line that says why.

    A descriptor is kept in reserve: where connections or programs have used up all others, one request at a time is
    still answered, and says so.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        is_ready: Callable[[], tuple[bool, str]],
        refresh: Callable[[], Awaitable[None]] | None = None,
        failures: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        """``refresh`` is awaited before each answer. ``failures()``: the log's lines about the last connections that
        failed."""
        self._is_ready = is_ready
        self._refresh = refresh
        page, policy = status_page()
        html = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}
        metrics, json = {"Content-Type": CONTENT_TYPE_LATEST}, {"Content-Type": "application/json"}
        self._answers: dict[str, Callable[[], Answer]] = {
            "/": lambda: (HTTPStatus.OK, html, page),
            "/livez": lambda: (HTTPStatus.OK, _TEXT, b"alive\n"),
            "/readyz": self._readiness,
            "/metrics": lambda: (HTTPStatus.OK, metrics, generate_latest(registry)),
            "/failures": lambda: (HTTPStatus.OK, json, msgspec.json.encode(failures())),
        }
        self._listeners: list[socket.socket] = []
        self._reserve: int | None = None
        self._requests: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def start(self, listeners: list[socket.socket]) -> None:
        """They become the server's."""
        self._listeners = listeners
        self._keep_reserve()
        self._set_accepting(True)

    async def close(self) -> None:
        self._set_accepting(False)
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        self._use_reserve()
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    def _set_accepting(self, accepting: bool) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            if accepting:
                loop.add_reader(listener.fileno(), self._accept, listener)
            else:
                loop.remove_reader(listener.fileno())

    def _keep_reserve(self) -> None:
        if self._reserve is None and self._listeners:
            with contextlib.suppress(OSError):
                self._reserve = os.eventfd(0)

    def _use_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._use_reserve()
        try:
            client, _ = listener.accept()
            client.setblocking(False)
            self._requests[loop.create_task(self._handle(client))] = None
        except (BlockingIOError, ConnectionAbortedError):
            return
        except (OSError, MemoryError):  # until a request has ended, most likely
            self._set_accepting(False)
            loop.call_later(_PAUSE_SECONDS, self._set_accepting, True)
        finally:
            self._keep_reserve()
        if len(self._requests) > _MOST_REQUESTS:
            next(iter(self._requests)).cancel()

    async def _handle(self, client: socket.socket) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                reader, writer = await asyncio.open_connection(sock=client)
                try:
                    await self._serve(reader, writer)
                    writer.close()
                    await writer.wait_closed()
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            pass  # the client went away, was too slow to send or to read, or sent a line beyond the reader's limit
        except MemoryError:
            pass  # there may be enough for the next request
        except asyncio.CancelledError:
            pass  # only this class cancels; asyncio would report a cancelled task as failed
        finally:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - asyncio runs this as a task
            self._requests.pop(task)
            asyncio.get_running_loop().call_soon(self._keep_reserve)  # the transport closes its socket before that

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readline()).decode("latin-1").split()
        for _ in range(_MOST_HEADER_LINES):
            if (await reader.readline()).strip() == b"":
                break
        if self._refresh is not None:
            await self._refresh()
        status, headers, body = self._answer(request)
        headers = {**headers, "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1"))
        if request[:1] != ["HEAD"]:
            writer.write(body)
        await writer.drain()

    def _answer(self, request: list[str]) -> Answer:
        if len(request) != 3 or not request[2].startswith("HTTP/1."):
            return HTTPStatus.BAD_REQUEST, _TEXT, b"not an HTTP/1 request\n"
        method, target, _ = request
        if method not in {"GET", "HEAD"}:
            return HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"only GET and HEAD\n"
        answer = self._answers.get(target.partition("?")[0])
        if answer is None:
            return HTTPStatus.NOT_FOUND, _TEXT, f"there are {', '.join(self._answers)}\n".encode()
        return answer()

    def _readiness(self) -> Answer:
        ready, why = self._is_ready()
        return HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{why}\n".encode()
