"""Handshakes under asyncio: batched, refused, given up, and without a free job."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from tls_asyncio import (
    Served,
    connect,
    event_loop_policy,  # noqa: F401  a fixture
    serve_fixture,  # noqa: F401
)
from tls_peers import accept, client_ssl_context, pause_connection, server_context

from gpu_provider import AsyncStatus, tls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gpu_provider import BatchingProvider
    from gpu_provider.testing import HeldBackend

# pytest-asyncio 1.3 has a hook for this instead; older versions have only the fixture.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")


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
    """Hazard: closing a socket with unread bytes resets its peer, which then loses the alert."""
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
    """The connection that holds the job was already woken, so no other wake-up comes."""

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
