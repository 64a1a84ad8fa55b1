"""The asyncio face under a peer that floods it: the loop goes on turning, memory stays bounded, errors are acted on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from forged_records import (
    ALERT,
    APPLICATION_DATA,
    Tls13Sender,
    forging_client,
    plain,
    with_known_ciphers,
)
from tls_peers import client_ssl_context, server_context

from gpu_provider import tls
from gpu_provider.tls import aio
from gpu_provider.tls._ssl import lib

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

MEBIBYTE = 1 << 20
CLOSE_NOTIFY = b"\x01\x00"


class Counting(asyncio.Protocol):
    """Counts what it gets, in all and by turn of the loop."""

    keep_open = False
    pause_at_once = False

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.received = 0
        self.turn = 0
        self.by_turn: Counter[int] = Counter()
        self.ended = asyncio.Event()
        self.lost: asyncio.Future[BaseException | None] = self.loop.create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._tick()

    def _tick(self) -> None:
        self.turn += 1
        if not self.lost.done():
            self.loop.call_soon(self._tick)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self.by_turn[self.turn] += len(data)
        if self.pause_at_once:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.ended.set()
        return self.keep_open

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


class Pausing(Counting):
    pause_at_once = True


class HalfOpen(Counting):
    keep_open = True


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Every test runs on both loops."""
    if request.param == "uvloop":
        policy: asyncio.AbstractEventLoopPolicy = pytest.importorskip("uvloop").EventLoopPolicy()
        return policy
    return asyncio.DefaultEventLoopPolicy()


Start = "Callable[..., Awaitable[tuple[Any, socket.socket, Any]]]"


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Gives a server's protocol, the socket of its client, and what seals that one's records."""
    with contextlib.ExitStack() as stack:

        async def start(
            factory: Callable[[], Any] = Counting, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
        ) -> tuple[Any, socket.socket, Any]:
            protocols: asyncio.Queue[Any] = asyncio.Queue()

            def make() -> Any:
                protocol = factory()
                protocols.put_nowait(protocol)
                return protocol

            context = with_known_ciphers(server_context(asynchronous=False))
            server = await aio.create_server(make, "127.0.0.1", 0, context=context)
            stack.callback(server.close)
            address = server.sockets[0].getsockname()  # type: ignore[attr-defined]
            sock = await asyncio.to_thread(socket.create_connection, address, 20)
            stack.callback(sock.close)
            sender = await asyncio.to_thread(
                forging_client, sock, client_ssl_context(version=version), tmp_path / "keys"
            )
            return await protocols.get(), sock, sender

        yield start


def key_updates(sender: Tls13Sender) -> Iterator[bytes]:
    while True:
        yield sender.key_update()


async def test_flood_of_key_updates_is_ended_with_its_reason(start: Start) -> None:
    protocol, sock, sender = await start()
    flood = b"".join(islice(key_updates(sender), 2000))
    with contextlib.suppress(ConnectionError):
        await asyncio.to_thread(sock.sendall, flood)
    assert isinstance(await protocol.lost, tls.FloodError)


async def test_flood_of_tiny_records_leaves_others_their_turns(start: Start) -> None:
    """One turn of the loop may hand up eight portions of at most 64 records, before and after a pause."""
    protocol, sock, sender = await start()
    count = 10_000
    flood = b"".join(sender.seal(APPLICATION_DATA, b"x") for _ in range(count))
    sending = asyncio.create_task(asyncio.to_thread(sock.sendall, flood))
    while protocol.received < count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await sending
    assert protocol.received == count
    assert max(protocol.by_turn.values()) <= 2 * 8 * 64


async def test_reading_paused_and_resumed_at_once_does_not_multiply_the_turns(start: Start) -> None:
    class Toggling(Counting):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            self.transport.resume_reading()

    protocol, sock, sender = await start(Toggling)
    count = 10_000
    flood = b"".join(sender.seal(APPLICATION_DATA, b"x") for _ in range(count))
    sending = asyncio.create_task(asyncio.to_thread(sock.sendall, flood))
    while protocol.received < count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await sending
    assert max(protocol.by_turn.values()) <= 2 * 8 * 64


async def test_garbage_behind_good_bytes_ends_the_connection_though_reading_is_paused(start: Start) -> None:
    protocol, sock, sender = await start(Pausing)
    sock.sendall(sender.seal(APPLICATION_DATA, b"good") + plain(APPLICATION_DATA, bytes(32)))
    error = await protocol.lost
    assert protocol.received == 4
    assert isinstance(error, tls.Error)


async def test_answers_that_the_peer_does_not_read_do_not_fill_the_memory(start: Start) -> None:
    """Each requested key update is answered; one byte of data after each keeps it from being a flood."""
    protocol, sock, sender = await start()
    pairs = 5000
    records = b"".join(sender.seal(APPLICATION_DATA, b"x") + sender.key_update() for _ in range(pairs))
    size = protocol.transport.get_write_buffer_size
    while size() < MEBIBYTE // 2:  # over the high-water mark
        protocol.transport.write(bytes(MEBIBYTE))
    before = size()
    sending = asyncio.create_task(asyncio.to_thread(sock.sendall, records))
    while size() < before + 65536:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert size() < before + 65536 + 32768
    assert protocol.received < pairs

    def read() -> None:
        with contextlib.suppress(OSError):
            while sock.recv(65536):
                pass

    reading = asyncio.create_task(asyncio.to_thread(read))
    await sending
    while protocol.received < pairs:  # noqa: ASYNC110
        await asyncio.sleep(0)
    protocol.transport.abort()
    await reading


async def test_what_follows_close_notify_is_not_kept(start: Start) -> None:
    protocol, sock, sender = await start(HalfOpen)
    sock.sendall(sender.seal(ALERT, CLOSE_NOTIFY))
    await protocol.ended.wait()
    await asyncio.to_thread(sock.sendall, bytes(8 * MEBIBYTE))
    connection = protocol.transport.get_extra_info("tls_connection")
    assert lib.BIO_ctrl_pending(connection._rbio) < MEBIBYTE
    protocol.transport.abort()
