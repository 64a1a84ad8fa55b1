"""Programs as Debian has them, under load from clients of which some vanish, with their operations computed by the
service: one for each handshake, and nothing is left behind in either process."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from groups import (
    TIMEOUT,
    Client,
    Counts,
    Server,
    abort_many,
    certificate,
    find_program,
    get_many,
    public_directory,
    wait_until,
)
from ports import unused_port
from program_servers import HAProxy, apache, connect_to_postgres, nginx, postgres
from rsa_keys import private_key, private_pem
from service_process import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from groups import Directory

OK = b"HTTP/1.1 200 OK"
TLS_1_2 = ssl.TLSVersion.TLSv1_2
WAVE = 300
ABORTS = 40
CONNECTED, DISCONNECTED = "program connected", "program disconnected"


@pytest.fixture
def directory() -> Iterator[Directory]:
    """With so long a timeout that on a busy machine no program computes what the service was about to."""
    with public_directory("service = {path}/socket\nservice_timeout = 20000") as directory:
        yield directory


@pytest.fixture
def service(directory: Directory) -> Iterator[Service]:
    with Service(directory.path / "socket") as service:
        yield service


def both_versions(bits: int = 2048) -> list[Client]:
    return [Client(bits), Client(bits, TLS_1_2)] * (WAVE // 2)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def descriptors(process: int) -> int:
    return sum(len(os.listdir(f"/proc/{each}/fd")) for each in (process, *children(process)))


def resident_kib(process: int) -> int:
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in (process, *children(process)))
    return pages * os.sysconf("SC_PAGESIZE") // 1024


def attach(directory: Directory, get: Callable[[], bytes], answer: bytes, bits: int = 2048) -> None:
    """Until a program of one process has reached the service, and that has its key."""
    for _ in range(200):
        before = directory.counts(bits).operations
        assert get() == answer
        if directory.counts(bits).operations == before:
            return
    pytest.fail("the program does not reach the service")


def check_one_each(server: Server, answer: bytes, bits: int = 2048) -> None:
    """Each handshake is one operation, of the service."""
    before = server.directory.counts(bits)
    assert get_many(server.port, both_versions(bits)) == {answer: WAVE}
    done = server.directory.counts(bits) - before
    assert (done.operations, done.served) == (0, WAVE)


def check_nothing_is_left(server: Server, service: Service, answer: bytes, bits: int = 2048) -> None:
    """After equal waves, the first of which makes what is kept for later ones."""
    processes = {"program": server.process.pid, "service": service.process.pid}

    def wave() -> None:
        before = server.directory.counts(bits)
        leaving = threading.Thread(target=abort_many, args=(server.port, Client(bits), ABORTS))
        leaving.start()
        try:
            assert get_many(server.port, both_versions(bits)) == {answer: WAVE}
        finally:
            leaving.join()
        done = server.directory.counts(bits) - before
        assert WAVE <= done.operations + done.served <= WAVE + 2 * ABORTS  # the last ones of the wave before

    wave()
    wave()
    open_before = {name: descriptors(process) for name, process in processes.items()}
    memory_before = {name: resident_kib(process) for name, process in processes.items()}
    wave()
    for name, process in processes.items():
        wait_until(
            lambda name=name, process=process: descriptors(process) <= open_before[name] + 4, f"{name}: descriptors"
        )
        assert resident_kib(process) <= memory_before[name] + 8 * 1024, name


def check_batches(service: Service, programs: int = 1) -> None:
    service.wait_for(DISCONNECTED, programs)
    service.stop()
    assert service.wait_for("stopped")["mean_batch"] > 1


# ---- HAProxy ----


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start HAProxy as another user")
def test_haproxys_workers_under_another_user(directory, service):
    settings = "nbthread 2\n    user nobody\n    group nogroup"
    with HAProxy(directory, "-W", "-db", settings=settings) as server:
        attach(directory, lambda: Client().get(server.port), OK)
        check_one_each(server, OK)
        check_nothing_is_left(server, service, OK)
        with ThreadPoolExecutor(1) as thread:
            clients = thread.submit(get_many, server.port, both_versions())
            server.reload()
            server.reload()
            assert clients.result() == {OK: WAVE}
        attach(directory, lambda: Client().get(server.port), OK)
        check_one_each(server, OK)
    check_batches(service, 2)


def command(directory: Directory, text: str) -> str:
    """HAProxy's answer on its runtime socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(str(directory.path / "admin"))
        connection.sendall(f"{text}\n".encode())
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


def test_haproxys_certificate_is_replaced_while_it_runs(directory, service):
    """The key of the new one goes to the service as well."""
    settings = f"nbthread 2\n    stats socket {directory.path}/admin level admin"
    with HAProxy(directory, settings=settings) as server:
        attach(directory, lambda: Client().get(server.port), OK)
        check_one_each(server, OK)
        file = directory.path / "rsa2048.pem"
        pem = (certificate(3072) + private_pem(private_key(3072))).decode().replace("\n\n", "\n")
        assert "Transaction created" in command(directory, f"set ssl cert {file} <<\n{pem}")
        assert "Success!" in command(directory, f"commit ssl cert {file}")
        attach(directory, lambda: Client(3072).get(server.port), OK, 3072)
        check_one_each(server, OK, 3072)
    check_batches(service)


