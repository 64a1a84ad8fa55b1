"""Keys that only the service has: unmodified programs use them by reference, and never have them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256
from groups import TIMEOUT, Client, Directory, Server, abort_many, certificate, find_program, get_many, wait_until
from ports import unused_port
from program_servers import HAProxy, apache, nginx
from rsa_keys import private_key, private_pem, program_key, public_pem
from service_process import HELLO, Service
from terminator_process import run_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OK = b"HTTP/1.1 200 OK"
SETTINGS = "service = {path}/socket\nservice_key_timeout = 20000"
IMPATIENT = "service = {path}/socket\nservice_key_timeout = 300"


class References(Directory):
    """Programs find a certificate with a reference to its key here, and the service the keys."""

    def __init__(self, path: Path, settings: str) -> None:
        super().__init__(path, settings)
        self.socket = path / "socket"

    def service(self, *flags: str, keys: Sequence[int] = (2048,)) -> Service:
        return Service(self.socket, *(f"--service-key=rsa{bits}={self.key(bits)}" for bits in keys), *flags)

    def key(self, bits: int) -> Path:
        path = self.path / f"rsa{bits}.key"
        if not path.exists():
            path.touch(0o600)
            path.write_bytes(private_pem(private_key(bits)))
        return path

    def make_reference(self, bits: int = 2048, name: str | None = None) -> Path:
        """While the service runs."""
        run = run_command("service", "key-reference", "--socket", str(self.socket), name or f"rsa{bits}")
        assert (run.returncode, run.stderr) == (0, "")
        return self.write(f"rsa{bits}.pem", certificate(bits).decode() + run.stdout)

    def certificate(self, bits: int) -> Path:
        path = self.path / f"rsa{bits}.pem"
        return path if path.exists() else self.make_reference(bits)

    def openssl(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [find_program("openssl"), *arguments],
            env=self.environment, cwd=self.path, input=stdin, capture_output=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip


@contextlib.contextmanager
def references(settings: str = SETTINGS) -> Iterator[References]:
    with tempfile.TemporaryDirectory(prefix="gpu-provider-test-") as path:
        yield References(Path(path), settings)


@pytest.fixture
def directory() -> Iterator[References]:
    with references() as directory:
        yield directory


@pytest.fixture
def impatient() -> Iterator[References]:
    """Its programs wait for the service for 300 ms."""
    with references(IMPATIENT) as directory:
        yield directory


# ---- programs ----


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_haproxy(directory, bits):
    clients = [Client(bits), Client(bits, ssl.TLSVersion.TLSv1_2), Client(bits, ssl.TLSVersion.TLSv1_2, "AES128-SHA")]
    with directory.service(keys=[bits]), HAProxy(directory, bits=(bits,)) as server:
        assert get_many(server.port, clients * 20) == {OK: 60}
        abort_many(server.port, clients[0], 20)
        assert get_many(server.port, clients * 5) == {OK: 15}
    counts = directory.counts(bits)
    assert counts.operations == 0
    assert counts.served >= 75


def test_a_master_of_haproxy_and_its_workers(directory):
    with directory.service(), HAProxy(directory, "-W", "-db", settings="nbthread 1") as server:
        assert get_many(server.port, [Client()] * 20) == {OK: 20}
        server.reload()
        assert get_many(server.port, [Client()] * 20) == {OK: 20}
    assert directory.counts().operations == 0


def test_workers_of_nginx(directory):
    with directory.service(), nginx(directory, workers=2) as server:
        assert get_many(server.port, [Client()] * 50) == {OK: 50}
    assert (directory.counts().operations, directory.counts().served) == (0, 50)


def test_apache(directory):
    with directory.service(), apache(directory, 2048) as server:
        assert get_many(server.port, [Client()] * 20) == {b"HTTP/1.1 404 Not Found": 20}
    assert directory.counts().operations == 0


@pytest.mark.parametrize("key", ["gpu-provider:rsa2048", "rsa2048.pem"])
@pytest.mark.parametrize("flags", [[], ["-async"]], ids=["sync", "async"])
def test_s_server(directory, key, flags):
    port = unused_port()
    command = [find_program("openssl"), "s_server", "-www", "-accept", f"127.0.0.1:{port}", *flags]
    with (
        directory.service(),
        Server([*command, "-cert", str(directory.make_reference()), "-key", key], directory, port) as server,
    ):
        for client in [Client(), Client(version=ssl.TLSVersion.TLSv1_2)]:
            assert client.get(server.port) == b"HTTP/1.0 200 ok"
    assert (directory.counts().operations, directory.counts().served) == (0, 2)


@pytest.mark.parametrize("key", ["gpu-provider:rsa2048", "rsa2048.pem"])
def test_the_openssl_program(directory, key):
    """What anybody may know of the key is there, the private key is not, and its operations are right."""
    public = private_key(2048).public_key()
    message, secret = b"signed", b"decrypted"
    directory.write("message", message.decode())
    (directory.path / "oaep").write_bytes(public.encrypt(secret, padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)))
    (directory.path / "pkcs1").write_bytes(public.encrypt(secret, padding.PKCS1v15()))
    with directory.service():
        directory.make_reference()
        assert directory.openssl("pkey", "-in", key, "-pubout").stdout == public_pem(private_key(2048))
        for output in (["-out", "stolen"], ["-text"], ["-traditional"]):
            run = directory.openssl("pkey", "-in", key, *output)
            assert run.returncode != 0 or not run.stdout
            assert b"the private key is in gpu-provider service, which does not give it away" in run.stderr
            assert b"PRIVATE" not in run.stdout
        assert directory.openssl("pkey", "-in", key, "-check", "-noout").returncode == 0
        run = directory.openssl("dgst", "-sha256", "-sign", key, "message")
        public.verify(run.stdout, message, padding.PKCS1v15(), SHA256())
        run = directory.openssl("dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sign", key, "message")
        public.verify(run.stdout, message, padding.PSS(padding.MGF1(SHA256()), padding.PSS.AUTO), SHA256())
        oaep = ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256"]
        assert directory.openssl("pkeyutl", "-decrypt", "-inkey", key, "-in", "oaep", *oaep).stdout == secret
        assert directory.openssl("pkeyutl", "-decrypt", "-inkey", key, "-in", "pkcs1").stdout == secret
        run = directory.openssl("req", "-new", "-key", key, "-subj", "/CN=x")
        assert directory.openssl("req", "-verify", "-noout", stdin=run.stdout).returncode == 0


def test_bad_padding_is_rejected_implicitly_and_always_alike():
    """The message that takes the place of one that isn't there depends on a secret of the key, which isn't here."""
    with references(SETTINGS + "\nimplicit-rejection = 1") as directory:
        (directory.path / "noise").write_bytes(bytes(range(256)))
        with directory.service():
            directory.make_reference()
            runs = [directory.openssl("pkeyutl", "-decrypt", "-inkey", "rsa2048.pem", "-in", "noise") for _ in range(3)]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert len({run.stdout for run in runs}) == 1


# ---- the private key is not there ----


def memory_of(process: int) -> Iterator[bytes]:
    with (
        Path(f"/proc/{process}/maps").open(encoding="utf-8") as maps,
        Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory,
    ):
        for line in maps:
            start, end, mode = re.match("([0-9a-f]+)-([0-9a-f]+) (....)", line).groups()
            if mode.startswith("rw"):
                with contextlib.suppress(OSError):
                    memory.seek(int(start, 16))
                    yield memory.read(int(end, 16) - int(start, 16))


def processes_of(server: Server) -> list[int]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [server.process.pid, *map(int, children)]


def secrets_in(server: Server) -> set[str]:
    """Names of the key's secret numbers that are somewhere in its memory, in either order of bytes."""
    numbers = private_key(2048).private_numbers()
    secrets = {"d": numbers.d, "p": numbers.p, "q": numbers.q, "dP": numbers.dmp1, "dQ": numbers.dmq1}
    found = set()
    for process in processes_of(server):
        for memory in memory_of(process):
            for name, number in secrets.items():
                size = (number.bit_length() + 7) // 8
                if any(number.to_bytes(size, order) in memory for order in ("big", "little")):
                    found.add(name)
    return found


