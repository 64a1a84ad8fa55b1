"""A peer that sends anything but application data, as fast as it can, must not keep libssl busy: each call's work is
bounded, and a connection that brings the application nothing is ended. Honest peers never notice."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
from itertools import cycle, islice
from typing import TYPE_CHECKING

import pytest
from forged_records import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    HELLO_REQUEST,
    WARNING,
    Tls12Sender,
    Tls13Sender,
    forging_client,
    fragments,
    plain,
    server_random_of,
    ticket,
    with_known_ciphers,
)
from tls_peers import accept, client_ssl_context, credentials, server_context, unverifying_client_context

from gpu_provider import tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Sender = Tls12Sender | Tls13Sender

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
PLENTY = 3000
"""Records, of which one call may look at no more than a fraction, or messages in them."""


def shake(connection: tls.Connection, library: ssl.SSLContext, **options: object) -> tuple[bytes, bytes]:
    """A handshake with Python's ``ssl`` as the peer; returns what each of the two sent."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = library.wrap_bio(incoming, outgoing, **options)  # type: ignore[arg-type]
    ours = theirs = b""
    waiting = {connection, peer}
    while waiting:
        for one in (connection, peer):
            try:
                one.do_handshake()
                waiting.discard(one)
            except (tls.WantReadError, ssl.SSLWantReadError):
                pass
            while connection.bio_pending():
                data = connection.bio_read(65536)
                ours += data
                incoming.write(data)
            data = outgoing.read()
            theirs += data
            connection.bio_write(data)
    return ours, theirs


def server_of_forger(directory: Path, version: ssl.TLSVersion) -> tuple[tls.Connection, Sender]:
    """Our server, and a function that sends it a client's records."""
    client = client_ssl_context(version=version)
    client.keylog_filename = str(directory / "keys")
    connection = accept(with_known_ciphers(server_context(asynchronous=False)))
    flight, _ = shake(connection, client, server_hostname="localhost")
    if version is TLS13:
        return connection, Tls13Sender(directory / "keys")
    return connection, Tls12Sender(directory / "keys", server_random_of(flight))


