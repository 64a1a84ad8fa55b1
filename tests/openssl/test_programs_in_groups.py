"""Programs with the provider module alone, unmodified: whether they have jobs, threads or processes, all are served,
and what comes together is computed in groups."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from groups import (
    Client,
    Counts,
    Server,
    find_program,
    get_many,
    get_together,
    public_directory,
    wait_until,
)
from ports import unused_port
from program_servers import apache, connect_to_postgres, nginx, postgres
from rsa_keys import private_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groups import Directory

TLS_1_2_RSA = (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256")
TLS_1_2 = Client(2048, *TLS_1_2_RSA)


@pytest.fixture
def directory() -> Iterator[Directory]:
    with public_directory() as directory:
        yield directory


# ---- openssl ----


@pytest.mark.parametrize(("jobs", "processes", "bits"), [(1, 1, 2048), (8, 1, 2048), (64, 2, 2048), (64, 1, 4096)])
def test_speed(directory: Directory, jobs: int, processes: int, bits: int) -> None:
    """Its jobs begin together, so those that are many make groups. One alone must not wait for others."""
    multi = ["-multi", str(processes)] if processes > 1 else []
    command = [find_program("openssl"), "speed", "-seconds", "1", *multi, "-async_jobs", str(jobs), f"rsa{bits}"]
    result = subprocess.run(command, check=False, env=directory.environment, capture_output=True, text=True, timeout=50)
    assert result.returncode == 0, result.stderr
    assert re.search(rf"^rsa +{bits} bits", result.stdout, re.MULTILINE), result.stdout
    counts = directory.counts(bits)
    assert counts.operations > 0
    if jobs == 1:
        assert counts.singles >= 0.95 * counts.operations
    else:
        assert counts.groups > 0


def test_s_server_serves_one_after_the_other(directory: Directory) -> None:
    """It waits for a paused handshake with select(), and serves nobody else meanwhile."""
    port, file = unused_port(), str(directory.certificate(2048))
    command = [find_program("openssl"), "s_server", "-async", "-www", "-accept", f"127.0.0.1:{port}"]
    with Server([*command, "-cert", file, "-key", file], directory, port):
        for client in [Client(), TLS_1_2] * 20:
            assert client.get(port) == b"HTTP/1.0 200 ok"
    assert directory.counts().operations == 40


# ---- servers ----


def test_apache_computes_in_groups_for_sleeping_threads(directory: Directory) -> None:
    """Its event MPM has no jobs: each thread sleeps until its operation is done, or computes it for the others. It also
    waits for its client's request, so no more clients than threads may come together."""
    with apache(directory, 3072) as server:
        served = 0
        while directory.counts(3072).groups == 0 and served < 1000:
            assert get_together(server, [Client(3072)] * 25) == {b"HTTP/1.1 404 Not Found": 25}
            served += 25
        assert get_many(server.port, [Client(3072), Client(3072, *TLS_1_2_RSA)] * 50) == {
            b"HTTP/1.1 404 Not Found": 100
        }
        served += 100
    assert directory.counts(3072).operations == served
    assert directory.counts(3072).groups > 0


def test_nginx_serves_all(directory: Directory) -> None:
    """It has no jobs and no threads, so it computes one by one, as it would without the module."""
    with nginx(directory) as server:
        assert get_together(server, [Client(), TLS_1_2] * 50) == {b"HTTP/1.1 200 OK": 100}
        assert get_many(server.port, [Client(), TLS_1_2] * 50) == {b"HTTP/1.1 200 OK": 100}
    counts = directory.counts()
    assert counts.operations == 200
    assert counts.groups == counts.grouped == counts.in_vain < 20  # tried now and then


def test_postgres_serves_each_connection_by_a_process(directory: Directory) -> None:
    """Each process has one operation to compute, and none that could wait with it."""
    with (
        postgres(directory) as server,
        ThreadPoolExecutor(16) as threads,
    ):
        wait_until(lambda: connect_to_postgres(Client(), server.port) == b"R", "PostgreSQL does not begin to serve")
        before = directory.counts()
        clients = [Client(), TLS_1_2] * 30
        assert set(threads.map(lambda client: connect_to_postgres(client, server.port), clients)) == {b"R"}
    assert directory.counts() == before + Counts(singles=60)


# ---- Python ----

