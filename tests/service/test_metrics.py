"""An operator must see which programs the service computes for, whatever these do and call themselves."""

from __future__ import annotations

import contextlib
import mmap
import os
import pwd
import resource
import socket
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from groups import TIMEOUT, Client, get_many, public_directory
from ports import unused_port
from program_servers import HAProxy
from prometheus_client.parser import text_string_to_metric_families
from service_process import HELLO, Service
from terminator_process import run_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groups import Directory

PREFIX = "gpu_provider_service_"
REQUESTS = f"{PREFIX}requests_total"
CONNECTIONS = f"{PREFIX}connections_total"
ENDED = f"{PREFIX}ended_total"
REFUSED = f"{PREFIX}refused_total"
OK = b"HTTP/1.1 200 OK"
USER = pwd.getpwuid(os.geteuid()).pw_name
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


@pytest.fixture
def directory() -> Iterator[Directory]:
    with public_directory("service = {path}/socket\nservice_timeout = 20000") as directory:
        yield directory


def connect(directory: Directory) -> socket.socket:
    """As the module does; the service knows who it is when this returns, or has refused it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(TIMEOUT)
    connection.connect(str(directory.path / "socket"))
    with contextlib.suppress(BrokenPipeError):
        connection.send(HELLO)
    return connection


def programs(service: Service) -> set[tuple[str, str]]:
    return {
        (sample.labels["program"], sample.labels["user"])
        for family in text_string_to_metric_families(service.admin("/metrics")[1])
        for sample in family.samples
        if sample.name == CONNECTIONS
    }


def run_script(script: str, directory: Directory, *arguments: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=directory.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@as_root
def test_requests_go_by_program_and_user_and_stay_when_the_program_has_gone(directory):
    labels = {"program": "haproxy", "user": "nobody"}
    with Service(directory.path / "socket") as service:
        with HAProxy(directory, settings="nbthread 1\n    user nobody\n    group nogroup") as server:
            while not directory.counts().served:
                assert Client().get(server.port) == OK
            assert get_many(server.port, [Client()] * 50) == {OK: 50}
            served = directory.counts().served
            assert service.metric(REQUESTS, **labels) == service.metric(REQUESTS) == served
            assert service.metric("gpu_provider_requests_total", result="ok", size="2048") == served
            assert service.metric("gpu_provider_batch_size_sum") == served
            assert service.metric(f"{PREFIX}processes", **labels) == 1
            assert service.metric(f"{PREFIX}keys", **labels) == 1
            assert service.metric(f"{PREFIX}descriptors", **labels) > 0
            assert service.metric(ENDED) == 0
        service.wait_for_metric(ENDED, 1, reason="closed", **labels)
        assert service.metric(REQUESTS, **labels) == served
        for now in ("processes", "keys", "descriptors"):
            assert service.metric(f"{PREFIX}{now}") == 0
        assert service.metric(f"{PREFIX}failed_requests_total", **labels) == 0


SHORT_LIVES = """
import os
from gpu_provider.native import ffi, lib

key = lib.EVP_PKEY_Q_keygen(ffi.NULL, ffi.NULL, b"RSA", ffi.cast("size_t", 2048))

def sign():
    context = ffi.gc(lib.EVP_PKEY_CTX_new_from_pkey(ffi.NULL, key, ffi.NULL), lib.EVP_PKEY_CTX_free)
    size, signature = ffi.new("size_t *", 256), ffi.new("unsigned char[256]")
    assert lib.EVP_PKEY_sign_init(context) == 1
    assert lib.EVP_PKEY_sign(context, signature, size, bytes(32), 32) == 1

for _ in range(40):
    child = os.fork()
    if child == 0:
        for _ in range(50):
            sign()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_short_lived_processes_do_not_take_their_counts_with_them(directory):
    with Service(directory.path / "socket") as service:
        run_script(SHORT_LIVES, directory)
        service.wait_for_metric(ENDED, 40)
        assert service.metric(CONNECTIONS, user=USER) == service.metric(CONNECTIONS) == 40
        assert service.metric(REQUESTS) == directory.counts().served > 0


def resident_kib(service: Service) -> int:
    return int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


def test_a_thousand_processes_that_come_and_go_leave_no_memory_behind(directory):
    def come_and_go(count: int) -> None:
        before = service.metric(ENDED)
        for _ in range(count):
            connect(directory).close()
        service.wait_for_metric(ENDED, before + count)

    with Service(directory.path / "socket") as service:
        come_and_go(200)
        before, series = resident_kib(service), len(service.admin("/metrics")[1].splitlines())
        come_and_go(1000)
        assert resident_kib(service) - before < 2048
        assert len(service.admin("/metrics")[1].splitlines()) == series
        assert service.metric(f"{PREFIX}processes") == 0


NAMES = f"""
import os, socket, sys

path, hello = sys.argv[1], {HELLO!r}
names, users = int(sys.argv[2]), [int(user) for user in sys.argv[3:]]
for user in users:
    for name in range(names):
        with open("/proc/self/comm", "wb") as comm:
            comm.write(b"name-%d" % name)
        os.seteuid(user)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(path)
            connection.send(hello)
            assert connection.recv(1)
        os.seteuid(os.getuid())
"""


