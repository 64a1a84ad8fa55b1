"""Protocols over our asyncio transport, with Python's own TLS and with ours as the peer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from typing import TYPE_CHECKING

import pytest
from tls_asyncio import (
    Buffered,
    HalfOpen,
    Recorder,
    Served,
    connect,
    event_loop_policy,  # noqa: F401  a fixture
    our_client,
    serve_fixture,  # noqa: F401
)
from tls_peers import client_ssl_context, credentials, server_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


# pytest-asyncio 1.3 has a hook for this instead; older versions have only the fixture.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

MEBIBYTE = bytes(1 << 20)


async def test_asyncios_own_client_gets_its_megabytes_back_through_both_kinds_of_protocol(
    serve: Callable[..., Awaitable[Served]],
) -> None:
    class Echo(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    for factory in (Echo, Buffered):
        served = await serve(server_context(), factory)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", served.port, ssl=client_ssl_context(), server_hostname="localhost"
        )

        async def send(writer: asyncio.StreamWriter = writer) -> None:
            for _ in range(8):
                writer.write(MEBIBYTE)
                await writer.drain()

        sending = asyncio.create_task(send())
        assert await reader.readexactly(8 << 20) == MEBIBYTE * 8
        await sending
        writer.close()
        await writer.wait_closed()


async def test_close_sends_what_was_written_and_then_tells_both_sides(serve: Callable[..., Awaitable[Served]]) -> None:
    served = await serve(server_context())
    transport, client = await connect(served)
    server = await served.protocols.get()
    for _ in range(8):
        transport.write(MEBIBYTE)
    transport.close()
    assert transport.is_closing()
    transport.write(b"ignored")
    assert await server.lost is None
    assert await client.lost is None
    assert len(server.received) == 8 << 20
    assert server.events == ["made", "eof", "lost"]
    transport.close()
    transport.abort()
    assert client.events.count("lost") == 1


async def test_a_writer_is_paused_until_a_slow_reader_reads_on(serve: Callable[..., Awaitable[Served]]) -> None:
    served = await serve(server_context())
    transport, client = await connect(served)
    server = await served.protocols.get()
    server.transport.pause_reading()
    assert not server.transport.is_reading()
    written = 0
    while "pause" not in client.events:
        transport.write(MEBIBYTE)
        written += len(MEBIBYTE)
    await asyncio.sleep(0)
    before = len(server.received)
    server.transport.resume_reading()
    await client.until(lambda: "resume" in client.events)
    await server.until(lambda: len(server.received) == written)
    assert before < written
    transport.abort()


async def test_half_close_one_side_ends_and_the_other_goes_on(serve: Callable[..., Awaitable[Served]]) -> None:
    served = await serve(server_context(), HalfOpen)
    transport, client = await connect(served, HalfOpen)
    server = await served.protocols.get()
    assert transport.can_write_eof()
    transport.write(b"question")
    transport.write_eof()
    with pytest.raises(RuntimeError, match="after write_eof"):
        transport.write(b"more")
    await server.until(lambda: "eof" in server.events)
    assert server.received == b"question"
    server.transport.write(b"answer")
    server.transport.write_eof()
    assert await client.lost is None
    assert await server.lost is None
    assert client.received == b"answer"
    assert client.events == ["made", "eof", "lost"]


async def test_a_peer_that_ends_without_close_notify_is_not_taken_for_the_end_of_the_data(
    serve: Callable[..., Awaitable[Served]],
) -> None:
    served = await serve(server_context())
    transport, _ = await connect(served)
    server = await served.protocols.get()
    transport.write(b"half a mess")
    await server.until(lambda: server.received)
    transport.abort()
    assert isinstance(await server.lost, ConnectionResetError)
    assert "eof" not in server.events


async def test_a_reset_reaches_connection_lost_once(serve: Callable[..., Awaitable[Served]]) -> None:
    served = await serve(server_context())
    transport, client = await connect(served)
    server = await served.protocols.get()
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    assert await client.lost is None
    assert isinstance(await server.lost, ConnectionError)
    assert server.events == ["made", "lost"]


async def test_what_a_protocol_can_ask_its_transport(serve: Callable[..., Awaitable[Served]]) -> None:
    context = server_context()
    context.set_alpn_server_protos([b"h2", b"http/1.1"])
    served = await serve(context)
    client = our_client()
    client.set_alpn_protos([b"http/1.1"])
    transport, _ = await connect(served, context=client)
    server = (await served.protocols.get()).transport
    assert server.get_extra_info("sslcontext") is context
    assert server.get_extra_info("peername") == transport.get_extra_info("sockname")
    assert server.get_extra_info("cipher")[1] == "TLSv1.3"
    assert server.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    assert transport.get_extra_info("tls_connection").get_alpn_proto_negotiated() == b"http/1.1"
    issued = ssl.PEM_cert_to_DER_cert(credentials().chain.decode().split("-----END CERTIFICATE-----")[0] + END)
    assert transport.get_extra_info("ssl_object").getpeercert(binary_form=True) == issued
    assert transport.get_extra_info("peercert") is not None
    assert server.get_extra_info("nothing", "default") == "default"
    transport.abort()


async def test_a_server_closes_its_socket_and_leaves_its_connections(serve: Callable[..., Awaitable[Served]]) -> None:
    served = Served()
    server = await served.start(server_context())
    transport, client = await connect(served)
    accepted = await served.protocols.get()
    server.close()
    with pytest.raises(OSError, match=r"Connect(ion refused| call failed)"):
        await asyncio.open_connection("127.0.0.1", served.port)
    transport.write(b"still here")
    await accepted.until(lambda: accepted.received)
    transport.close()
    await client.lost
    await server.wait_closed()


async def test_streams_work_over_it(serve: Callable[..., Awaitable[Served]]) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()

    served = await serve(server_context(), lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), shout))
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", served.port, ssl=client_ssl_context(), server_hostname="localhost"
    )
    for word in (b"one\n", b"two\n"):
        writer.write(word)
        assert await reader.readline() == word.upper()
    writer.close()
    await writer.wait_closed()


END = "-----END CERTIFICATE-----\n"
