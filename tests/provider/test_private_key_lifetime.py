"""A private key that nothing uses any more must leave the process's memory at once, not at a garbage collection."""

from __future__ import annotations

import gc
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rsa_keys import private_key
from terminator_process import TIMEOUT, Terminator, Upstream, client_context, echo, echo_terminator, write_credentials
from tls_peers import Peer, accept, client_ssl_context, finish, pause, server_context

from gpu_provider import BatchingProvider, tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpu_provider.testing import HeldBackend

KEYS = "gpu_provider_keys"


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider() as running:
        yield running


def keys(provider: BatchingProvider) -> float:
    values = (
        provider.registry.get_sample_value(KEYS, {"prepared": prepared}) for prepared in ("locked", "unlocked", "no")
    )
    return sum(value or 0 for value in values)


def wait_for_keys(provider: BatchingProvider, count: int) -> None:
    """The batching thread may hold a key for a moment after its last result was delivered."""
    deadline = time.monotonic() + TIMEOUT
    while (current := keys(provider)) != count:
        assert time.monotonic() < deadline, f"{current} keys, not {count}"


def used(provider: BatchingProvider, name: str = "localhost") -> tls.Context:
    """A context whose key is in the provider: it is imported at its first use."""
    context = server_context(provider, name=name)
    connection = accept(context)
    finish(connection, Peer(connection, name=name))
    return context


def plain(provider: BatchingProvider) -> object:
    return used(provider)


def named_by_itself(provider: BatchingProvider) -> object:
    context = used(provider)
    context.set_sni_contexts({"localhost": context})
    return context


def naming_each_other(provider: BatchingProvider) -> object:
    first, second = used(provider), used(provider, name="www.one.example")
    first.set_sni_contexts({"www.one.example": second, "localhost": first})
    second.set_sni_contexts({"localhost": first})
    return first, second


def with_every_callback(provider: BatchingProvider) -> object:
    context = used(provider)
    context.set_async_callback(lambda connection, arg: None)
    context.set_async_callback_arg(object())
    context.set_alpn_server_protos([b"h2"])
    context.set_verify(tls.VERIFY_PEER)
    return context


def with_a_replaced_table(provider: BatchingProvider) -> object:
    context = used(provider)
    for _ in range(3):
        context.set_sni_contexts({"www.one.example": used(provider, name="www.one.example")})
    wait_for_keys(provider, 2)
    return context


def with_a_finished_connection(provider: BatchingProvider) -> object:
    context = used(provider)
    context.set_sni_contexts({"localhost": used(provider)})
    connection = accept(context)
    finish(connection, Peer(connection))
    return connection