@pytest.mark.parametrize("program", [HAProxy, nginx])
def test_the_private_key_is_nowhere_in_the_memory_of_a_program(directory, program):
    with directory.service():
        with program(directory) as server:
            assert get_many(server.port, [Client()] * 20) == {OK: 20}
            assert secrets_in(server) == set()
        with_its_key = Directory.certificate(directory, 2048)  # in place of the reference
        assert b"PRIVATE KEY" in with_its_key.read_bytes()
        with program(directory) as server:
            assert get_many(server.port, [Client()] * 20) == {OK: 20}
            assert {"p", "q"} <= secrets_in(server)  # they would have been found


# ---- a service that is away, or has another key ----


@contextlib.contextmanager
def load(server: Server, clients: int = 8) -> Iterator[list[bytes]]:
    """Clients that come all the time. A connection that fails raises when the block ends."""
    done, answers = threading.Event(), []

    def client() -> None:
        while not done.is_set():
            answers.append(Client().get(server.port))

    with ThreadPoolExecutor(clients) as threads:
        futures = [threads.submit(client) for _ in range(clients)]
        try:
            yield answers
        finally:
            done.set()
        for future in futures:
            future.result()
    assert set(answers) == {OK}


def wait_for_more(answers: list[bytes], count: int) -> None:
    wanted = len(answers) + count
    wait_until(lambda: len(answers) >= wanted, "the program does not answer")


