"""Hazard: the queue is full. RETRY without waiting, first in first out with; nobody starves or is forgotten."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from rsa_keys import private_key

from gpu_provider import BatchingProvider, ProviderConfig, QueueFullError
from gpu_provider.testing import HeldBackend, fill_queue

NUMBERS = private_key(2048).private_numbers()
N, D = NUMBERS.public_numbers.n, NUMBERS.d


@pytest.mark.gpu_provider(queue_depth=1)
def test_submit_says_so_at_once(held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
    key = held_provider.load_key(private_key(2048))
    (future,) = fill_queue(held_provider, key)
    with pytest.raises(QueueFullError):
        held_provider.submit(key, 3)
    stats = held_provider.stats()
    assert (stats.in_use, stats.in_line, stats.retries) == (1, 0, 2)
    held_backend.release_all()
    assert future.result(timeout=10) == pow(2, D, N)
    assert held_provider.submit(key, 3).result(timeout=10) == pow(3, D, N)


@pytest.mark.gpu_provider(queue_depth=1)
async def test_awaiting_callers_are_served_first_in_first_out(
    held_provider: BatchingProvider, held_backend: HeldBackend
) -> None:
    key = held_provider.load_key(private_key(2048))
    fill_queue(held_provider, key)
    order: list[int] = []

    async def operate(x: int) -> None:
        assert await held_provider.private_op_async(key, x) == pow(x, D, N)
        order.append(x)

    tasks = []
    for x in range(30):
        tasks.append(asyncio.ensure_future(operate(x)))
        await asyncio.sleep(0)  # one step of the loop: the task has joined the wait queue
    assert held_provider.stats().in_line == 30
    held_backend.release_all()
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    assert order == list(range(30))


@pytest.mark.gpu_provider(queue_depth=1)
def test_blocking_callers_are_served_first_in_first_out(
    held_provider: BatchingProvider, held_backend: HeldBackend
) -> None:
    key = held_provider.load_key(private_key(2048))
    fill_queue(held_provider, key)
    held_backend.wait_for_batch()
    with ThreadPoolExecutor(12) as pool:
        futures = []
        for x in range(12):
            futures.append(pool.submit(held_provider.private_op, key, x))
            while held_provider.stats().in_line <= x:
                threading.Event().wait(0.001)  # until it has joined the wait queue
        held_backend.release()
        for x, future in enumerate(futures):
            held_backend.wait_for_batch()
            assert not future.done()
            held_backend.release()
            assert future.result(timeout=10) == pow(x, D, N)


@pytest.mark.gpu_provider(queue_depth=1)
def test_a_newcomer_does_not_overtake_the_line(held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
    key = held_provider.load_key(private_key(2048))
    fill_queue(held_provider, key)
    held_backend.wait_for_batch()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(held_provider.private_op, key, 3)
        while held_provider.stats().in_line == 0:
            threading.Event().wait(0.001)
        held_backend.release()
        held_backend.wait_for_batch()
        with pytest.raises(QueueFullError):
            held_provider.submit(key, 4)
        held_backend.release_all()
        assert waiting.result(timeout=10) == pow(3, D, N)


def test_depth_one_serves_two_hundred_threads_and_tasks() -> None:
    async def tasks(provider: BatchingProvider) -> list[int]:
        key = provider.load_key(private_key(2048))
        return await asyncio.gather(*(provider.private_op_async(key, x) for x in range(100)))

    with BatchingProvider(ProviderConfig(queue_depth=1)) as provider, ThreadPoolExecutor(20) as pool:
        key = provider.load_key(private_key(2048))
        threads = [pool.submit(provider.private_op, key, x) for x in range(100)]
        results = [*asyncio.run(tasks(provider)), *(future.result(timeout=30) for future in threads)]
        assert [pow(result, key.e, N) for result in results] == [*range(100), *range(100)]
        stats = provider.stats()
    assert (stats.completed, stats.in_use, stats.in_line, stats.largest_batch) == (200, 0, 0, 1)


async def test_who_gives_up_in_line_blocks_nobody() -> None:
    backend = HeldBackend()
    config = ProviderConfig(queue_depth=1, max_delay=3600, backend_timeout=50)
    with BatchingProvider(config, backends=[backend]) as provider:
        key = provider.load_key(private_key(2048))
        fill_queue(provider, key)
        quitter = asyncio.ensure_future(provider.private_op_async(key, 3))
        stayer = asyncio.ensure_future(provider.private_op_async(key, 4))
        await asyncio.sleep(0)
        quitter.cancel()
        backend.release_all()
        assert await asyncio.wait_for(stayer, 30) == pow(4, D, N)
        with pytest.raises(asyncio.CancelledError):
            await quitter
