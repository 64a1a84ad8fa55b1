"""Debian's HAProxy, unmodified, with the provider module alone: its handshakes pause, and are computed in groups."""

from __future__ import annotations

import os
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from groups import (
    Client,
    abort_many,
    get_many,
    get_together,
    public_directory,
    wait_until,
)
from program_servers import HAProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groups import Directory

OK = b"HTTP/1.1 200 OK"
TLS_1_2 = ssl.TLSVersion.TLSv1_2
TLS_1_2_CIPHERS = ["ECDHE-RSA-AES128-GCM-SHA256", "AES128-GCM-SHA256"]


@pytest.fixture
def directory() -> Iterator[Directory]:
    with public_directory() as directory:
        yield directory


@pytest.mark.parametrize("threads", [1, 2])
def test_handshakes_are_computed_in_groups(directory: Directory, threads: int) -> None:
    """Each client verifies the signature. Connections that come together must find each other, in every thread."""
    with HAProxy(directory, settings=f"nbthread {threads}", bits=(3072,)) as server:
        served = until_in_groups(server, Client(3072), 100)
        counts = directory.counts(3072)
        assert counts.operations == served
        assert 2 * counts.groups <= counts.grouped <= 8 * counts.groups
        assert counts.waits > 0


def until_in_groups(server: HAProxy, client: Client, count: int) -> int:
    """Has as many connections as that opened at once, and again if none of them met another's; how many there were."""
    for attempt in range(1, 6):
        assert get_together(server, [client] * count) == {OK: count}
        if server.directory.counts(client.bits).groups > 0:
            return attempt * count
    pytest.fail(f"{server.directory.counts(client.bits)}")


def test_versions_and_key_sizes_are_mixed(directory: Directory) -> None:
    """The server name chooses the certificate. The last of these ciphers has the server decrypt with its key, in the
    connection's second turn."""
    versions = [(ssl.TLSVersion.TLSv1_3, None), *((TLS_1_2, cipher) for cipher in TLS_1_2_CIPHERS)]
    sizes = {2048: 180, 3072: 60, 4096: 30}
    kinds = [Client(bits, *versions[i % 3]) for bits, count in sizes.items() for i in range(count)]
    with HAProxy(directory, bits=tuple(sizes)) as server:
        assert get_together(server, kinds) == {OK: len(kinds)}
        assert {bits: directory.counts(bits).operations for bits in sizes} == sizes


@pytest.mark.parametrize("threads", [1, 2])
def test_clients_that_leave_take_nothing_with_them(directory: Directory, threads: int) -> None:
    """A connection may be freed while its operation waits, while it is computed, and when it was to compute for
    others, which are served all the same. What belonged to it is freed."""
    with HAProxy(directory, settings=f"nbthread {threads}", bits=(3072,)) as server:
        until_in_groups(server, Client(3072), 100)
        descriptors, memory = server.descriptors(), server.resident_kib()
        for _ in range(3):
            leaving = threading.Thread(target=abort_many, args=(server.port, Client(3072), 60))
            leaving.start()
            try:
                assert get_many(server.port, [Client(3072)] * 30) == {OK: 30}
            finally:
                leaving.join()
            wait_until(lambda: server.descriptors() <= descriptors + 4, "descriptors are left open")
        assert server.resident_kib() < memory + 8 * 1024


def test_all_clients_leave_at_once(directory: Directory) -> None:
    """Then nobody is there to compute what waits, until others come."""
    with HAProxy(directory, bits=(3072,)) as server:
        until_in_groups(server, Client(3072), 100)
        for _ in range(3):
            abort_many(server.port, Client(3072), 60)
        assert get_together(server, [Client(3072)] * 30) == {OK: 30}


def test_a_server_gives_up_its_rights_and_its_files(directory: Directory) -> None:
    """Nothing may be loaded or started after that."""
    if os.geteuid() != 0:
        pytest.skip("only root may change its user")
    (directory.path / "empty").mkdir()
    settings = f"nbthread 2\n    user nobody\n    chroot {directory.path}/empty"
    with HAProxy(directory, settings=settings, bits=(3072,)) as server:
        until_in_groups(server, Client(3072), 100)


@pytest.mark.parametrize("threads", [1, 2])
def test_reloads_lose_no_handshake(directory: Directory, threads: int) -> None:
    """The former worker ends once its connections have, those that wait for their operation as well."""
    with HAProxy(directory, "-W", settings=f"nbthread {threads}") as server:
        server.reload()
        with ThreadPoolExecutor(1) as thread:
            clients = thread.submit(get_many, server.port, [Client()] * 400)
            reloads = 0
            while not clients.done():
                server.reload()
                reloads += 1
            assert clients.result() == {OK: 400}
        assert reloads > 0
        wait_until(lambda: len(server.workers()) == 1, "former workers are left")
