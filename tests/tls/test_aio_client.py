"""A client that changes its mind: it cancels, closes half way, or upgrades a connection that fails."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import tempfile
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from contract_stacks import (
    client_context,
    event_loop_policy,  # noqa: F401  a fixture
    hang_up,
    server_ssl_context,
)
from tls_peers import client_ssl_context, server_context

from gpu_provider import tls
from gpu_provider.tls import aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

MEBIBYTE = bytes(1 << 20)


@pytest.fixture
async def reported() -> AsyncIterator[list[dict[str, Any]]]:
    """What the loop's exception handler is told: it should be nothing."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    yield reports
    gc.collect()  # futures report when they are collected
    await asyncio.sleep(0)
    assert reports == []


class Server:
    """A server of Python's that counts the connections that have not ended."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self.port = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                pass
        writer.close()

    async def ended(self) -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*self.tasks)


@pytest.fixture(params=["silent", "tls"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    server = Server()
    context = server_ssl_context() if request.param == "tls" else None
    async with await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=context) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server


async def connect(port: int) -> Any:
    transport, _ = await aio.create_connection(
        asyncio.Protocol, "127.0.0.1", port, context=client_context(), server_hostname="localhost"
    )
    return transport


async def open_streams(port: int) -> Any:
    _, writer = await aio.open_connection("127.0.0.1", port, context=client_context(), server_hostname="localhost")
    return writer.transport


async def upgrade(port: int) -> Any:
    below, protocol = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port)
    try:
        return await aio.start_tls(below, protocol, client_context(), server_hostname="localhost")
    finally:
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]
            below.abort()  # if it was cancelled before


@pytest.mark.parametrize("connecting", [connect, open_streams, upgrade])
async def test_a_connection_can_be_cancelled_at_any_turn_of_the_loop(
    server: Server, connecting: Callable[[int], Any], reported: list[dict[str, Any]]
) -> None:
    for turns in range(25):
        task = asyncio.ensure_future(connecting(server.port))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await task).abort()
    await server.ended()


async def test_a_connection_that_fails_when_nobody_waits_any_more_is_not_reported(
    reported: list[dict[str, Any]],
) -> None:
    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listening:
        for turns in range(25):
            task = asyncio.ensure_future(connect(listening.sockets[0].getsockname()[1]))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionResetError):
                await task


async def test_a_closed_client_does_not_go_on_downloading() -> None:
    """The server never checks whether its client still listens."""
    sent = 0

    def stream(listening: socket.socket) -> None:
        nonlocal sent
        with (
            contextlib.suppress(OSError),
            server_ssl_context().wrap_socket(listening.accept()[0], server_side=True) as connection,
        ):
            while True:
                sent += connection.send(MEBIBYTE)

    class Client(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost = asyncio.get_running_loop().create_future()
            self.begun = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            if not self.begun.done():
                self.begun.set_result(None)

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(exc)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        streaming = asyncio.create_task(asyncio.to_thread(stream, listening))
        transport, client = await aio.create_connection(
            Client, *listening.getsockname(), context=client_context(), server_hostname="localhost"
        )
        await client.begun
        before = sent
        transport.close()
        async with asyncio.timeout(10):  # the timeout of the shutdown is longer
            assert await client.lost is None
            await streaming
    assert sent - before < 32 << 20  # what the kernels' buffers hold, and no more


async def test_what_was_written_before_close_arrives_though_the_peer_is_still_sending() -> None:
    """The kernel's buffers are full; what arrives meanwhile is thrown away."""
    received = asyncio.get_running_loop().create_future()

    async def both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(100_000))
        received.set_result(await reader.read())
        writer.close()

    async with (
        asyncio.timeout(10),
        await asyncio.start_server(both_ways, "127.0.0.1", 0, ssl=server_ssl_context()) as listening,
    ):
        transport = await connect(listening.sockets[0].getsockname()[1])
        transport.write(MEBIBYTE * 4)
        transport.close()
        assert len(await received) == 4 << 20


