"""What the documents say is so: their snippets run, and the settings, commands, metrics and files they name exist."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import prometheus_client
import pytest
from ports import unused_port

from gpu_provider import BatchingProvider, ProviderConfig
from gpu_provider.commands.module_settings import CHOICES, COUNTS_DIRECTORY, NUMBERS, SERVICE
from gpu_provider.native import MODULE_DIRECTORY
from gpu_provider.settings import options
from gpu_provider.tls.terminator.config import TerminatorConfig
from gpu_provider.tls.terminator.metrics import TerminatorMetrics

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
LIBRARY = (ROOT / "docs" / "library.md").read_text()
MODULE_TABLE = README[README.index("| module | default | |") :].partition("\n\n")[0]
PAGES = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "gpu_provider").rglob("DESIGN.md"))
DOCUMENTS = {path: path.read_text() for path in PAGES}
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")


def blocks(language: str, document: str = README) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    return [text for its_language, text in found if its_language == language]


def block(language: str, containing: str) -> str:
    (found,) = (text for text in blocks(language) if containing in text)
    return found


def run(*command: str, directory: Path = ROOT) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A directory with the certificate that the README's own command makes."""
    command = re.search(r"^openssl req .*?[^\\]$", block("sh", "openssl req"), re.MULTILINE | re.DOTALL)
    assert command
    run("sh", "-ec", command[0], directory=tmp_path)
    return tmp_path


@needs_openssl
@pytest.mark.parametrize(
    "snippet", blocks("python") + blocks("python", LIBRARY), ids=lambda text: text.splitlines()[-1].strip()
)
def test_a_python_snippet_runs(snippet: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "import ray" in snippet:
        pytest.importorskip("ray", reason="Ray comes with the [ray] extra; `make clusters` installs it")
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    run(sys.executable, "-c", snippet, directory=certificate)


@needs_openssl
def test_the_commands_for_the_openssl_program_run(tmp_path: Path) -> None:
    commands = block("sh", "openssl speed").replace("gpu-provider check", "gpu-provider check --seconds 0.05")
    shown = run("sh", "-ec", commands, directory=tmp_path)
    assert "Verified OK" in shown


@needs_openssl
def test_the_terminator_takes_the_flags_shown(certificate: Path) -> None:
    (command,) = re.findall(r"^(gpu-provider terminator .*) &$", block("sh", "gpu-provider terminator"), re.MULTILINE)
    assert run("sh", "-ec", f"{command} --check", directory=certificate) == "the settings are valid\n"


@needs_openssl
@needs_curl
def test_the_terminators_commands_work_when_pasted_together(tmp_path: Path) -> None:
    commands = block("sh", "gpu-provider terminator")
    ports = {port: str(unused_port()) for port in ("8443", "8080", "9180")}
    for shown, free in ports.items():
        commands = commands.replace(shown, free)
    commands = commands.replace("gpu-provider terminator", f"gpu-provider terminator --admin 127.0.0.1:{ports['9180']}")
    commands += f"curl --silent --cacert chain.pem https://localhost:{ports['8443']}/key.pem\n"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "output").open("w+") as output:
        shell = subprocess.Popen(
            ["sh", "-ec", commands],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            assert shell.wait(30) == 0
        finally:
            os.killpg(shell.pid, signal.SIGTERM)
        output.seek(0)
        printed = output.read()
    assert "ready, computing with" in printed
    assert "hello" in printed
    assert "gpu_provider_terminator_accepted_total" in printed
    assert "PRIVATE KEY" not in printed
    assert "404" in printed


@needs_openssl
@needs_haproxy
def test_haproxy_serves_with_the_lines_shown(certificate: Path) -> None:
    (certificate / "both.pem").write_bytes(
        b"".join((certificate / name).read_bytes() for name in ("chain.pem", "key.pem"))
    )
    settings = block("", "ssl-mode-async").replace("MODULES", str(MODULE_DIRECTORY))
    port = unused_port()
    settings += f"""
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend tls
    bind 127.0.0.1:{port} ssl crt {certificate}/both.pem
    http-request return status 200 content-type text/plain string hello
"""
    (certificate / "haproxy.cfg").write_text(settings)
    run("haproxy", "-c", "-f", "haproxy.cfg", directory=certificate)
    with subprocess.Popen(["haproxy", "-db", "-f", certificate / "haproxy.cfg"], stderr=subprocess.PIPE) as haproxy:
        try:
            context = ssl.create_default_context(cafile=certificate / "chain.pem")
            with (
                connect(port, haproxy) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as connection,
            ):
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: connection.recv(4096), b""))
            assert answer.endswith(b"hello")
        finally:
            haproxy.kill()


