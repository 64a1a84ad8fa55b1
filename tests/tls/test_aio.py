"""The asyncio face, against Python's own TLS and against itself: what an asyncio.Protocol's author would notice."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any

import pytest
from tls_peers import accept, authority, client_ssl_context, credentials, pause_connection, server_context

from gpu_provider import AsyncStatus, tls
from gpu_provider.tls import aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gpu_provider import BatchingProvider
    from gpu_provider.testing import HeldBackend

# pytest-asyncio 1.3 has a hook for this instead; older versions have only the fixture.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

MEBIBYTE = bytes(1 << 20)


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


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Served]]]:
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


async def test_handshakes_wait_in_one_batch_while_the_loop_goes_on(
    held_backend: HeldBackend, held_provider: BatchingProvider, serve: Callable[..., Awaitable[Served]]
) -> None:
    served = await serve(server_context(held_provider))
    clients = [asyncio.create_task(connect(served)) for _ in range(50)]
    while held_provider.stats().submitted < 50:  # noqa: ASYNC110  the loop turns: no handshake holds it up
        await asyncio.sleep(0)
    assert not any(client.done() for client in clients)
    held_backend.release_all()
    for client in clients:
        _, protocol = await client
        accepted = await served.protocols.get()
        connection = accepted.transport.get_extra_info("tls_connection")
        assert connection.get_async_status() is AsyncStatus.OK
        protocol.transport.abort()
    assert held_provider.stats().largest_batch >= 25


@pytest.mark.gpu_provider(queue_depth=1)
async def test_a_full_queue_delays_handshakes_and_loses_none(
    held_backend: HeldBackend, held_provider: BatchingProvider, serve: Callable[..., Awaitable[Served]]
) -> None:
    served = await serve(server_context(held_provider))
    clients = [asyncio.create_task(connect(served)) for _ in range(200)]
    while held_provider.stats().retries < 100:  # noqa: ASYNC110
        await asyncio.sleep(0)
    held_backend.release_all()
    for transport, _ in await asyncio.gather(*clients):
        transport.abort()


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


async def test_garbage_a_silent_client_and_one_that_leaves_cost_only_themselves(
    serve: Callable[..., Awaitable[Served]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "gpu_provider.tls.aio")
    served = await serve(server_context(), handshake_timeout=0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
    assert (await reader.read())[:1] in (b"\x15", b"")  # a TLS alert, if the reset left it
    writer.close()
    _, leaves = await asyncio.open_connection("127.0.0.1", served.port)
    leaves.close()
    reader, silent = await asyncio.open_connection("127.0.0.1", served.port)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    silent.close()
    assert served.protocols.empty()  # no protocol was made for any of them
    assert "took longer than 0.05 seconds" in caplog.text
    transport, _ = await connect(served)
    transport.abort()


async def test_a_client_that_is_still_sending_reads_the_alert(serve: Callable[..., Awaitable[Served]]) -> None:
    """Hazard: a socket that is closed with unread bytes resets its peer, and takes the alert along."""
    context = server_context()
    context.set_min_proto_version(tls.TLS1_3_VERSION)
    served = await serve(context)
    old = ssl.create_default_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        old.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()

    def send_on(hello: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
            client.sendall(hello)
            for _ in range(64):
                client.sendall(bytes(16384))
            return client.recv(100)

    alert = await asyncio.to_thread(send_on, outgoing.read())
    assert (alert[0], alert[6]) == (21, 70)  # protocol_version


async def test_a_client_learns_why_it_did_not_connect(serve: Callable[..., Awaitable[Served]]) -> None:
    served = await serve(server_context(name="other.example"))
    with pytest.raises(tls.Error, match=r"certificate verify failed.*ostname mismatch"):
        await connect(served)
    untrusting = tls.Context(tls.TLS_CLIENT_METHOD)
    untrusting.set_verify(tls.VERIFY_PEER)
    with pytest.raises(tls.Error, match="certificate verify failed"):
        await connect(served, context=untrusting, server_hostname="other.example")

    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _reader.read()
        writer.close()

    async def at_once(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
        served.port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionAbortedError, match="longer than"):
            await connect(served, handshake_timeout=0.05)
        waiting = asyncio.create_task(connect(served))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with await asyncio.start_server(at_once, "127.0.0.1", 0) as server:
        served.port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionResetError):
            await connect(served)


async def test_a_handshake_that_finds_no_free_job_goes_on_when_one_is_free(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    def on_a_loop_of_its_own() -> None:  # OpenSSL keeps jobs by thread
        async def run() -> None:
            tls.set_async_job_limit(2)
            served = Served()
            await served.start(server_context(held_provider))
            clients = [asyncio.create_task(connect(served)) for _ in range(10)]
            await asyncio.to_thread(held_backend.wait_for_batch)
            held_backend.release_all()
            for transport, _ in await asyncio.gather(*clients):
                transport.abort()

        asyncio.run(run())

    await asyncio.to_thread(on_a_loop_of_its_own)


async def test_a_handshake_that_finds_no_free_job_just_before_the_last_one_ends_is_not_forgotten(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    """The connection that holds the job has been woken already, so no further wake-up comes."""

    def on_a_loop_of_its_own() -> None:
        async def run() -> None:
            tls.set_async_job_limit(1)
            loop = asyncio.get_running_loop()
            notifier = tls.LoopNotifier.of(loop)
            retried = loop.create_future()
            starved = False
            context = server_context(held_provider)
            first, second = accept(context), accept(context)

            def resume_first() -> None:
                nonlocal starved
                if not starved:
                    try:
                        second.do_handshake()
                    except tls.WantAsyncJobError:
                        starved = True
                        notifier.when_job_ends(lambda: retried.set_result(None))
                with contextlib.suppress(tls.WantReadError, tls.WantAsyncError):
                    first.do_handshake()

            notifier.attach(first, resume_first)
            pause_connection(first)
            held_backend.release_all()
            await asyncio.wait_for(retried, 30)
            with contextlib.suppress(tls.WantReadError, tls.WantAsyncError):
                second.do_handshake()

        asyncio.run(run())

    await asyncio.to_thread(on_a_loop_of_its_own)


async def test_a_handshake_that_waits_for_a_free_job_is_in_line_once_however_much_its_client_sends(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    def on_a_loop_of_its_own() -> None:
        async def run() -> None:
            tls.set_async_job_limit(1)
            served = Served()
            await served.start(server_context(held_provider))
            first = asyncio.create_task(connect(served))
            while held_provider.stats().submitted == 0:  # noqa: ASYNC110
                await asyncio.sleep(0)
            notifier = tls.LoopNotifier.of(asyncio.get_running_loop())
            hello = ssl.MemoryBIO()
            with pytest.raises(ssl.SSLWantReadError):
                client_ssl_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(hello.read())
            while not notifier._starved:  # noqa: ASYNC110
                await asyncio.sleep(0)
            for _ in range(100):
                writer.write(b"\x14\x03\x03\x00\x01\x01")
                await asyncio.sleep(0)
            assert len(notifier._starved) == 1
            writer.transport.abort()
            held_backend.release_all()
            (await first)[0].abort()

        asyncio.run(run())

    await asyncio.to_thread(on_a_loop_of_its_own)


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
