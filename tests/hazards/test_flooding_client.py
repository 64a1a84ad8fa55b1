"""The terminator's other clients are served while one floods it, and a flooder that brings nothing is disconnected."""

import contextlib
import itertools
import socket
import ssl
import threading

import pytest
from forged_records import APPLICATION_DATA, HANDSHAKE, TLS12_CIPHERS, TLS13_CIPHERSUITE, forging_client, plain
from terminator_process import TIMEOUT, Terminator, Upstream, client_context, echo, write_credentials

SESSIONS = "gpu_provider_terminator_sessions_total"
OPEN = "gpu_provider_terminator_open_connections"


@pytest.fixture(scope="module")
def terminator(tmp_path_factory):
    flags = [*write_credentials(tmp_path_factory.mktemp("credentials")), "--ciphersuites", TLS13_CIPHERSUITE]
    flags += ["--ciphers", ":".join(TLS12_CIPHERS), "--log-level", "debug"]
    with Upstream(echo) as upstream, Terminator(*flags, upstream=upstream.address) as running:
        yield running


class Flooder:
    """Sends without end on a thread, and says when the other side has had enough."""

    def __init__(self, sock, records):
        self._sock, self._records = sock, records
        self.sent = 0
        self.stop = threading.Event()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._send)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(TIMEOUT)

    def _send(self):
        with contextlib.suppress(OSError):
            while not self.stop.is_set():
                data = b"".join(next(self._records) for _ in range(500))
                self._sock.sendall(data)
                self.sent += len(data)
        self.ended.set()


def key_updates(sender):
    while True:
        yield sender.key_update()


def refused_renegotiations(sender):
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\xc0\x2f" + b"\x01\x00"
    while True:
        yield sender.seal(HANDSHAKE, b"\x01" + len(body).to_bytes(3) + body)


def single_bytes(sender):
    while True:
        yield sender.seal(APPLICATION_DATA, b"x")


def single_bytes_and_key_updates(sender):
    while True:
        yield sender.seal(APPLICATION_DATA, b"x") + sender.key_update(requested=False)


@pytest.mark.parametrize(
    ("version", "flood"),
    [(ssl.TLSVersion.TLSv1_3, key_updates), (ssl.TLSVersion.TLSv1_2, refused_renegotiations)],
    ids=["key updates", "refused renegotiations"],
)
def test_flood_without_data_is_ended_counted_and_logged(terminator, tmp_path, version, flood):
    before = terminator.metric(SESSIONS, end="client_flood")
    logged = len([event for event in terminator.events if event.get("end") == "client_flood"])
    with terminator.dial() as sock:
        sender = forging_client(sock, client_context(version), tmp_path / "keys")
        with Flooder(sock, flood(sender)) as flooder:
            assert flooder.ended.wait(TIMEOUT)
    terminator.wait_for_metric(SESSIONS, before + 1, end="client_flood")
    terminator.wait_for_metric(OPEN, 0)
    assert len([event for event in terminator.events if event.get("end") == "client_flood"]) == logged + 1
    assert terminator.echo() == b"are you there?"


@pytest.mark.parametrize("flood", [single_bytes, single_bytes_and_key_updates])
def test_flood_of_tiny_records_goes_through_and_others_get_their_turn(terminator, tmp_path, flood):
    """They are data, so nobody is to be ended for them; the answers are read so that both ways keep moving."""
    with terminator.dial() as sock:
        sender = forging_client(sock, client_context(ssl.TLSVersion.TLSv1_3), tmp_path / "keys")
        reader = threading.Thread(target=read_all, args=(sock,))
        reader.start()
        with Flooder(sock, flood(sender)) as flooder:
            for _ in range(10):
                assert terminator.echo() == b"are you there?"
            assert not flooder.ended.is_set()
        reader.join(TIMEOUT)


def test_endless_fragments_of_a_client_hello_are_a_failed_handshake(terminator):
    failures = "gpu_provider_terminator_handshake_failures_total"
    before = terminator.metric(failures, reason="client_flood")
    first = plain(HANDSHAKE, b"\x01\x00\x3a\x98")  # of 15,000 bytes
    with terminator.dial() as sock:
        sock.sendall(first)
        with Flooder(sock, itertools.repeat(plain(HANDSHAKE, b"\x00"))) as flooder:
            assert flooder.ended.wait(TIMEOUT)
    terminator.wait_for_metric(failures, before + 1, reason="client_flood")
    assert terminator.echo() == b"are you there?"


def read_all(sock):
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


def test_key_updates_do_not_keep_an_idle_session(tmp_path):
    """Hazard: a few each second are no flood, and would hold the connection and its upstream for ever."""
    flags = [*write_credentials(tmp_path), "--ciphersuites", TLS13_CIPHERSUITE, "--idle-timeout", "0.4"]
    with (
        Upstream(echo) as upstream,
        Terminator(*flags, upstream=upstream.address) as terminator,
        terminator.dial() as sock,
    ):
        sender = forging_client(sock, client_context(ssl.TLSVersion.TLSv1_3), tmp_path / "keys")
        ended = threading.Event()

        def send():
            with contextlib.suppress(OSError):
                while not ended.wait(0.05):
                    sock.sendall(sender.key_update())

        thread = threading.Thread(target=send)
        thread.start()
        terminator.wait_for_metric(SESSIONS, 1, end="idle_timeout")
        ended.set()
        thread.join(TIMEOUT)
