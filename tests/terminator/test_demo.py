"""The demo is the first thing that a new user runs: it must work, say what happened, and leave nothing behind."""

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from terminator_process import COMMAND, TIMEOUT, environment, run_command


def processes_with(text):
    """The processes with this text on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended
    return found


def test_demo_into_a_pipe_is_json_lines_and_all_succeed(tmp_path):
    result = run_command("demo", "--connections", "60", "--concurrency", "20", TMPDIR=str(tmp_path))
    assert result.returncode == 0, result
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    summary = lines[-1]
    assert summary["event"] == "result"
    assert summary["succeeded"] is True
    assert (summary["handshakes"], summary["errors"]) == (60, 0)
    assert summary["by_version"] == {"TLSv1.2": 30, "TLSv1.3": 30}
    assert summary["backend"] == "cpu"
    assert 1 <= summary["mean_batch"] <= summary["largest_batch"] <= 20
    assert summary["batches"] * summary["mean_batch"] == pytest.approx(60, rel=0.02)
    assert 0 < summary["handshake_p50_seconds"] <= summary["handshake_p99_seconds"]
    assert {line["event"] for line in lines[:-1]} == {"progress"}
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert processes_with(str(tmp_path)) == []


def test_demo_prints_a_table_into_a_pipe_when_asked_for_one():
    """`make demo` does, also where its output is kept."""
    result = run_command("demo", "--connections", "10", "--output", "table")
    assert result.returncode == 0, result
    assert "handshakes per second" in result.stdout
    assert "{" not in result.stdout


def test_demo_on_a_terminal_is_a_table(tmp_path):
    reader, writer = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "demo", "--connections", "10"],
        stdout=writer,
        env=environment(TMPDIR=str(tmp_path), TERM="xterm", COLUMNS="100"),
    ) as process:
        os.close(writer)
        shown = bytearray()
        try:
            while data := os.read(reader, 4096):
                shown += data
        except OSError:
            pass  # the terminal's other end is closed
        os.close(reader)
        assert process.wait(TIMEOUT) == 0
    text = shown.decode()
    for words in ("handshakes per second", "10 (5 TLSv1.2, 5 TLSv1.3)", "largest batch", "cpu"):
        assert words in text


def test_ctrl_c_ends_the_demo_and_its_terminator(tmp_path):
    with subprocess.Popen(
        [*COMMAND, "demo", "--connections", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(TMPDIR=str(tmp_path)),
    ) as process:
        assert "progress" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
    assert processes_with(str(tmp_path)) == []


def test_mistakes_are_one_line(tmp_path):
    result = run_command("demo", "--connections", "0")
    assert result.returncode == 2
    assert result.stderr == "gpu-provider demo: error: connections = 0: it must be a number from 1 to 100000\n"
    result = run_command("demo", "--backend", "abacus", TMPDIR=str(tmp_path))
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "backend = 'abacus'" in line
    assert list(tmp_path.iterdir()) == []
