"""``gpu-provider top`` over real services and terminators, on a terminal and into a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import os
import re
import socket
import struct
import subprocess
import termios
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from groups import TIMEOUT, find_program, public_directory
from ports import unused_port
from service_process import HELLO, Service
from terminator_process import COMMAND, echo_terminator, environment, run_command

from gpu_provider.commands.scrapes import Buckets, Change, Scrape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groups import Directory


@pytest.fixture
def directory() -> Iterator[Directory]:
    with public_directory("service = {path}/socket\nservice_timeout = 2000") as directory:
        yield directory


@contextlib.contextmanager
def signing(directory: Directory) -> Iterator[None]:
    """Until the block ends."""
    speed = [find_program("openssl"), "speed", "-seconds", "60", "-async_jobs", "32", "rsa2048"]
    with subprocess.Popen(
        speed, env=directory.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as program:
        try:
            yield
        finally:
            program.kill()


def address_of(service: Service) -> str:
    host, port = service.admin_address
    return f"{host}:{port}"


def test_a_pipe_gets_one_object_per_look(directory):
    with Service(directory.path / "socket") as service, signing(directory):
        service.wait_for("program connected")
        run = run_command("top", "--admin", address_of(service), "--interval", "0.5", "--count", "3")
    assert (run.returncode, run.stderr) == (0, "")
    looks = [json.loads(line) for line in run.stdout.splitlines()]
    assert [look["event"] for look in looks] == ["look"] * 3
    last = looks[-1]
    assert last["requests_per_second"] > 0
    assert last["failed_per_second"] == 0
    assert sum(last["batch_sizes"].values()) == pytest.approx(last["batches_per_second"] * last["seconds"])
    assert last["mean_batch"] > 1
    assert 0 < last["computed"]["p50"] <= last["computed"]["p99"]
    by_name = {backend["name"]: backend for backend in last["backends"]}
    assert by_name["cpu"]["in_use"]
    assert sum(backend["requests_per_second"] for backend in by_name.values()) == pytest.approx(
        last["requests_per_second"]
    )
    (program,) = last["programs"]["by_program"]
    assert (program["program"], program["processes"], program["keys"]) == ("openssl", 1, 1)
    assert program["requests_per_second"] > 0
    assert last["connections"] is None


def test_a_terminators_connections(tmp_path):
    with echo_terminator(tmp_path) as terminator:
        address = "{}:{}".format(*terminator.admin_address)
        with subprocess.Popen(
            [*COMMAND, "top", "--admin", address, "--interval", "0.3"],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        ) as top:
            assert top.stdout is not None
            handshakes = 0.0
            while handshakes == 0.0:
                terminator.echo()
                look = json.loads(top.stdout.readline())
                handshakes = look["connections"]["handshakes_per_second"]
            top.kill()
    assert look["programs"] is None
    assert look["connections"]["max_connections"] > 0
    assert look["connections"]["handshake"]["p50"] > 0


class Terminal:
    """What a command leaves on a terminal of this size when it ends."""

    def __init__(self, columns: int, rows: int, *arguments: str) -> None:
        without_size = {name: value for name, value in environment().items() if name not in {"COLUMNS", "LINES"}}
        primary, secondary = os.openpty()
        fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        with subprocess.Popen(
            [*COMMAND, *arguments],
            env=without_size | {"TERM": "xterm-256color"},
            stdin=secondary,
            stdout=secondary,
            stderr=subprocess.PIPE,
        ) as program:
            os.close(secondary)
            output = bytearray()
            with contextlib.suppress(OSError):  # the last one who could write has gone
                while data := os.read(primary, 65536):
                    output += data
            os.close(primary)
            assert program.stderr is not None
            self.errors = program.stderr.read().decode()
            self.status = program.wait(TIMEOUT)
        self.output = output.decode()
        left = self.output.rpartition("\x1b[?1049l")[2]
        self.lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", left).replace("\r", "").splitlines()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40), (40, 10)])
def test_a_terminal_gets_a_screen_that_fits(directory, columns, rows):
    with Service(directory.path / "socket") as service, signing(directory):
        service.wait_for("program connected")
        flags = ("--admin", address_of(service), "--interval", "0.5", "--count", "2")
        terminal = Terminal(columns, rows, "top", *flags)
    assert (terminal.status, terminal.errors) == (0, "")
    assert "\x1b[?1049h" in terminal.output
    assert "\x1b[?25h" in terminal.output.rpartition("\x1b[?25l")[2]  # the cursor is back
    assert len(terminal.lines) <= rows
    assert max(map(len, terminal.lines)) <= columns
    assert terminal.lines[0].startswith("service")
    if columns >= 80:
        assert terminal.lines[0].startswith(f"service at {address_of(service)}")
        (program,) = [line.split() for line in terminal.lines if line.startswith("openssl")]
        assert program[2] == "1"
        assert program[3] != "0"
        assert "computed by" in "\n".join(terminal.lines)
        assert "█" in "\n".join(terminal.lines)


def test_a_programs_name_is_no_markup_and_more_programs_than_fit_are_counted(directory):
    own = Path("/proc/self/comm").read_bytes()
    with Service(directory.path / "socket") as service, contextlib.ExitStack() as connections:
        try:
            for i in range(12):
                Path("/proc/self/comm").write_bytes(b"[red]%d[/]" % i)
                connection = connections.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                connection.settimeout(TIMEOUT)
                connection.connect(str(directory.path / "socket"))
                connection.send(HELLO)
                assert connection.recv(1)
        finally:
            Path("/proc/self/comm").write_bytes(own)
        terminal = Terminal(80, 24, "top", "--admin", address_of(service), "--interval", "0.2", "--count", "1")
    shown = [line for line in terminal.lines if line.startswith("[red]")]
    assert 3 <= len(shown) < 12
    assert f"and {12 - len(shown)} more; 12 of 1,024 processes" in terminal.lines[-1]


def test_a_lost_connection_is_told_and_tried_again(directory):
    address = f"127.0.0.1:{unused_port()}"
    with contextlib.ExitStack() as programs:
        with Service(directory.path / "socket", "--admin", address):
            top = programs.enter_context(
                subprocess.Popen(
                    [*COMMAND, "top", "--admin", address, "--interval", "0.2"],
                    env=environment(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            programs.callback(top.kill)
            assert top.stdout is not None

            def wait_for(event: str, **values: object) -> None:
                assert top.stdout is not None
                wanted = {"event": event, **values}.items()
                while not wanted <= json.loads(top.stdout.readline()).items():
                    pass

            wait_for("look")
        wait_for("unreachable", reason=f"{address}: Connection refused")
        with Service(directory.path / "socket", "--admin", address):
            wait_for("look", requests_per_second=0.0)


class Other(http.server.BaseHTTPRequestHandler):
    """Not ours."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (("--admin", "127.0.0.1:1"), 1, "127.0.0.1:1: Connection refused. Name the admin port"),
        (("--admin", "127.0.0.1"), 2, "--admin: '127.0.0.1' has no port"),
        (("--admin", "nowhere.invalid:1"), 1, "nowhere.invalid:1: "),
        (("--interval", "0"), 2, "--interval 0: it must be"),
        (("--count", "0"), 2, "--count 0: it must be"),
    ],
)
def test_mistakes_are_one_line(flags, status, words):
    run = run_command("top", *flags)
    assert (run.returncode, run.stdout) == (status, "")
    assert words in run.stderr
    assert run.stderr.count("\n") == 1


