"""The command line without the commands."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
from terminator_process import COMMAND, TIMEOUT, run_command


def test_version():
    result = run_command("--version")
    assert result.returncode == 0
    assert result.stdout == f"gpu-provider {importlib.metadata.version('gpu-provider')}\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ["terminator", "demo", "devices", "openssl-config", "check", "top"]),
        (
            ("terminator",),
            ["--listen HOST:PORT", "(default: 4096)", "SIGHUP", "GPU_PROVIDER_QUEUE_DEPTH", "exit code"],
        ),
        (("demo",), ["--connections"]),
        (("openssl-config",), ["OPENSSL_CONF"]),
        (("check",), ["OPENSSL_CONF", "Exit code"]),
        (("top",), ["--admin HOST:PORT", "127.0.0.1:9181", "--interval SECONDS"]),
    ],
)
def test_help_tells_what_there_is(command, words):
    result = run_command(*command, "--help")
    assert result.returncode == 0
    for word in words:
        assert word in result.stdout


@pytest.mark.parametrize("arguments", [(), ("no-such-command",), ("terminator", "--no-such-flag")])
def test_what_is_not_there_is_a_usage_error(arguments):
    result = run_command(*arguments)
    assert result.returncode == 2
    assert "usage: gpu-provider" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_command_does_not_wait_for_what_others_import():
    command = "from gpu_provider.commands.cli import main; main(['openssl-config'])"
    code = f"import sys; {command}; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.DEVNULL, timeout=TIMEOUT, check=True)


def test_openssl_config_activates_the_module_in_the_openssl_program(tmp_path):
    result = run_command("openssl-config")
    assert result.returncode == 0
    path = tmp_path / "openssl.cnf"
    path.write_text(result.stdout)
    listed = subprocess.run(
        ["openssl", "list", "-providers"],
        env=os.environ | {"OPENSSL_CONF": str(path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert "gpu_provider" in listed.stdout
    assert listed.stdout.count("status: active") == 2
    key = subprocess.run(["openssl", "genrsa", "2048"], capture_output=True, timeout=TIMEOUT, check=True).stdout
    (tmp_path / "key.pem").write_bytes(key)
    signed = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", str(tmp_path / "key.pem")],
        env=os.environ | {"OPENSSL_CONF": str(path)},
        input=b"message",
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert len(signed.stdout) == 256


def test_output_into_a_closed_pipe_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*COMMAND, "openssl-config"],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT,
        check=False,
    )
    os.close(writer)
    assert result.returncode == 1
    assert result.stderr == b""
