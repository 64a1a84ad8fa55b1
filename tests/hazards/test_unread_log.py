"""A log that nobody reads, or that can't be written, stops neither connections, nor the admin port, nor the end."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import threading

import pytest
from ports import unused_port
from terminator_process import COMMAND, TIMEOUT, Terminator, Upstream, echo, environment, write_credentials

DROPPED = "gpu_provider_terminator_log_lines_dropped_total"


class Unlogged(Terminator):
    """A terminator whose standard error is ``stderr``. Its ports are chosen here, because no log line tells them."""

    def __init__(self, *flags, upstream, stderr):
        super().__init__(*flags, upstream=upstream)
        self.address, self.admin_address = ("127.0.0.1", unused_port()), ("127.0.0.1", unused_port())
        ports = [
            "--listen",
            f"127.0.0.1:{self.address[1]}",
            "--admin",
            f"127.0.0.1:{self.admin_address[1]}",
        ]
        self._command = [*COMMAND, "terminator", *ports, "--upstream", upstream, *flags]
        self._stderr = stderr

    def __enter__(self):
        self.process = subprocess.Popen(self._command, env=environment(), stderr=self._stderr)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def wait_until_ready(self):
        while True:
            with contextlib.suppress(ConnectionError):
                return self.admin("/readyz")
            assert self.process.poll() is None

    def log_lines(self, count):
        """Makes it write ``count`` lines, one per failed handshake."""
        for _ in range(count):
            with self.dial() as sock:
                sock.sendall(b"this is not TLS")
                sock.recv(100)


@contextlib.contextmanager
def talkative_terminator(directory, stderr):
    with (
        Upstream(echo) as upstream,
        Unlogged(
            *write_credentials(directory), "--access-log", "all", upstream=upstream.address, stderr=stderr
        ) as terminator,
    ):
        terminator.wait_until_ready()
        yield terminator


@pytest.fixture
def small_pipe():
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(reader, "rb") as lines, os.fdopen(writer, "wb") as pipe:
        yield lines, pipe


def overflow(terminator):
    while terminator.metric(DROPPED) == 0:
        terminator.log_lines(200)


def test_a_full_pipe_stops_nothing_and_the_process_ends(tmp_path, small_pipe):
    with talkative_terminator(tmp_path, small_pipe[1]) as terminator:
        overflow(terminator)
        assert terminator.echo() == b"are you there?"
        assert terminator.admin("/readyz")[0] == 200
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.process.wait(TIMEOUT) == 0


def test_when_it_is_read_again_the_log_says_how_much_is_missing(tmp_path, small_pipe):
    lines, pipe = small_pipe
    with talkative_terminator(tmp_path, pipe) as terminator:
        pipe.close()
        overflow(terminator)
        events = []
        reader = threading.Thread(target=lambda: events.extend(map(json.loads, lines)))
        reader.start()
        terminator.log_lines(1)
        dropped = terminator.metric(DROPPED)
        assert terminator.echo() == b"are you there?"
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.process.wait(TIMEOUT) == 0
        reader.join(TIMEOUT)
    missing = [event for event in events if event["event"].startswith("log lines were dropped")]
    assert sum(event["lines"] for event in missing) >= dropped
    assert events[-1]["event"] == "stopped"


def test_a_pipe_whose_reader_has_gone_stops_nothing(tmp_path, small_pipe):
    lines, pipe = small_pipe
    with talkative_terminator(tmp_path, pipe) as terminator:
        lines.close()
        overflow(terminator)
        assert terminator.echo() == b"are you there?"
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.process.wait(TIMEOUT) == 0


def test_a_full_disk_stops_nothing(tmp_path):
    with open("/dev/full", "wb") as full, talkative_terminator(tmp_path, full) as terminator:
        overflow(terminator)
        assert terminator.echo() == b"are you there?"
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.process.wait(TIMEOUT) == 0


def test_a_stopped_terminal_stops_nothing(tmp_path):
    primary, secondary = os.openpty()
    with os.fdopen(primary, "wb", buffering=0) as keyboard, os.fdopen(secondary, "wb") as terminal:
        keyboard.write(b"\x13")  # ^S
        with talkative_terminator(tmp_path, terminal) as terminator:
            overflow(terminator)
            assert terminator.echo() == b"are you there?"
            terminator.process.send_signal(signal.SIGTERM)
            assert terminator.process.wait(TIMEOUT) == 0


def test_with_standard_error_closed_it_serves_and_no_connection_gets_the_log(tmp_path):
    with Upstream(echo) as upstream:
        terminator = Unlogged(
            *write_credentials(tmp_path), "--access-log", "all", upstream=upstream.address, stderr=None
        )
        terminator._command = ["sh", "-c", 'exec "$@" 2>&- <&-', "sh", *terminator._command]
        with terminator:
            terminator.wait_until_ready()
            assert os.readlink(f"/proc/{terminator.process.pid}/fd/2") == os.devnull
            for _ in range(3):
                assert terminator.echo() == b"are you there?"
            terminator.process.send_signal(signal.SIGTERM)
            assert terminator.process.wait(TIMEOUT) == 0


def test_the_descriptions_flags_stay_as_they_were(tmp_path, small_pipe):
    """Standard error is often shared with other programs: to make it non-blocking would break them."""
    with talkative_terminator(tmp_path, small_pipe[1]) as terminator:
        assert terminator.echo() == b"are you there?"
        assert not fcntl.fcntl(small_pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK
