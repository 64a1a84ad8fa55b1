"""Hazard: the program forks after the provider has started. The child has none of its threads, and must not hang."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from typing import TYPE_CHECKING

import evp
import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from rsa_keys import private_der, private_key

from gpu_provider import BatchingProvider, ProviderClosedError, ProviderConfig
from gpu_provider.testing import HeldBackend, fill_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NUMBERS = private_key(2048).private_numbers()
N, D = NUMBERS.public_numbers.n, NUMBERS.d


@pytest.fixture
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider() as provider:
        yield provider


def in_child(check: Callable[[], object]) -> str:
    """Runs ``check`` in a forked child; returns "" or its traceback. A child that hangs is ended by an alarm."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            check()
            message = ""
        except BaseException:  # noqa: BLE001 (whatever it is, the parent must hear of it)
            message = traceback.format_exc()
        os.write(writing, message.encode()[-60000:])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        message = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return message if status == 0 else f"the child ended with status {status}"


def raises_closed(use: Callable[[], object]) -> None:
    with pytest.raises(ProviderClosedError, match="make and start a new BatchingProvider after the fork"):
        use()


def test_every_method_says_to_make_a_new_provider(provider: BatchingProvider) -> None:
    key = provider.load_key(private_key(2048))
    assert provider.library_context

    def check() -> None:
        raises_closed(lambda: provider.private_op(key, 2))
        raises_closed(lambda: provider.submit(key, 2))
        raises_closed(lambda: provider.modexp(2, 3, 5))
        raises_closed(lambda: key.sign(b"", PKCS1v15(), SHA256()))
        raises_closed(lambda: key.decrypt(bytes(256), PKCS1v15()))
        raises_closed(lambda: provider.sign_many(key, [b""], PKCS1v15(), SHA256()))
        raises_closed(lambda: provider.submit_decrypt_many(key, [bytes(256)], PKCS1v15()))
        raises_closed(lambda: provider.verify_many(key, [b""], [b""], PKCS1v15(), SHA256()))
        raises_closed(lambda: provider.load_key(private_key(2048)))
        raises_closed(lambda: provider.library_context)
        raises_closed(provider.start)
        raises_closed(provider.stats)
        key.close()

    assert in_child(check) == ""
    assert provider.private_op(key, 2) == pow(2, D, N)


def test_close_returns_at_once_in_the_child(provider: BatchingProvider) -> None:
    assert in_child(provider.close) == ""
    assert provider.private_op(provider.load_key(private_key(2048)), 2) == pow(2, D, N)


def test_leaving_the_with_block_in_the_child(provider: BatchingProvider) -> None:
    assert in_child(lambda: provider.__exit__(None, None, None)) == ""


@pytest.mark.gpu_provider(queue_depth=4)
def test_openssl_in_the_child_computes_at_once(held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
    """With the parent's library context and keys, while the parent's queue is full and its backend holds a batch."""
    library_key = held_provider.load_key(private_key(2048))
    key = evp.Key.load(held_provider.library_context.pointer, private_der(private_key(2048)))
    futures = fill_queue(held_provider, library_key)
    held_backend.wait_for_batch()

    def check() -> None:
        for _ in range(3):
            signature = key.digest_sign("SHA256", b"from the child", {})
            private_key(2048).public_key().verify(signature, b"from the child", PKCS1v15(), SHA256())

    assert in_child(check) == ""
    held_backend.release_all()
    assert futures[-1].result(timeout=30) == pow(2, D, N)
    signature = key.digest_sign("SHA256", b"from the parent", {})
    private_key(2048).public_key().verify(signature, b"from the parent", PKCS1v15(), SHA256())
    assert held_provider.stats().direct == 0


def new_provider_works() -> None:
    with BatchingProvider(ProviderConfig(threads=1)) as provider:
        assert provider.private_op(provider.load_key(private_key(2048)), 3) == pow(3, D, N)
        assert provider.library_context.pointer


def test_a_new_provider_in_the_child_works(provider: BatchingProvider) -> None:
    assert provider.private_op(provider.load_key(private_key(2048)), 2) == pow(2, D, N)
    assert in_child(new_provider_works) == ""


@pytest.mark.gpu_provider(queue_depth=100)
def test_a_fork_while_requests_wait_and_run(held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
    futures = fill_queue(held_provider, held_provider.load_key(private_key(2048)))
    held_backend.wait_for_batch()
    assert in_child(new_provider_works) == ""
    assert in_child(held_provider.close) == ""
    held_backend.release_all()
    assert {future.result(timeout=30) for future in futures} == {pow(2, D, N)}


def test_forks_under_load_from_another_thread(provider: BatchingProvider) -> None:
    """The child waits for no lock, whichever thread holds it at the moment of the fork."""
    key = provider.load_key(private_key(2048))

    def check() -> None:
        raises_closed(lambda: provider.private_op(key, 2))
        provider.close()
        new_provider_works()

    for _ in range(5):
        futures = [provider.submit(key, 2) for _ in range(40)]
        assert in_child(check) == ""
        assert {future.result(timeout=30) for future in futures} == {pow(2, D, N)}


def _child_of_multiprocessing(provider: BatchingProvider) -> None:
    with pytest.raises(ProviderClosedError):
        provider.modexp(2, 3, 5)
    new_provider_works()


def test_multiprocessing_children_end_cleanly(provider: BatchingProvider) -> None:
    """Their exit handlers run, unlike os._exit()."""
    process = multiprocessing.get_context("fork").Process(target=_child_of_multiprocessing, args=(provider,))
    process.start()
    process.join(40)
    assert process.exitcode == 0


def test_a_provider_made_before_the_fork_cannot_be_started_after_it() -> None:
    provider = BatchingProvider()
    assert in_child(lambda: raises_closed(provider.start)) == ""
    provider.close()