def library_server(directory: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    chain, key = credentials()
    (directory / "chain.pem").write_bytes(chain)
    (directory / "key.pem").write_bytes(key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "chain.pem", directory / "key.pem")
    server.minimum_version = server.maximum_version = version
    server.num_tickets = 0
    return server


def new_client() -> tls.Connection:
    connection = tls.Connection(with_known_ciphers(unverifying_client_context()))
    connection.set_connect_state()
    return connection


def client_of_forger(directory: Path, version: ssl.TLSVersion) -> tuple[tls.Connection, Sender]:
    """Our client, and a function that sends it a server's records."""
    server = library_server(directory, version)
    server.keylog_filename = str(directory / "keys")
    connection = new_client()
    _, flight = shake(connection, server, server_side=True)
    if version is TLS13:
        return connection, Tls13Sender(directory / "keys", "SERVER_TRAFFIC_SECRET_0")
    return connection, Tls12Sender(directory / "keys", server_random_of(flight), server=True)


def drain(connection: tls.Connection) -> bytes:
    """Reads what is there, in as many calls as it takes."""
    received = b""
    try:
        while True:
            received += connection.recv(65536)
    except tls.WantReadError:
        return received


def renegotiation() -> bytes:
    """A ClientHello that is good enough to be refused."""
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\xc0\x2f" + b"\x01\x00"
    return b"\x01" + len(body).to_bytes(3) + body


def key_updates(sender: Sender) -> Iterator[bytes]:
    assert isinstance(sender, Tls13Sender)
    while True:
        yield sender.key_update()


def silent_key_updates(sender: Sender) -> Iterator[bytes]:
    assert isinstance(sender, Tls13Sender)
    while True:
        yield sender.key_update(requested=False)


def key_updates_in_fragments(sender: Sender) -> Iterator[bytes]:
    assert isinstance(sender, Tls13Sender)
    while True:
        yield sender.key_update(fragment=1)


def key_updates_between_empty_records(sender: Sender) -> Iterator[bytes]:
    """Each resets libssl's count of empty records."""
    assert isinstance(sender, Tls13Sender)
    while True:
        yield from (sender.seal(APPLICATION_DATA, b"") for _ in range(30))
        yield sender.key_update(requested=False)


def key_updates_between_warnings(sender: Sender) -> Iterator[bytes]:
    """Each resets libssl's count of warnings."""
    assert isinstance(sender, Tls13Sender)
    while True:
        yield from (sender.seal(ALERT, WARNING) for _ in range(4))
        yield sender.key_update(requested=False)


def renegotiations(sender: Sender) -> Iterator[bytes]:
    while True:
        yield sender.seal(HANDSHAKE, renegotiation())


def renegotiations_in_fragments(sender: Sender) -> Iterator[bytes]:
    while True:
        yield from (sender.seal(HANDSHAKE, part) for part in fragments(renegotiation()))


def renegotiations_between_warnings(sender: Sender) -> Iterator[bytes]:
    while True:
        yield from (sender.seal(ALERT, WARNING) for _ in range(4))
        yield sender.seal(HANDSHAKE, renegotiation())


def hello_requests(sender: Sender) -> Iterator[bytes]:
    while True:
        yield sender.seal(HANDSHAKE, HELLO_REQUEST)


def tickets(sender: Sender) -> Iterator[bytes]:
    for number in cycle(range(60000)):
        yield sender.seal(HANDSHAKE, ticket(number))


def tickets_by_the_record(sender: Sender) -> Iterator[bytes]:
    while True:
        yield sender.seal(HANDSHAKE, b"".join(ticket(number) for number in range(500)))


def tickets_in_fragments(sender: Sender) -> Iterator[bytes]:
    for number in cycle(range(60000)):
        yield from (sender.seal(HANDSHAKE, part) for part in fragments(ticket(number)))


TO_A_SERVER = [
    (TLS13, key_updates),
    (TLS13, silent_key_updates),
    (TLS13, key_updates_in_fragments),
    (TLS13, key_updates_between_empty_records),
    (TLS13, key_updates_between_warnings),
    (TLS12, renegotiations),
    (TLS12, renegotiations_in_fragments),
    (TLS12, renegotiations_between_warnings),
]
TO_A_CLIENT = [
    (TLS13, key_updates),
    (TLS13, tickets),
    (TLS13, tickets_by_the_record),
    (TLS13, tickets_in_fragments),
    (TLS12, hello_requests),
]


def assert_ended(connection: tls.Connection, flood: Iterator[bytes]) -> None:
    connection.bio_write(b"".join(islice(flood, PLENTY)))
    with pytest.raises(tls.FloodError, match="without application data"):
        connection.recv(65536)
    assert connection.bio_pending() < 20_000  # answers to a fraction
    with pytest.raises(tls.Error):  # and it stays ended, whatever comes
        connection.recv(65536)


@pytest.mark.parametrize(("version", "flood"), TO_A_SERVER, ids=lambda value: getattr(value, "__name__", None))
def test_flooded_server_gives_up_in_its_first_call(
    tmp_path: Path, version: ssl.TLSVersion, flood: Callable[[Sender], Iterator[bytes]]
) -> None:
    connection, sender = server_of_forger(tmp_path, version)
    assert_ended(connection, flood(sender))


@pytest.mark.parametrize(("version", "flood"), TO_A_CLIENT, ids=lambda value: getattr(value, "__name__", None))
def test_flooded_client_gives_up_in_its_first_call(
    tmp_path: Path, version: ssl.TLSVersion, flood: Callable[[Sender], Iterator[bytes]]
) -> None:
    connection, sender = client_of_forger(tmp_path, version)
    assert_ended(connection, flood(sender))


def test_flood_behind_good_bytes_is_found_with_them(tmp_path: Path) -> None:
    connection, sender = server_of_forger(tmp_path, TLS13)
    connection.bio_write(sender.seal(APPLICATION_DATA, b"good") + b"".join(islice(key_updates(sender), PLENTY)))
    assert connection.recv(100) == b"good"
    assert isinstance(connection.failure, tls.FloodError)
    with pytest.raises(tls.FloodError):
        connection.recv(100)


def test_flood_while_waiting_for_close_notify_is_no_clean_end(tmp_path: Path) -> None:
    connection, sender = server_of_forger(tmp_path, TLS13)
    assert connection.shutdown() is False
    connection.bio_write(b"".join(islice(silent_key_updates(sender), PLENTY)))
    with pytest.raises(tls.FloodError):
        connection.shutdown()


def test_data_between_key_updates_does_not_buy_an_endless_call(tmp_path: Path) -> None:
    """One byte after each pays for the next; but a call then ends with what there is, large as its buffer may be."""
    connection, sender = server_of_forger(tmp_path, TLS13)
    pairs = (sender.key_update() + sender.seal(APPLICATION_DATA, b"x") for _ in range(PLENTY))
    connection.bio_write(b"".join(pairs))
    received = 0
    while received < PLENTY:
        count = len(connection.recv(65536))
        assert count <= 64
        received += count
        assert connection.want_read() == (received == PLENTY)


# ---- during the handshake ----


def client_hello() -> bytes:
    client = new_client()
    with pytest.raises(tls.WantReadError):
        client.do_handshake()
    return client.bio_read(65536)


def test_client_hello_in_fragments_of_one_byte_is_served() -> None:
    connection = accept(server_context(asynchronous=False))
    connection.bio_write(b"".join(plain(HANDSHAKE, part) for part in fragments(client_hello()[5:])))
    with pytest.raises(tls.WantReadError):
        connection.do_handshake()
    assert server_random_of(connection.bio_read(65536))


def test_a_long_message_in_fragments_between_ignored_records_does_not_hold_up_others(tmp_path: Path) -> None:
    """A handshake of TLS 1.3 ignores ChangeCipherSpec, and each fragment resets libssl's count of it."""
    context = with_known_ciphers(server_context(asynchronous=False))
    context.set_verify(tls.VERIFY_PEER)
    connection = accept(context)
    client = client_ssl_context(version=TLS13)
    client.keylog_filename = str(tmp_path / "keys")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = client.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        peer.do_handshake()
    connection.bio_write(outgoing.read())
    with pytest.raises(tls.WantReadError):
        connection.do_handshake()
    incoming.write(connection.bio_read(65536))
    peer.do_handshake()
    sender = Tls13Sender(tmp_path / "keys", "CLIENT_HANDSHAKE_TRAFFIC_SECRET")
    certificates = b"\x0b\x00\xea\x60" + bytes(60_000)
    flood = (plain(CHANGE_CIPHER_SPEC, b"\x01") * 30 + sender.seal(HANDSHAKE, part) for part in fragments(certificates))
    connection.bio_write(b"".join(islice(flood, PLENTY)))
    with pytest.raises(tls.FloodError):
        connection.do_handshake()


def test_endless_hello_requests_do_not_hold_up_a_clients_handshake() -> None:
    """TLS 1.2 has a client ignore them while it shakes hands."""
    connection = new_client()
    with pytest.raises(tls.WantReadError):
        connection.do_handshake()
    connection.bio_write(plain(HANDSHAKE, HELLO_REQUEST * 4000) * 4)
    with pytest.raises(tls.FloodError):
        connection.do_handshake()


# ---- what honest peers do ----


@pytest.mark.parametrize("requested", [True, False])
def test_rekeying_after_every_record_is_fine(tmp_path: Path, requested: bool) -> None:
    connection, sender = server_of_forger(tmp_path, TLS13)
    for _ in range(500):
        connection.bio_write(sender.seal(APPLICATION_DATA, b"data") + sender.key_update(requested=requested))
        assert connection.recv(100) == b"data"


def test_downloader_that_rekeys_after_every_record_is_fine_also_in_bursts(tmp_path: Path) -> None:
    """It sends no data of its own, and its key updates come together when the slow link has let them through."""
    connection, sender = server_of_forger(tmp_path, TLS13)
    for _ in range(10):
        connection.sendall(bytes(200 * 16384))
        connection.bio_write(b"".join(islice(key_updates(sender), 200)))
        with pytest.raises(tls.WantReadError):
            connection.recv(100)
        connection.bio_read(1 << 30)


def test_one_byte_records_are_data_and_no_flood(tmp_path: Path) -> None:
    connection, sender = server_of_forger(tmp_path, TLS13)
    connection.bio_write(b"".join(sender.seal(APPLICATION_DATA, b"x") for _ in range(PLENTY)))
    assert drain(connection) == b"x" * PLENTY


def test_many_tickets_are_taken(tmp_path: Path) -> None:
    connection, sender = client_of_forger(tmp_path, TLS13)
    connection.bio_write(b"".join(islice(tickets(sender), 16)) + sender.seal(APPLICATION_DATA, b"data"))
    assert connection.recv(100) == b"data"
    assert connection.get_session() is not None


def test_single_requests_to_renegotiate_are_refused_and_the_connection_goes_on(tmp_path: Path) -> None:
    connection, sender = server_of_forger(tmp_path, TLS12)
    for _ in range(100):
        connection.bio_write(sender.seal(HANDSHAKE, renegotiation()) + sender.seal(APPLICATION_DATA, b"data"))
        assert connection.recv(100) == b"data"


@pytest.mark.parametrize(("end", "reason"), [("FIN", "Unexpected EOF"), ("RST", "reset by peer")])
def test_end_behind_good_bytes_is_known_with_them(tmp_path: Path, end: str, reason: str) -> None:
    """No further event tells of it, so nobody may be told to wait for one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        connection = tls.Connection(with_known_ciphers(server_context(asynchronous=False)), ours)
        connection.set_accept_state()
        thread = threading.Thread(target=connection.do_handshake)
        thread.start()
        sender = forging_client(theirs, client_ssl_context(version=TLS13), tmp_path / "keys")
        thread.join()
        ours.setblocking(False)
        theirs.sendall(sender.seal(APPLICATION_DATA, b"good"))
        if end == "RST":
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
        else:
            theirs.shutdown(socket.SHUT_WR)
        poll = select.poll()
        poll.register(ours, select.POLLRDHUP)
        assert poll.poll(20_000)
        assert connection.recv(100) == b"good"
        assert not connection.want_read()
        with pytest.raises(tls.SysCallError, match=reason):
            connection.recv(100)
