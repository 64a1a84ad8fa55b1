"""The admin port, as orchestrators and Prometheus use it."""

import contextlib
import signal
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families
from terminator_process import TIMEOUT, echo_terminator, receive


@pytest.fixture(scope="module")
def terminator(tmp_path_factory):
    with echo_terminator(tmp_path_factory.mktemp("credentials")) as running:
        yield running


def test_live_and_ready(terminator):
    assert terminator.admin("/livez") == (200, "alive\n")
    assert terminator.admin("/readyz") == (200, "ready, computing with cpu\n")


def test_metrics_have_the_batches_and_the_connections(terminator):
    assert terminator.echo() == b"are you there?"
    status, text = terminator.admin("/metrics")
    assert status == 200
    families = {family.name for family in text_string_to_metric_families(text)}
    assert families >= {
        "gpu_provider_batch_size",
        "gpu_provider_build_info",
        "gpu_provider_retries",
        "gpu_provider_terminator_accepted",
        "gpu_provider_terminator_certificate_expiry_timestamp_seconds",
        "gpu_provider_terminator_handshake_seconds",
        "gpu_provider_terminator_handshakes",
        "gpu_provider_terminator_open_connections",
        "gpu_provider_terminator_relayed_bytes",
        "gpu_provider_terminator_sessions",
        "process_cpu_seconds",
        "process_open_fds",
    }


def test_relayed_bytes_and_handshake_times_are_counted(terminator):
    relayed = "gpu_provider_terminator_relayed_bytes_total"
    before = {way: terminator.metric(relayed, direction=way) for way in ("to_upstream", "to_client")}
    handshakes = terminator.metric("gpu_provider_terminator_handshake_seconds_count")
    assert terminator.echo(b"x" * 1000) == b"x" * 1000
    for way, count in before.items():
        assert terminator.metric(relayed, direction=way) == count + 1000
    assert terminator.metric("gpu_provider_terminator_handshake_seconds_count") == handshakes + 1


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/metric", 404), ("POST", "/readyz", 405), ("HEAD", "/livez", 200)]
)
def test_other_requests(terminator, method, path, status):
    assert terminator.admin(path, method)[0] == status


@pytest.mark.parametrize("request_bytes", [b"nonsense\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"x" * 200_000, b"GET"])
def test_garbage_harms_nobody(terminator, request_bytes):
    with socket.create_connection(terminator.admin_address, timeout=TIMEOUT) as client:
        answer = b""
        with contextlib.suppress(OSError):  # it may have closed the connection before it read everything
            client.sendall(request_bytes)
            client.shutdown(socket.SHUT_WR)
            answer = receive(client, 65536)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert terminator.admin("/livez")[0] == 200


def test_clients_that_send_nothing_make_room_for_others(terminator):
    with contextlib.ExitStack() as clients:
        idle = [
            clients.enter_context(socket.create_connection(terminator.admin_address, timeout=TIMEOUT))
            for _ in range(200)
        ]
        assert terminator.admin("/readyz")[0] == 200
        idle[0].settimeout(3)  # it has five seconds where nobody else comes
        assert idle[0].recv(1) == b""


def test_draining_is_alive_and_not_ready(tmp_path):
    with echo_terminator(tmp_path) as terminator:
        with terminator.connect() as client:
            terminator.process.send_signal(signal.SIGTERM)
            terminator.wait_for("draining")
            assert terminator.admin("/livez")[0] == 200
            assert terminator.admin("/readyz") == (503, "draining\n")
            client.unwrap()
        assert terminator.wait() == 0


def test_an_open_request_does_not_delay_the_end(tmp_path):
    with (
        echo_terminator(tmp_path) as terminator,
        socket.create_connection(terminator.admin_address, timeout=TIMEOUT) as client,
    ):
        client.sendall(b"GET /livez HT")
        assert terminator.admin("/livez")[0] == 200  # so the other one is accepted by now
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.wait() == 0
