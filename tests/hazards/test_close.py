"""Hazards of closing: under load, twice, from a callback, with a backend that hangs; and exit without closing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait

import evp
import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from paths import SUPPORT
from rsa_keys import private_der, private_key

from gpu_provider import BatchingProvider, GpuProviderError, Key, ProviderClosedError, ProviderConfig
from gpu_provider.testing import HeldBackend, fill_queue

NUMBERS = private_key(2048).private_numbers()
N, D = NUMBERS.public_numbers.n, NUMBERS.d


def test_everything_submitted_is_completed() -> None:
    provider = BatchingProvider()
    provider.start()
    key = provider.load_key(private_key(2048))
    futures = [provider.submit(key, x) for x in range(50)]
    provider.close()
    results = [future.result(timeout=0) for future in futures]
    assert [pow(result, key.e, N) for result in results if isinstance(result, int)] == list(range(50))


def test_closing_twice_and_at_once_from_two_threads() -> None:
    with BatchingProvider() as provider:
        with ThreadPoolExecutor(2) as pool:
            wait([pool.submit(provider.close) for _ in range(2)])
        provider.close()


def test_afterwards_everything_says_closed() -> None:
    with BatchingProvider() as provider:
        key = provider.load_key(private_key(2048))
    for use in (
        lambda: provider.private_op(key, 2),
        lambda: provider.submit(key, 2),
        lambda: provider.modexp(2, 3, 5),
        provider.start,
    ):
        with pytest.raises(ProviderClosedError, match="closed"):
            use()
    assert provider.stats().in_use == 0


def test_who_waits_in_line_is_told(held_backend: HeldBackend) -> None:
    config = ProviderConfig(queue_depth=2, max_delay=3600, backend_timeout=50)
    provider = BatchingProvider(config, backends=[held_backend])
    provider.start()
    key = provider.load_key(private_key(2048))
    futures = fill_queue(provider, key)
    held_backend.wait_for_batch()
    with ThreadPoolExecutor(2) as pool:
        in_line = pool.submit(provider.private_op, key, 3)
        while provider.stats().in_line == 0:
            threading.Event().wait(0.001)
        closing = pool.submit(provider.close)
        with pytest.raises(ProviderClosedError, match="before the request could be computed"):
            in_line.result(timeout=10)
        assert not closing.done()
        held_backend.release_all()
        closing.result(timeout=10)
    assert [future.result(timeout=0) for future in futures] == [pow(2, D, N)] * 2


@pytest.mark.gpu_provider(queue_depth=2)
def test_openssl_threads_in_line_compute_for_themselves(
    held_provider: BatchingProvider, held_backend: HeldBackend
) -> None:
    key = evp.Key.load(held_provider.library_context.pointer, private_der(private_key(2048)))
    with ThreadPoolExecutor(6) as pool:
        signatures = [pool.submit(key.digest_sign, "SHA256", b"message", {}) for _ in range(5)]
        while held_provider.stats().in_line < 3:
            threading.Event().wait(0.001)
        closing = pool.submit(held_provider.close)
        while held_provider.stats().direct < 3:
            threading.Event().wait(0.001)
        assert not closing.done()
        held_backend.release_all()
        for signature in signatures:
            private_key(2048).public_key().verify(signature.result(timeout=30), b"message", PKCS1v15(), SHA256())
        closing.result(timeout=30)
    assert key.digest_sign("SHA256", b"message", {}) == signatures[0].result()
    assert held_provider.stats().direct == 4


def test_a_hung_backend_does_not_keep_it_open() -> None:
    backend = HeldBackend()
    provider = BatchingProvider(ProviderConfig(backend_timeout=0.2), backends=[backend])
    provider.start()
    future = provider.submit(provider.load_key(private_key(2048)), 2)
    backend.wait_for_batch()
    provider.close()
    assert future.result(timeout=0) == pow(2, D, N)
    backend.release_all()


def test_close_in_a_callback_of_a_future_returns(held_backend: HeldBackend) -> None:
    provider = BatchingProvider(ProviderConfig(backend_timeout=50), backends=[held_backend])
    provider.start()
    closed = threading.Event()

    def close(_: Future[int | bytes]) -> None:
        provider.close()
        closed.set()

    provider.submit(provider.load_key(private_key(2048)), 2).add_done_callback(close)
    held_backend.release_all()
    assert closed.wait(30)
    provider.close()


@pytest.mark.parametrize("wait_for_itself", ["private_op", "modexp"])
def test_a_callback_that_would_wait_for_itself_is_told(wait_for_itself: str, held_backend: HeldBackend) -> None:
    told: Future[str] = Future()
    with BatchingProvider(ProviderConfig(backend_timeout=50), backends=[held_backend]) as provider:
        key = provider.load_key(private_key(2048))

        def callback(_: Future[int | bytes]) -> None:
            try:
                provider.private_op(key, 3) if wait_for_itself == "private_op" else provider.modexp(2, 3, 5)
            except GpuProviderError as error:
                told.set_result(str(error))

        provider.submit(key, 2).add_done_callback(callback)  # before the result is there, so that a worker runs it
        held_backend.release_all()
        assert "use submit()" in told.result(timeout=30)


def test_a_callback_that_raises_harms_nobody() -> None:
    def fail(_: Future[int | bytes]) -> None:
        raise ValueError("in a callback")

    with BatchingProvider() as provider:
        key = provider.load_key(private_key(2048))
        provider.submit(key, 2).add_done_callback(fail)
        assert provider.private_op(key, 3) == pow(3, D, N)


def test_threads_that_submit_while_it_closes_get_a_result_or_are_told() -> None:
    def work(provider: BatchingProvider, key: Key, begun: threading.Barrier) -> None:
        begun.wait()
        while True:
            assert provider.private_op(key, 2) == pow(2, D, N)

    for _ in range(5):
        provider, begun = BatchingProvider(ProviderConfig(queue_depth=4)), threading.Barrier(5)
        provider.start()
        key = provider.load_key(private_key(2048))
        with ThreadPoolExecutor(4) as pool:
            workers = [pool.submit(work, provider, key, begun) for _ in range(4)]
            begun.wait()
            provider.close()
            for worker in workers:
                with pytest.raises(ProviderClosedError):
                    worker.result(timeout=30)


@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)", "del provider, key, future"])
def test_a_program_that_forgets_to_close_ends(ending: str) -> None:
    script = f"""
