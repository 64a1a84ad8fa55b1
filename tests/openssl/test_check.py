"""What ``gpu-provider check`` says of a module that is reached: its speed, its settings, what programs have counted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import socket
import ssl
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from ports import unused_port
from terminator_process import COMMAND, authority, credentials, environment

from gpu_provider.commands import module_settings
from gpu_provider.commands.counts import Counts, read_counts
from gpu_provider.commands.openssl_config import MODULE
from gpu_provider.errors import ConfigError
from gpu_provider.kernels import Isa, UnsupportedError, isa

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT: Final = 50
BITS: Final = (2048, 2560, 3072, 3584, 4096)
CONFIGURATION: Final = """\
openssl_conf = start
[start]
providers = list
alg_section = algorithms
[list]
default = theirs
gpu_provider = ours
[theirs]
activate = 1
[ours]
module = {module}
activate = 1
{settings}
[algorithms]
default_properties = ?gpu_provider.batched=yes
"""

Event = dict[str, Any]


def configured(directory: Path, *settings: str) -> Path:
    path = directory / "openssl.cnf"
    path.write_text(CONFIGURATION.format(module=MODULE, settings="\n".join(settings)))
    return path


def command(configuration: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """With ``configuration`` in the environment."""
    own = {name: value for name, value in environment().items() if name != "OPENSSL_CONF"}
    return subprocess.run(
        [*COMMAND, "check", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=own if configuration is None else own | {"OPENSSL_CONF": str(configuration)},
        timeout=TIMEOUT,
    )


def check(configuration: Path | None, *arguments: str, seconds: float = 0, code: int = 0) -> list[Event]:
    done = command(configuration, "--seconds", str(seconds), *arguments)
    assert (done.returncode, done.stderr) == (code, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def events(found: list[Event], name: str) -> list[Event]:
    return [event for event in found if event["event"] == name]


# ---- what computes, and how fast ----


def test_speeds_are_measured_with_the_module_and_without(tmp_path: Path) -> None:
    """Portable kernels, so that groups form on any machine."""
    found = check(configured(tmp_path, "kernels = portable"), seconds=0.1)
    (groups,) = events(found, "groups")
    assert groups["computed_by"] == "portable"
    speeds = events(found, "speed")
    assert [(speed["bits"], speed["threads"]) for speed in speeds] == [
        (bits, threads) for bits in (2048, 3072, 4096) for threads in (1, 32)
    ]
    for speed in speeds:
        assert speed["openssl"] > 0
        assert speed["module"] > 0
        counts = Counts(**speed["counts"])
        assert counts.singles + counts.grouped >= speed["threads"], "the module's count misses what it signed"


def test_it_says_what_computes_on_this_processor(tmp_path: Path) -> None:
    (groups,) = events(check(configured(tmp_path)), "groups")
    with contextlib.suppress(UnsupportedError):
        isa(Isa.IFMA)
        assert groups["computed_by"] == "ifma"
        return
    assert groups["computed_by"] is None
    assert "lacks AVX-512 IFMA" in groups["words"]


def test_without_kernels_openssl_computes_everything(tmp_path: Path) -> None:
    (groups,) = events(check(configured(tmp_path, "kernels = off")), "groups")
    assert groups["words"] == "kernels = off: OpenSSL computes each operation."


# ---- the configuration ----


def test_a_configuration_may_be_named_instead_of_the_environments(tmp_path: Path) -> None:
    """Python itself may have made OpenSSL read the environment's by then."""
    (tmp_path / "other").mkdir()
    other = configured(tmp_path / "other", "kernels = off")
    for in_environment in (None, configured(tmp_path)):
        found = check(in_environment, "--config", str(other))
        assert events(found, "environment")[0]["configuration"] == str(other)
        assert "kernels = off" in events(found, "groups")[0]["words"]


