"""An upstream's name with several addresses: one that is silent or refuses must not keep clients from the others."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from silent_upstreams import fill, listener, resolver
from terminator_process import TIMEOUT, Terminator, Upstream, echo, write_credentials

from gpu_provider import addresses, tls
from gpu_provider.addresses import Address, Resolved

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILURES = "gpu_provider_terminator_upstream_failures_total"


def answered(terminator: Terminator) -> bool:
    return terminator.echo() == b"are you there?"


@contextlib.contextmanager
def terminator_for(tmp_path: Path, port: int, *hosts: str, flags: tuple[str, ...] = ()) -> Iterator[Terminator]:
    with Terminator(
        *write_credentials(tmp_path), *flags, upstream=f"several.example:{port}", settings=resolver(tmp_path, *hosts)
    ) as terminator:
        yield terminator


@contextlib.contextmanager
def all_silent(tmp_path: Path, *, connect_timeout: int) -> Iterator[Terminator]:
    """A terminator whose upstream has five addresses, none of which answers."""
    hosts = [f"127.0.0.{number}" for number in range(2, 7)]
    with contextlib.ExitStack() as stack:
        port = 0
        for host in hosts:
            silent = stack.enter_context(listener(host, port))
            port = silent.getsockname()[1]
            for sock in fill(silent):
                stack.enter_context(sock)
        flags = ("--connect-timeout", str(connect_timeout))
        yield stack.enter_context(terminator_for(tmp_path, port, *hosts, flags=flags))


@pytest.mark.parametrize("silent", [("127.0.0.2",), ("127.0.0.2", "127.0.0.3", "127.0.0.4")])
def test_silent_addresses_do_not_keep_clients_from_the_next(tmp_path: Path, silent: tuple[str, ...]) -> None:
    with Upstream(echo) as upstream, contextlib.ExitStack() as stack:
        port = int(upstream.address.rpartition(":")[2])
        for host in silent:
            for sock in fill(stack.enter_context(listener(host, port))):
                stack.enter_context(sock)
        flags = ("--connect-timeout", "2")
        with terminator_for(tmp_path, port, *silent, "127.0.0.1", flags=flags) as terminator:
            assert answered(terminator)


def test_next_address_does_not_wait_for_the_connect_timeout(tmp_path: Path) -> None:
    with Upstream(echo) as upstream, contextlib.ExitStack() as stack:
        port = int(upstream.address.rpartition(":")[2])
        for sock in fill(stack.enter_context(listener("127.0.0.2", port))):
            stack.enter_context(sock)
        with terminator_for(
            tmp_path, port, "127.0.0.2", "127.0.0.1", flags=("--connect-timeout", "3600")
        ) as terminator:
            assert answered(terminator)


def test_address_that_gets_no_descriptor_has_its_turn_again(tmp_path: Path) -> None:
    with Upstream(echo) as upstream, contextlib.ExitStack() as stack:
        port = int(upstream.address.rpartition(":")[2])
        for sock in fill(stack.enter_context(listener("127.0.0.2", port))):
            stack.enter_context(sock)
        settings = resolver(tmp_path, "127.0.0.2", "127.0.0.1")
        with (tmp_path / "sitecustomize.py").open("a") as patch:
            patch.write(
                "import errno\n"
                "from gpu_provider.tls.terminator import connecting\n"
                "begin, calls = connecting._begin, []\n"
                "def failing(family, address):\n"
                "    calls.append(address)\n"
                "    if len(calls) == 2:\n"
                "        raise OSError(errno.EMFILE, 'made to fail')\n"
                "    return begin(family, address)\n"
                "connecting._begin = failing\n"
            )
        flags = ("--connect-timeout", "20")
        credentials = write_credentials(tmp_path)
        with Terminator(*credentials, *flags, upstream=f"several.example:{port}", settings=settings) as terminator:
            assert answered(terminator)


def test_refused_addresses_are_passed_over(tmp_path: Path) -> None:
    with Upstream(echo) as upstream:
        port = int(upstream.address.rpartition(":")[2])
        hosts = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1")
        with terminator_for(tmp_path, port, *hosts, flags=("--connect-timeout", "3600")) as terminator:
            assert answered(terminator)


def test_unreachable_family_is_passed_over(tmp_path: Path) -> None:
    with Upstream(echo) as upstream:
        port = int(upstream.address.rpartition(":")[2])
        with terminator_for(tmp_path, port, "2001:db8::1", "255.255.255.255", "127.0.0.1") as terminator:
            assert answered(terminator)


def test_address_that_accepts_late_is_still_taken(tmp_path: Path) -> None:
    """The other address is silent for ever, and both attempts go on."""
    with contextlib.ExitStack() as stack:
        late = stack.enter_context(listener("127.0.0.2"))
        port = late.getsockname()[1]
        waiting = fill(late)
        for sock in (*waiting, *fill(stack.enter_context(listener("127.0.0.3", port)))):
            stack.enter_context(sock)
        terminator = stack.enter_context(
            terminator_for(tmp_path, port, "127.0.0.2", "127.0.0.3", flags=("--connect-timeout", "15"))
        )
        client = stack.enter_context(terminator.connect())
        client.sendall(b"hello")
        for sock in waiting:
            sock.close()
        late.settimeout(TIMEOUT)
        received = b""
        while not received:  # those that were waiting come first; the kernel repeats the other's SYN after a second
            connection, _ = late.accept()
            with connection:
                connection.settimeout(TIMEOUT)
                received = connection.recv(5)
        assert received == b"hello"


def test_all_silent_ends_with_one_connect_timeout(tmp_path: Path) -> None:
    with all_silent(tmp_path, connect_timeout=1) as terminator:
        client = terminator.library_client()
        started = time.monotonic()
        with pytest.raises(tls.ZeroReturnError):
            client.recv(1)
        assert time.monotonic() - started > 0.5  # all had their time
        client.close()
        terminator.wait_for_metric(FAILURES, 1, reason="ETIMEDOUT")


def sockets(terminator: Terminator) -> int:
    count = 0
    for link in Path(f"/proc/{terminator.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(link).startswith("socket:")
    return count


def test_waiting_session_holds_one_descriptor_more_than_a_connected_one(tmp_path: Path) -> None:
    with all_silent(tmp_path, connect_timeout=2) as terminator:
        before = sockets(terminator)
        client = terminator.library_client()

        def wait_for_the_end() -> None:
            with pytest.raises(tls.ZeroReturnError):
                client.recv(1)

        waiting = threading.Thread(target=wait_for_the_end)
        waiting.start()
        most = 0
        while waiting.is_alive():
            most = max(most, sockets(terminator))
        client.close()
        assert most - before == 3  # the client's, and two


def test_families_take_turns_in_the_resolvers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    six = [(socket.AF_INET6, (f"2001:db8::{n}", 80, 0, 0)) for n in (1, 2, 3)]
    four = [(socket.AF_INET, (f"192.0.2.{n}", 80)) for n in (1, 2)]
    found = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in (*six, *four, four[0])]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: found)
    in_turn = addresses.resolve(Address("several.example", 80), to_listen=False)
    assert in_turn == tuple(Resolved(*one, "several.example") for one in (six[0], four[0], six[1], four[1], six[2]))
    assert addresses.resolve(Address("several.example", 80), to_listen=True) == tuple(
        Resolved(*one, "several.example") for one in (*six, *four)
    )
