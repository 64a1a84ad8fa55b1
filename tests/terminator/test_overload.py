"""Handshakes come faster than they can be computed, or too many from one address. Without a limit, every client would
wait until it has timed out, and none would be served."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING

import pytest
from terminator_process import TIMEOUT, Terminator, client_context, echo_terminator, receive

from gpu_provider.tls.terminator.listening import Arrival
from gpu_provider.tls.terminator.newcomers import Newcomers
from gpu_provider.tls.terminator.overload import Overload

if TYPE_CHECKING:
    import socket
    from pathlib import Path

PREFIX = "gpu_provider_terminator_"
REFUSED = f"{PREFIX}refused_total"
OVERLOADED = "handshakes come faster than they can be done"
HANDSHAKE_TIMEOUT = 10.0
PATIENCE = HANDSHAKE_TIMEOUT / 2
"""Seconds after which a simulated client has given up."""


# ---- the rule, on a simulated clock ----


class Simulation:
    """A server that computes ``pace`` operations a second, eight at a time, behind a backlog of 4096 connections."""

    def __init__(self, pace: float) -> None:
        self.now = 0.0
        self.pace = pace
        self.overload = Overload(lambda: self.now, HANDSHAKE_TIMEOUT)
        self.backlog: deque[float] = deque()
        self.queue: deque[tuple[float, float, int]] = deque()
        """When the client came, when its operation began to wait, and how many waited then."""
        self.latencies: list[float] = []

    def run(self, times: float, seconds: float) -> None:
        """Offers so many times what it can compute."""
        step = 8 / self.pace
        came = 0.0
        for _ in range(int(seconds / step)):
            self.now += step
            came += times * 8
            for _ in range(int(came)):
                if len(self.backlog) < 4096:
                    self.backlog.append(self.now)
            came %= 1
            self.accept()
            for _ in range(min(8, len(self.queue))):
                arrived, began, waiting = self.queue.popleft()
                self.overload.computed(waiting, self.now - began)
                if self.now - arrived < PATIENCE:
                    self.latencies.append(self.now - arrived)

    def accept(self) -> None:
        while self.backlog and self.overload.has_room(len(self.queue)):
            arrived = self.backlog.popleft()
            waited = self.now - arrived
            if not self.overload.turns_away(Arrival(waited, has_left=waited > PATIENCE)):
                self.queue.append((arrived, self.now, len(self.queue) + 1))
        if not self.backlog:
            self.overload.no_backlog()


@pytest.mark.parametrize("pace", [40.0, 400.0, 4000.0])
def test_ten_times_the_load_leaves_what_is_served_and_bounds_the_wait(pace: float) -> None:
    simulation = Simulation(pace)
    simulation.run(times=10, seconds=20)
    assert len(simulation.latencies) >= 0.8 * pace * 20
    assert max(simulation.latencies) < 0.45 * HANDSHAKE_TIMEOUT


def test_it_recovers_at_once_when_the_flood_is_over() -> None:
    simulation = Simulation(400.0)
    simulation.run(times=10, seconds=10)
    simulation.run(times=0.5, seconds=10)
    simulation.latencies.clear()
    simulation.run(times=0.5, seconds=10)
    assert not simulation.overload.present
    assert len(simulation.latencies) >= 0.49 * 400 * 10
    assert max(simulation.latencies) < 0.1


def test_a_burst_that_can_be_computed_in_time_is_not_held_back() -> None:
    overload = Overload(lambda: 0.0, HANDSHAKE_TIMEOUT)
    for _ in range(100):
        overload.computed(1, 0.001)
    assert overload.has_room(900)
    assert not overload.has_room(1100)


def event_loop(pace: float, backlog: deque[float], now: float, *, rate: float, seconds: float) -> list[float]:
    """How long those have waited that a server serves whose event loop accepts so many a second at best. Turning one
    away takes a twentieth of the time. ``backlog``: when each of those came who wait there now."""
    overload = Overload(lambda: now, HANDSHAKE_TIMEOUT)
    waits: list[float] = []
    came, end = 0.0, now + seconds
    while now < end:
        now += 1 / pace
        came += rate / pace
        backlog.extend([now] * min(int(came), 4096 - len(backlog)))
        came %= 1
        budget = 1.0
        while backlog and budget > 0:
            waited = now - backlog.popleft()
            has_left = waited > PATIENCE
            turned_away = overload.turns_away(Arrival(waited, has_left))
            budget -= 0.05 if turned_away else 1
            if not turned_away and not has_left:
                waits.append(waited)
        if not backlog:
            overload.no_backlog()
    return waits


@pytest.mark.parametrize("pace", [100.0, 1000.0])
def test_an_event_loop_that_can_not_keep_up_serves_those_who_still_wait(pace: float) -> None:
    """Otherwise all whom it serves have left meanwhile, since the backlog is long. Turning the others away takes up to
    45 % of its time here."""
    waits = event_loop(pace, deque(), 0.0, rate=10 * pace, seconds=30)
    assert len(waits) >= 0.5 * pace * 30
    assert max(waits) < 0.45 * HANDSHAKE_TIMEOUT


def test_after_a_standstill_everybody_is_served() -> None:
    came = [1.0 + number / 100 for number in range(300)]
    waits = event_loop(500.0, deque(came), 5.0, rate=100, seconds=2)
    assert len(waits) >= 490
    assert max(waits) == pytest.approx(4.0, abs=0.1)


def test_nobody_is_turned_away_who_had_to_wait_for_something_else() -> None:
    """Such as behind the cap of max_connections."""
    now = 0.0
    overload = Overload(lambda: now, HANDSHAKE_TIMEOUT)
    for _ in range(100):
        now += 0.5
        assert not overload.turns_away(Arrival(60.0, has_left=True))
        overload.no_backlog()
    assert not overload.present


# ---- in a terminator ----


def served(terminator: Terminator, sock: socket.socket) -> bool:
    with contextlib.suppress(OSError), client_context().wrap_socket(sock, server_hostname="localhost") as client:
        client.sendall(b"at last")
        return receive(client, 7) == b"at last"
    return False


def test_further_connections_wait_and_those_whose_clients_have_left_are_dropped(tmp_path: Path) -> None:
    """Two operations may wait here, and none is done until the test lets them."""
    held = tmp_path / "held"
    held.touch()
    (tmp_path / "sitecustomize.py").write_text(f"""
