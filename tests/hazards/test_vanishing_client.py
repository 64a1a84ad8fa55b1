"""Clients that vanish while their request is in flight must leave no memory and no descriptors behind."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from typing import TYPE_CHECKING

import pytest
from tls_peers import Peer, accept, client_ssl_context, finish, server_context, unverifying_client_context

from gpu_provider import tls
from gpu_provider.tls import aio

if TYPE_CHECKING:
    from gpu_provider import BatchingProvider
    from gpu_provider.testing import HeldBackend

ROUNDS = 4
CLIENTS = 500  # in each round: 2,000 in all
LIMIT = 4 << 20


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Bytes in use, after free memory has been returned to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_flat(memory: list[int], open_files: list[int]) -> None:
    """The first round fills caches; after it nothing may grow. A leaked job alone would be 33 KiB for each client."""
    assert open_files[1:] == open_files[:1] * (len(open_files) - 1)
    assert memory[-1] - memory[0] < LIMIT, memory


@pytest.mark.gpu_provider(queue_depth=CLIENTS)
async def test_two_thousand_vanish_from_an_event_loop(
    held_backend: HeldBackend, held_provider: BatchingProvider
) -> None:
    made: list[asyncio.BaseProtocol] = []

    def factory() -> asyncio.Protocol:
        made.append(asyncio.Protocol())
        return made[-1]  # type: ignore[return-value]

    server = await aio.create_server(factory, "127.0.0.1", 0, context=server_context(held_provider), backlog=CLIENTS)
    port = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    notifier = tls.LoopNotifier.of(asyncio.get_running_loop())
    hello = client_hello()
    memory, open_files = [], []
    for number in range(1, ROUNDS + 1):
        held_backend.hold()
        writers = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(CLIENTS)]
        for writer in writers:
            writer.write(hello)
        while held_provider.stats().submitted < number * CLIENTS:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for writer in writers:
            writer.transport.abort()
        while any(isinstance(one, tls.Connection) for one in notifier.waiting.values()):  # noqa: ASYNC110
            await asyncio.sleep(0)  # until the server has noticed all of them
        held_backend.release_all()
        while notifier.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)
        memory.append(resident())
        open_files.append(descriptors())
    check_flat(memory, open_files)
    assert made == []
    assert held_provider.stats().in_use == 0
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_ssl_context(), server_hostname="localhost")
    writer.close()
    server.close()


@pytest.mark.gpu_provider(queue_depth=CLIENTS)
@pytest.mark.parametrize("callback", [None, lambda connection, arg: None], ids=["wait descriptor", "callback"])
def test_two_thousand_vanish_from_a_program_of_its_own(
    held_backend: HeldBackend, held_provider: BatchingProvider, callback: tls.AsyncCallback | None
) -> None:
    context = server_context(held_provider)
    context.set_async_callback(callback)
    memory, open_files = [], []
    hello = client_hello()
    for number in range(1, ROUNDS + 1):
        held_backend.hold()
        connections = [accept(context) for _ in range(CLIENTS)]
        for connection in connections:
            connection.bio_write(hello)
            with pytest.raises(tls.WantAsyncError):
                connection.do_handshake()
        for connection in connections:
            connection.close()
        assert tls.drain_closed_connections() == CLIENTS
        held_backend.release_all()
        while tls.drain_closed_connections():
            pass
        assert held_provider.stats().completed == number * CLIENTS
        connections.clear()
        memory.append(resident())
        open_files.append(descriptors())
    check_flat(memory, open_files)
    connection = accept(server_context(held_provider))
    finish(connection, Peer(connection))


def client_hello() -> bytes:
    client = tls.Connection(unverifying_client_context())
    client.set_connect_state()
    with pytest.raises(tls.WantReadError):
        client.do_handshake()
    return client.bio_read(65536)