def test_what_is_no_admin_port_is_named():
    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"127.0.0.1:{server.server_port}"
            run = run_command("top", "--admin", address)
        finally:
            server.shutdown()
            thread.join()
    assert run.returncode == 1
    assert f"{address}: what answers there is no admin port of gpu-provider" in run.stderr
    assert run.stderr.count("\n") == 1


def test_quantiles_are_within_their_buckets():
    buckets = Buckets({1.0: 0.0, 2.0: 50.0, 4.0: 49.0, float("inf"): 1.0})
    assert buckets.quantile(0.25) == 1.5
    assert buckets.quantile(0.5) == 2.0
    assert buckets.quantile(0.745) == 3.0
    assert buckets.quantile(1.0) == 4.0  # somewhere above
    assert Buckets({1.0: 0.0}).quantile(0.5) is None


def test_a_counter_that_begins_anew_counts_from_zero():
    def at(seconds: float, **values: float) -> Scrape:
        return Scrape(seconds, {"count": {frozenset({("backend", name)}): value for name, value in values.items()}})

    change = Change(at(10, cpu=100, cuda=5), at(12, cpu=40, cuda=9, libcrypto=6))
    assert change.by("count", "backend") == {("cpu",): 40, ("cuda",): 4, ("libcrypto",): 6}
    assert change.rate("count") == 25
