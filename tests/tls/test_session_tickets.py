"""Sessions must survive a reload of the certificates, but not for ever, and not a replaced private key."""

from __future__ import annotations

import base64
import datetime
import hmac
import os
import signal
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from client_authority import DAY, Authority, now
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from resumption import connect, context_with
from rsa_keys import private_key
from terminator_process import Terminator, client_context, echo_terminator
from tls_peers import Peer, accept, client_ssl_context, server_context

from gpu_provider import BatchingProvider, tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
SUBMITTED = "gpu_provider_submitted_total"


# ---- the library ----


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def client(request: pytest.FixtureRequest) -> ssl.SSLContext:
    return client_ssl_context(version=request.param)


def test_contexts_with_the_same_keys_resume_each_others_sessions(client: ssl.SSLContext) -> None:
    keys = tls.TicketKeys()
    _, session = connect(context_with(keys), client)
    assert connect(context_with(keys), client, session)[0]
    assert not connect(context_with(tls.TicketKeys()), client, session)[0]
    assert not connect(server_context(), client, session)[0]


def test_contexts_of_a_provider_do_so_inside_the_job(client: ssl.SSLContext) -> None:
    keys = tls.TicketKeys()
    with BatchingProvider() as provider:
        _, session = connect(context_with(keys, provider), client)
        submitted = provider.stats().submitted
        assert submitted == 1
        assert connect(context_with(keys, provider), client, session)[0]
        assert provider.stats().submitted == submitted


def test_session_id_context_keeps_sessions_apart(client: ssl.SSLContext) -> None:
    keys = tls.TicketKeys()
    _, session = connect(context_with(keys), client)
    other = context_with(keys)
    other.set_session_id_context(b"another key")
    assert not connect(other, client, session)[0]


def test_earlier_keys_are_accepted_until_their_time_is_over(client: ssl.SSLContext) -> None:
    keys = tls.TicketKeys()
    context = context_with(keys)
    _, session = connect(context, client)
    keys.rotate()
    keys.rotate()
    assert connect(context, client, session)[0]
    keys.rotate()
    assert not connect(context, client, session)[0]


def test_resumption_with_an_earlier_key_gives_a_ticket_of_the_newest(client: ssl.SSLContext) -> None:
    keys = tls.TicketKeys()
    context = context_with(keys)
    _, session = connect(context, client)
    for _ in range(4):
        keys.rotate()
        resumed, session = connect(context, client, session)
        assert resumed


def test_keys_rotate_by_time(client: ssl.SSLContext) -> None:
    keys = tls.TicketKeys(rotate_after=0.05)
    context = context_with(keys)
    _, session = connect(context, client)
    while connect(context, client, session)[0]:  # for as long as its key is accepted
        pass


def test_sessions_of_a_context_chosen_by_name_are_resumed(client: ssl.SSLContext) -> None:
    """libssl asks the first context for the keys, although the connection has switched to another one."""
    keys = tls.TicketKeys()

    def with_names() -> tls.Context:
        context = context_with(keys)
        context.set_sni_contexts({"www.one.example": server_context(name="www.one.example")})
        return context

    _, session = connect(with_names(), client, name="www.one.example")
    assert connect(with_names(), client, session, name="www.one.example")[0]


def resuming_hello(connection: tls.Connection, context: tls.Context) -> tuple[bytearray, int]:
    """A TLS 1.2 client's first message, with a ticket of this context; and where the ticket begins."""
    client = client_ssl_context(version=ssl.TLSVersion.TLSv1_2)
    _, session = connect(context, client)
    peer = Peer(connection, client, session=session)
    with pytest.raises(ssl.SSLWantReadError):
        peer.ssl.do_handshake()
    hello = bytearray(peer._out.read())
    return hello, hello.index(b"\x00\x23") + 4  # the extension session_ticket