def test_a_user_whose_programs_change_their_names_gets_a_few_series(directory):
    """Hazard: each new name is a new series, for ever."""
    with Service(directory.path / "socket") as service:
        run_script(NAMES, directory, str(directory.path / "socket"), "100", str(os.geteuid()))
        assert service.metric(CONNECTIONS) == 100
        assert len(programs(service)) == 17
        assert service.metric(CONNECTIONS, program="other", user=USER) == 84


@as_root
def test_many_users_with_many_names_get_a_bounded_number_of_series(directory):
    with Service(directory.path / "socket") as service:
        run_script(NAMES, directory, str(directory.path / "socket"), "20", *map(str, range(50000, 50010)))
        assert service.metric(CONNECTIONS) == 200
        assert len(programs(service)) <= 65
        assert service.metric(CONNECTIONS, program="other", user="other") > 0
        assert service.metric(CONNECTIONS, user="50000") == 20  # users without a name are there by number


def test_a_name_of_any_bytes_is_shown_in_printable_ones(directory):
    """Hazard: a name with a line feed or an escape sequence, in the metrics or on a terminal."""
    name = Path("/proc/self/comm").read_bytes()
    with Service(directory.path / "socket") as service:
        try:
            Path("/proc/self/comm").write_bytes(b'a"\n\x1b[1m\xff\\{}')
            with connect(directory) as connection:
                assert connection.recv(100)
        finally:
            Path("/proc/self/comm").write_bytes(name)
        assert programs(service) == {('a"??[1m?\\{}', USER)}


def test_why_connections_end(directory):
    with Service(directory.path / "socket") as service:
        with connect(directory) as connection:
            connection.send(HELLO)  # for the second time
            service.wait_for_metric(ENDED, 1, reason="protocol_error")
        with connect(directory):
            pass
        service.wait_for_metric(ENDED, 1, reason="closed")
        with connect(directory) as connection:  # says that it has submitted a request in a slot that it has not
            _, descriptors, _, _ = socket.recv_fds(connection, 100, 2)
            memfd, doorbell = descriptors
            with mmap.mmap(memfd, os.fstat(memfd).st_size) as memory:
                memory.write(struct.pack("=II", 1, 0xFFFFFFFF) * (len(memory) // 8))
            os.eventfd_write(doorbell, 1)
            service.wait_for_metric(ENDED, 2, reason="protocol_error")
            for descriptor in descriptors:
                os.close(descriptor)
        assert service.metric(ENDED) == 3


def test_refused_processes_are_counted_by_reason(directory):
    with Service(directory.path / "socket", "--max-processes", "1") as service:
        assert service.metric(f"{PREFIX}max_processes") == 1
        with connect(directory) as first:
            assert first.recv(100)
            with connect(directory) as second, contextlib.suppress(ConnectionError):
                assert second.recv(100) == b""
        service.wait_for_metric(REFUSED, 1, reason="max_processes")
        assert service.metric(CONNECTIONS) == service.metric(REFUSED) == 1


def test_series_without_a_program_exist_before_their_first_event(directory):
    """A rate over a counter that appears with its first event misses that event."""
    with Service(directory.path / "socket") as service:
        names = {
            (sample.name, *sample.labels.values())
            for family in text_string_to_metric_families(service.admin("/metrics")[1])
            for sample in family.samples
        }
    assert names >= {
        *((REFUSED, reason) for reason in ("max_processes", "no_memory", "no_descriptors")),
        (f"{PREFIX}accept_failures_total",),
        (f"{PREFIX}log_lines_dropped_total",),
        ("gpu_provider_retries_total",),
    }


def test_the_admin_port_answers_as_the_terminators_does_or_not_at_all(directory):
    with Service(directory.path / "socket") as service:
        assert service.admin("/livez") == (200, "alive\n")
        assert service.admin("/readyz") == (200, "ready, computing with cpu\n")
        assert service.admin("/elsewhere")[0] == 404
    address = f"127.0.0.1:{unused_port()}"
    with Service(directory.path / "socket", "--admin", address):
        with urllib.request.urlopen(f"http://{address}/livez", timeout=TIMEOUT) as answer:
            assert answer.read() == b"alive\n"
        run = run_command("service", "--socket", str(directory.path / "another"), "--admin", address)
        assert run.returncode == 2
        assert f"admin: can't listen on {address}" in run.stderr
        assert "Traceback" not in run.stderr
    with Service(directory.path / "socket", "--admin", "off") as service:
        assert service.wait_for("ready")["admin"] == []


def test_a_service_without_a_free_descriptor_still_says_so(directory):
    """Hazard: metrics can't be had when they are needed most."""
    with Service(directory.path / "socket") as service, contextlib.ExitStack() as connections:
        with connect(directory) as connection:
            assert connection.recv(100)
        service.wait_for_metric(ENDED, 1)
        _, hard = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
        in_use = max(int(entry.name) for entry in Path(f"/proc/{service.process.pid}/fd").iterdir()) + 1
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (in_use, hard))
        while not service.metric(f"{PREFIX}accept_failures_total") + service.metric(REFUSED):
            connections.enter_context(connect(directory))
        for _ in range(20):
            assert service.admin("/readyz")[0] == 200
            assert service.metric(f"{PREFIX}accept_failures_total") + service.metric(REFUSED) > 0