THREADS = """
import ssl, sys, threading

file, bits = sys.argv[1:3]

def contexts():
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return ssl.create_default_context(cafile=file), server

def handshake(contexts):
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts[0].wrap_bio(to_client, to_server, server_hostname=f"rsa{bits}.test")
    server = contexts[1].wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    server.write(b"hello")
    assert client.read() == b"hello"

def in_threads(count, each, contexts):
    done = []

    def work():
        for _ in range(each):
            handshake(contexts)
            done.append(1)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done)

print(in_threads(32, 8, contexts()))
"""

# OpenSSL's locks are as a fork finds them: one that another thread holds is never released in the child. So the threads
# only sign, which takes no lock but the key's, and the child has a key of its own.
FORKS = """
import ctypes, os, signal, sys, threading

libcrypto = ctypes.CDLL("libcrypto.so.3")
for name in ("BIO_new_file", "PEM_read_bio_PrivateKey", "EVP_PKEY_CTX_new_from_pkey"):
    getattr(libcrypto, name).restype = ctypes.c_void_p
pointer = ctypes.c_void_p

class Signer:
    def __init__(self, key):
        self.context = pointer(libcrypto.EVP_PKEY_CTX_new_from_pkey(None, key, None))
        assert libcrypto.EVP_PKEY_sign_init(self.context) == 1
        self.size = ctypes.c_size_t(256)
        self.signature = ctypes.create_string_buffer(256)

    def sign(self):
        result = libcrypto.EVP_PKEY_sign(
            self.context, self.signature, ctypes.byref(self.size), b"0123456789", ctypes.c_size_t(10)
        )
        return result == 1 and self.signature.raw

def signers(count):
    file = pointer(libcrypto.BIO_new_file(sys.argv[1].encode(), b"r"))
    key = pointer(libcrypto.PEM_read_bio_PrivateKey(file, None, None, None))
    return [Signer(key) for _ in range(count)]

parents, childrens = signers(8), signers(4)
right = parents[0].sign()
modulus = int(sys.argv[3])
assert pow(int.from_bytes(right, "big"), 65537, modulus) == int.from_bytes(
    b"\\0\\1" + b"\\xff" * 243 + b"\\0" + b"0123456789", "big"
)

def sign_in_threads(signers, goes_on):
    wrong = []

    def work(signer):
        while goes_on():
            if signer.sign() != right:
                wrong.append(signer)

    threads = [threading.Thread(target=work, args=[signer]) for signer in signers]
    for thread in threads:
        thread.start()
    return threads, wrong

def sign_some(signers):
    left = list(range(40))
    threads, wrong = sign_in_threads(signers, lambda: left and left.pop() >= 0)
    for thread in threads:
        thread.join()
    return not wrong

assert sign_some(parents) and sign_some(childrens)
working = True
threads, wrong = sign_in_threads(parents, lambda: working)
statuses = []
for _ in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if sign_some(childrens) else 1)
    statuses.append(os.waitpid(child, 0)[1])
working = False
for thread in threads:
    thread.join()
print(statuses, wrong)
"""


def run_python(directory: Directory, program: str, bits: int) -> str:
    """The program's output."""
    system = subprocess.run([find_program("openssl"), "version"], check=True, capture_output=True, text=True).stdout
    if not system.startswith(ssl.OPENSSL_VERSION):
        pytest.skip(f"Python's ssl has another OpenSSL than the system's: {ssl.OPENSSL_VERSION}, not {system.strip()}")
    modulus = private_key(bits).private_numbers().public_numbers.n
    command = [sys.executable, "-c", program, str(directory.certificate(bits)), str(bits), str(modulus)]
    result = subprocess.run(command, check=False, env=directory.environment, capture_output=True, text=True, timeout=50)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout.strip()


def test_threads_of_python_compute_in_groups(directory: Directory) -> None:
    """Its ssl has no jobs, but lets other threads run meanwhile. Each client verifies the signature."""
    served = 0
    while directory.counts(3072).groups == 0 and served < 2000:
        assert run_python(directory, THREADS, 3072) == "256"
        served += 256
    assert directory.counts(3072).operations == served
    assert directory.counts(3072).groups > 0


def test_children_compute_whatever_the_parent_does(directory: Directory) -> None:
    """A child is forked while threads wait for operations, compute them, and hold locks. They are not there in it."""
    assert run_python(directory, FORKS, 2048) == f"{[0] * 30} []"
    assert directory.counts().groups > 0
