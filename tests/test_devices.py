"""``gpu-provider devices``, where there is no GPU."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from terminator_process import COMMAND, TIMEOUT, environment, run_command

from gpu_provider import devices
from gpu_provider.errors import BackendError
from gpu_provider.kernels import nvrtc

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_device() -> None:
    try:
        devices.find_devices()
    except BackendError:
        return
    pytest.skip("there is a GPU here")


@pytest.fixture
def compiler() -> None:
    try:
        nvrtc.version()
    except nvrtc.CompilerMissingError as error:
        pytest.skip(str(error))


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "devices", *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_no_device_is_no_error_and_says_why() -> None:
    result = run("--kernel-cache", "/x")
    assert result.returncode == 0
    (line,) = map(json.loads, result.stdout.splitlines())
    assert line["event"] == "devices"
    assert line["count"] == 0
    assert "driver" in line["none_because"] or "CuPy" in line["none_because"]
    assert line["kernel_cache"] == "/x"


def test_the_table_says_the_same() -> None:
    result = run("--output", "table", GPU_PROVIDER_KERNEL_CACHE="/y")
    assert result.returncode == 0
    assert "no device: " in result.stdout
    assert "kernel cache: /y" in result.stdout


def test_without_cupy_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise ImportError('not here')\n")
    for arguments, code in (((), 0), (("--precompile", "--arch", "sm_90"), 1)):
        result = run(*arguments, PYTHONPATH=str(tmp_path))
        assert result.returncode == code
        assert "gpu-provider[cuda13]" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr


def test_arch_without_precompile_is_a_mistake() -> None:
    result = run("--arch", "sm_90")
    assert result.returncode == 2
    assert "--precompile" in result.stderr


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--precompile",), "--arch sm_90"),
        (("--precompile", "--arch", "sm_1"), "sm_1: NVRTC"),
    ],
)
def test_precompile_without_a_device_wants_architectures(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("compiler")
def test_precompile_into_a_directory_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "cubins"
    directory.mkdir()
    directory.chmod(0o777)
    result = run("--precompile", "--arch", "sm_90", "--kernel-cache", str(directory))
    assert result.returncode == 2
    assert "chmod go-w" in result.stderr


def test_help_tells_of_it() -> None:
    assert "--precompile" in run_command("devices", "--help").stdout
