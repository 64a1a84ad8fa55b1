"""The status page: an operator sees in a browser what the terminator does, and clients can't put anything into it but
text."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from terminator_process import TIMEOUT, Terminator, echo_terminator, receive, refused_address
from tls_peers import named_hello

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOSTILE = "<img/src=x/onerror=document.title=1>"
FAILURES = "gpu_provider_terminator_handshake_failures_total"
REFUSED = refused_address()
needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def terminator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminator]:
    """Some clients have been served, by one of two upstreams; the last one asked for a server name that is HTML, and
    spoke no TLS after that."""
    with echo_terminator(tmp_path_factory.mktemp("credentials"), "--upstream", REFUSED) as running:
        for _ in range(3):
            assert running.echo() == b"are you there?"
        with running.dial() as sock:
            sock.sendall(named_hello(HOSTILE) + b"no record of TLS")
            receive(sock, 65536)
        running.wait_for_metric(FAILURES, 1)
        yield running


def test_the_last_failures_are_those_of_the_log(terminator: Terminator) -> None:
    status, text = terminator.admin("/failures")
    assert status == 200
    (failure,) = json.loads(text)
    del failure["timestamp"]  # taken a moment before the log's
    assert failure.items() <= terminator.wait_for("connection").items()
    assert failure["server_name"] == HOSTILE


def headers_and_page(terminator: Terminator) -> tuple[http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection(*terminator.admin_address, timeout=TIMEOUT)
    connection.request("GET", "/")
    response = connection.getresponse()
    page = response.read().decode()
    connection.close()
    return response.headers, page


def test_the_page_needs_and_reaches_no_other_host(terminator: Terminator) -> None:
    headers, page = headers_and_page(terminator)
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert {"default-src 'none'", "connect-src 'self'"} <= {part.strip() for part in policy.split(";")}
    assert "unsafe" not in policy
    assert set(re.findall(r"\w+://[^\"'`\s]*", page)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched


@needs_chromium
def test_a_browser_shows_what_happens_and_client_names_as_text(terminator: Terminator, tmp_path: Path) -> None:
    dom, console = rendered(terminator, tmp_path)
    shown = re.sub(r"<[^>]*>", "\n", re.sub(r"<(script|style)>.*?</\1>", "", dom, flags=re.DOTALL))
    for text in ("gpu-provider terminator", "handshakes", "mean batch", "Devices", "in use", "server.pem", "RSA-2048"):
        assert text in shown
    # How long it is passed over depends on how often it was tried.
    assert re.search(rf"Upstreams.*\nin use\n.*\n{REFUSED}\n+(passed over|in use)\n", shown, re.DOTALL)
    assert "Last failures" in shown
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in dom
    assert "<img" not in dom
    assert not console


def rendered(terminator: Terminator, directory: Path) -> tuple[str, list[str]]:
    """The page after some seconds, as HTML, and what its script had to complain about."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={directory}"]
    host, port = terminator.admin_address
    done = subprocess.run(
        ["chromium", *flags, "--virtual-time-budget=5000", "--dump-dom", f"http://{host}:{port}/"],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
