"""The listening sockets outlive a process: a successor takes them over, or systemd has them."""

import contextlib
import fcntl
import os
import signal
import socket
import threading
import time

import pytest
from terminator_process import (
    TIMEOUT,
    Terminator,
    Upstream,
    client_context,
    echo,
    echo_terminator,
    receive,
    refused_address,
    run_command,
    write_credentials,
)


class Load:
    """Clients that connect one after the other, without a pause."""

    def __init__(self, address, threads=8):
        self.served = 0
        self.failures = []
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        context = client_context()
        while not self._stop.is_set():
            try:
                with (
                    socket.create_connection(self._address[:2], timeout=TIMEOUT) as sock,
                    context.wrap_socket(sock, server_hostname="localhost") as client,
                ):
                    client.sendall(b"are you there?")
                    assert receive(client, 14) == b"are you there?"
                    self.served += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))

    def serves(self, more=30):
        """Returns when it has been served again and again."""
        wanted, deadline = self.served + more, time.monotonic() + TIMEOUT
        while self.served < wanted and not self.failures:
            assert time.monotonic() < deadline
            self._stop.wait(0.01)


def successor_of(terminator, tmp_path, upstream, *flags):
    listen, admin = (f"{host}:{port}" for host, port in (terminator.address, terminator.admin_address))
    return Terminator(
        *write_credentials(tmp_path), *flags, "--listen", listen, "--admin", admin, upstream=upstream.address
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_successor_takes_over_and_no_connection_is_lost(tmp_path, workers):
    flags = ["--handover", str(tmp_path / "handover"), "--workers", str(workers)]
    with (
        Upstream(echo) as upstream,
        Terminator(*write_credentials(tmp_path), *flags, upstream=upstream.address) as first,
        Load(first.address) as load,
    ):
        load.serves()
        with first.connect() as old_client, successor_of(first, tmp_path, upstream, *flags) as second:
            first.wait_for("draining")
            load.serves()
            assert second.admin("/readyz")[0] == 200
            old_client.sendall(b"still here")
            assert receive(old_client, 10) == b"still here"
            with contextlib.suppress(OSError):
                old_client.unwrap()
            assert first.wait() == 0
            load.serves()
            if workers == 1:  # and so on
                with successor_of(second, tmp_path, upstream, *flags):
                    assert second.wait() == 0
                    load.serves()
                    load.__exit__()
            load.__exit__()
        assert load.failures == []
    assert not (tmp_path / "handover").exists()


def test_a_successor_that_does_not_get_ready_changes_nothing(tmp_path):
    handover = tmp_path / "handover"
    with echo_terminator(tmp_path, "--handover", str(handover)) as terminator:
        listen = "{}:{}".format(*terminator.address)
        for flags, words in (
            (["--listen", listen, "--cert", "missing.pem", "--key", "missing.pem"], "missing.pem"),
            (["--listen", "127.0.0.1:1", *write_credentials(tmp_path)], "hands over port"),
        ):
            end = run_command(
                "terminator", "--handover", str(handover), "--upstream", refused_address(), "--admin", "127.0.0.1:0",
                *flags,
            )  # fmt: skip
            assert end.returncode == 2
            assert words in end.stderr
        assert terminator.echo() == b"are you there?"
        assert terminator.admin("/readyz")[0] == 200


def test_what_is_not_a_socket_is_a_mistake(tmp_path):
    (tmp_path / "handover").write_text("")
    end = run_command(
        "terminator", "--listen", "127.0.0.1:0", "--upstream", refused_address(), *write_credentials(tmp_path),
        "--handover", str(tmp_path / "handover" / "below"),
    )  # fmt: skip
    assert (end.returncode, end.stdout) == (2, "")
    assert "handover = " in end.stderr
    assert "Traceback" not in end.stderr


@contextlib.contextmanager
def activated(listeners, *flags, upstream):
    """As systemd starts it: with sockets that are open already, by their names."""
    with contextlib.ExitStack() as stack:
        descriptors = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 100) for each in listeners.values()]
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        places = [f"exec {3 + number}<&{descriptor}-" for number, descriptor in enumerate(descriptors)]
        yield stack.enter_context(
            Terminator(
                *flags,
                upstream=upstream,
                settings={"LISTEN_FDS": str(len(listeners)), "LISTEN_FDNAMES": ":".join(listeners)},
                first="; ".join([*places, "export LISTEN_PID=$$"]),
                descriptors=descriptors,
            )
        )


@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_keeps_the_sockets_while_it_is_restarted(tmp_path, workers):
    """Hazard: what drops newcomers at the end of a process would do so for all that follow."""
    flags = [*write_credentials(tmp_path), "--workers", str(workers)]
    with (
        Upstream(echo) as upstream,
        socket.create_server(("127.0.0.1", 0)) as public,
        socket.create_server(("127.0.0.1", 0)) as local,
        socket.create_server(("127.0.0.1", 0)) as admin,
    ):
        listeners = {"tls": public, "tls-too": local, "admin": admin}
        with activated(listeners, *flags, upstream=upstream.address) as terminator:
            load = Load(local.getsockname())
            with load:
                load.serves()
                assert terminator.admin("/readyz")[0] == 200
                terminator.process.send_signal(signal.SIGTERM)
                assert terminator.wait() == 0
                with activated(listeners, *flags, upstream=upstream.address) as next_one:
                    load.serves()
                    assert next_one.echo() == b"are you there?"
                    load.__exit__()
    assert load.failures == []


def test_a_socket_of_systemd_and_listen_are_a_mistake(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        other.listen()
        for each, flags, words in (
            (listener, ["--listen", "127.0.0.1:0"], "leave the setting out"),
            (other, [], "is not ListenStream= with a port"),
        ):
            with (
                pytest.raises(AssertionError, match=words),
                activated({"tls": each}, *write_credentials(tmp_path), *flags, upstream=refused_address()),
            ):
                pass


def test_several_addresses(tmp_path):
    with echo_terminator(tmp_path, "--listen", "127.0.0.1:0", "--listen", "[::1]:0") as terminator:
        first, second = terminator.wait_for("ready")["listen"]
        assert first.startswith("127.0.0.1:")
        assert second.startswith("[::1]:")
        for address in (first, second):
            host, _, port = address.rpartition(":")
            terminator.address = host.strip("[]"), int(port)
            assert terminator.echo() == b"are you there?"


@pytest.mark.parametrize("workers", [1, 2])
def test_it_still_accepts_while_load_balancers_learn_that_it_ends(tmp_path, workers):
    with echo_terminator(tmp_path, "--drain-delay", "30", "--workers", str(workers)) as terminator:
        terminator.process.send_signal(signal.SIGTERM)
        terminator.wait_for("still accepting connections")
        assert terminator.admin("/readyz") == (503, "draining\n")
        assert terminator.echo() == b"are you there?"
        assert terminator.end_at_once() in {0, 3}