import os, time
from gpu_provider.tls.notify import LoopNotifier
from gpu_provider.tls.terminator import overload
overload._ALWAYS = 2
wake = LoopNotifier._wake
def waking(self):
    if os.path.exists({str(held)!r}):
        time.sleep(0.01)
    else:
        wake(self)
LoopNotifier._wake = waking
""")
    with echo_terminator(tmp_path, settings={"PYTHONPATH": str(tmp_path)}) as terminator:
        results: list[bool] = []

        def client() -> None:
            results.append(served(terminator, terminator.dial()))

        threads = [threading.Thread(target=client) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert terminator.wait_for("new connections wait")["reason"] == OVERLOADED
        assert terminator.metric(f"{PREFIX}accepted_total") == 2
        assert terminator.metric(f"{PREFIX}handshakes_in_progress") == 2
        with terminator.dial() as leaving:
            leaving.sendall(b"\x16\x03\x01\x02\x00\x01")
        status, text = terminator.admin("/readyz")
        assert (status, text.partition("; ")[2]) == (200, f"new connections wait: {OVERLOADED}\n")
        held.unlink()
        for thread in threads:
            thread.join(TIMEOUT)
        assert results == [True] * 5
        terminator.wait_for_metric(REFUSED, 1, reason="overload")
        assert terminator.metric(f"{PREFIX}overloads_total") >= 1
        terminator.wait_for_metric(f"{PREFIX}handshakes_in_progress", 0)


def test_one_address_does_not_take_every_handshake(tmp_path: Path) -> None:
    with echo_terminator(tmp_path, "--handshakes-per-address", "2") as terminator, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(terminator.dial()) for _ in range(2)]
        for sock in slow:
            sock.sendall(b"\x16")  # else it would be accepted only after a second
        terminator.wait_for_metric(f"{PREFIX}handshakes_in_progress", 2)
        assert not served(terminator, terminator.dial())
        assert terminator.metric(REFUSED, reason="address") == 1
        refused = terminator.wait_for("connections refused")
        assert refused["reason"] == "handshakes_per_address are in progress"
        assert refused["last_client"].startswith("127.0.0.1:")
        elsewhere = terminator.dial(("127.0.0.2", 0))
        assert served(terminator, elsewhere)
        slow[0].close()
        terminator.wait_for_metric(f"{PREFIX}handshakes_in_progress", 1)
        assert terminator.echo() == b"are you there?"


def test_a_connection_after_its_handshake_does_not_count(tmp_path: Path) -> None:
    with echo_terminator(tmp_path, "--handshakes-per-address", "1") as terminator:
        with terminator.connect():
            terminator.wait_for_metric(f"{PREFIX}handshakes_in_progress", 0)
            assert terminator.echo() == b"are you there?"
        assert terminator.metric(REFUSED) == 0


def test_the_cap_is_in_the_answer_of_readyz(tmp_path: Path) -> None:
    with echo_terminator(tmp_path, "--max-connections", "1") as terminator, terminator.connect():
        status, text = terminator.admin("/readyz")
        assert (status, text.partition("; ")[2]) == (200, "new connections wait: 1 are open, max_connections\n")


def test_the_cap_of_one_worker_is_in_the_answer_of_readyz(tmp_path: Path) -> None:
    with echo_terminator(tmp_path, "--workers", "2", "--max-connections", "2") as terminator, terminator.connect():
        status, text = terminator.admin("/readyz")
        first, *workers = text.splitlines()
        assert (status, first) == (200, "ready, 2 of 2 workers")
        waits = sorted(line.partition("; ")[2] for line in workers)
        assert waits == ["", "new connections wait: 1 are open, max_connections"]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%lo", "fe80::2%lo", True),
    ],
)
def test_an_ipv6_network_counts_as_one_address(first: str, second: str, same: bool) -> None:
    newcomers = Newcomers(1)
    newcomers.began((first, 1))
    assert newcomers.has_room((second, 2)) != same
    newcomers.ended((first, 1))
    assert newcomers.has_room((second, 2))