def test_damaged_ticket_leads_to_a_full_handshake() -> None:
    context = context_with(tls.TicketKeys())
    connection = accept(context)
    hello, ticket = resuming_hello(connection, context)
    hello[ticket + 40] ^= 1
    connection.bio_write(bytes(hello))
    with pytest.raises(tls.WantReadError):
        connection.do_handshake()
    assert not connection.session_reused()
    assert connection.bio_pending() > 500  # a certificate is in it


def test_keys_outlive_their_python_object_while_a_context_has_them(client: ssl.SSLContext) -> None:
    context = context_with(tls.TicketKeys())
    _, session = connect(context, client)
    assert connect(context, client, session)[0]


def test_many_threads_use_and_rotate_the_same_keys(client: ssl.SSLContext) -> None:
    keys = tls.TicketKeys()

    def work() -> None:
        context = context_with(keys, kind="ECDSA")
        session = None
        for _ in range(20):
            _, session = connect(context, client, session)
            keys.rotate()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result()


def test_forked_child_goes_on_with_the_keys(client: ssl.SSLContext) -> None:
    keys = tls.TicketKeys()
    _, session = connect(context_with(keys), client)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if connect(context_with(keys), client, session)[0] else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_processes_share_keys_through_a_memfd(client: ssl.SSLContext) -> None:
    memory = os.memfd_create("tickets")
    with open(memory, "rb"):
        ours = tls.TicketKeys(memory=memory)
        _, session = connect(context_with(ours), client)
        child = os.fork()
        if child == 0:
            theirs = tls.TicketKeys(memory=memory)
            resumed, _ = connect(context_with(theirs), client, session)
            theirs.rotate()
            os._exit(0 if resumed else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    resumed, newer = connect(context_with(ours), client, session)
    assert resumed
    for _ in range(2):
        ours.rotate()
    assert not connect(context_with(ours), client, session)[0]
    assert connect(context_with(ours), client, newer)[0], "the ticket was of the key that the child has made"


@pytest.mark.parametrize("size", [48, 80])
@pytest.mark.parametrize("encode", [bytes, base64.b64encode])
def test_given_keys_encrypt_as_their_form_says(size: int, encode: Callable[[bytes], bytes]) -> None:
    given = os.urandom(size)
    name, cipher, mac = given[:16], given[16 : size // 2 + 8], given[size // 2 + 8 :]
    context = context_with(tls.TicketKeys.given([encode(given)]))
    hello, begin = resuming_hello(accept(context), context)
    ticket = bytes(hello[begin : begin + int.from_bytes(hello[begin - 2 : begin])])
    assert ticket[:16] == name
    assert hmac.digest(mac, ticket[:-32], "sha256") == ticket[-32:]
    decryptor = Cipher(algorithms.AES(cipher), modes.CBC(ticket[16:32])).decryptor()
    assert decryptor.update(ticket[32:-32]).startswith(b"\x30")  # a session in DER


def test_first_of_the_given_keys_encrypts_and_all_decrypt(client: ssl.SSLContext) -> None:
    former, present, following = (os.urandom(80) for _ in range(3))
    _, session = connect(context_with(tls.TicketKeys.given([former, present])), client)
    context = context_with(tls.TicketKeys.given([present, former, following]))
    resumed, session = connect(context, client, session)
    assert resumed
    assert connect(context_with(tls.TicketKeys.given([present])), client, session)[0]
    _, session = connect(context_with(tls.TicketKeys.given([following])), client)
    assert connect(context, client, session)[0]
    assert not connect(context_with(tls.TicketKeys.given([present, former])), client, session)[0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([], "1 to 3 keys"),
        ([bytes(48)] * 4, "1 to 3 keys"),
        ([b"secret"], "not 6 bytes"),
        ([b"!" * 64], "48 or 80 bytes or their base64"),
        ([base64.b64encode(bytes(79))], "48 or 80 bytes or their base64"),
    ],
)
def test_what_is_no_key_is_refused_and_not_shown(keys: list[bytes], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        tls.TicketKeys.given(keys)
    assert "secret" not in str(refused.value)


NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME


@pytest.mark.parametrize("version", VERSIONS)
def test_session_ends_with_its_clients_certificate(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """Hazard: with TLS 1.3 each resumption gives a ticket with a new term, so a client could go on for ever."""
    keys, clients = tls.TicketKeys(), Authority(tmp_path)

    def verifying(flags: int) -> tls.Context:
        context = context_with(keys)
        context.set_verify(tls.VERIFY_PEER)
        context.load_verify_locations(clients.file)
        context.clear_verify_flags(ssl.VERIFY_X509_STRICT)
        context.set_verify_flags(flags)
        return context

    expired, _ = clients.client("Alice", end=now() - DAY, context=client_ssl_context(version=version))
    valid, _ = clients.client("Bob", context=client_ssl_context(version=version))
    _, old = connect(verifying(NO_CHECK_TIME), expired)
    _, new = connect(verifying(NO_CHECK_TIME), valid)
    assert connect(verifying(0), valid, new)[0]
    with pytest.raises(tls.Error, match="certificate has expired"):
        connect(verifying(0), expired, old)


DIES_WITH_THE_LOCK = """
import ctypes, mmap, os, sys
ring = mmap.mmap(int(sys.argv[1]), 0)
lock = ctypes.addressof(ctypes.c_char.from_buffer(ring))
assert ctypes.CDLL(None).pthread_mutex_lock(ctypes.c_void_p(lock)) == 0
os.kill(os.getpid(), 9)
"""


def test_process_that_dies_with_the_lock_of_shared_keys_blocks_nobody(client: ssl.SSLContext) -> None:
    memory = os.memfd_create("tickets")
    with open(memory, "rb"):
        keys = tls.TicketKeys(memory=memory)
        _, session = connect(context_with(keys), client)
        dead = subprocess.run([sys.executable, "-c", DIES_WITH_THE_LOCK, str(memory)], pass_fds=[memory], check=False)
        assert dead.returncode == -signal.SIGKILL
    resumed, session = connect(context_with(keys), client, session)
    assert not resumed, "it may have changed half a key"
    assert connect(context_with(keys), client, session)[0]


@pytest.mark.parametrize("seconds", [0, -1, 86401])
def test_interval_out_of_range(seconds: float) -> None:
    with pytest.raises(ValueError, match="rotate_after must be"):
        tls.TicketKeys(seconds)


# ---- the terminator ----


@pytest.fixture
def terminator(tmp_path: Path) -> Iterator[Terminator]:
    with echo_terminator(tmp_path) as running:
        yield running


def resume(terminator: Terminator, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSession:
    """Resumes a session, if one is given, echoes, and returns the session to resume next."""
    with context.wrap_socket(terminator.dial(), server_hostname="localhost", session=session) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert client.session_reused == (session is not None)
        assert client.session is not None
        return client.session


def reload(terminator: Terminator, count: int = 1) -> None:
    terminator.process.send_signal(signal.SIGHUP)
    terminator.wait_for("certificates reloaded", count)


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_survive_reloads(terminator: Terminator, version: ssl.TLSVersion) -> None:
    context = client_context(version)
    session = resume(terminator, context)
    submitted = terminator.metric(SUBMITTED)
    for number in range(1, 4):
        reload(terminator, number)
        session = resume(terminator, context, session)
    assert terminator.metric(SUBMITTED) == submitted  # no private operation


def write_self_signed(directory: Path, days: int, size: int = 2048) -> None:
    key = private_key(size)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), days, now, now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_survive_a_certificate_renewed_with_its_key_and_not_a_new_key(
    terminator: Terminator, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    context = client_context(version)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    write_self_signed(tmp_path, 10)
    reload(terminator, 1)
    session = resume(terminator, context)
    write_self_signed(tmp_path, 20)
    reload(terminator, 2)
    session = resume(terminator, context, session)
    write_self_signed(tmp_path, 20, 3072)
    reload(terminator, 3)
    with context.wrap_socket(terminator.dial(), server_hostname="localhost", session=session) as client:
        assert not client.session_reused