async def test_an_upgrade_that_fails_tells_both_the_caller_and_the_protocol(reported: list[dict[str, Any]]) -> None:
    class Told(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost: list[Exception | None] = []

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.append(exc)

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=server_ssl_context()) as listening:
        below, protocol = await asyncio.get_running_loop().create_connection(Told, *listening.sockets[0].getsockname())
        with pytest.raises(tls.Error, match="ostname mismatch") as failed:
            await aio.start_tls(below, protocol, client_context(), server_hostname="other.example")
        assert protocol.lost == [failed.value]
        assert isinstance(failed.value, ssl.SSLError)
        with pytest.raises(ConnectionResetError):
            await aio.start_tls(below, protocol, client_context(), server_hostname="localhost")


@pytest.mark.parametrize("outer", ["ours", "asyncio's"])
async def test_one_kind_of_tls_runs_within_the_other(outer: str, reported: list[dict[str, Any]]) -> None:
    """As through a proxy that speaks TLS itself."""
    loop = asyncio.get_running_loop()
    if outer == "ours" and type(loop).__module__ == "uvloop":
        pytest.skip("uvloop's start_tls takes its own transports only")

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.start_tls(server_ssl_context())
        writer.write((await reader.readexactly(len(MEBIBYTE)))[::-1])
        await writer.drain()
        assert await reader.read() == b""
        writer.close()

    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    async with (
        asyncio.timeout(10),
        await asyncio.start_server(both, "127.0.0.1", 0, ssl=server_ssl_context()) as listening,
    ):
        address = listening.sockets[0].getsockname()
        name = {"server_hostname": "localhost"}
        if outer == "ours":
            below, _ = await aio.create_connection(lambda: protocol, *address, context=client_context(), **name)
            transport = await loop.start_tls(below, protocol, client_ssl_context(), **name)
        else:
            below, _ = await loop.create_connection(lambda: protocol, *address, ssl=client_ssl_context(), **name)
            transport = await aio.start_tls(below, protocol, client_context(), **name)
        data = os.urandom(len(MEBIBYTE))
        transport.write(data)
        assert await reader.readexactly(len(data)) == data[::-1]
        transport.close()
        assert await reader.read() == b""


async def test_sendfile_to_a_peer_that_leaves_fails_and_is_told_once(reported: list[dict[str, Any]]) -> None:
    loop = asyncio.get_running_loop()
    if type(loop).__module__ == "uvloop":
        pytest.skip("uvloop has no sendfile")

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    lost: list[Exception | None] = []

    class Client(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.append(exc)

    async with await asyncio.start_server(leave, "127.0.0.1", 0, ssl=server_ssl_context()) as listening:
        transport, _ = await aio.create_connection(
            Client, *listening.sockets[0].getsockname(), context=client_context(), server_hostname="localhost"
        )
        with tempfile.TemporaryFile() as file:
            file.truncate(64 << 20)
            with pytest.raises(OSError):  # noqa: PT011  a reset or a broken pipe
                await loop.sendfile(transport, file)
        assert len(lost) == 1
        assert isinstance(lost[0], OSError)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_an_ended_connection_is_freed_at_once(end: str) -> None:
    """Without a garbage collection, which a busy server's connections could wait long for."""
    connections: list[weakref.ref[tls.Connection]] = []

    class Keeping(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost = asyncio.get_running_loop().create_future()

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            connections.append(weakref.ref(transport.get_extra_info("tls_connection")))
            transport.write(b"hello")

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(None)

    served: asyncio.Queue[Keeping] = asyncio.Queue()

    def serve() -> Keeping:
        served.put_nowait(protocol := Keeping())
        return protocol

    gc.disable()
    try:
        server = await aio.create_server(serve, "127.0.0.1", 0, context=server_context())
        transport, client = await aio.create_connection(
            Keeping, *server.sockets[0].getsockname(), context=client_context(), server_hostname="localhost"
        )
        accepted = await served.get()
        getattr(transport, end)()
        await asyncio.gather(client.lost, accepted.lost)
        del transport, client, accepted
        for _ in range(10):
            await asyncio.sleep(0)
        assert [connection() for connection in connections] == [None, None]
        server.close()
    finally:
        gc.enable()


async def test_ssl_beside_a_context_is_a_mistake() -> None:
    for options in ({"ssl": True}, {"ssl": server_ssl_context()}):
        with pytest.raises(TypeError, match="TLS within TLS"):
            await aio.create_server(asyncio.Protocol, "127.0.0.1", 0, context=server_context(), **options)
        with pytest.raises(TypeError, match="TLS within TLS"):
            await aio.create_connection(asyncio.Protocol, "localhost", 1, context=client_context(), **options)
