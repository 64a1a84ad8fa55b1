"""Several upstreams: each gets its share, and one that fails is left out until it is back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self

from silent_upstreams import fill, listener, resolver
from terminator_process import TIMEOUT, Terminator, receive, run_command, write_credentials

from gpu_provider.addresses import Address, Resolved
from gpu_provider.tls.terminator.upstreams import Upstreams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAUSED = "gpu_provider_terminator_upstream_paused"
FAILURES = "gpu_provider_terminator_upstream_failures_total"


class Named:
    """An upstream that says who it is to each connection."""

    def __init__(self, name: str, listening: socket.socket) -> None:
        self._name, self._listener = name.encode(), listening
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(self._name)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)


def who(terminator: Terminator, times: int) -> list[str]:
    """Who serves the next connections."""
    names = []
    for _ in range(times):
        with terminator.connect() as client:
            names.append(receive(client, 100).decode())
    return names


@contextlib.contextmanager
def upstreams(*names: str) -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        addresses = []
        for name in names:
            listening = socket.create_server(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{listening.getsockname()[1]}")
            stack.enter_context(Named(name, listening))
        yield addresses


def flags(addresses: list[str]) -> list[str]:
    return [part for address in addresses[1:] for part in ("--upstream", address)]


def test_connections_go_to_each_in_turn(tmp_path: Path) -> None:
    with (
        upstreams("a", "b", "c") as addresses,
        Terminator(*write_credentials(tmp_path), *flags(addresses), upstream=addresses[0]) as terminator,
    ):
        assert who(terminator, 6) == ["a", "b", "c"] * 2
        assert terminator.metric(PAUSED) == 0
        assert terminator.metric(PAUSED, upstream=addresses[2]) == 0


def test_addresses_of_a_name_get_their_turns(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        port = 0
        for host in ("127.0.0.2", "127.0.0.3"):
            listening = socket.create_server((host, port))
            port = listening.getsockname()[1]
            stack.enter_context(Named(host, listening))
        settings = resolver(tmp_path, "127.0.0.2", "127.0.0.3")
        terminator = stack.enter_context(
            Terminator(*write_credentials(tmp_path), upstream=f"several.example:{port}", settings=settings)
        )
        assert who(terminator, 4) == ["127.0.0.2", "127.0.0.3"] * 2


def test_one_that_refuses_is_left_out_until_it_is_back(tmp_path: Path) -> None:
    with upstreams("b") as (b,), contextlib.ExitStack() as stack:
        away = socket.socket()
        away.bind(("127.0.0.1", 0))
        a = f"127.0.0.1:{away.getsockname()[1]}"
        terminator = stack.enter_context(Terminator(*write_credentials(tmp_path), "--upstream", b, upstream=a))
        assert who(terminator, 1) == ["b"]
        assert terminator.metric(PAUSED, upstream=a) == 1
        assert terminator.metric(FAILURES) == 0  # no connection has failed
        away.listen()
        stack.enter_context(Named("a", away))
        names = who(terminator, 1)
        while "a" not in names[-2:]:
            names += who(terminator, 1)
        assert who(terminator, 4) in (["a", "b"] * 2, ["b", "a"] * 2)
        assert terminator.metric(PAUSED) == 0


def test_one_that_is_silent_costs_only_the_first_its_time(tmp_path: Path) -> None:
    with upstreams("b") as (b,), listener("127.0.0.2") as silent, contextlib.ExitStack() as stack:
        for sock in fill(silent):
            stack.enter_context(sock)
        a = f"127.0.0.2:{silent.getsockname()[1]}"
        terminator = stack.enter_context(Terminator(*write_credentials(tmp_path), "--upstream", b, upstream=a))
        assert who(terminator, 1) == ["b"]
        terminator.wait_for_metric(PAUSED, 1, upstream=a)


def test_those_that_are_left_out_are_tried_all_the_same_if_there_is_no_other(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        away = socket.socket()
        away.bind(("127.0.0.1", 0))
        a = f"127.0.0.1:{away.getsockname()[1]}"
        terminator = stack.enter_context(Terminator(*write_credentials(tmp_path), upstream=a))
        assert who(terminator, 1) == [""]
        assert terminator.metric(PAUSED, upstream=a) == 1
        away.listen()
        stack.enter_context(Named("a", away))
        assert who(terminator, 1) == ["a"]


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "upstream"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    with (
        Named("local", listening),
        Terminator(*write_credentials(tmp_path), "--access-log", "all", upstream=str(path)) as terminator,
    ):
        assert who(terminator, 2) == ["local", "local"]
        assert terminator.wait_for("connection")["upstream"] == str(path)


def test_an_unix_socket_where_nobody_listens_is_warned_of(tmp_path: Path) -> None:
    end = run_command(
        "terminator", "--check", "--listen", "127.0.0.1:0", "--upstream", str(tmp_path / "missing"),
        *write_credentials(tmp_path),
    )  # fmt: skip
    assert end.returncode == 0
    assert "nobody listens there" in end.stderr


def test_connections_that_fail_together_make_no_longer_pause_than_one() -> None:
    """Hazard: a restart of the upstream under load, after which nobody uses it for half a minute."""
    address = Resolved(socket.AF_INET, ("192.0.2.1", 80), "192.0.2.1")

    async def fail() -> list[bool]:
        loop = asyncio.get_running_loop()
        begin, clock = loop.time(), [0.0]
        loop.time = lambda: begin + clock[0]  # type: ignore[method-assign]
        known = Upstreams([Address("192.0.2.1", 80)], [(address,)])
        seen = []
        for passed, times in ((0.0, 100), (1.5, 100), (2.5, 0), (4.0, 0)):
            clock[0] = passed
            for _ in range(times):
                known.failed(address)
            seen.append(any(known.paused().values()))
        known.close()
        del loop.time
        return seen

    assert asyncio.run(fail()) == [True, True, True, False]