def test_haproxy_hears_nothing_of_connections_that_have_gone(directory, service):
    """It relies on close() to end its epoll's interest in a descriptor. One whose file the service keeps open would go
    on waking it."""
    settings = f"nbthread 2\n    stats socket {directory.path}/admin level admin"
    with HAProxy(directory, settings=settings) as server:
        attach(directory, lambda: Client().get(server.port), OK)
        check_one_each(server, OK)
        (dropped,) = re.findall(r"^poll_drop_fd: (\d+)", command(directory, "show activity"), re.MULTILINE)
        assert int(dropped) < WAVE / 2


# ---- programs that sleep in their calls ----


def test_nginxs_workers_while_they_are_replaced(directory, service):
    with nginx(directory, workers=2) as server:
        for _ in range(4):
            attach(directory, lambda: Client().get(server.port), OK)
        check_nothing_is_left(server, service, OK)
        with ThreadPoolExecutor(1) as thread:
            clients = thread.submit(get_many, server.port, both_versions())
            for _ in range(2):
                workers = set(children(server.process.pid))
                server.process.send_signal(signal.SIGHUP)
                wait_until(lambda workers=workers: set(children(server.process.pid)) - workers, "nginx does not reload")
            assert clients.result() == {OK: WAVE}
        attach(directory, lambda: Client().get(server.port), OK)
        before = directory.counts()
        assert get_many(server.port, both_versions()) == {OK: WAVE}
        done = directory.counts() - before
        assert done.operations + done.served == WAVE
    check_batches(service, 2)


def test_threads_of_apache(directory, service):
    answer = b"HTTP/1.1 404 Not Found"
    with apache(directory, 2048) as server:
        attach(directory, lambda: Client().get(server.port), answer)
        check_one_each(server, answer)
        check_nothing_is_left(server, service, answer)
    check_batches(service)


PYTHON_SERVER = """
import contextlib, socket, ssl, sys
from concurrent.futures import ThreadPoolExecutor

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])

def serve(plain):
    with contextlib.suppress(OSError), plain:  # the client has gone
        plain.settimeout(30)
        with context.wrap_socket(plain, server_side=True) as connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")

with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512) as listener, ThreadPoolExecutor(16) as threads:
    while True:
        threads.submit(serve, listener.accept()[0])
"""


def test_threads_of_pythons_ssl(directory, service):
    system = subprocess.run([find_program("openssl"), "version"], check=True, capture_output=True, text=True).stdout
    if not system.startswith(ssl.OPENSSL_VERSION):
        pytest.skip(f"Python's ssl has another OpenSSL than the system's: {ssl.OPENSSL_VERSION}, not {system.strip()}")
    port, file = unused_port(), str(directory.certificate(2048))
    with Server([sys.executable, "-c", PYTHON_SERVER, str(port), file], directory, port) as server:
        attach(directory, lambda: Client().get(port), OK)
        check_one_each(server, OK)
        check_nothing_is_left(server, service, OK)
    check_batches(service)


# ---- a process for each operation: it has computed it when the service answers ----


def vanish_from_postgres(port: int) -> None:
    """When it is about to answer."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
        connection.sendall(struct.pack("!II", 8, 80877103))
        assert connection.recv(1) == b"S"
        connection.sendall(Client().hello())


def test_processes_of_postgres(directory, service):
    def all_have_gone() -> bool:
        names = Counter(event["event"] for event in service.events)
        return names[CONNECTED] == names[DISCONNECTED] > 0

    with postgres(directory) as server, ThreadPoolExecutor(16) as threads:
        wait_until(lambda: connect_to_postgres(Client(), server.port) == b"R", "PostgreSQL does not begin to serve")
        wait_until(all_have_gone, "the service does not see a process end")
        before, open_before = directory.counts(), descriptors(service.process.pid)
        vanishing = [threads.submit(vanish_from_postgres, server.port) for _ in range(ABORTS)]
        answers = threads.map(lambda client: connect_to_postgres(client, server.port), both_versions())
        assert Counter(answers) == {b"R": WAVE}
        for each in vanishing:
            each.result()
        wait_until(all_have_gone, "the service does not see a process end")
        done = directory.counts() - before
        assert WAVE <= done.singles <= WAVE + ABORTS
        assert done == Counts(singles=done.singles)
        assert descriptors(service.process.pid) <= open_before + 4
        assert connect_to_postgres(Client(), server.port) == b"R"


def run_openssl(directory: Directory, *arguments: str) -> bytes:
    return subprocess.run(
        [find_program("openssl"), *arguments],
        env=directory.environment,
        cwd=directory.path,
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    ).stdout


def test_cms_and_req_of_openssl(directory, service):
    pem, message = str(directory.certificate(2048)), directory.path / "message"
    message.write_bytes(b"a message\n" * 1000)
    signed, encrypted = ("-binary", "-in", "signed"), ("-binary", "-in", "encrypted")
    run_openssl(directory, "cms", "-sign", "-binary", "-in", "message", "-signer", pem, "-nodetach", "-out", "signed")
    assert directory.counts() == Counts(singles=1)  # those of the last program
    assert run_openssl(directory, "cms", "-verify", *signed, "-CAfile", pem, "-purpose", "any") == message.read_bytes()
    run_openssl(directory, "cms", "-encrypt", "-binary", "-in", "message", "-out", "encrypted", pem)
    assert run_openssl(directory, "cms", "-decrypt", *encrypted, "-recip", pem) == message.read_bytes()
    assert directory.counts() == Counts(singles=1)
    run_openssl(directory, "req", "-new", "-key", pem, "-subj", "/CN=rsa2048.test", "-out", "request")
    assert directory.counts() == Counts(singles=1)
    assert b"BEGIN CERTIFICATE REQUEST" in run_openssl(directory, "req", "-verify", "-in", "request")
    service.wait_for(DISCONNECTED, 3)
