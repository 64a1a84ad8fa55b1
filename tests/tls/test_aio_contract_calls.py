"""The event loop's calls with our TLS and with asyncio's own: connecting, serving, upgrading, sendfile, streams."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import tempfile
from typing import Any

import pytest
from contract_stacks import (
    Ours,
    Recorder,
    Scenario,
    Scenarios,
    World,
    event_loop_policy,  # noqa: F401  a fixture
    expected,
    hang_up,
    pausing_handshakes,  # noqa: F401  a fixture
    present,
    run,
    server_ssl_context,
)
from tls_peers import client_ssl_context, credentials

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

scenario = Scenarios()
ASYNCIO_ONLY: list[Scenario] = []
MEBIBYTE = bytes(1 << 20)
ENDED = ["eof", ("lost", "NoneType"), ("reported", [])]


# ---- making connections ----


@scenario("client")
async def mistakes(world: World) -> None:
    port = await world.peer_server(hang_up, server_ssl_context())
    await world.connect("127.0.0.1", 1, server_hostname="localhost")  # nobody listens
    await world.connect("127.0.0.1", port, ssl_handshake_timeout=0)
    await world.connect("127.0.0.1", port, ssl_shutdown_timeout=-1)
    with socket.socket() as sock:
        await world.connect(sock=sock)


@scenario("client", difference="no name", ours=["ValueError", ("reported", [])])
async def an_empty_name(world: World) -> None:
    port = await world.peer_server(hang_up, server_ssl_context())
    await world.connect("127.0.0.1", port, server_hostname="")


@scenario("client")
async def a_silent_server(world: World) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    port = await world.peer_server(silent, None)
    await world.connect("127.0.0.1", port, server_hostname="localhost", ssl_handshake_timeout=0.05)


@scenario("client")
async def a_server_that_hangs_up(world: World) -> None:
    port = await world.peer_server(hang_up, None)
    await world.connect("127.0.0.1", port, server_hostname="localhost")


@scenario("client", difference="errors", ours=["SSLError", ("reported", [])])
async def a_server_of_another_name(world: World) -> None:
    port = await world.peer_server(hang_up, server_ssl_context())
    await world.connect("127.0.0.1", port, server_hostname="x.example")


@scenario("client")
async def a_clients_factory_that_raises(world: World) -> None:
    port = await world.peer_server(hang_up, server_ssl_context())
    await world.connect("127.0.0.1", port, server_hostname="localhost", factory=lambda: 1 // 0)


@scenario("server", difference="late protocol", ours=["ends", ("reported", ["ZeroDivisionError"])])
async def a_servers_factory_that_raises(world: World) -> None:
    """asyncio reports it only in debug mode."""
    port = await world.serve(lambda: 1 // 0)
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_ssl_context(), server_hostname="localhost"
        )
        world.closing.callback(writer.transport.abort)
        await reader.read()
    world.record.add("ends")


@scenario("server")
async def a_server_that_does_not_start_by_itself(world: World) -> None:
    server = await world.stack.create_server(lambda: Recorder(world.record), "127.0.0.1", 0, start_serving=False)
    world.record.answer("serving", server.is_serving)
    await server.start_serving()
    world.record.answer("serving", server.is_serving)
    host, port = server.sockets[0].getsockname()
    _, writer = await asyncio.open_connection(host, port, ssl=client_ssl_context(), server_hostname="localhost")
    await world.record.until(lambda events: "made" in events)
    server.close()
    world.record.answer("serving", server.is_serving)
    world.record.answer("sockets", lambda: tuple(server.sockets))
    writer.write(b"still here")
    await world.record.until(lambda events: b"still here" in events)
    writer.close()
    await world.record.until(lambda events: ("lost", "NoneType") in events)
    await server.wait_closed()


@scenario("server")
async def a_client_with_a_certificate(world: World) -> None:
    world.stack.ask_for_certificates()
    made: asyncio.Queue[Any] = asyncio.Queue()
    port = await world.serve(lambda: Recorder(world.record, made=lambda protocol: made.put_nowait(protocol.transport)))
    for certificate in (None, credentials("client.example")):
        context = client_ssl_context()
        if certificate is not None:
            present(context, certificate)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        world.closing.callback(writer.transport.abort)
    transport = await made.get()  # the first was refused
    world.record.add("peercert", transport.get_extra_info("peercert"))
    world.record.add("DER", transport.get_extra_info("ssl_object").getpeercert(True))
    transport.abort()


def _clients_end(how: str) -> None:
    async def function(world: World) -> None:
        server = await world.stack.create_server(lambda: Recorder(world.record), "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=client_ssl_context(), server_hostname="localhost"
        )
        await world.record.until(lambda events: "made" in events)
        server.close()
        getattr(server, how)()
        await world.record.until(lambda events: ("lost", "NoneType") in events)
        await server.wait_closed()
        writer.transport.abort()

    if hasattr(asyncio.Server, how):  # Python 3.13
        function.__name__ = how
        scenario("server")(function)
        ASYNCIO_ONLY.append(function)


_clients_end("close_clients")
_clients_end("abort_clients")


@scenario()
async def a_unix_socket(world: World) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"
        if world.role == "server":
            server = await world.stack.create_unix_server(lambda: Recorder(world.record), path)
            reader, writer = await asyncio.open_unix_connection(
                path, ssl=client_ssl_context(), server_hostname="localhost"
            )
        else:
            accepted: asyncio.Queue[Any] = asyncio.Queue()

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                accepted.put_nowait((reader, writer))

            server = await asyncio.start_unix_server(accept, path, ssl=server_ssl_context())
            await world.stack.create_unix_connection(lambda: Recorder(world.record), path, server_hostname="localhost")
            reader, writer = await accepted.get()
        world.closing.callback(server.close)
        writer.write(b"hello")
        await world.record.until(lambda events: b"hello" in events)
        writer.close()
        assert await reader.read() == b""
        await world.record.until(lambda events: ("lost", "NoneType") in events)


# ---- upgrades ----


@scenario()
async def start_tls(world: World) -> None:
    """Plain lines, then TLS on the same connection. ``connection_made`` is called once."""
    await _upgrade(world, secured=False)


@scenario()
async def start_tls_within_tls(world: World) -> None:
    await _upgrade(world, secured=True)


async def _upgrade(world: World, *, secured: bool) -> None:
    lines, streams = asyncio.Queue[Any](), asyncio.Queue[Any]()
    subject: asyncio.Queue[Any] = asyncio.Queue()

    def factory() -> Any:
        protocol = Recorder(world.record)
        subject.put_nowait(protocol)
        return protocol

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams.put_nowait((reader, writer))

    del lines
    if world.role == "server":
        if secured:
            port = await world.serve(factory)
        else:
            server = await world.loop.create_server(factory, "127.0.0.1", 0)
            world.closing.callback(server.close)
            port = server.sockets[0].getsockname()[1]
        outer = {"ssl": client_ssl_context(), "server_hostname": "localhost"} if secured else {}
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **outer)
    else:
        port = await world.peer_server(accept, server_ssl_context() if secured else None)
        if secured:
            await world.stack.create_connection(factory, "127.0.0.1", port, server_hostname="localhost")
        else:
            await world.loop.create_connection(factory, "127.0.0.1", port)
        reader, writer = await streams.get()
    protocol = await subject.get()
    writer.write(b"STARTTLS")
    await world.record.until(lambda events: b"STARTTLS" in events)
    peer = writer.start_tls(
        server_ssl_context() if world.role == "client" else client_ssl_context(),
        **({} if world.role == "client" else {"server_hostname": "localhost"}),
    )
    named = {"server_side": True} if world.role == "server" else {"server_side": False, "server_hostname": "localhost"}
    before = protocol.transport
    protocol.transport, _ = await asyncio.gather(world.stack.start_tls(before, protocol, **named), peer)
    world.record.answer("another", lambda: protocol.transport is not before)
    world.record.answer("cipher", lambda: protocol.transport.get_extra_info("cipher"))
    writer.write(b"secret")
    await world.record.until(lambda events: b"secret" in events)
    protocol.transport.write(b"answer")
    assert await reader.readexactly(6) == b"answer"
    writer.close()
    async with asyncio.timeout(5):
        await protocol.lost


# ---- sendfile ----


@scenario()
async def sendfile(world: World) -> None:
    """A whole file, larger than any buffer, and a part of it, with more data behind it."""
    link = await world.link()
    with tempfile.TemporaryFile() as file:
        file.write(bytes(range(256)) * 4096 * 4)
        size = file.tell()

        async def send(*arguments: int | None, **options: Any) -> None:
            file.seek(0)
            world.record.add("sent", await world.loop.sendfile(link.transport, file, *arguments, **options))

        async def sends() -> None:
            link.transport.write(b"before")
            await send()
            await send(1000)
            await send(1000, 5000)
            await send(size - 1, 5000)
            link.transport.write(b"behind")
            link.transport.close()

        sending = asyncio.ensure_future(sends())
        received = await link.read()
        await sending
        world.record.add("received", hashlib.sha256(received).hexdigest())
        link.writer.close()
        await link.lost()
        try:
            await world.loop.sendfile(link.transport, file)
        except RuntimeError as error:
            world.record.add(type(error).__name__)
    world.record.events[:] = [event for event in world.record.events if event not in ("pause", "resume")]


ASYNCIO_ONLY.append(sendfile)


# ---- streams ----


@scenario()
async def streams(world: World) -> None:
    done = asyncio.Event()

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            world.record.add("heard", len(line))
            writer.write(line.upper())
            await writer.drain()
        world.record.answer("at end", reader.at_eof)
        writer.close()
        world.record.answer("closing", writer.is_closing)
        await writer.wait_closed()
        done.set()

    if world.role == "server":
        server = await world.stack.start_server(shout, "127.0.0.1", 0, limit=2**20)
        opened = asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=client_ssl_context(), server_hostname="localhost", limit=2**20
        )
    else:
        server = await asyncio.start_server(shout, "127.0.0.1", 0, ssl=server_ssl_context(), limit=2**20)
        opened = world.stack.open_connection(*server.sockets[0].getsockname(), server_hostname="localhost", limit=2**20)
    world.closing.callback(server.close)
    reader, writer = await opened
    for word in (b"one\n", b"two\n", b"x" * 500_000 + b"\n"):
        writer.write(word)
        await writer.drain()
        world.record.add("answered", await reader.readline() == word.upper())
    world.record.answer("can", lambda: writer.get_extra_info("ssl_object").version())
    writer.close()
    await writer.wait_closed()
    await done.wait()


@pytest.mark.parametrize(("role", "function", "difference", "ours"), scenario.all)
async def test_a_call_does_the_same(role: str, function: Scenario, difference: str | None, ours: Any) -> None:
    if function in ASYNCIO_ONLY and type(asyncio.get_running_loop()).__module__ == "uvloop":
        pytest.skip(f"uvloop has no {function.__name__}")
    assert await run(Ours, role, function) == await expected(role, function, difference, ours)