def test_a_configuration_that_is_named_and_missing_is_said_to_be(tmp_path: Path) -> None:
    (signed,) = events(check(None, "--config", str(tmp_path / "no.cnf"), code=1), "signed")
    assert signed["reason"] == f"there is no file {tmp_path / 'no.cnf'}"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("kernels = Off", "is taken as auto; write auto, portable or off"),
        ("implicit-rejection = no", "is taken as 1; write 0 or 1"),
        ("max_group = 16", "is taken as 8; write a whole number from 2 to 8"),
        ("max_group = 1", "is taken as 8"),
        ("max_group = four", "is taken as 8"),
        ("max_wait = 2ms", "is taken as 20000; write a whole number from 0 to 1000000"),
        ("max_wait = 1000001", "is taken as 20000"),
        ("max_wait = -1", "is taken as 20000"),
        ("max-wait = 100", "has no effect; is max_wait meant?"),
        ("implicit_rejection = 1", "has no effect; is implicit-rejection meant?"),
        ("colour = blue", "has no effect; the settings are counts_directory, implicit-rejection, kernels, max_group"),
        ("counts_directory = counts", "write a path that begins with /"),
        ("counts_directory = /no/such/directory", "is no directory; make it"),
        ("counts_directory =", "write a path that begins with /"),
    ],
)
def test_a_mistake_in_a_setting_is_named_with_its_remedy(setting: str, words: str) -> None:
    """The module itself can only ignore it."""
    name, _, value = setting.partition(" =")
    (mistake,) = module_settings.mistakes({name: value.strip()})
    assert mistake.startswith(f"'{setting}")
    assert words in mistake


def test_mistakes_are_told_with_their_section_and_the_module_is_reached(tmp_path: Path) -> None:
    path = configured(tmp_path, "identity = gpu_provider", "max_group = 16", "max_wait = 5", "max_waits = 1")
    assert [event["mistake"] for event in events(check(path), "mistake")] == [
        "section [ours]: 'max_group = 16' is taken as 8; write a whole number from 2 to 8",
        "section [ours]: 'max_waits = 1' has no effect; is max_wait meant?",
    ]


def test_settings_that_are_right_are_no_mistakes(tmp_path: Path) -> None:
    openssls = {"identity": "gpu_provider", "module": str(MODULE), "activate": "1", "soft_load": "1"}
    settings = {"kernels": "auto", "max_group": "2", "max_wait": "0", "implicit-rejection": "0"}
    assert module_settings.mistakes(openssls | settings | {"counts_directory": str(tmp_path)}) == []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as service:
        service.bind(str(tmp_path / "service"))
        service.listen()
        assert module_settings.mistakes({"service": str(tmp_path / "service"), "service_timeout": "60000"}) == []
    assert module_settings.mistakes({"kernels": "off", "max_group": "008", "max_wait": "1000000"}) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [("service", "begins with /"), ("/" + "long" * 30, "too long"), ("/no/service", "No such file or directory")],
)
def test_a_service_that_cannot_be_reached_is_a_mistake(value: str, words: str) -> None:
    (mistake,) = module_settings.mistakes({"service": value})
    assert words in mistake


def test_a_counts_directory_that_cannot_be_written_to_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, which runs some tests, can write anywhere
    (mistake,) = module_settings.mistakes({"counts_directory": str(tmp_path)})
    assert "can't be written to by user" in mistake


