"""``gpu-provider devices`` without GPUs, and with stand-ins for some."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from rsa_keys import private_key
from terminator_process import COMMAND, TIMEOUT, environment, run_command

from bench.gpu.host_device import HostDevice
from gpu_provider.backends.cuda import devices
from gpu_provider.backends.cuda.device import DeviceError
from gpu_provider.backends.cuda.devices import Gpu
from gpu_provider.commands import cli, rates
from gpu_provider.commands import devices as devices_command
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


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("ImportError('not here')", "gpu-provider[cuda13]"),
        ("ValueError('numpy.dtype size changed')", "CuPy can't be imported: numpy.dtype size changed"),
    ],
)
def test_without_cupy_or_with_a_broken_one_the_command_says_so(tmp_path: Path, raised: str, told: str) -> None:
    (tmp_path / "cupy.py").write_text(f"raise {raised}\n")
    for arguments, code in (((), 0), (("--precompile", "--arch", "sm_90"), 1)):
        result = run(*arguments, PYTHONPATH=str(tmp_path))
        assert result.returncode == code
        assert told in result.stdout + result.stderr
        assert "Traceback" not in result.stderr


def test_arch_without_precompile_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "--arch", "sm_90"]) == 2
    assert "--precompile" in capsys.readouterr().err


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--precompile",), "--arch sm_90"),
        (("--precompile", "--arch", "sm_1"), "sm_1: NVRTC"),
    ],
)
def test_precompile_without_a_device_wants_architectures(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["devices", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("compiler")
def test_precompile_into_a_directory_that_cannot_be_used_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "cubins"
    directory.mkdir()
    directory.chmod(0o777)
    assert cli.main(["devices", "--precompile", "--arch", "sm_90", "--kernel-cache", str(directory)]) == 2
    assert "chmod go-w" in capsys.readouterr().err


def test_measure_without_a_device_measures_the_processor() -> None:
    result = run("--measure")
    assert result.returncode == 0
    listed, *measured = map(json.loads, result.stdout.splitlines())
    assert listed["count"] == 0
    assert [(line["name"], line["bits"]) for line in measured] == [("processor", bits) for bits in rates.SIZES]
    assert all(line["per_second"] > 0 for line in measured)


def test_measure_beside_precompile_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "--measure", "--precompile"]) == 2
    assert "--measure compiles what is missing" in capsys.readouterr().err


def test_a_device_is_measured_by_batches_without_a_key() -> None:
    measured = rates.measure_device(HostDevice(), largest=2)
    assert [rate.bits for rate in measured] == list(rates.SIZES)
    for rate in measured:
        assert rate.batch in {1, 2}
        assert rate.per_second == rate.batch / rate.batch_seconds


class TestWithDevices:
    """The command in this process, with the host device in place of a GPU."""

    @pytest.fixture
    def compiled(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
        gpus = [Gpu(index, f"GPU {index}", 9, 0, 4, 1 << 30, f"0000:0{index}:00.0") for index in (0, 1)]
        wanted: list[str] = []
        monkeypatch.setenv("GPU_PROVIDER_KERNEL_CACHE", str(tmp_path))
        monkeypatch.setattr(devices_command, "find_devices", lambda: gpus)
        monkeypatch.setattr(devices_command, "_MEASURED_ROWS", 2)
        monkeypatch.setattr(rates, "_FIRST_ROWS", 1)
        monkeypatch.setattr(rates, "_LEAST_SECONDS", 0)
        monkeypatch.setattr(rates, "_SINGLES", 1)
        made = {bits: private_key(bits) for bits in rates.SIZES}
        monkeypatch.setattr(rates.rsa, "generate_private_key", lambda _, bits: made[bits])
        monkeypatch.setattr(devices_command.cubins, "architecture_for", lambda major, minor: f"sm_{major}{minor}")
        monkeypatch.setattr(devices_command.cubins, "cached_cubins", lambda *_: {})
        monkeypatch.setattr(devices_command.cubins, "load_cubins", lambda _, name, *__, **___: wanted.append(name))
        monkeypatch.setattr(nvrtc, "architectures", lambda: ["sm_90"])
        return wanted

    def test_all_are_measured(
        self, compiled: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(devices_command, "CupyDevice", lambda device, *_: HostDevice(name=device.name))
        assert cli.main(["devices", "--measure"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        rows = [(line["index"], line["name"]) for line in lines if line["event"] == "rate" and line["bits"] == 3072]
        assert rows == [(0, "0 GPU 0"), (1, "1 GPU 1"), (None, "processor")]
        assert compiled == ["sm_90"]  # before it is measured, with progress

    def test_one_that_fails_is_named_and_the_others_are_measured(
        self, compiled: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def device(found: Gpu, *_: object) -> HostDevice:
            def before(call: str) -> None:
                if found.index == 0 and call == "launch":
                    raise DeviceError("device GPU 0: launching: no")

            return HostDevice(before=before)

        monkeypatch.setattr(devices_command, "CupyDevice", device)
        assert cli.main(["devices", "--measure", "--output", "table"]) == 1
        shown = capsys.readouterr()
        assert shown.err == "gpu-provider devices: error: device GPU 0: launching: no\n"
        assert "1 GPU 1" in shown.out
        assert "processor" in shown.out
        assert "RSA-4096" in shown.out
        assert compiled


def test_help_tells_of_it() -> None:
    shown = run_command("devices", "--help").stdout
    assert "--precompile" in shown
    assert "--measure" in shown
