"""Real programs whose RSA operations another process computes, and what happens when that process does not behave."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pwd
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from groups import TIMEOUT, Client, Counts, Server, abort_many, find_program, get_many, public_directory
from ports import unused_port
from program_servers import HAProxy, nginx
from service_load import load, wait_for_more, wait_until_served
from service_process import HELLO, Service
from terminator_process import run_command

from gpu_provider.errors import ConfigError
from gpu_provider.service.config import ServiceConfig
from gpu_provider.service.listening import listening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from groups import Directory

OK = b"HTTP/1.1 200 OK"
NOBODY = pwd.getpwnam("nobody").pw_uid
CONNECTED = "program connected"
DISCONNECTED = "program disconnected"


@pytest.fixture
def directory() -> Iterator[Directory]:
    with public_directory("service = {path}/socket\nservice_timeout = 500") as directory:
        yield directory


def socket_of(directory: Directory) -> Path:
    return directory.path / "socket"


def warm_up(directory: Directory, server: Server, client: Client | None = None, answer: bytes = OK) -> None:
    """Until the program has reached the service, and that has its key, operations are its own."""
    client = client or Client()
    for _ in range(200):
        before = directory.counts(client.bits).operations
        assert client.get(server.port) == answer
        if directory.counts(client.bits).operations == before:
            return
    pytest.fail("the program does not reach the service")


# ---- programs ----


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_haproxys_operations_are_the_services(directory, bits):
    client = Client(bits)
    with Service(socket_of(directory)) as service:
        with HAProxy(directory, bits=(bits,)) as server:
            warm_up(directory, server, client)
            before = directory.counts(bits).operations
            assert get_many(server.port, [client] * 60) == {OK: 60}
            assert directory.counts(bits).operations == before
            abort_many(server.port, client, 20)
            assert get_many(server.port, [client] * 20) == {OK: 20}
        service.wait_for(DISCONNECTED)
        assert service.requests >= 80


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start HAProxy as another user")
def test_a_master_and_its_workers_under_another_user(directory):
    with Service(socket_of(directory)) as service:
        with HAProxy(directory, "-W", "-db", settings="nbthread 1\n    user nobody\n    group nogroup") as server:
            warm_up(directory, server)
            assert get_many(server.port, [Client()] * 20) == {OK: 20}
        service.wait_for(DISCONNECTED)
        assert service.requests >= 20
        assert {event["uid"] for event in service.events if event["event"] == CONNECTED} == {NOBODY}


def test_in_a_chroot_without_the_socket_a_program_computes_by_itself(directory):
    with (
        Service(socket_of(directory)),
        HAProxy(directory, settings=f"nbthread 1\n    chroot {directory.path / 'counts'}") as server,
    ):
        assert get_many(server.port, [Client()] * 20) == {OK: 20}
    assert (directory.counts().operations, directory.counts().served) == (20, 0)


@pytest.mark.parametrize(("jobs", "processes"), [(1, 1), (8, 2), (64, 2)])
def test_openssl_speed(directory, jobs, processes):
    command = ["openssl", "speed", "-seconds", "1", "-async_jobs", str(jobs), "-multi", str(processes), "rsa2048"]
    with Service(socket_of(directory)) as service:
        run = subprocess.run(command, env=directory.environment, capture_output=True, timeout=TIMEOUT, check=False)
        assert run.returncode == 0, run.stderr
        service.wait_for(DISCONNECTED, processes)
        service.stop()
        assert jobs == 1 or service.wait_for("stopped")["mean_batch"] > 1
    assert directory.counts().served > directory.counts().operations


def test_a_service_with_a_long_queue_is_not_left_alone_with_it():
    """Programs that compute by themselves pay more for each operation, and an overload would only become worse."""
    command = ["openssl", "speed", "-seconds", "2", "-async_jobs", "256", "rsa4096"]
    with (
        public_directory("service = {path}/socket") as directory,
        Service(socket_of(directory), "--backend", "libcrypto", "--threads", "1"),
    ):
        run = subprocess.run(command, env=directory.environment, capture_output=True, timeout=TIMEOUT, check=False)
        assert run.returncode == 0, run.stderr
        counts = directory.counts(4096)
    assert counts.served > 2 * counts.operations


def test_s_server_with_async_jobs(directory):
    port, file = unused_port(), str(directory.certificate(2048))
    command = [find_program("openssl"), "s_server", "-async", "-www", "-accept", f"127.0.0.1:{port}"]
    with Service(socket_of(directory)), Server([*command, "-cert", file, "-key", file], directory, port) as server:
        warm_up(directory, server, answer=b"HTTP/1.0 200 ok")
        before = directory.counts()
        for client in [
            Client(),
            Client(version=ssl.TLSVersion.TLSv1_2),
        ] * 2:  # with -www it sleeps a second at each pause
            assert client.get(port) == b"HTTP/1.0 200 ok"
        assert directory.counts() - before == Counts(served=4)


def test_workers_of_nginx_have_one_service(directory):
    """Each computes one operation at a time, and sleeps until it is done."""
    with Service(socket_of(directory)) as service:
        with nginx(directory, workers=4) as server:
            for _ in range(4):
                warm_up(directory, server)
            before = directory.counts()
            assert get_many(server.port, [Client()] * 200) == {OK: 200}
            assert (directory.counts() - before).served >= 150  # a worker that had no connection before attaches now
        service.wait_for(DISCONNECTED, 2)
        service.stop()
        assert service.requests >= 150


SIGNERS = """
import os
from concurrent.futures import ThreadPoolExecutor
from gpu_provider.native import ffi, lib

