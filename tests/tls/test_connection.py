"""Context and Connection against Python's own TLS: versions, certificates, sessions, names, protocols, data."""

from __future__ import annotations

import contextlib
import ctypes
import re
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import evp_outcome
import pytest
from cryptography import x509
from paths import SUPPORT
from tls_peers import (
    Peer,
    accept,
    authority,
    client_ssl_context,
    credentials,
    finish,
    handshake,
    server_context,
    unverifying_client_context,
)

from gpu_provider import tls

if TYPE_CHECKING:
    from gpu_provider import BatchingProvider
    from gpu_provider.testing import HeldBackend


@pytest.fixture
def provider(held_backend: HeldBackend, held_provider: BatchingProvider) -> BatchingProvider:
    """A provider that computes at once."""
    held_backend.release_all()
    return held_provider


@pytest.mark.parametrize("kind", ["RSA", "ECDSA"])
@pytest.mark.parametrize(
    ("version", "name"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
def test_both_versions_with_both_kinds_of_key(
    provider: BatchingProvider, kind: str, version: ssl.TLSVersion, name: str
) -> None:
    connection = handshake(server_context(provider, kind=kind), client_ssl_context(version=version))
    assert connection.get_protocol_version_name() == name
    assert provider.stats().completed == (kind == "RSA")


@pytest.mark.skipif(
    not hasattr(evp_outcome.lib, "ASYNC_get_mem_functions"), reason="OpenSSL before 3.4 takes no stacks for jobs"
)
def test_stacks_of_jobs_have_a_guard_page() -> None:
    """Hazard: one that overflows writes into the heap."""
    allocate, free, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t(32768)
    evp_outcome.lib.ASYNC_get_mem_functions(ctypes.byref(allocate), ctypes.byref(free))
    assert allocate.value is not None
    assert free.value is not None
    stack = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))(allocate.value)(ctypes.byref(size))
    assert re.search(rf"^[0-9a-f]+-{stack:x} ---p", Path("/proc/self/maps").read_text(), re.MULTILINE)
    ctypes.memset(stack, 1, size.value)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(free.value)(stack)


def test_tls_1_2_with_rsa_key_exchange_decrypts_through_the_provider(provider: BatchingProvider) -> None:
    context = server_context(provider)
    context.set_cipher_list("AES128-GCM-SHA256")
    client = client_ssl_context(version=ssl.TLSVersion.TLSv1_2)
    client.set_ciphers("AES128-GCM-SHA256")
    connection = handshake(context, client)
    assert connection.get_cipher_name() == "AES128-GCM-SHA256"
    assert provider.stats().completed == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_older_than_tls_1_2_is_spoken() -> None:
    client = client_ssl_context()
    client.minimum_version = ssl.TLSVersion.TLSv1
    client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("ALL:@SECLEVEL=0")
    connection = accept(server_context())
    with pytest.raises(tls.Error, match="unsupported protocol"):
        finish(connection, Peer(connection, client))


# ---- client certificates ----


def client_certificate(tmp_path: Path) -> ssl.SSLContext:
    client = client_ssl_context()
    chain, key = credentials("client.example")
    (tmp_path / "chain.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(key)
    client.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    return client


def verifying_context(tmp_path: Path, provider: BatchingProvider | None = None) -> tls.Context:
    context = server_context(provider)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority().cert_pem.bytes())
    context.load_verify_locations(ca)
    context.load_client_ca(ca)
    context.set_verify(tls.VERIFY_PEER | tls.VERIFY_FAIL_IF_NO_PEER_CERT)
    return context


def test_a_clients_certificate_is_verified_and_shown(provider: BatchingProvider, tmp_path: Path) -> None:
    connection = handshake(verifying_context(tmp_path, provider), client_certificate(tmp_path))
    certificate = connection.get_peer_certificate()
    assert certificate == x509.load_pem_x509_certificates(credentials("client.example").chain)[0]


def test_a_client_without_one_is_refused(tmp_path: Path) -> None:
    connection = accept(verifying_context(tmp_path))
    with pytest.raises(tls.Error, match="peer did not return a certificate"):
        finish(connection, Peer(connection))


def test_a_clients_own_key_waits_in_the_batch_too(provider: BatchingProvider, tmp_path: Path) -> None:
    """Two operations in one handshake, one on each side."""
    context = unverifying_client_context(provider)
    chain, key = credentials("client.example")
    context.use_certificate(chain)
    context.use_privatekey(key)
    client = tls.Connection(context)
    client.set_connect_state()
    server = accept(verifying_context(tmp_path, provider))
    shake(server, client)
    assert provider.stats().completed == 2


def shake(server: tls.Connection, client: tls.Connection) -> None:
    waiting = {server, client}
    while waiting:
        for one, other in ((client, server), (server, client)):
            if one in waiting:
                try:
                    one.do_handshake()
                    waiting.discard(one)
                except (tls.WantReadError, tls.WantAsyncError):
                    pass
            carry(one, other)


