"""SIGTERM and SIGINT: under load no accepted request is lost, and nothing keeps the process from ending."""

import contextlib
import signal
import ssl
import threading

import pytest
from terminator_process import (
    TIMEOUT,
    client_context,
    echo_terminator,
    receive,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
def test_open_connections_finish_and_new_ones_are_refused(tmp_path, number):
    with echo_terminator(tmp_path) as terminator:
        with terminator.connect() as client:
            terminator.process.send_signal(number)
            terminator.wait_for("draining")
            with pytest.raises(ConnectionRefusedError):
                terminator.dial()
            client.sendall(b"finish me")
            assert receive(client, 9) == b"finish me"
            client.unwrap()
        assert terminator.wait() == 0
        assert terminator.wait_for("stopped")["clean"] is True


def test_under_load_whoever_got_through_the_handshake_gets_the_answer(tmp_path):
    finished, lost, stop = [], [], threading.Event()

    def client(terminator):
        context = client_context()
        while not stop.is_set():
            try:
                sock = terminator.dial()
            except OSError:
                return  # no longer accepting
            try:
                tls = context.wrap_socket(sock, server_hostname="localhost")
            except OSError:
                sock.close()  # was in the backlog when the listening socket closed
                continue
            with tls:
                try:
                    tls.sendall(b"x" * 1000)
                    (finished if len(receive(tls, 1000)) == 1000 else lost).append(1)
                except OSError as error:
                    lost.append(error)

    with echo_terminator(tmp_path) as terminator:
        threads = [threading.Thread(target=client, args=(terminator,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        while len(finished) < 50:
            assert not lost
            stop.wait(0.01)
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.wait() == 0
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT)
        assert not lost


def connect_while_stopped(terminator, clients, count):
    """Clients whose connections the system has accepted, and who have sent their first message, while the terminator
    could not; then SIGTERM."""
    context = client_context()
    terminator.process.send_signal(signal.SIGSTOP)
    waiting = []
    for _ in range(count):
        client = context.wrap_socket(terminator.dial(), server_hostname="localhost", do_handshake_on_connect=False)
        waiting.append(clients.enter_context(client))
        client.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
    terminator.process.send_signal(signal.SIGTERM)
    terminator.process.send_signal(signal.SIGCONT)
    return waiting


def finish(client):
    client.settimeout(TIMEOUT)
    client.do_handshake()
    client.sendall(b"served")
    assert receive(client, 6) == b"served"
    client.unwrap()


@pytest.mark.parametrize(("flags", "count"), [((), 400), (("--max-connections", "10"), 40)])
def test_whoever_waits_to_be_accepted_is_served(tmp_path, flags, count):
    with echo_terminator(tmp_path, *flags) as terminator, contextlib.ExitStack() as clients:
        for client in connect_while_stopped(terminator, clients, count):
            finish(client)
        assert terminator.wait() == 0
        assert terminator.wait_for("stopped")["clean"] is True
        assert terminator.wait_for("stopped")["requests"] == count


def test_whoever_could_not_be_accepted_in_time_counts_as_cut_off(tmp_path):
    flags = ("--max-connections", "1", "--drain-timeout", "0.5")
    with echo_terminator(tmp_path, *flags) as terminator, contextlib.ExitStack() as clients:
        clients.enter_context(terminator.connect())
        connect_while_stopped(terminator, clients, 3)
        assert terminator.wait() == 3
        assert terminator.wait_for("connections cut off")["connections"] == 4
        assert terminator.wait_for("stopped")["clean"] is False


def test_a_client_that_lingers_after_its_failed_handshake_is_not_cut_off(tmp_path):
    """Hazard: a scanner that keeps its connections open would make every end look unclean."""
    with echo_terminator(tmp_path, "--drain-timeout", "0") as terminator, terminator.dial() as scanner:
        scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert scanner.recv(100) == b""
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.wait() == 0
        assert terminator.wait_for("stopped")["clean"] is True


def test_connections_that_do_not_end_are_cut_off_after_the_timeout(tmp_path):
    with echo_terminator(tmp_path, "--drain-timeout", "0.2") as terminator, terminator.connect() as client:
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.wait() == 3
        assert terminator.wait_for("stopped")["clean"] is False
        assert client.recv(1) == b""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
def test_signals_that_come_together_are_one(tmp_path, second):
    """``timeout`` and others send one to the process and one to its group."""
    with echo_terminator(tmp_path) as terminator:
        with terminator.connect() as client:
            terminator.process.send_signal(signal.SIGTERM)
            terminator.process.send_signal(second)
            terminator.wait_for("draining")
            client.sendall(b"finish me")
            assert receive(client, 9) == b"finish me"
            client.unwrap()
        for _ in range(20):
            terminator.process.send_signal(second)  # also while the process ends
        assert terminator.wait() == 0


def test_later_signal_ends_the_draining_at_once(tmp_path):
    with echo_terminator(tmp_path, "--drain-timeout", "3600") as terminator, terminator.connect():
        assert terminator.end_at_once() == 3


def test_a_handshake_in_progress_is_finished_while_draining(tmp_path):
    with echo_terminator(tmp_path) as terminator:
        sock = terminator.dial()
        terminator.wait_for_metric("gpu_provider_terminator_open_connections", 1)
        terminator.process.send_signal(signal.SIGTERM)
        terminator.wait_for("draining")
        with client_context().wrap_socket(sock, server_hostname="localhost") as client:
            client.sendall(b"just in time")
            assert receive(client, 12) == b"just in time"
            client.unwrap()
        assert terminator.wait() == 0