key = lib.EVP_PKEY_Q_keygen(ffi.NULL, ffi.NULL, b"RSA", ffi.cast("size_t", 2048))

def sign(_):
    context = ffi.gc(lib.EVP_PKEY_CTX_new_from_pkey(ffi.NULL, key, ffi.NULL), lib.EVP_PKEY_CTX_free)
    size, signature = ffi.new("size_t *", 256), ffi.new("unsigned char[256]")
    assert lib.EVP_PKEY_sign_init(context) == 1
    assert lib.EVP_PKEY_sign(context, signature, size, bytes(32), 32) == 1
    return bytes(signature)

def served():
    count, params = ffi.new("uint64_t *"), ffi.new("OSSL_PARAM[2]")
    context = ffi.gc(lib.EVP_PKEY_CTX_new_from_pkey(ffi.NULL, key, ffi.NULL), lib.EVP_PKEY_CTX_free)
    assert lib.EVP_PKEY_sign_init(context) == 1
    params[0] = lib.OSSL_PARAM_construct_uint64(b"served-2048", count)
    params[1] = lib.OSSL_PARAM_construct_end()
    assert lib.OSSL_PROVIDER_get_params(lib.EVP_PKEY_CTX_get0_provider(context), params) == 1
    return count[0]

right = sign(0)

def process():
    before = served()
    with ThreadPoolExecutor(4) as threads:
        while served() == before:
            assert set(threads.map(sign, range(200))) == {right}

process()  # the parent is attached when it forks
for _ in range(3):  # one after the other, since they all count what is served
    child = os.fork()
    if child == 0:
        try:
            process()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
process()
"""


def test_threads_that_sleep_and_forked_children_each_attach(directory):
    with Service(socket_of(directory)) as service:
        run = subprocess.run(
            [sys.executable, "-c", SIGNERS],
            env=directory.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        service.wait_for(DISCONNECTED, 4)
        assert len({event["pid"] for event in service.events if event["event"] == CONNECTED}) == 4
        assert service.requests == directory.counts().served > 0


HEIR = (
    SIGNERS.partition("for _ in range(3)")[0]
    + """
if os.fork() == 0:
    os.read(0, 1)  # it lives on, without an operation of its own