def carry(one: tls.Connection, other: tls.Connection) -> None:
    while one.bio_pending():
        other.bio_write(one.bio_read(65536))


# ---- sessions ----


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_resumed_session_needs_no_operation(provider: BatchingProvider, version: ssl.TLSVersion) -> None:
    context, client = server_context(provider), client_ssl_context(version=version)
    first = accept(context)
    peer = Peer(first, client)
    finish(first, peer)
    assert not first.session_reused()
    assert peer.ssl.session is not None
    second = accept(context)
    finish(second, Peer(second, client, session=peer.ssl.session))
    assert second.session_reused()
    assert provider.stats().completed == 1


def test_our_client_resumes_too() -> None:
    context, client_context = server_context(asynchronous=False), unverifying_client_context()
    session = None
    for reused in (False, True):
        server, client = accept(context), tls.Connection(client_context)
        client.set_connect_state()
        if session is not None:
            client.set_session(session)
        shake(server, client)
        server.sendall(b"ticket before this")
        carry(server, client)
        client.recv(100)
        session = client.get_session()
        client.shutdown()
        assert client.session_reused() is reused


# ---- names and protocols ----


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("www.one.example", "www.one.example"),
        ("WWW.One.Example", "www.one.example"),
        ("any.one.example", "*.one.example"),
        ("deep.any.one.example", "localhost"),
        ("one.example", "localhost"),
        ("unknown.test", "localhost"),
    ],
)
def test_the_certificate_is_chosen_by_name(asked: str, served: str) -> None:
    context = server_context()
    names = ("www.one.example", "*.one.example", "zzz.example", "aaa.example")
    context.set_sni_contexts({name.upper(): server_context(name=name) for name in names})
    client = client_ssl_context()
    client.check_hostname = False
    connection = accept(context)
    peer = Peer(connection, client, name=asked)
    finish(connection, peer)
    certificate = peer.ssl.getpeercert()
    assert certificate is not None
    assert certificate["subjectAltName"] == (("DNS", served),)
    assert connection.get_servername() == asked.lower().encode() or asked != asked.lower()


def test_without_a_name_the_first_certificate_is_shown() -> None:
    context = server_context()
    context.set_sni_contexts({"www.one.example": server_context(name="www.one.example")})
    server, client = accept(context), tls.Connection(unverifying_client_context())
    client.set_connect_state()
    shake(server, client)
    assert server.get_servername() is None
    assert client.get_peer_certificate() == x509.load_pem_x509_certificates(credentials().chain)[0]


def test_the_names_keep_their_contexts_alive() -> None:
    context = server_context()
    context.set_sni_contexts({"www.one.example": server_context(name="www.one.example")})
    connection = accept(context)
    context.set_sni_contexts({"other.example": server_context(name="other.example")})  # a reload
    handshake(context, name="other.example")
    finish(connection, Peer(connection))


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["http/1.1", "h2"], b"h2"), (["http/1.1"], b"http/1.1"), ([], b"")],
)
def test_the_servers_preference_decides_the_protocol(offered: list[str], chosen: bytes) -> None:
    context = server_context()
    context.set_alpn_server_protos([b"h2", b"http/1.1"])
    client = client_ssl_context()
    if offered:
        client.set_alpn_protocols(offered)
    assert handshake(context, client).get_alpn_proto_negotiated() == chosen


def test_a_client_of_other_protocols_only_is_refused_with_the_alert() -> None:
    context = server_context()
    context.set_alpn_server_protos([b"h2"])
    client = client_ssl_context()
    client.set_alpn_protocols(["spdy/3"])
    connection = accept(context)
    peer = Peer(connection, client)
    with pytest.raises(tls.Error, match="no application protocol"):
        finish(connection, peer)
    with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
        peer.exchange()


# ---- data ----


def test_the_careful_settings_are_on_from_the_start() -> None:
    options = server_context().set_options(0)
    assert options & tls.OP_NO_RENEGOTIATION
    assert options & tls.OP_NO_COMPRESSION
    assert not options & tls.OP_IGNORE_UNEXPECTED_EOF


def test_one_call_fills_a_large_buffer_with_many_records() -> None:
    connection = accept(server_context())
    peer = Peer(connection)
    finish(connection, peer)
    data = bytes(range(256)) * 1000
    peer.write(data)
    buffer = bytearray(len(data) + 100)
    assert connection.recv_into(buffer) == len(data)
    assert buffer[: len(data)] == data
    with pytest.raises(tls.WantReadError):
        connection.recv(1)
    peer.write(b"0123456789")
    assert connection.recv_into(buffer, 4) == 4
    assert connection.pending() == 6
    assert connection.recv(100) == b"456789"
    assert connection.send(data) == len(data)
    assert connection.send(b"") == 0
    got = b""
    while len(got) < len(data):
        got += peer.read()
    assert got == data


