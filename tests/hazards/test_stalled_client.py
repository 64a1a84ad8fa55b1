"""Clients that stop half-way, or vanish while their RSA operation is in flight: nothing of them may remain."""

import os
import socket
import ssl
import struct
from pathlib import Path

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


def footprint(process):
    """Open descriptors, and bytes of memory in use."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return len(os.listdir(f"/proc/{process.pid}/fd")), int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_2000_clients_that_vanish_in_the_handshake_leave_nothing_behind(tmp_path):
    """Clients reset right after the ClientHello, many of them while their request waits or is computed."""
    hello = client_hello()

    def vanish(count):
        for _ in range(count // 100):
            socks = [terminator.dial() for _ in range(100)]
            for sock in socks:
                sock.sendall(hello)
            for sock in socks:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()

    with echo_terminator(tmp_path) as terminator:
        # As many as below: what is allocated once and kept, such as a stack for each async job that waits.
        vanish(2000)
        terminator.wait_for_metric("gpu_provider_terminator_accepted_total", 2000)
        terminator.wait_for_metric(OPEN, 0)
        before = footprint(terminator.process)
        vanish(2000)
        terminator.wait_for_metric("gpu_provider_terminator_accepted_total", 4000)
        terminator.wait_for_metric(OPEN, 0)
        terminator.wait_for_metric("gpu_provider_queue_in_use", 0)
        after = footprint(terminator.process)
        assert abs(after[0] - before[0]) <= 2  # the connection of the admin port that was asked last may still be open
        assert after[1] - before[1] < 16 * 1024 * 1024  # a leak of 8 KiB for each would show
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