"""
)


def test_the_end_of_a_program_is_seen_though_its_child_lives_on(directory):
    """The child has copies of all descriptors, and would keep the connection and the queue of its parent for ever."""
    with Service(socket_of(directory)) as service:
        program = subprocess.Popen(
            [sys.executable, "-c", HEIR], env=directory.environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert program.stdin is not None
        with program.stdin:
            assert program.wait(TIMEOUT) == 0
            assert service.wait_for(DISCONNECTED)["requests"] > 0
        assert program.stderr is not None
        with program.stderr:
            assert program.stderr.read() == b""


def test_check_says_that_the_service_computes(directory):
    configuration = directory.environment["OPENSSL_CONF"]
    with Service(socket_of(directory)):
        run = run_command(
            "check", "--config", configuration, "--seconds", "0.3", "--output", "json",
            OPENSSL_MODULES=directory.environment["OPENSSL_MODULES"],
        )  # fmt: skip
    events = [json.loads(line) for line in run.stdout.splitlines()]
    assert (run.returncode, run.stderr) == (0, "")
    speeds = [event for event in events if event["event"] == "speed"]
    assert len(speeds) == 6
    assert all(speed["counts"]["served"] > 0 for speed in speeds)
    assert not [event for event in events if event["event"] == "mistake"]


# ---- a service that fails ----


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_no_handshake_fails_with_its_service_which_is_found_again(directory, number):
    with HAProxy(directory) as server, Service(socket_of(directory)) as service, load(server) as answers:
        wait_until_served(directory, answers)
        service.process.send_signal(number)
        wait_for_more(answers, 50)
        if number == signal.SIGSTOP:
            service.process.send_signal(signal.SIGCONT)
            wait_until_served(directory, answers)
        else:
            with Service(socket_of(directory)) as another:
                wait_until_served(directory, answers)
                another.stop()
                wait_for_more(answers, 20)
                assert another.requests > 0


def test_a_program_that_starts_without_a_service_finds_it_later(directory):
    with HAProxy(directory) as server:
        assert get_many(server.port, [Client()] * 10) == {OK: 10}
        with Service(socket_of(directory)), load(server) as answers:
            wait_until_served(directory, answers)


# ---- programs that misbehave ----


def connect(directory: Directory) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(TIMEOUT)
    connection.connect(str(socket_of(directory)))
    return connection


@pytest.mark.parametrize(
    "message",
    [b"", b"\0", b"\x01" + bytes(22), b"\x01" + bytes(23), b"\x04" + bytes(23), b"\xff" * 24, bytes(4096)],
    ids=["nothing", "short", "one byte missing", "no version", "key before hello", "unknown", "zeros"],
)
def test_who_does_not_keep_to_the_protocol_is_cut_off_and_nobody_else(directory, message):
    with Service(socket_of(directory)) as service, HAProxy(directory) as server, load(server):
        with connect(directory) as liar:
            liar.send(message)
            with contextlib.suppress(ConnectionError):
                assert liar.recv(100) == b""
        assert service.process.poll() is None


def scribble(directory: Directory, random: random.Random) -> None:
    """Connects as the module does, and then writes nonsense over its queue, while it rings."""
    with connect(directory) as liar:
        liar.send(HELLO)
        _, (memfd, doorbell), _, _ = socket.recv_fds(liar, 100, 2)
        try:
            with mmap.mmap(memfd, os.fstat(memfd).st_size) as memory:
                for _ in range(300):
                    place = random.randrange(random.choice([4096, len(memory)]))
                    memory[place] = random.choice([random.randrange(8), random.randrange(256)])
                    os.eventfd_write(doorbell, 1)
        finally:
            os.close(memfd)
            os.close(doorbell)


def test_who_writes_nonsense_into_shared_memory_harms_nobody_else(directory):
    numbers = random.Random(15)  # noqa: S311 - the same nonsense each time
    with Service(socket_of(directory)) as service, HAProxy(directory) as server, load(server) as answers:
        wait_until_served(directory, answers)
        for _ in range(100):
            scribble(directory, numbers)
        wait_until_served(directory, answers)
        service.stop()
        assert service.requests > 0


def test_processes_beyond_the_limit_are_refused_and_compute_by_themselves(directory):
    with Service(socket_of(directory), "--max-processes", "1") as service, connect(directory):
        service.wait_for(CONNECTED)
        with HAProxy(directory) as server:
            assert get_many(server.port, [Client()] * 20) == {OK: 20}
        assert service.wait_for("program refused")["reason"] == "there are max_processes already"
    assert directory.counts().served == 0


# ---- mistakes ----


def test_mistakes_end_with_one_line(tmp_path):
    for socket_path, words in [
        (tmp_path / "no" / "socket", "No such file or directory"),
        (tmp_path / ("long" * 40), "too long"),
    ]:
        run = run_command("service", "--socket", str(socket_path))
        assert run.returncode == 2
        assert words in run.stderr
        assert "Traceback" not in run.stderr
    run = run_command("service")
    assert (run.returncode, "socket is not set; give --socket" in run.stderr) == (2, True)


def test_two_services_do_not_share_a_socket_but_one_that_was_killed_leaves_none(tmp_path):
    path = tmp_path / "socket"
    with Service(path) as service:
        run = run_command("service", "--socket", str(path), "--admin", "off")
        assert run.returncode == 2
        assert "another service listens there" in run.stderr
        service.process.kill()
    assert path.exists()
    with Service(path) as service:
        service.stop()
    assert not path.exists()


def test_of_services_that_start_together_one_takes_a_socket_that_was_left_behind(tmp_path):
    """Hazard: each finds it dead and replaces it, and all but the last wait for programs that never come."""
    path = tmp_path / "socket"
    config = ServiceConfig(socket=path)
    start, end = threading.Barrier(4), threading.Barrier(4)

    def serve():
        start.wait()
        try:
            with listening(config):
                end.wait()
                return True
        except ConfigError:
            end.wait()
            return False

    with ThreadPoolExecutor(4) as threads:
        for _ in range(25):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
                dead.bind(str(path))
            served = [threads.submit(serve) for _ in range(4)]
            assert sorted(one.result() for one in served) == [False, False, False, True]
            assert not path.exists()
