"""Hazard: a future's callback, or a backend, raises something other than an Exception. It must not end a thread of the
provider, which other futures, close() and the interpreter's exit wait for."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest
from rsa_keys import private_key

from gpu_provider import BatchingProvider, ProviderClosedError, ProviderConfig
from gpu_provider.testing import HeldBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider import Key

pytest_plugins = ["pytester"]

NUMBERS = private_key(2048).private_numbers()
N, D = NUMBERS.public_numbers.n, NUMBERS.d
NO_EXCEPTIONS = [SystemExit, KeyboardInterrupt, GeneratorExit, pytest.fail.Exception]


def raising(error: type[BaseException]) -> Callable[[object], None]:
    def callback(_: object) -> None:
        raise error

    return callback


def submit_held(provider: BatchingProvider, key: Key, count: int) -> list[Future[int]]:
    return [provider.submit(key, x) for x in range(count)]


@pytest.mark.parametrize("error", NO_EXCEPTIONS)
class TestCallbacks:
    def test_others_are_served(
        self,
        held_provider: BatchingProvider,
        held_backend: HeldBackend,
        error: type[BaseException],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        key = held_provider.load_key(private_key(2048))
        futures = submit_held(held_provider, key, 4)
        heard = threading.Event()
        for future in futures:
            future.add_done_callback(raising(error))
        futures[0].add_done_callback(lambda _: heard.set())
        held_backend.release_all()
        assert [future.result(timeout=30) for future in futures] == [pow(x, D, N) for x in range(4)]
        assert heard.wait(30)
        assert held_provider.private_op(key, 5) == pow(5, D, N)
        held_provider.close()
        assert f"raised {error.__name__} on a thread of the provider" in caplog.text

    async def test_who_awaits_the_same_future_is_told(
        self, held_provider: BatchingProvider, held_backend: HeldBackend, error: type[BaseException]
    ) -> None:
        future = held_provider.submit(held_provider.load_key(private_key(2048)), 2)
        future.add_done_callback(raising(error))
        awaited = asyncio.wrap_future(future)
        held_backend.release_all()
        assert await asyncio.wait_for(awaited, 30) == pow(2, D, N)

    def test_a_chain_of_futures(
        self, held_provider: BatchingProvider, held_backend: HeldBackend, error: type[BaseException]
    ) -> None:
        key = held_provider.load_key(private_key(2048))
        first, second = submit_held(held_provider, key, 2)
        end: Future[int] = Future()
        end.add_done_callback(raising(error))
        first.add_done_callback(lambda done: end.set_result(done.result()))
        held_backend.release_all()
        assert second.result(timeout=30) == 1
        assert end.result(timeout=30) == 0

    def test_those_that_are_told_of_the_close(self, held_backend: HeldBackend, error: type[BaseException]) -> None:
        config = ProviderConfig(queue_depth=1, max_delay=3600, backend_timeout=50)
        with BatchingProvider(config, backends=[held_backend]) as provider:
            key = provider.load_key(private_key(2048))
            in_the_queue = provider.submit(key, 2)
            held_backend.wait_for_batch()
            in_line = [provider._futures.submit(key, 3, wait_for_room=True) for _ in range(3)]
            for future in in_line:
                future.add_done_callback(raising(error))
            closing = threading.Thread(target=provider.close)
            closing.start()
            for future in in_line:
                assert isinstance(future.exception(timeout=30), ProviderClosedError)
            held_backend.release_all()
            closing.join(30)
            assert not closing.is_alive()
            assert in_the_queue.result(timeout=0) == pow(2, D, N)

    def test_in_the_applications_own_thread_it_goes_its_way(self, error: type[BaseException]) -> None:
        with BatchingProvider() as provider:
            future = provider.submit(provider.load_key(private_key(2048)), 2)
            future.result(timeout=30)
            with pytest.raises(error):
                future.add_done_callback(raising(error))


@pytest.mark.parametrize("error", NO_EXCEPTIONS)
def test_a_backend_that_raises_it_is_replaced(
    held_provider: BatchingProvider, held_backend: HeldBackend, error: type[BaseException]
) -> None:
    key = held_provider.load_key(private_key(2048))
    held_backend.fail_next(error("made to fail by a test"))
    held_backend.release_all()
    assert held_provider.private_op(key, 2) == pow(2, D, N)
    assert held_provider.modexp(2, 5, 7) == 4
    assert held_provider.stats().fallbacks == 1


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_backend_that_cannot_be_closed_holds_up_nobody(error: type[BaseException]) -> None:
    class Unclosable(HeldBackend):
        def close(self) -> None:
            raise error("made to fail by a test")

    backend = Unclosable()
    others = set(threading.enumerate())
    provider = BatchingProvider(ProviderConfig(backend_timeout=50), backends=[backend])
    provider.start()
    threads = set(threading.enumerate()) - others
    future = provider.submit(provider.load_key(private_key(2048)), 2)
    backend.release_all()
    provider.close()
    assert future.result(timeout=0) == pow(2, D, N)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_a_forgotten_provider_does_not_wait_for_a_callback_that_waits_for_us(held_backend: HeldBackend) -> None:
    """Whoever drops the last reference, or collects garbage, may hold a lock that a callback needs."""
    lock, called = threading.Lock(), threading.Event()
    provider = BatchingProvider(ProviderConfig(backend_timeout=50), backends=[held_backend])
    provider.start()

    def callback(_: Future[int]) -> None:
        with lock:
            called.set()

    provider.submit(provider.load_key(private_key(2048)), 2).add_done_callback(callback)
    with lock:
        held_backend.release_all()
        del provider
        gc.collect()
    assert called.wait(30)


def test_a_provider_may_be_used_inside_a_callback_of_another() -> None:
    results: Future[int] = Future()

    def compute(_: Future[int]) -> None:
        with BatchingProvider() as other:
            results.set_result(other.private_op(other.load_key(private_key(2048)), 3))

    with BatchingProvider() as provider:
        provider.submit(provider.load_key(private_key(2048)), 2).add_done_callback(compute)
        assert results.result(timeout=30) == pow(3, D, N)


def test_a_loop_that_is_closed_before_the_result_is_there(
    held_provider: BatchingProvider, held_backend: HeldBackend
) -> None:
    key = held_provider.load_key(private_key(2048))
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        asyncio.wrap_future(futures[0])
        asyncio.wrap_future(futures[1]).cancel()

    futures = submit_held(held_provider, key, 3)
    loop.run_until_complete(begin())
    loop.close()
    held_backend.release_all()
    assert futures[2].result(timeout=30) == pow(2, D, N)
    assert held_provider.private_op(key, 5) == pow(5, D, N)


def test_futures_cancelled_at_every_moment() -> None:
    expected = [pow(x, D, N) for x in (1, 3, 5, 7)]
    with BatchingProvider() as provider:
        key = provider.load_key(private_key(2048))
        for _ in range(200):
            futures = submit_held(provider, key, 8)
            for future in futures[::2]:
                future.cancel()
            assert [future.result(timeout=30) for future in futures[1::2]] == expected


def test_pytest_fail_in_a_callback_does_not_hang_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from cryptography.hazmat.primitives.asymmetric import rsa

        def test_it(held_provider, held_backend):
            key = held_provider.load_key(rsa.generate_private_key(65537, 2048))
            for x in range(4):
                held_provider.submit(key, x).add_done_callback(lambda future: pytest.fail("in a callback"))
            held_backend.release_all()
            held_provider.private_op(key, 2)
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=50).assert_outcomes(passed=1)


_EXIT = """
import atexit, signal, sys, threading
from cryptography.hazmat.primitives.asymmetric import rsa
from gpu_provider import BatchingProvider, ProviderConfig
provider = BatchingProvider(ProviderConfig(backend_timeout=3))
provider.start()
key = provider.load_key(rsa.generate_private_key(65537, 2048))
def leave(_):
    if threading.current_thread().name.startswith("gpu-provider"): sys.exit(3)
def submit():
    futures = [provider.submit(key, x) for x in range(200)]
    for future in futures: future.add_done_callback(leave)
    return futures
{ending}
"""


@pytest.mark.parametrize(
    "ending",
    [
        "futures = submit()",
        "futures = submit(); provider.close()",
        "threading.Thread(target=submit).start()",
        "threading.Thread(target=lambda: [submit() for _ in range(20)], daemon=True).start()",
        "threading.Thread(target=lambda: provider.modexp([3] * 100000, 5, 7), daemon=True).start()",
        "atexit.register(provider.close); submit()",
        "atexit.register(submit); submit()",
        "threading._register_atexit(provider.close); submit()",
        "submit()[0].add_done_callback(lambda _: provider.close())",
        "class Owner:\n  def __del__(self): submit(); provider.close()\nowner = Owner()\nowner.me = owner\ndel owner",
        "signal.signal(signal.SIGALRM, lambda *_: provider.close())\nsubmit()\nsignal.raise_signal(signal.SIGALRM)",
        "submit(); raise SystemExit(0)",
    ],
)
def test_the_interpreter_ends(ending: str) -> None:
    script = _EXIT.format(ending=ending)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert result.returncode == 0, result.stderr