@pytest.mark.parametrize("program", [HAProxy, nginx])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_no_handshake_fails_while_the_service_is_started_again(directory, program, number):
    """Handshakes under way when it ends, and those that begin before it is back, wait for it."""
    with contextlib.ExitStack() as services:
        service = services.enter_context(directory.service())
        with program(directory) as server, load(server) as answers:
            wait_for_more(answers, 50)
            for _ in range(2):
                service.process.send_signal(number)
                if number == signal.SIGSTOP:
                    time.sleep(0.3)  # longer than an operation takes; only makes it more likely that some wait
                    service.process.send_signal(signal.SIGCONT)
                else:
                    service.process.wait(TIMEOUT)
                    service = services.enter_context(directory.service())
                wait_for_more(answers, 50)
    assert directory.counts().operations == 0


def test_a_program_starts_without_the_service_which_comes_later(directory):
    with directory.service():
        directory.make_reference()
    with HAProxy(directory) as server, ThreadPoolExecutor() as threads:
        answers = [threads.submit(Client().get, server.port) for _ in range(10)]
        with directory.service():
            assert {answer.result(TIMEOUT) for answer in answers} == {OK}


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_event_loop_goes_on_while_handshakes_wait_for_the_service(directory):
    """HAProxy has one thread here, which must neither be blocked nor spin."""
    plain = unused_port()
    settings = f"nbthread 1\nfrontend plain\n    bind 127.0.0.1:{plain}\n    mode http\n    timeout client 30s\n"
    settings += "    http-request return status 200 content-type text/plain string hello\nglobal\n"
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(directory.service())
        server = stack.enter_context(HAProxy(directory, settings=settings))
        assert get_many(server.port, [Client()] * 5) == {OK: 5}
        service.stop()
        threads = stack.enter_context(ThreadPoolExecutor())
        waiting = [threads.submit(Client().get, server.port) for _ in range(8)]
        before, began = processor_seconds(server.process.pid), time.monotonic()
        while time.monotonic() < began + 2:
            with urllib.request.urlopen(f"http://127.0.0.1:{plain}/", timeout=TIMEOUT) as answer:
                assert answer.read() == b"hello"
            time.sleep(0.02)  # the load: it is not to be the busy one
        assert processor_seconds(server.process.pid) - before < (time.monotonic() - began) / 2
        assert not any(handshake.done() for handshake in waiting)
        stack.enter_context(directory.service())
        assert {handshake.result(TIMEOUT) for handshake in waiting} == {OK}


def test_without_the_service_an_operation_fails_in_the_end_and_says_why(impatient):
    with impatient.service():
        impatient.make_reference()
    for key in ("rsa2048.pem", "gpu-provider:rsa2048"):
        run = impatient.openssl("dgst", "-sha256", "-sign", key, "rsa2048.pem")
        assert run.returncode != 0
        assert b"the key is in gpu-provider service, which is not reached" in run.stderr
        assert b"rsa2048: No such file or directory" in run.stderr
    with HAProxy(impatient) as server:
        for _ in range(3):
            with pytest.raises(ssl.SSLError):
                Client().get(server.port)
        with impatient.service():
            assert get_many(server.port, [Client()] * 10) == {OK: 10}


