"""Hazard: a program's queue at the service is full. Nobody is forgotten, and nobody waits for a slot for ever."""

from __future__ import annotations

import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from compiler_flags import flags
from groups import Client, abort_many, get_many, public_directory
from program_servers import HAProxy
from rsa_keys import private_key
from service_process import Service
from terminator_process import echo_terminator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groups import Directory
    from terminator_process import Terminator

OK = b"HTTP/1.1 200 OK"
NATIVE = Path(__file__).parents[1] / "native"
SIGNED = b"what every signature is of.....\0"
SECONDS = 40  # a slot that nobody gives back is waited for until service_timeout, a minute


@pytest.fixture
def directory() -> Iterator[Directory]:
    with public_directory("service = {path}/socket\nservice_timeout = 60000") as directory:
        yield directory


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    program = tmp_path_factory.mktemp("signers") / "signers"
    options = [*flags("C_STANDARD", "WARNINGS"), "-O2", "-Werror", "-pthread"]
    subprocess.run(["gcc", *options, NATIVE / "signers.c", "-o", program, "-lcrypto"], check=True, timeout=50)
    return program


@pytest.mark.parametrize("requests", [1, 2])
@pytest.mark.parametrize(
    ("way", "abandon"), [("fds", 0), ("fds", 5), ("callbacks", 0), ("callbacks", 5), ("threads", 0)]
)
def test_whoever_waits_is_served_or_computes(signers, directory, way, abandon, requests):
    """Also where jobs are abandoned, with the only slot theirs: the service makes it free, when nobody is told."""
    key = directory.certificate(2048)
    command = [signers, key, way, "64", "600", str(abandon)]
    with Service(directory.path / "socket", "--process-requests", str(requests)):
        done = subprocess.run(
            command, env=directory.environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    assert done.returncode == 0, done.stderr
    assert way != "fds" or directory.counts().served > 0
    modulus = private_key(2048).private_numbers().public_numbers.n
    padded = b"\0\1".ljust(256 - len(SIGNED) - 1, b"\xff") + b"\0" + SIGNED
    assert pow(int(done.stdout, 16), 65537, modulus) == int.from_bytes(padded, "big")


@pytest.mark.parametrize("threads", [1, 2])
def test_haproxy_with_room_for_one_request(directory, threads):
    with Service(directory.path / "socket", "--process-requests", "1") as service:
        with HAProxy(directory, settings=f"nbthread {threads}") as server:
            for _ in range(3):
                leaving = threading.Thread(target=abort_many, args=(server.port, Client(), 40))
                leaving.start()
                try:
                    assert get_many(server.port, [Client()] * 60) == {OK: 60}
                finally:
                    leaving.join()
        service.wait_for("program disconnected")
        assert service.requests > 0


@pytest.mark.parametrize("requests", [1, 2])
def test_terminator_whose_connections_have_callbacks(tmp_path, requests):
    """RETRY is told once, then the slot: by the callback, on the event loop's thread."""
    path = tmp_path / "socket"
    with (
        Service(path, "--process-requests", str(requests)) as service,
        echo_terminator(tmp_path, "--service", str(path)) as terminator,
        ThreadPoolExecutor(32) as threads,
    ):
        for _ in range(2):
            leaving = [threads.submit(vanish, terminator) for _ in range(40)]
            answers = list(threads.map(lambda _: terminator.echo(b"hello"), range(150)))
            assert answers == [b"hello"] * 150
            for each in leaving:
                each.result()
        terminator.process.terminate()
        assert terminator.wait() == 0
        service.wait_for("program disconnected")
        assert service.requests > 100


def vanish(terminator: Terminator) -> None:
    with terminator.dial() as connection:
        connection.sendall(Client().hello())
