"""Several worker processes on one port, with one service: whatever happens to a process, only its own connections may
notice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from service_process import Service
from terminator_process import (
    COMMAND,
    TIMEOUT,
    Terminator,
    Upstream,
    client_context,
    credentials,
    echo,
    echo_terminator,
    environment,
    run_command,
    write_credentials,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ACCEPTED = "gpu_provider_terminator_accepted_total"
HANDSHAKES = "gpu_provider_terminator_handshakes_total"
RELOADED = "certificates reloaded"
RELOADS = "gpu_provider_terminator_reloads_total"
RESTARTS = "gpu_provider_terminator_service_restarts_total"
REPLACED = "gpu_provider_terminator_worker_replacements_total"
SERVED = "gpu_provider_service_requests_total"
WORKER_READY = "worker is ready"
SERVICE_READY = "service is ready"


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def module_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3].decode()


def workers(terminator: Terminator) -> list[int]:
    return [pid for pid in children(terminator.process.pid) if module_of(pid).endswith(".worker")]


def service(terminator: Terminator) -> int:
    (pid,) = (pid for pid in children(terminator.process.pid) if module_of(pid).endswith(".service.child"))
    return pid


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def owner(client: ssl.SSLSocket, terminator: Terminator) -> int:
    """The worker that has this connection."""
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if int(line.split()[1].partition(":")[2], 16) == terminator.address[1]
        and int(line.split()[2].partition(":")[2], 16) == client.getsockname()[1]
    }
    (inode,) = inodes
    (found,) = (pid for pid in workers(terminator) if f"socket:[{inode}]" in set(open_files(pid)))
    return found


def open_files(pid: int) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(link)


def count(terminator: Terminator, event: str) -> int:
    return sum(entry["event"] == event for entry in terminator.events)


class Load:
    """Clients that connect without pause, and what they saw."""

    def __init__(self, terminator: Terminator, clients: int = 4) -> None:
        self.echoes = 0
        self.failures: list[str] = []
        self._terminator = terminator
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        context = client_context()
        while not self._stopping.is_set():
            try:
                answer = self._terminator.echo(context=context)
            except OSError as error:
                self.failures.append(repr(error))
            else:
                if answer == b"are you there?":
                    self.echoes += 1
                else:
                    self.failures.append(repr(answer))

    def go_on(self, more: int = 40) -> None:
        """Waits for so many more."""
        wanted = self.echoes + more
        wait_until(lambda: self.echoes >= wanted, f"{more} more echoes: {self.failures}")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("terminator")


@pytest.fixture(scope="module")
def terminator(directory: Path) -> Iterator[Terminator]:
    """One for the tests after which it is as good as new."""
    with echo_terminator(directory, "--workers", "2") as terminator:
        yield terminator


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Terminator]:
    with echo_terminator(tmp_path, "--workers", "2") as terminator:
        yield terminator


def test_workers_share_the_connections_and_one_service(own: Terminator) -> None:
    status, text = own.admin("/readyz")
    assert status == 200
    state, *each = text.splitlines()
    assert state == "ready, 2 of 2 workers"
    assert [line.partition(" service ")[0] for line in each] == [f"worker {n}: ready, computing with" for n in (1, 2)]
    with Load(own) as load:
        wait_until(lambda: own.metric(SERVED) > 50, "the service's requests")
    assert not load.failures
    own.wait_for_metric(ACCEPTED, load.echoes)
    assert own.metric(HANDSHAKES, result="ok") == load.echoes
    assert own.metric(SERVED) == own.metric("gpu_provider_submitted_total")
    assert own.metric("gpu_provider_terminator_workers") == 2
    assert own.metric("gpu_provider_service_processes", program="python") == 2
    own.process.terminate()
    assert own.wait() == 0
    stops = [event for event in own.events if event["event"] == "worker has stopped"]
    assert {event["worker"] for event in stops} == {1, 2}
    assert all(event["clean"] for event in stops)
    assert sum(event["by_service"] + event["alone"] for event in stops) == load.echoes


def test_worker_that_is_killed_is_replaced_and_its_counts_stay(terminator: Terminator) -> None:
    replaced = terminator.metric(REPLACED)
    with terminator.connect() as client, Load(terminator) as load:
        load.go_on()
        before = terminator.metric(HANDSHAKES, result="ok")
        victim = owner(client, terminator)
        os.kill(victim, signal.SIGKILL)
        assert client.recv(1) == b"" or pytest.fail("the killed worker's connection goes on")
        load.go_on()
        terminator.wait_for_metric(REPLACED, replaced + 1)
        load.go_on()
        assert terminator.metric(HANDSHAKES, result="ok") >= before
    assert len(workers(terminator)) == 2
    assert victim not in workers(terminator)
    assert len(load.failures) <= 4, load.failures  # the connections that the victim had
    (end,) = (event for event in terminator.events if event.get("signal") == "SIGKILL" and event["pid"] == victim)
    assert end["level"] == "error"


def test_no_handshake_fails_with_the_service_that_is_killed(terminator: Terminator) -> None:
    restarts, starts = terminator.metric(RESTARTS), count(terminator, SERVICE_READY)
    served = terminator.metric(SERVED)
    with Load(terminator) as load:
        wait_until(lambda: terminator.metric(SERVED) > served, "the service's requests")
        os.kill(service(terminator), signal.SIGKILL)
        load.go_on()
        terminator.wait_for(SERVICE_READY, starts + 1)
        before = terminator.metric(SERVED)
        wait_until(lambda: terminator.metric(SERVED) > before, "the new service's requests")
    assert not load.failures
    assert terminator.metric(RESTARTS) == restarts + 1


def test_no_handshake_fails_with_the_service_that_is_stopped(terminator: Terminator) -> None:
    served = terminator.metric(SERVED)
    with Load(terminator) as load:
        wait_until(lambda: terminator.metric(SERVED) > served, "the service's requests")
        pid = service(terminator)
        os.kill(pid, signal.SIGSTOP)
        load.go_on()
        os.kill(pid, signal.SIGCONT)
        before = terminator.metric(SERVED)
        wait_until(lambda: terminator.metric(SERVED) > before, "the service's requests when it goes on")
    assert not load.failures


def test_worker_that_is_told_to_end_finishes_its_connections_while_another_takes_its_place(
    terminator: Terminator,
) -> None:
    """A rolling restart: one after the other, under load, and nobody notices."""
    replaced, handshakes = terminator.metric(REPLACED), terminator.metric(HANDSHAKES, result="ok")
    with terminator.connect() as client, Load(terminator) as load:
        first, starts = workers(terminator), count(terminator, WORKER_READY)
        for number, worker in enumerate(first, 1):
            load.go_on()
            os.kill(worker, signal.SIGTERM)
            terminator.wait_for(WORKER_READY, starts + number)
        load.go_on()
        assert not set(workers(terminator)) >= set(first)
        client.sendall(b"still here")
        assert client.recv(10) == b"still here"
    assert not load.failures
    terminator.wait_for_metric(REPLACED, replaced + 2)
    wait_until(lambda: not any(map(is_running, first)), "the end of the workers that were replaced")
    terminator.wait_for_metric(HANDSHAKES, handshakes + load.echoes + 1, result="ok")


def test_what_the_processes_use_is_told_together(terminator: Terminator) -> None:
    """Memory and descriptors are added up, but not the times at which processes were started."""
    processes = [terminator.process.pid, *children(terminator.process.pid)]
    files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes)
    assert files / 2 < terminator.metric("process_open_fds") < files * 2
    assert terminator.metric("process_resident_memory_bytes") > 3 * len(processes) << 20
    assert 0 < time.time() - terminator.metric("process_start_time_seconds") < 3600


def test_the_last_failures_are_those_of_all_workers(terminator: Terminator) -> None:
    failed: dict[int, str] = {}
    while len(failed) < 2:
        client = terminator.connect()
        host, port = client.getsockname()
        failed[owner(client, terminator)] = f"{host}:{port}"
        with socket.socket(fileno=client.detach()) as raw:
            raw.sendall(b"no record of TLS")

    def shown() -> set[str]:
        return {line["client"] for line in json.loads(terminator.admin("/failures")[1])}

    wait_until(lambda: set(failed.values()) <= shown(), "the failures of both")


def test_sighup_reloads_in_every_worker(terminator: Terminator, directory: Path) -> None:
    reloads, lines = terminator.metric(RELOADS, result="ok"), count(terminator, RELOADED)
    with Load(terminator) as load:
        load.go_on()
        chain, key = credentials("localhost", "renewed.example")
        (directory / "server.pem").write_bytes(chain)
        (directory / "server.key").write_bytes(key)
        terminator.process.send_signal(signal.SIGHUP)
        terminator.wait_for(RELOADED, lines + 2)
    assert not load.failures
    for _ in range(8):
        assert terminator.echo(name="renewed.example") == b"are you there?"
    terminator.wait_for_metric(RELOADS, reloads + 2, result="ok")


def test_session_of_one_worker_is_resumed_by_another(terminator: Terminator) -> None:
    context = client_context(ssl.TLSVersion.TLSv1_2)
    owners, session = set(), None
    while len(owners) < 2:
        with terminator.dial() as sock, context.wrap_socket(
            sock, server_hostname="localhost", session=session
        ) as client:  # fmt: skip
            assert client.session_reused == (session is not None)
            session = client.session
            owners.add(owner(client, terminator))


def test_drains_with_connections_open_in_every_worker(own: Terminator) -> None:
    with contextlib.ExitStack() as stack:
        clients: list[ssl.SSLSocket] = []
        while len({owner(client, own) for client in clients}) < 2:
            clients.append(stack.enter_context(own.connect()))
        pids = children(own.process.pid)
        own.process.terminate()
        own.wait_for("draining")
        for client in clients:
            client.sendall(b"still here")
            assert client.recv(10) == b"still here"
    assert own.wait() == 0
    assert not any(map(is_running, pids))


def test_second_signal_cuts_connections_off(own: Terminator) -> None:
    with own.connect() as client:
        own.process.terminate()
        wait_until(lambda: any(event["event"] == "draining" and "worker" in event for event in own.events), "draining")
        assert own.end_at_once() == 3
        with contextlib.suppress(OSError):
            assert client.recv(1) == b""


def test_children_end_with_a_master_that_is_killed(own: Terminator) -> None:
    pids = children(own.process.pid)
    assert len(pids) == 3
    own.process.kill()
    wait_until(lambda: not any(map(is_running, pids)), "the end of the children")


def test_with_a_service_that_runs_already(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    flags = ("--workers", "2", "--service", str(path))
    with Service(path) as one, echo_terminator(tmp_path, *flags) as terminator, Load(terminator) as load:
        wait_until(lambda: one.metric(SERVED) > 20, "the service's requests")
        one.stop()
        load.go_on()
        assert len(children(terminator.process.pid)) == 2
        with Service(path) as another:
            wait_until(lambda: another.metric(SERVED) > 0, "the next service's requests")
    assert not load.failures


def test_one_process_can_use_a_service_too(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    flags = ("--service", str(path))
    with Service(path, "--process-requests", "2") as one, echo_terminator(tmp_path, *flags) as terminator:
        with Load(terminator, 8) as load:
            wait_until(lambda: one.metric(SERVED) > 100, "the service's requests")
        assert not load.failures
        assert terminator.metric(HANDSHAKES, result="ok", async_status="OK") > 0
        assert children(terminator.process.pid) == []


def test_service_that_is_not_there_is_said_and_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with echo_terminator(tmp_path, "--service", str(path), "--threads", "3") as terminator:
        assert terminator.echo() == b"are you there?"
        warnings = [event["event"] for event in terminator.events if event["level"] == "warning"]
        assert [text for text in warnings if str(path) in text and "until" in text]
        assert [text for text in warnings if text.startswith("threads = 3")]


@pytest.fixture
def signalled(tmp_path: Path) -> Iterator[Callable[[signal.Signals], Terminator]]:
    """Starts a terminator that gets a signal as soon as its children are there, long before they are ready."""

    with Upstream(echo) as upstream, contextlib.ExitStack() as stack:
        flags = (*write_credentials(tmp_path), "--workers", "2")
        one = Terminator(*flags, upstream=upstream.address)

        def send(number: signal.Signals) -> None:
            wait_until(lambda: hasattr(one, "process") and len(children(one.process.pid)) == 3, "the children")
            one.process.send_signal(number)

        def start(number: signal.Signals) -> Terminator:
            sender = threading.Thread(target=send, args=(number,))
            sender.start()
            stack.callback(sender.join)
            stack.enter_context(one)
            return one

        yield start


def test_sighup_while_workers_start_ends_none_and_is_not_lost(
    signalled: Callable[[signal.Signals], Terminator],
) -> None:
    one = signalled(signal.SIGHUP)
    one.wait_for(RELOADED, 2)
    assert one.echo() == b"are you there?"
    assert one.metric(REPLACED) == 0


def test_signal_to_end_while_workers_start_ends_all(tmp_path: Path) -> None:
    addresses = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", "127.0.0.1:1")
    command = [*COMMAND, "terminator", *addresses, *write_credentials(tmp_path), "--workers", "2"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        wait_until(lambda: len(children(process.pid)) == 3, "the children")
        pids = children(process.pid)
        process.terminate()
        assert process.wait(TIMEOUT) == 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    assert not any(map(is_running, pids))


def test_mistakes_end_with_one_line(tmp_path: Path) -> None:
    flags = ["terminator", "--listen", "127.0.0.1:0", "--upstream", "127.0.0.1:1", *write_credentials(tmp_path)]
    run = run_command(*flags, "--workers", "0")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert "workers = 0: it must be a number from 1 to 1024" in run.stderr