from cryptography.hazmat.primitives.asymmetric import rsa
from gpu_provider import BatchingProvider
provider = BatchingProvider()
provider.start()
key = provider.load_key(rsa.generate_private_key(65537, 2048))
future = provider.submit(key, 2)
{ending}
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_program_whose_backend_hangs_for_ever_ends() -> None:
    script = """
from cryptography.hazmat.primitives.asymmetric import rsa
from gpu_provider import BatchingProvider, ProviderConfig
from gpu_provider.testing import HeldBackend
provider = BatchingProvider(ProviderConfig(backend_timeout=0.2), backends=[HeldBackend()])
provider.start()
future = provider.submit(provider.load_key(rsa.generate_private_key(65537, 2048)), 2)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert result.returncode == 0
    assert "Traceback" not in result.stderr


_CONTEXTS_OUTLIVED = """
import gc, threading
from tls_peers import Peer, accept, finish, server_context
from gpu_provider import BatchingProvider, ProviderConfig

def handshake(context):
    connection = accept(context)
    finish(connection, Peer(connection))
    connection.close()

def work():
    handshake(contexts[0])
    used.set()
    gone.wait()

used, gone, contexts = threading.Event(), threading.Event(), []
worker = threading.Thread(target=work)
with BatchingProvider(ProviderConfig()) as provider:
    contexts.append(server_context(provider))
    handshake(contexts[0])
    worker.start()
    used.wait()
dropping = threading.Thread(target=contexts.clear)
dropping.start()
dropping.join()
del provider
gc.collect()
gone.set()
worker.join()
with BatchingProvider(ProviderConfig()) as provider:
    handshake(server_context(provider))
    assert provider.stats().completed == 1
print("ended")
"""


def test_threads_outlive_the_library_context_that_they_used() -> None:
    """OpenSSL looks at the context when such a thread ends, and at exit: if it were freed the process would crash."""
    result = subprocess.run(
        [sys.executable, "-c", _CONTEXTS_OUTLIVED],
        env={**os.environ, "PYTHONPATH": str(SUPPORT), "MALLOC_PERTURB_": "165"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "ended\n"), result.stderr
