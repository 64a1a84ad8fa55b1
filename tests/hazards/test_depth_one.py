"""A queue with one slot: every other handshake gets RETRY, and all must succeed."""

import asyncio
import ssl

import pytest
from terminator_process import TIMEOUT, client_context, echo_terminator

CLIENTS = 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_200_handshakes_at_a_time_through_a_queue_of_depth_one(tmp_path, version):
    context = client_context(version)

    async def one(address):
        reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname="localhost")
        writer.write(b"through")
        assert await reader.readexactly(7) == b"through"
        writer.close()
        await writer.wait_closed()

    async def every(address):
        async with asyncio.timeout(2 * TIMEOUT):
            await asyncio.gather(*(one(address) for _ in range(CLIENTS)))

    with echo_terminator(tmp_path, "--queue-depth", "1") as terminator:
        asyncio.run(every(terminator.address))
        assert terminator.metric("gpu_provider_terminator_handshakes_total", result="ok") == CLIENTS
        assert terminator.metric("gpu_provider_requests_total", result="ok") == CLIENTS
        assert terminator.metric("gpu_provider_retries_total") > 0
        terminator.wait_for_metric("gpu_provider_queue_in_use", 0)
        assert terminator.metric("gpu_provider_queue_in_line") == 0
        assert terminator.echo() == b"are you there?"