def with_a_failed_handshake(provider: BatchingProvider) -> object:
    connection = accept(used(provider))
    connection.bio_write(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(tls.Error):
        connection.do_handshake()
    return connection


def loaded_for_the_library(provider: BatchingProvider) -> object:
    return provider.load_key(private_key(2048))


@pytest.mark.parametrize(
    "make",
    [
        plain,
        named_by_itself,
        naming_each_other,
        with_every_callback,
        with_a_replaced_table,
        with_a_finished_connection,
        with_a_failed_handshake,
        loaded_for_the_library,
    ],
)
def test_last_reference_frees_the_keys(provider: BatchingProvider, make: Callable[[BatchingProvider], object]) -> None:
    held = make(provider)
    assert keys(provider) > 0
    del held
    wait_for_keys(provider, 0)


def test_connection_keeps_the_names_it_was_made_with(provider: BatchingProvider) -> None:
    """Also those of contexts that nobody else refers to, and only until it has ended itself."""
    context = used(provider)
    context.set_sni_contexts({"www.one.example": used(provider, name="www.one.example")})
    earlier = accept(context)
    context.set_sni_contexts({"www.one.example": context})
    client = client_ssl_context()
    peer = Peer(earlier, client, name="www.one.example")
    finish(earlier, peer)
    wait_for_keys(provider, 2)
    del earlier, peer
    wait_for_keys(provider, 1)


def test_context_named_by_another_may_go_first(provider: BatchingProvider) -> None:
    """The second ClientHello after a HelloRetryRequest asks the chosen SSL_CTX, whose own names are gone by then."""
    context, named = server_context(provider), server_context(provider, name="www.one.example")
    named.set_sni_contexts({"www.one.example": named, "localhost": context})
    context.set_sni_contexts({"www.one.example": named})
    context.set_groups("P-384")
    named.set_groups("P-384")
    del named
    unrestricted = client_ssl_context()  # offers X25519 first, and P-384 only when it is asked to
    connection = accept(context)
    peer = Peer(connection, unrestricted, name="www.one.example")
    finish(connection, peer)
    certificate = peer.ssl.getpeercert()
    assert certificate is not None
    assert certificate["subjectAltName"] == (("DNS", "www.one.example"),)


def test_connection_closed_in_flight_frees_its_key_when_its_batch_is_done(
    held_provider: BatchingProvider, held_backend: HeldBackend
) -> None:
    connection, peer = pause(server_context(held_provider))
    connection.close()
    del connection, peer
    wait_for_keys(held_provider, 1)
    held_backend.release_all()
    while tls.drain_closed_connections():
        pass
    wait_for_keys(held_provider, 0)


def test_closed_provider_leaves_no_key_behind() -> None:
    for _ in range(5):
        with BatchingProvider() as provider:
            context = used(provider)
            key = provider.load_key(private_key(2048))
            wait_for_keys(provider, 2)
            del context, key
            wait_for_keys(provider, 0)


# ---- the terminator ----


def reload(terminator: Terminator, count: int) -> None:
    terminator.process.send_signal(signal.SIGHUP)
    terminator.wait_for("certificates reloaded", count)


def test_reloads_let_go_of_the_replaced_keys(tmp_path: Path) -> None:
    with echo_terminator(tmp_path) as terminator:
        with terminator.connect() as earlier:
            for number in range(1, 6):
                reload(terminator, number)
                assert terminator.echo() == b"are you there?"
            terminator.wait_for_metric(KEYS, 2)
            earlier.sendall(b"x")
            assert earlier.recv(1) == b"x"
        terminator.wait_for_metric(KEYS, 1)


def test_failed_reload_keeps_nothing_of_what_it_had_read(tmp_path: Path) -> None:
    flags = [*write_credentials(tmp_path), *write_credentials(tmp_path, "other.example", stem="other")]
    with Upstream(echo) as upstream, Terminator(*flags, upstream=upstream.address) as terminator:
        (tmp_path / "other.key").write_text("not a key")
        for number in range(1, 4):
            terminator.process.send_signal(signal.SIGHUP)
            terminator.wait_for("certificates not reloaded, the old ones stay in use", number)
        assert terminator.echo() == b"are you there?"
        terminator.wait_for_metric(KEYS, 1)


def test_connections_that_ended_in_every_way_let_go_of_the_keys(tmp_path: Path) -> None:
    with echo_terminator(tmp_path) as terminator:
        properly = terminator.library_client()
        properly.shutdown()
        properly.close()
        terminator.connect().close()
        with terminator.dial() as garbage:
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with terminator.dial() as silent:
            silent.shutdown(socket.SHUT_WR)
        terminator.wait_for_metric("gpu_provider_terminator_open_connections", 0)
        terminator.wait_for_metric(KEYS, 1)
        reload(terminator, 1)
        terminator.wait_for_metric(KEYS, 0)  # the new one is imported at its first use


def test_200_reloads_leave_the_memory_flat(tmp_path: Path) -> None:
    def resident() -> int:
        status = Path(f"/proc/{terminator.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    context = client_context()
    with echo_terminator(tmp_path) as terminator:
        for number in range(1, 201):
            reload(terminator, number)
            assert terminator.echo(context=context) == b"are you there?"
            if number == 50:  # what is allocated once and kept has been allocated by now
                before = resident()
        assert resident() - before < 2048, "KiB"
        terminator.wait_for_metric(KEYS, 1)
