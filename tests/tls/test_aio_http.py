"""aiohttp's server over our TLS, with aiohttp's client over Python's ssl: a real HTTP library on both sides."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from tls_peers import client_ssl_context, server_context

from gpu_provider.tls import aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gpu_provider import BatchingProvider
    from gpu_provider.testing import HeldBackend

BODY = os.urandom(3 << 20)


async def handle(request: web.BaseRequest) -> web.StreamResponse:
    if request.path == "/digest":
        return web.Response(text=hashlib.sha256(await request.read()).hexdigest())
    if request.path == "/body":
        return web.Response(body=BODY)
    if request.path == "/stream":
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(65536))
    return web.Response(text=f"{request.scheme} {request.remote}")


@pytest.fixture
async def url(held_backend: HeldBackend, held_provider: BatchingProvider) -> AsyncIterator[str]:
    held_backend.release_all()
    site = web.Server(handle)
    server = await aio.create_server(site, "127.0.0.1", 0, context=server_context(held_provider))
    yield f"https://localhost:{server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    server.close()
    await site.shutdown()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=client_ssl_context(), limit=0, resolver=aiohttp.ThreadedResolver())
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


async def test_concurrent_clients_get_their_pages(
    url: str, session: aiohttp.ClientSession, held_provider: BatchingProvider
) -> None:
    async def get() -> str:
        async with session.get(url) as response:
            return await response.text()

    assert set(await asyncio.gather(*(get() for _ in range(40)))) == {"https 127.0.0.1"}
    assert held_provider.stats().completed == 40


async def test_one_kept_alive_connection_serves_many_requests(
    url: str, session: aiohttp.ClientSession, held_provider: BatchingProvider
) -> None:
    for _ in range(20):
        async with session.get(url) as response:
            assert response.status == 200
            await response.read()
    assert held_provider.stats().completed == 1


async def test_large_bodies_arrive_whole_both_ways(url: str, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{url}/digest", data=BODY[: 1 << 20]) as response:
        assert await response.text() == hashlib.sha256(BODY[: 1 << 20]).hexdigest()
    async with session.get(f"{url}/body") as response:
        assert await response.read() == BODY


async def test_static_files_arrive_whole(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """aiohttp sends them with the event loop's sendfile."""
    (tmp_path / "body").write_bytes(BODY)
    app = web.Application()
    app.router.add_static("/", tmp_path)
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None
    server = await aio.create_server(runner.server, "127.0.0.1", 0, context=server_context())
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/body"
    for headers, part in ({}, slice(None)), ({"Range": "bytes=1-2000000"}, slice(1, 2000001)):
        async with session.get(url, headers=headers) as response:
            assert await response.read() == BODY[part]
    server.close()
    await runner.cleanup()


async def test_clients_that_abort_in_the_middle_leave_the_server_well(url: str, session: aiohttp.ClientSession) -> None:
    for _ in range(10):
        response = await session.get(f"{url}/stream")
        await response.content.readexactly(100_000)
        response.close()
    async with session.get(url) as response:
        assert response.status == 200
