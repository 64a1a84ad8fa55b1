"""Unchanged HTTP servers over our TLS: they make their own calls to an event loop that accepts a Context as ``ssl``."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import h2.config
import h2.connection
import h2.events
import hypercorn.asyncio
import hypercorn.config
import pytest
import uvicorn
from aiohttp import web
from contract_stacks import client_context
from tls_peers import client_ssl_context, server_context

from gpu_provider import tls
from gpu_provider.tls import aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

BODY = os.urandom(5 << 20)


def uvloops_with_ours() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop")

    class Loop(aio.LoopMixin, uvloop.Loop):  # type: ignore[misc,name-defined]
        pass

    return Loop()


@pytest.fixture(params=[aio.EventLoop, uvloops_with_ours], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main)

    return run


async def application(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that answers with the scheme, the digest of what it got, and BODY."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    digest = hashlib.sha256()
    while True:
        message = await receive()
        digest.update(message["body"])
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    head = f"{scope['scheme']} {digest.hexdigest()}".encode()
    await send({"type": "http.response.body", "body": head, "more_body": True})
    await send({"type": "http.response.body", "body": BODY})


EXPECTED = b"https " + hashlib.sha256(BODY).hexdigest().encode() + BODY


async def exchange(port: int) -> None:
    connector = aiohttp.TCPConnector(ssl=client_ssl_context(), resolver=aiohttp.ThreadedResolver())
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(3):
            async with session.post(f"https://localhost:{port}/", data=BODY) as response:
                assert response.status == 200
                assert await response.read() == EXPECTED


def test_uvicorn(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        config = uvicorn.Config(application, host="127.0.0.1", port=0, log_level="warning")
        config.load()
        config.ssl = server_context()  # type: ignore[assignment]
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await exchange(server.servers[0].sockets[0].getsockname()[1])
        server.should_exit = True
        await serving

    run(main())


async def serve_with_hypercorn(talk: Callable[[int], Awaitable[None]]) -> None:
    class Config(hypercorn.config.Config):
        certfile = keyfile = "the context has them"

        def create_ssl_context(self) -> Any:
            context = server_context()
            context.set_alpn_server_protos([b"h2", b"http/1.1"])
            return context

    config = Config()
    config.bind = ["127.0.0.1:0"]
    sockets = config.create_sockets()
    sockets.secure_sockets[0].listen()  # clients may come before hypercorn is ready
    config.create_sockets = lambda: sockets  # type: ignore[method-assign]
    stop = asyncio.Event()
    serving = asyncio.create_task(hypercorn.asyncio.serve(application, config, shutdown_trigger=stop.wait))
    await talk(sockets.secure_sockets[0].getsockname()[1])
    stop.set()
    await serving


def test_hypercorn(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    run(serve_with_hypercorn(exchange))


async def exchange_over_http2(port: int) -> None:
    context = client_ssl_context()
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    http = h2.connection.H2Connection(h2.config.H2Configuration())
    http.initiate_connection()
    request = {":method": "GET", ":scheme": "https", ":authority": "localhost", ":path": "/"}
    http.send_headers(1, list(request.items()), end_stream=True)
    received, ended = b"", False
    while not ended:
        writer.write(http.data_to_send())
        for event in http.receive_data(await reader.read(65536)):
            if isinstance(event, h2.events.DataReceived):
                received += event.data
                http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            ended = ended or isinstance(event, h2.events.StreamEnded)
    assert received == b"https " + hashlib.sha256(b"").hexdigest().encode() + BODY
    writer.close()
    await writer.wait_closed()


def test_hypercorn_with_http2(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    run(serve_with_hypercorn(exchange_over_http2))


def test_aiohttp(run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path) -> None:
    """Static files, whole and in part, and WebSockets."""
    (tmp_path / "body").write_bytes(BODY)

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            await socket.send_bytes(message.data)
        return socket

    async def main() -> None:
        app = web.Application()
        app.router.add_static("/files", tmp_path)
        app.router.add_get("/echo", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context()).start()  # type: ignore[arg-type]
        url = f"https://localhost:{runner.addresses[0][1]}"
        connector = aiohttp.TCPConnector(ssl=client_ssl_context(), resolver=aiohttp.ThreadedResolver())
        async with aiohttp.ClientSession(connector=connector) as session:
            for headers, part in ({}, slice(None)), ({"Range": "bytes=1000-3000000"}, slice(1000, 3000001)):
                async with session.get(f"{url}/files/body", headers=headers) as response:
                    assert await response.read() == BODY[part]
            async with session.ws_connect(f"{url}/echo", max_msg_size=0) as socket:
                for data in (b"short", BODY):
                    await socket.send_bytes(data)
                    assert (await socket.receive()).data == data
        await runner.cleanup()

    run(main())


def test_streams_with_a_context(run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path) -> None:
    """asyncio's own functions, on TCP and Unix sockets, and STARTTLS on both sides."""

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            if line == b"starttls\n":
                await writer.start_tls(server_context())  # type: ignore[arg-type]
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        assert await reader.readline() == b"HELLO\n"
        assert isinstance(writer.get_extra_info("sslcontext"), tls.Context)
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        ours: Any = server_context()
        client: Any = client_context()
        secured: dict[str, Any] = {"ssl": client, "server_hostname": "localhost", "ssl_shutdown_timeout": None}
        async with await asyncio.start_server(shout, "127.0.0.1", 0, ssl=ours, ssl_handshake_timeout=5) as server:
            await talk(*await asyncio.open_connection(*server.sockets[0].getsockname(), **secured))
        path = str(tmp_path / "socket")
        async with await asyncio.start_unix_server(shout, path, ssl=ours):
            await talk(*await asyncio.open_unix_connection(path, **secured))
        async with await asyncio.start_server(shout, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"starttls\n")
            assert await reader.readline() == b"STARTTLS\n"
            await writer.start_tls(client, server_hostname="localhost")
            await talk(reader, writer)

    run(main())


def test_an_accepted_socket(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    class Greeter(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(b"hello")  # type: ignore[attr-defined]
            transport.close()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours: Any = server_context()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            opening = asyncio.ensure_future(
                asyncio.open_connection(*listening.getsockname(), ssl=client_ssl_context(), server_hostname="localhost")
            )
            accepted, _ = await loop.sock_accept(listening)
            await loop.connect_accepted_socket(Greeter, accepted, ssl=ours, ssl_handshake_timeout=5)
            reader, writer = await opening
            assert await reader.read() == b"hello"
            writer.close()

    run(main())


def test_pythons_contexts_work_as_before(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        server = await asyncio.start_server(
            lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        )
        server.close()
        plain = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*plain.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        plain.close()

    run(main())


async def test_a_loop_that_does_not_know_contexts_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio would silently answer each client of a server with a reset."""
    context: Any = client_context()
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context) as server:
        address = server.sockets[0].getsockname()
        with pytest.raises(ConnectionResetError):
            await asyncio.open_connection(*address, ssl=client_ssl_context(), server_hostname="localhost")
        assert "aio.EventLoop" in caplog.text
        with pytest.raises(TypeError, match=r"aio\.EventLoop"):
            await asyncio.open_connection(*address, ssl=context, server_hostname="localhost")
