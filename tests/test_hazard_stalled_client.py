"""Clients that stop in the middle, or vanish while their RSA operation is in a batch: nothing of them may remain."""

import os
import socket
import ssl
import struct

import pytest
from terminator_process import TIMEOUT, Terminator, Upstream, client_context, echo_terminator, write_credentials

HANDSHAKES = "gpu_provider_terminator_handshakes_total"
OPEN = "gpu_provider_terminator_open_connections"


def client_hello(context=None):
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        (context or client_context()).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def until_closed(sock):
    sock.settimeout(TIMEOUT)
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass


@pytest.mark.parametrize("part", ["nothing", "half a ClientHello", "all but the Finished"])
def test_stalled_handshake_ends_with_the_timeout_and_holds_up_nobody(tmp_path, part):
    hello = client_hello()
    first = {"nothing": b"", "half a ClientHello": hello[: len(hello) // 2], "all but the Finished": hello}[part]
    with echo_terminator(tmp_path, "--handshake-timeout", "0.5") as terminator:
        with terminator.dial() as stalled:
            stalled.sendall(first)
            assert terminator.echo() == b"are you there?"
            until_closed(stalled)
        terminator.wait_for_metric(HANDSHAKES, 1, result="timeout")
        assert terminator.echo() == b"are you there?"


def descriptors(process):
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def test_clients_that_vanish_in_the_handshake_leave_nothing_behind(tmp_path):
    """By reset right after the ClientHello: most of them while their request waits or is computed."""
    hello = client_hello()
    with echo_terminator(tmp_path) as terminator:
        assert terminator.echo() == b"are you there?"
        terminator.wait_for_metric(OPEN, 0)
        before = descriptors(terminator.process)
        for _ in range(10):
            socks = [terminator.dial() for _ in range(50)]
            for sock in socks:
                sock.sendall(hello)
            for sock in socks:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
        terminator.wait_for_metric("gpu_provider_terminator_accepted_total", 501)
        terminator.wait_for_metric(OPEN, 0)
        terminator.wait_for_metric("gpu_provider_queue_in_use", 0)
        assert descriptors(terminator.process) == before
        assert terminator.echo() == b"are you there?"


def test_client_that_resets_in_the_middle_of_an_answer(tmp_path):
    def endless(connection):
        while True:
            connection.sendall(bytes(65536))

    with (
        Upstream(endless) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        for _ in range(5):
            client = terminator.connect()
            client.recv(1000)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        terminator.wait_for_metric("gpu_provider_terminator_sessions_total", 5, end="client_reset")
        terminator.wait_for_metric(OPEN, 0)