def connect(port: int, server: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            assert server.poll() is None, "haproxy ended"
            assert time.monotonic() < deadline, "haproxy does not listen"
            time.sleep(0.02)  # nothing tells when another program listens


def test_every_setting_is_in_the_tables_with_its_default() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]*) \|", README.replace(MODULE_TABLE, ""), re.MULTILINE)
    shown = {name: default.strip() for names, default in rows for name in re.findall(r"\w+", names)}
    fields = {field.name: field.default for field in msgspec.structs.fields(TerminatorConfig)}
    assert set(shown) == set(fields)
    library = README[README.index("| batching provider |") :]
    assert all(f"| `{name}` |" in library for name in ProviderConfig.__struct_fields__)
    for name, default in fields.items():
        if isinstance(default, int | float):
            assert shown[name] == f"{default:g}", name
        elif isinstance(default, str) and default:
            assert f"`{default}`" in shown[name], name


def test_the_modules_settings_are_those_that_check_knows() -> None:
    """And those of the template that openssl-config prints, and the module's own."""
    shown = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|", MODULE_TABLE, re.MULTILINE))
    defaults = {name: str(default) for name, (_, _, default) in NUMBERS.items()}
    assert shown == defaults | {
        "kernels": "`auto`",
        "implicit-rejection": "0",
        "counts_directory": "none",
        "service": "none",
    }
    assert set(shown) == {*CHOICES, *NUMBERS, COUNTS_DIRECTORY, SERVICE}
    template = dict(re.findall(r"^# ([\w-]+) = (\S+)$", run("gpu-provider", "openssl-config"), re.MULTILINE))
    assert set(template) == set(shown)
    assert {name: template[name] for name in NUMBERS} == defaults
    source = (ROOT / "gpu_provider" / "native" / "provider" / "provider.c").read_text()
    assert set(re.findall(r'construct_utf8_ptr\("([\w-]+)"', source)) == set(shown)
    for name, (_, largest, _) in NUMBERS.items():
        assert f"{largest}" in re.findall(rf"^\| `{name}` .*$", MODULE_TABLE, re.MULTILINE)[0]


@pytest.mark.parametrize("title", ["terminator", "batching provider"])
def test_the_tables_of_settings_say_what_the_command_line_says(title: str) -> None:
    """README.md has these lines; the words are those of the settings' classes."""
    lines = [f"| {title} | default | |", "|---|---|---|"]
    for option in options(ProviderConfig if title == "batching provider" else TerminatorConfig):
        if title == "terminator" and option.name in ProviderConfig.__struct_fields__:
            continue
        choices = ", ".join(f"`{choice}`" for choice in option.choices)
        meaning = option.shown.help + (f": {choices}" if choices else "")
        lines.append(f"| `{option.name}` | {option.default_words} | {meaning} |")
    assert "\n".join(lines) in README


def test_every_metric_named_exists() -> None:
    registry = prometheus_client.CollectorRegistry()
    registry.register(TerminatorMetrics())
    with BatchingProvider(registry=registry):
        exposed = prometheus_client.generate_latest(registry).decode()
    for name in set(re.findall(r"`(gpu_provider_\w+)`", README)):
        assert f"# TYPE {name} " in exposed, name


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for path, text in DOCUMENTS.items():
        for target in set(re.findall(r"`make ([\w-]+)", text)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{path.name}: make {target}"


def test_every_link_leads_to_a_file() -> None:
    for path, text in DOCUMENTS.items():
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_packages_to_install_are_those_that_the_check_names() -> None:
    (line,) = re.findall(r"^apt-get install (.*)$", README, re.MULTILINE)
    check = (ROOT / "tests" / "check_prerequisites.sh").read_text()
    named = {
        word for line in re.findall(r"lacks \"[^\"]*\" (.*)", check) for word in re.findall(r"[a-z0-9+-]{3,}", line)
    }
    assert set(line.split()) == named | {"make"}