def test_seconds_below_none_are_a_usage_error() -> None:
    done = command(None, "--seconds", "-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "0 to 60 seconds" in done.stderr


# ---- what to write ----


def test_the_lines_to_write_have_the_real_paths(tmp_path: Path) -> None:
    path = configured(tmp_path)
    advice = {event["program"]: event["lines"] for event in events(check(path), "advice")}
    assert f"    ssl-provider-path {MODULE.parent}" in advice["HAProxy"]
    assert advice["nginx"] == ["env OPENSSL_CONF;"]
    assert advice["Apache"] == [f"export OPENSSL_CONF={path}"]
    assert advice["systemd"] == ["[Service]", f"Environment=OPENSSL_CONF={path}"]


def test_a_terminal_gets_tables_and_progress(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(controller, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [*COMMAND, "check", "--config", str(configured(tmp_path)), "--seconds", "0.01"],
            stdout=terminal,
            stderr=terminal,
            env=environment(TERM="xterm", COLUMNS="100"),
        )
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the terminal's last user is gone
            while chunk := screen.read(65536):
                shown += chunk
        assert process.wait(TIMEOUT) == 0
    text = shown.decode()
    assert "The module is reached." in text
    assert "measuring" in text
    assert re.search(r"RSA-4096 .* 32 ", text)
    assert "ssl-mode-async" in text
    assert '"event"' not in text


# ---- what programs have counted ----


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    directory = tmp_path / "counts"
    directory.mkdir()
    return directory


@pytest.fixture
def server(tmp_path: Path, counts: Path) -> Iterator[subprocess.Popen[str]]:
    """A program with the module, which has signed once and runs on."""
    certificate, key = credentials("localhost")
    (tmp_path / "server.pem").write_bytes(certificate + key)
    port = unused_port()
    process = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", "server.pem"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(OPENSSL_CONF=str(configured(tmp_path, f"counts_directory = {counts}"))),
    )
    with process:
        try:
            assert process.stdout is not None
            assert any(line == "ACCEPT\n" for line in process.stdout)
            context = ssl.create_default_context()
            authority().configure_trust(context)
            with (
                socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection,
                context.wrap_socket(connection, server_hostname="localhost"),
            ):
                yield process
        finally:
            process.kill()


def test_it_shows_what_running_programs_have_counted(
    tmp_path: Path, counts: Path, server: subprocess.Popen[str]
) -> None:
    def shown() -> list[Event]:
        return events(check(tmp_path / "openssl.cnf"), "counts")

    (program,) = shown()
    assert program["process"] == server.pid
    assert program["counts"]["2048"]["singles"] == 1
    assert {sum(program["counts"][bits].values()) for bits in program["counts"] if bits != "2048"} == {0}
    assert [path.name for path in counts.iterdir()] == [Path(program["file"]).name], "check left a file of its own"
    table = command(tmp_path / "openssl.cnf", "--seconds", "0", "--output", "table").stdout
    assert re.search(rf"{server.pid} .* RSA-2048 .* 1 ", table)
    server.kill()
    server.wait(TIMEOUT)
    assert shown() == []
    assert list(counts.iterdir()) == [], "files of programs that have ended would fill the directory"


def test_it_says_that_nothing_is_counted(tmp_path: Path, counts: Path) -> None:
    path = configured(tmp_path, f"counts_directory = {counts}")
    assert "No running program counts" in command(path, "--seconds", "0", "--output", "table").stdout


def counts_file(
    process: int, values: list[tuple[int, ...]], *, magic: int = 0x73746E756F437067, version: int = 2, classes: int = 5
) -> bytes:
    header = struct.pack("=QIIQQ", magic, version, classes, 1_500_000_000_000_000_000, process)
    return header + b"".join(struct.pack("=6Q", *each) for each in values)


def test_a_counts_file_says_whether_its_programs_run(counts: Path) -> None:
    values = [(number, 2, 3, 4, 5, 6) for number in range(5)]
    path = counts / "7-1"
    path.write_bytes(counts_file(7, values))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (program,) = read_counts(counts)
        assert (program.process, program.started) == (7, 1.5e9)
    assert read_counts(counts) == []
    assert program.counts == {bits: Counts(*each) for bits, each in zip(BITS, values, strict=True)}


def test_other_files_are_passed_over(counts: Path) -> None:
    """A pipe would stop the command, a link could lead anywhere, and a new file is short until its program fills it."""
    values = [(1, 0, 0, 0, 0, 0)] * 5
    good = counts_file(1, values)
    bad = [b"", good[:10], good[:32], good[:-1], good + b"x", b"text" * 68]
    bad += [counts_file(1, values, magic=1), counts_file(1, values, version=3)]
    bad += [counts_file(1, values, classes=classes) for classes in (6, 1 << 31)]
    for number, contents in enumerate(bad):
        (counts / f"{number}-1").write_bytes(contents)
    (counts / "notes").write_bytes(good)
    (counts / "100-1").mkdir()
    os.mkfifo(counts / "101-1")
    (counts / "102-1").symlink_to(counts / "notes")
    (counts / "103-1").symlink_to(counts / "nowhere")  # as if it had vanished
    assert read_counts(counts) == []


def test_a_file_that_its_program_has_not_filled_yet_is_not_locked(counts: Path) -> None:
    """The program gives up a file that it can't lock, and counts in none then."""
    path = counts / "7-1"
    path.write_bytes(bytes(232))
    locked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: locked.append(path))
        assert read_counts(counts) == []
    assert locked == []


def test_a_directory_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"counts_directory {tmp_path / 'none'} can't be read")):
        read_counts(tmp_path / "none")
