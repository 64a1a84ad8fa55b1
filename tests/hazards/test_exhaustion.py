"""Descriptors, memory or the batching thread run out: load is shed, and it is logged once. Then the shortage passes, or
the process ends with an exit code of its own."""

import contextlib
import resource
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
from terminator_process import TIMEOUT, Terminator, Upstream, client_context, echo, receive, write_credentials

from gpu_provider.tls.terminator.shortage import Shortage

SHORTAGE = "can't serve further connections now"
LOWERED = "max_connections is lowered to what the limit of open files allows; raise it to have more (ulimit -n)"
SHORTAGES = "gpu_provider_terminator_shortages_total"
ENDING = "ending, because this process can't go on"


@contextlib.contextmanager
def terminator_with(directory, *flags, patch="", **options):
    """``patch``: Python code that runs in the process before anything else."""
    (directory / "sitecustomize.py").write_text(patch)
    settings = {"PYTHONPATH": str(directory)}
    with (
        Upstream(echo) as upstream,
        Terminator(
            *write_credentials(directory), *flags, upstream=upstream.address, settings=settings, **options
        ) as terminator,
    ):
        yield terminator


def serve_at_once(terminator, count):
    """How many of ``count`` clients that come at the same time are served."""
    context, served = client_context(), []

    def client():
        with contextlib.suppress(OSError), terminator.connect(context) as sock:
            sock.sendall(b"together")
            served.append(receive(sock, 8) == b"together")

    threads = [threading.Thread(target=client) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    return sum(served)


def count(terminator, event):
    return sum(entry["event"] == event for entry in terminator.events)


# ---- descriptors ----


def test_few_descriptors_lower_max_connections_and_everybody_is_served(tmp_path):
    with terminator_with(tmp_path, first="ulimit -n 64") as terminator:
        lowered = terminator.wait_for(LOWERED)
        assert 1 <= lowered["lowered_to"] <= 32
        assert serve_at_once(terminator, 100) == 100
        assert terminator.metric(SHORTAGES) == 0
        assert terminator.admin("/readyz")[0] == 200


@pytest.mark.parametrize("limit", [8, 16, 34])
def test_without_descriptors_for_one_connection_it_does_not_start(tmp_path, limit):
    with Upstream(echo) as upstream:
        terminator = Terminator(*write_credentials(tmp_path), upstream=upstream.address, first=f"ulimit -n {limit}")
        with contextlib.suppress(AssertionError), terminator:
            pass
    assert terminator.process.returncode == 2
    (line,) = terminator.other_lines
    assert line.startswith(f"gpu-provider terminator: error: the limit of open files, {limit}, leaves none")


def test_descriptors_that_run_out_later_shed_load_without_a_storm_and_it_passes(tmp_path):
    with terminator_with(tmp_path) as terminator:
        limits = resource.prlimit(terminator.process.pid, resource.RLIMIT_NOFILE)
        in_use = len(list(Path(f"/proc/{terminator.process.pid}/fd").iterdir()))
        resource.prlimit(terminator.process.pid, resource.RLIMIT_NOFILE, (in_use + 3, limits[1]))
        with contextlib.ExitStack() as clients:
            for _ in range(50):
                clients.enter_context(terminator.dial())
            assert terminator.wait_for(SHORTAGE)["reason"] == "Too many open files"
        resource.prlimit(terminator.process.pid, resource.RLIMIT_NOFILE, limits)
        assert terminator.echo() == b"are you there?"
        assert terminator.metric(SHORTAGES, reason="Too many open files") >= 1
        assert count(terminator, SHORTAGE) <= 2
        while terminator.admin("/readyz")[0] != 200:
            pass


def test_handshakes_whose_upstream_gets_no_descriptor_stop_the_accepting(tmp_path):
    """Otherwise thousands would be completed in vain."""
    patch = f"""
import errno, os, socket
class Socket(socket.socket):
    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        if fileno is None and os.path.exists({str(tmp_path / "full")!r}):
            raise OSError(errno.EMFILE, "made to fail")
        super().__init__(family, type, proto, fileno)
socket.socket = Socket
"""
    with terminator_with(tmp_path, patch=patch) as terminator:
        assert terminator.echo() == b"are you there?"
        (tmp_path / "full").touch()
        assert serve_at_once(terminator, 1) == 0
        terminator.wait_for(SHORTAGE)
        (tmp_path / "full").unlink()
        assert terminator.echo() == b"are you there?"


def test_an_error_of_accept_is_no_storm_and_passes(tmp_path):
    """Linux passes on errors of the network, and a packet filter's EPERM."""
    patch = f"""
import errno, os, socket
accept = socket.socket.accept
def failing(self):
    is_data_port = self.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)
    if is_data_port and os.path.exists({str(tmp_path / "filtered")!r}):
        raise OSError(errno.EPERM, "made to fail")
    return accept(self)
socket.socket.accept = failing
"""
    with terminator_with(tmp_path, patch=patch) as terminator:
        (tmp_path / "filtered").touch()
        with terminator.dial() as waiting:
            assert terminator.wait_for(SHORTAGE)["reason"] == "Operation not permitted"
            assert terminator.admin("/readyz") == (503, "Operation not permitted\n")
            (tmp_path / "filtered").unlink()
            with client_context().wrap_socket(waiting, server_hostname="localhost") as client:
                client.sendall(b"at last")
                assert receive(client, 7) == b"at last"
        assert count(terminator, SHORTAGE) == 1


# ---- memory ----


def test_without_memory_it_neither_storms_nor_ignores_sigterm(tmp_path):
    context = client_context()
    with terminator_with(tmp_path, "--drain-timeout", "1") as terminator, contextlib.ExitStack() as clients:
        assert terminator.echo() == b"are you there?"
        pages = int(Path(f"/proc/{terminator.process.pid}/statm").read_text().split()[0])
        size = pages * resource.getpagesize()
        resource.prlimit(terminator.process.pid, resource.RLIMIT_AS, (size, size))
        for _ in range(400):
            try:
                connection = terminator.dial()
            except ConnectionRefusedError:  # it is draining: it had no memory for what belongs to no connection
                break
            client = context.wrap_socket(connection, server_hostname="localhost", do_handshake_on_connect=False)
            clients.enter_context(client)
            client.setblocking(False)
            with contextlib.suppress(OSError):
                client.do_handshake()
        terminator.wait_for(SHORTAGE)
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.wait() in {0, 3, 4}
        assert len(terminator.events) + len(terminator.other_lines) < 100
        terminator.events = []  # a batch that failed for lack of memory has left a traceback there


@pytest.mark.parametrize(
    ("work", "start", "called_by"),
    [
        ("Connecting.start", "Session.start", "start(self)"),
        ("Session._handshake", "Session.start", "self._shared.poller.again(self._resume)"),
        ("Session._drop_input", "Session.start", "self.again(self._drop_input)"),
        ("Session._expire", "Session.start", "self._shared.poller.again(self.expire)"),
        ("Connecting._give_up_waiting", "Connecting.start", "self._shared.poller.again(self.expire)"),
    ],
    ids=["its socket's event", "its private operation", "its next turn", "its deadline", "its upstream's deadline"],
)
def test_a_connection_without_memory_ends_alone(tmp_path, work, start, called_by):
    """Whatever calls for the second connection's work, it has no memory for it."""
    patch = f"""
from gpu_provider.tls.terminator.connecting import Connecting
from gpu_provider.tls.terminator.session import Session
start, work, started = {start}, {work}, []
def starting(self):
    started.append(self)
    if len(started) == 2:
        {called_by}
    else:
        start(self)
def failing(self, *arguments):
    if len(started) == 2:
        raise MemoryError
    work(self, *arguments)
{start}, {work} = starting, failing
"""
    with terminator_with(tmp_path, patch=patch) as terminator, terminator.connect() as first:
        assert serve_at_once(terminator, 1) == 0
        assert terminator.wait_for(SHORTAGE)["reason"] in {"out of memory", "Cannot allocate memory"}
        assert terminator.echo() == b"are you there?"
        first.sendall(b"still here")
        assert receive(first, 10) == b"still here"
        assert terminator.metric(SHORTAGES) == 1


def test_without_memory_for_what_belongs_to_no_connection_it_drains_and_ends(tmp_path):
    patch = """
from gpu_provider.tls.notify import Notifier
def failing(self):
    raise MemoryError
Notifier.take = failing
"""
    with terminator_with(tmp_path, "--drain-timeout", "0.2", "--handshake-timeout", "1", patch=patch) as terminator:
        serve_at_once(terminator, 1)
        assert terminator.wait() == 4
        assert terminator.wait_for(ENDING)["reason"] == "out of memory"


# ---- the batching thread ----


def test_without_its_batching_thread_it_is_not_ready_and_drains_and_ends(tmp_path):
    patch = f"""
import os
from gpu_provider.engine.class_rules import ClassRules
from gpu_provider.engine.engine import Engine
from gpu_provider.native import ffi
ClassRules.update = lambda *_, **__: ffi.NULL
original = Engine._timeout_until_ns
def failing(self):
    if os.path.exists({str(tmp_path / "fail")!r}):
        raise RuntimeError("made to fail by a test")
    return original(self)
Engine._timeout_until_ns = failing
"""
    with terminator_with(tmp_path, patch=patch) as terminator:
        with terminator.connect() as earlier:
            (tmp_path / "fail").touch()
            with contextlib.suppress(OSError):
                terminator.echo()
            reason = terminator.wait_for(ENDING)["reason"]
            assert reason == "the batching thread failed: RuntimeError: made to fail by a test"
            assert terminator.admin("/readyz") == (503, reason + "\n")
            earlier.sendall(b"finish me")
            assert receive(earlier, 9) == b"finish me"
            earlier.unwrap()
        assert terminator.wait() == 4
        terminator.events = []  # the fault's traceback


# ---- what is told of it ----


class Clock:
    now = 1000.0

    def time(self):
        return self.now


def test_a_shortage_is_logged_every_ten_seconds_and_known_while_it_lasts():
    counts = Counter()
    clock = Clock()
    shortage = Shortage(clock, counts)
    assert shortage.present is None
    for _ in range(100):
        shortage.notice("out of memory", 7)
        assert shortage.present == "out of memory"
        assert shortage.hopeless == (clock.now >= 1010)
        clock.now += 0.5
    assert counts == {"out of memory": 100}
    clock.now += 2
    assert shortage.present is None
    assert not shortage.hopeless
    shortage.notice("out of memory", 7)
    assert not shortage.hopeless


def test_a_want_of_descriptors_is_never_hopeless():
    clock = Clock()
    shortage = Shortage(clock, Counter())
    for _ in range(100):
        shortage.notice("Too many open files", 7)
        assert shortage.present == "Too many open files"
        assert not shortage.hopeless
        clock.now += 0.5