def test_buffers_are_let_go_when_a_call_has_raised() -> None:
    """CPython crashes when it collects an exception whose frames hold a memoryview that is still exported."""
    script = r"""
import gc
from tls_peers import Peer, accept, finish, server_context
from gpu_provider import tls

connection = accept(server_context())
finish(connection, Peer(connection))

class Keeper:
    pass

def keep(call):
    keeper = Keeper()
    keeper.itself = keeper
    try:
        call(memoryview(bytearray(100)))
    except Exception as error:
        keeper.error = error

gc.disable()
keep(connection.recv_into)
connection.close()
for call in (connection.recv_into, connection.send, connection.sendall, connection.bio_write):
    keep(call)
gc.collect()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=SUPPORT)
    connection = accept(server_context())
    finish(connection, Peer(connection))
    buffer = bytearray(10)
    with pytest.raises(tls.WantReadError):
        connection.recv_into(buffer)
    buffer.extend(b"free again")


def test_the_end_is_told_and_a_missing_one_is_an_error() -> None:
    connection = accept(server_context())
    peer = Peer(connection)
    finish(connection, peer)
    assert connection.shutdown() is False
    assert connection.get_shutdown() == tls.SENT_SHUTDOWN
    assert peer.read() == b""
    peer.ssl.unwrap()
    peer.exchange()
    with pytest.raises(tls.ZeroReturnError):
        connection.recv(1)
    assert connection.shutdown() is True

    cut = accept(server_context())
    finish(cut, Peer(cut))
    cut.bio_shutdown()
    with pytest.raises(tls.SysCallError) as raised:
        cut.recv(1)
    assert raised.value.args == (-1, "Unexpected EOF")


def test_garbage_and_a_damaged_record_are_errors_of_that_connection_alone() -> None:
    context = server_context()
    garbage = accept(context)
    garbage.bio_write(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(tls.Error, match="http request"):
        garbage.do_handshake()
    connection = accept(context)
    finish(connection, Peer(connection))
    connection.bio_write(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(tls.Error, match=r"bad record|decryption failed"):
        connection.recv(10)
    handshake(context)


def test_over_sockets_blocking_and_not() -> None:
    for blocking in (True, False):
        ours, theirs = socket.socketpair()
        ours.setblocking(blocking)
        connection = tls.Connection(server_context(asynchronous=False), ours)
        connection.set_accept_state()
        assert connection.fileno() == ours.fileno()
        if not blocking:
            with pytest.raises(tls.WantReadError):
                connection.do_handshake()
            ours.setblocking(True)

        def talk(theirs: socket.socket = theirs) -> None:
            with client_ssl_context().wrap_socket(theirs, server_hostname="localhost") as client:
                client.sendall(client.recv(100).upper())
                client.recv(100)

        thread = threading.Thread(target=talk)
        thread.start()
        connection.do_handshake()
        connection.sendall(b"shout")
        assert connection.recv(100) == b"SHOUT"
        connection.shutdown()
        thread.join()
        with connection:
            pass
        assert ours.fileno() == -1
        with pytest.raises(tls.Error, match="closed"):
            connection.recv(1)


def test_a_full_socket_wants_write_and_loses_nothing() -> None:
    ours, theirs = socket.socketpair()
    connection = tls.Connection(server_context(asynchronous=False), ours)
    connection.set_accept_state()
    received = bytearray()
    start_reading = threading.Event()

    def read(client: ssl.SSLSocket) -> None:
        client.do_handshake()
        start_reading.wait(30)
        while data := client.recv(65536):
            received.extend(data)

    client = client_ssl_context().wrap_socket(theirs, server_hostname="localhost", do_handshake_on_connect=False)
    thread = threading.Thread(target=read, args=(client,))
    thread.start()
    connection.do_handshake()
    ours.setblocking(False)
    data = bytes(range(256)) * 40000
    sent = 0
    with contextlib.suppress(tls.WantWriteError):
        while True:
            sent += connection.send(data[sent:])
    assert sent < len(data)
    start_reading.set()
    ours.setblocking(True)
    connection.sendall(data[sent:])
    connection.shutdown()
    thread.join(30)
    connection.close()
    client.close()
    assert received == data


def test_a_bio_call_on_a_socket_connection_says_so() -> None:
    ours, theirs = socket.socketpair()
    with theirs, tls.Connection(server_context(), ours) as connection:
        for call in (connection.bio_shutdown, connection.bio_pending, lambda: connection.bio_write(b"x")):
            with pytest.raises(tls.Error, match="on a socket"):
                call()


def test_before_the_handshake_nothing_is_agreed() -> None:
    """OpenSSL itself reads a null pointer where there is no session yet."""
    with accept(server_context()) as connection:
        assert connection.get_group_name() is connection.get_alert() is connection.get_certificate_sha256() is None
        assert connection.bytes_read() == 0
