"""Servers and protocols for the tests of TLS under asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tls_peers import authority

from gpu_provider import tls
from gpu_provider.tls import aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Recorder(asyncio.Protocol):
    """Notes what happens to it, and lets a test wait for it."""

    keep_open = False

    def __init__(self) -> None:
        self.events: list[object] = []
        self.received = bytearray()
        self.changed = asyncio.Event()
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def _note(self, event: object) -> None:
        self.events.append(event)
        self.changed.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._note("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.changed.set()

    def eof_received(self) -> bool:
        self._note("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self._note("lost")
        self.lost.set_result(exc)

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


class HalfOpen(Recorder):
    keep_open = True


class Buffered(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self.buffer = bytearray(1000)
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]
        self.transport.write(self.buffer[:nbytes])  # type: ignore[attr-defined]


class Served:
    """A server on a free port, and the protocols of its connections."""

    def __init__(self) -> None:
        self.protocols: asyncio.Queue[Any] = asyncio.Queue()
        self.port = 0

    async def start(
        self, context: tls.Context, factory: Callable[[], Any] = Recorder, **options: Any
    ) -> asyncio.AbstractServer:
        def make() -> Any:
            protocol = factory()
            self.protocols.put_nowait(protocol)
            return protocol

        server = await aio.create_server(make, "127.0.0.1", 0, context=context, **options)
        self.port = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        return server


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Every test runs on both loops."""
    if request.param == "uvloop":
        policy: asyncio.AbstractEventLoopPolicy = pytest.importorskip("uvloop").EventLoopPolicy()
        return policy
    return asyncio.DefaultEventLoopPolicy()


@pytest.fixture(name="serve")
async def serve_fixture() -> AsyncIterator[Callable[..., Awaitable[Served]]]:
    servers = []

    async def start(*arguments: Any, **options: Any) -> Served:
        served = Served()
        servers.append(await served.start(*arguments, **options))
        return served

    yield start
    for server in servers:
        server.close()


def our_client() -> tls.Context:
    context = tls.Context(tls.TLS_CLIENT_METHOD)
    context.set_verify(tls.VERIFY_PEER)
    pem = authority().cert_pem
    with pem.tempfile() as path:
        context.load_verify_locations(path)
    return context


async def connect(served: Served, factory: Callable[[], Any] = Recorder, **options: Any) -> tuple[Any, Any]:
    options.setdefault("server_hostname", "localhost")
    options.setdefault("context", our_client())
    return await aio.create_connection(factory, "127.0.0.1", served.port, **options)