def test_a_program_that_waits_in_its_calls_does_not_wait_as_long_in_each_of_them():
    """A worker of nginx has one thread, and stands still while it waits for the service."""
    with references("service = {path}/socket\nservice_key_timeout = 2000") as directory:
        with directory.service():
            directory.make_reference()
        with nginx(directory) as server:
            began = time.monotonic()
            for _ in range(10):
                with pytest.raises(ssl.SSLError):
                    Client().get(server.port)
            assert 2 < time.monotonic() - began < 2 * 8
            with directory.service():
                assert get_many(server.port, [Client()] * 10) == {OK: 10}


def test_a_name_that_the_service_does_not_have(directory):
    with directory.service():
        directory.make_reference()
        run = directory.openssl("pkey", "-in", "gpu-provider:other", "-pubout")
        assert run.returncode != 0
        assert b"gpu-provider service has no key of this name" in run.stderr
        run = directory.openssl("pkey", "-in", "gpu-provider:not/a/name", "-pubout")
        assert run.returncode != 0
        assert b"a key's name is letters" in run.stderr
    with directory.service(keys=[3072]), HAProxy(directory) as server:
        run = directory.openssl("dgst", "-sha256", "-sign", "rsa2048.pem", "rsa2048.pem")
        assert run.returncode != 0
        assert b"gpu-provider service has no key of this name" in run.stderr
        for _ in range(3):
            with pytest.raises(ssl.SSLError):
                Client().get(server.port)


def test_a_key_of_that_name_which_is_another_one(directory):
    """A signature by it would be worthless, and the client would be told something misleading."""
    with directory.service():
        directory.make_reference()
    with Service(directory.socket, f"--service-key=rsa2048={directory.key(3072)}"):
        run = directory.openssl("dgst", "-sha256", "-sign", "rsa2048.pem", "rsa2048.pem")
        assert run.returncode != 0
        assert b"gpu-provider service has another key of this name than the reference is for" in run.stderr
        assert run.stdout == b""


def test_a_damaged_reference_is_no_key(directory):
    with directory.service():
        text = directory.make_reference().read_text()
    label = "-----BEGIN GPU PROVIDER KEY REFERENCE-----\n"
    begin, _, rest = text.partition(label)
    for name, damaged in [("cut", rest[:100] + rest[rest.index("\n-----END") :]), ("changed", "AAAA" + rest[4:])]:
        directory.write("damaged.pem", begin + label + damaged)
        run = directory.openssl("pkey", "-in", "damaged.pem", "-pubout")
        assert run.returncode != 0, name
        assert run.stdout == b""


def test_without_a_service_in_the_configuration():
    with references() as directory, references("") as without:
        with directory.service():
            reference = directory.make_reference()
        without.write("rsa2048.pem", reference.read_text())
        run = without.openssl("pkey", "-in", "gpu-provider:rsa2048", "-pubout")
        assert run.returncode != 0
        assert b"no 'service' is set in openssl.cnf" in run.stderr
        server = nginx(without)
        run = subprocess.run(
            [*server.command, "-t"], env=without.environment, capture_output=True, timeout=TIMEOUT, check=False
        )
        assert run.returncode != 0
        assert b"no 'service' is set in openssl.cnf" in run.stderr


# ---- the service's own keys ----


