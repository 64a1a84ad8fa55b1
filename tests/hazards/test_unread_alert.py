"""A client whose handshake fails must be able to read why, even if it is still sending when the alert comes."""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from terminator_process import TIMEOUT, Terminator, client_context, echo_terminator, receive

from gpu_provider import tls

if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN = "gpu_provider_terminator_open_connections"
ALERT = 21


@pytest.fixture(scope="module")
def terminator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminator]:
    with echo_terminator(tmp_path_factory.mktemp("credentials"), "--alpn", "h2", "--tls-min", "TLSv1.3") as running:
        yield running


def client_hello(context: ssl.SSLContext) -> bytes:
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def unknown_protocol() -> bytes:
    context = client_context()
    context.set_alpn_protocols(["spdy/1"])
    return client_hello(context)


def old_version() -> bytes:
    return client_hello(client_context(ssl.TLSVersion.TLSv1_2))


@pytest.mark.parametrize(("hello", "description"), [(unknown_protocol, 120), (old_version, 70)])
def test_alert_reaches_a_client_that_is_still_sending(terminator: Terminator, hello: object, description: int) -> None:
    for _ in range(10):
        with terminator.dial() as client:
            assert callable(hello)
            client.sendall(hello())
            for _ in range(64):
                client.sendall(bytes(16384))
            record = receive(client, 7)
            assert (record[0], record[6]) == (ALERT, description)
            assert client.recv(1) == b""
    terminator.wait_for_metric(OPEN, 0)


def test_alert_in_the_middle_of_a_session_reaches_a_client_that_is_still_sending(terminator: Terminator) -> None:
    context = tls.Context(tls.TLS_CLIENT_METHOD)
    context.set_verify(tls.VERIFY_NONE)
    context.set_alpn_protos([b"h2"])
    for _ in range(10):
        with terminator.dial() as sock:
            sock.setblocking(True)
            client = tls.Connection(context, sock)
            client.set_connect_state()
            client.do_handshake()
            sock.sendall(b"\x17\x03\x03\x00\x20" + os.urandom(32))
            for _ in range(64):
                sock.sendall(bytes(16384))
            with pytest.raises(tls.Error, match="alert bad record mac"):
                client.recv(1)
            client.close()
    terminator.wait_for_metric(OPEN, 0)


def test_client_that_neither_reads_nor_closes_is_not_waited_for(terminator: Terminator) -> None:
    with terminator.dial() as client:
        client.sendall(unknown_protocol())
        terminator.wait_for_metric(OPEN, 0)
        client.settimeout(TIMEOUT)


def test_plain_http_request_gets_an_end_and_no_reset(terminator: Terminator) -> None:
    with terminator.dial() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(100_000))
        assert receive(client, 100) == b""
        client.shutdown(socket.SHUT_WR)
