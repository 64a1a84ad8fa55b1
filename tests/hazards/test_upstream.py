"""The upstream is down, slow, or resets: its clients notice, and can tell a whole answer from a truncated one."""

import socket
import threading

import pytest
from terminator_process import TIMEOUT, Terminator, Upstream, echo, refused_address, reset, write_credentials

from gpu_provider import tls

FAILURES = "gpu_provider_terminator_upstream_failures_total"
SESSIONS = "gpu_provider_terminator_sessions_total"


def test_upstream_down_ends_the_connection_properly_and_is_counted(tmp_path):
    address = refused_address()
    with Terminator(*write_credentials(tmp_path), upstream=address) as terminator:
        for number in range(1, 4):
            client = terminator.library_client()
            client.sendall(b"a request that nobody will read" * 1000)
            with pytest.raises(tls.ZeroReturnError):
                client.recv(1)
            client.close()
            terminator.wait_for_metric(FAILURES, number, reason="ECONNREFUSED")
        terminator.wait_for_metric(SESSIONS, 3, end="upstream_unreachable")
        assert terminator.admin("/readyz")[0] == 200
        # It comes up: the next connection is served.
        host, port = address.split(":")
        with socket.create_server((host, int(port))) as listener:
            client = terminator.library_client()
            client.sendall(b"hello")
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(5) == b"hello"
            client.close()


def test_upstream_that_does_not_answer_the_connect_times_out(tmp_path):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        # The kernel answers no further connects once the backlog is full.
        waiting = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(address)
            waiting.append(sock)
        upstream = f"127.0.0.1:{address[1]}"
        with Terminator(*write_credentials(tmp_path), "--connect-timeout", "0.5", upstream=upstream) as terminator:
            client = terminator.library_client()
            with pytest.raises(tls.ZeroReturnError):
                client.recv(1)
            client.close()
            terminator.wait_for_metric(FAILURES, 1, reason="ETIMEDOUT")
        for sock in waiting:
            sock.close()


def test_second_address_of_the_upstream_is_tried(tmp_path):
    """localhost is ::1 and 127.0.0.1 on most machines, and this upstream listens on the second alone."""
    with (
        Upstream(echo) as upstream,
        Terminator(
            *write_credentials(tmp_path), upstream=upstream.address.replace("127.0.0.1", "localhost")
        ) as terminator,
    ):
        assert terminator.echo() == b"are you there?"


def test_reset_in_the_middle_is_passed_on_as_a_cut_not_as_an_end(tmp_path):
    def half_an_answer(connection):
        connection.recv(100)
        connection.sendall(b"half an ans")
        gone.wait(TIMEOUT)
        reset(connection)

    gone = threading.Event()
    with (
        Upstream(half_an_answer) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        client = terminator.library_client()
        client.sendall(b"question")
        assert client.recv(100) == b"half an ans"
        gone.set()
        with pytest.raises(tls.SysCallError):
            client.recv(1)
        client.close()
        terminator.wait_for_metric(SESSIONS, 1, end="upstream_reset")


def test_answer_before_a_reset_still_arrives(tmp_path):
    """An upstream that answers and closes without reading all of the request, as for a body that is too large."""

    def refuse(connection):
        connection.recv(1)
        connection.sendall(b"too large")
        connection.shutdown(socket.SHUT_WR)
        answered.wait(TIMEOUT)

    answered = threading.Event()
    with (
        Upstream(refuse) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        client = terminator.library_client()
        client.sendall(b"y" * 10_000)
        assert client.recv(9) == b"too large"
        with pytest.raises(tls.ZeroReturnError):
            client.recv(1)
        answered.set()  # now the upstream closes with unread data, which is a reset
        terminator.wait_for_metric(SESSIONS, 0, end="client_reset")
        client.close()
        terminator.wait_for_metric("gpu_provider_terminator_open_connections", 0)


def test_slow_answer_is_waited_for_while_others_are_served(tmp_path):
    release = threading.Event()

    def slow_for_some(connection):
        data = connection.recv(100)
        if data == b"slow":
            release.wait(TIMEOUT)
        connection.sendall(data)

    with (
        Upstream(slow_for_some) as upstream,
        Terminator(*write_credentials(tmp_path), upstream=upstream.address) as terminator,
    ):
        slow = terminator.connect()
        slow.sendall(b"slow")
        for _ in range(5):
            assert terminator.echo(b"fast") == b"fast"
        release.set()
        assert slow.recv(4) == b"slow"
        slow.close()