def test_its_keys_are_loaded_again(directory):
    message = b"message"
    directory.write("message", message.decode())

    def sign() -> subprocess.CompletedProcess[bytes]:
        return directory.openssl("dgst", "-sha256", "-sign", "rsa2048.pem", "message")

    with directory.service() as service, HAProxy(directory) as server:
        assert get_many(server.port, [Client()] * 5) == {OK: 5}
        service.process.send_signal(signal.SIGHUP)
        assert service.wait_for("keys loaded again", 1)["changed"] == 0
        assert get_many(server.port, [Client()] * 5) == {OK: 5}

        directory.key(2048).write_text("no key")
        service.process.send_signal(signal.SIGHUP)
        reason = service.wait_for("keys not loaded again; programs have the former ones")["reason"]
        assert "rsa2048" in reason
        assert "neither PEM nor DER" in reason
        assert get_many(server.port, [Client()] * 5) == {OK: 5}

        directory.key(2048).write_bytes(private_pem(private_key(3072)))
        service.process.send_signal(signal.SIGHUP)
        assert service.wait_for("keys loaded again", 2)["changed"] == 1
        assert b"another key of this name" in sign().stderr
        with pytest.raises(ssl.SSLError):
            Client().get(server.port)
        directory.make_reference()
        private_key(3072).public_key().verify(sign().stdout, message, padding.PKCS1v15(), SHA256())
        with pytest.raises(InvalidSignature):
            private_key(2048).public_key().verify(sign().stdout, message, padding.PKCS1v15(), SHA256())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["www=/no/file"], "service_key 'www': '/no/file': can't be read: No such file or directory"),
        (["www={ec}"], "not an RSA key"),
        (["www={encrypted}"], "is encrypted; decrypt it: openssl pkey"),
        (["www={certificate}"], "a certificate; the private key is needed"),
        (["www={key}", "www={key}"], "two keys have the name 'www'"),
        (["../x={key}"], "it must be NAME=FILE"),
        (["{key}"], "it must be NAME=FILE"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, keys, words):
    files = {
        "ec": program_key("EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
        "encrypted": program_key("RSA", "-aes256", "-pass", "pass:word"),
        "certificate": certificate(2048),
        "key": private_pem(private_key(2048)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    flags = [f"--service-key={key.format(**{name: tmp_path / name for name in files})}" for key in keys]
    run = run_command("service", "--admin", "off", "--socket", str(tmp_path / "socket"), *flags)
    assert run.returncode == 2
    mistakes = [line for line in run.stderr.splitlines() if not line.startswith("{")]
    assert len(mistakes) == 1
    assert words in mistakes[0]


def test_mistakes_of_who_asks_for_a_reference(directory):
    def ask(*arguments: str) -> str:
        run = run_command("service", "key-reference", *arguments)
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        return run.stderr

    with directory.service():
        assert "has no key 'other'" in ask("--socket", str(directory.socket), "other")
        assert "'../x' can't be a key's name" in ask("--socket", str(directory.socket), "../x")
    said = ask("--socket", str(directory.socket), "rsa2048")
    assert "no service answers" in said
    assert "No such file or directory" in said
    assert "socket is not set" in ask("rsa2048")


# ---- programs that misbehave ----


def find_key(name: bytes, size: int | None = None) -> bytes:
    sizes = struct.pack("=8H", len(name) if size is None else size, *[0] * 7)
    return struct.pack("=IIQQ", 8, 0, 7, 0) + sizes + name


@contextlib.contextmanager
def connected(directory: References) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(str(directory.socket))
        connection.send(HELLO)
        for _ in range(2):
            _, descriptors, _, _ = socket.recv_fds(connection, 100, 64)
            for descriptor in descriptors:
                os.close(descriptor)
        yield connection


def test_what_a_program_is_told_of_a_key_is_public(directory):
    """And handles are its own: whoever counts on learns nothing of other programs' keys."""
    with directory.service(), connected(directory) as one, connected(directory) as other:
        for connection in (one, other):
            connection.send(find_key(b"rsa2048"))
            answer = connection.recv(10000)
            kind, _, number, handle, n_size, e_size = struct.unpack_from("=IIQQHH", answer)
            assert (kind, number, e_size) == (9, 7, 3)
            assert int.from_bytes(answer[40 : 40 + n_size]) == private_key(2048).public_key().public_numbers().n
            assert handle != 0
            assert len(answer) == 40 + n_size + e_size
        one.send(find_key(b"none"))
        assert struct.unpack("=IIQQ", one.recv(10000)) == (5, 0, 7, 0)


@pytest.mark.parametrize(
    "message",
    [
        find_key(b""),
        find_key(b"x" * 65),
        find_key(b"../key"),
        find_key(b"key\0"),
        find_key(b".key"),
        find_key(b"rsa2048", 8),
        find_key(b"rsa2048", 6),
        find_key(b"rsa2048")[:30],
    ],
    ids=["empty", "long", "path", "zero", "dot", "size too large", "size too small", "cut"],
)
def test_who_asks_for_what_can_be_no_name_is_cut_off(directory, message):
    with directory.service() as service, connected(directory) as connection:
        connection.send(message)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100) == b""
        service.wait_for("program disconnected")
        assert service.process.poll() is None
