"""The GPU suite's archive: unpacked on another machine, one command runs it, without network or compiler."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from bench import harness
from bench.gpu import archive as gpu_archive
from bench.gpu import plan
from gpu_provider.kernels.cubin_cache import CubinCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def make_wheel(directory: Path, name: str) -> Path:
    path = directory / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With two small wheels in place of those that are fetched; everything else needs what this Python has."""

    def no_network(_wheel: Path, _python: str, target: Path) -> None:
        target.mkdir()
        for name in ("carried", "numpy"):
            make_wheel(target, name)

    monkeypatch.setattr(gpu_archive, "download", no_network)
    path = tmp_path / "build" / "gpu-suite.tar"
    assert gpu_archive.main([str(path), "--wheel", "x.whl", "--python", PYTHON]) == 0
    return path


def unpack(archive: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(archive.parent)  # noqa: S202 - made here
    return archive.parent / "gpu-suite"


def run(suite: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """From a directory where another package of the name lies."""
    elsewhere = suite.parent / "elsewhere"
    (elsewhere / "bench").mkdir(parents=True, exist_ok=True)
    (elsewhere / "bench" / "__init__.py").write_text("raise SystemExit('the wrong bench')")
    return subprocess.run(
        [sys.executable, suite / "run.py", "--device", "host", "--tiny", *arguments],
        cwd=elsewhere, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_archive_runs_where_it_is_unpacked(archive: Path) -> None:
    suite = unpack(archive)
    ran = run(suite, "kernels", "--seconds", "40", "--output", "results")
    assert ran.returncode == 0, ran.stderr
    (path,) = (suite.parent / "elsewhere" / "results").glob("*.json")
    saved: dict[str, Any] = json.loads(path.read_text())
    assert saved["parameters"]["commit"] == json.loads((suite / "suite.json").read_text())["commit"]
    assert saved["parameters"]["sections"]["kernels"]["status"] == "done"
    assert (suite / "site" / "carried").is_dir()
    assert not (suite / "site" / "numpy").exists()  # CuPy was made for the one that is there
    assert (suite / "site" / "cubins").stat().st_mode & 0o077 == 0


def test_the_time_for_the_suite_is_what_installing_leaves(archive: Path) -> None:
    ran = run(unpack(archive), "kernels", "--seconds", "0.01", "--output", "results")
    assert ran.returncode == 2
    assert "--seconds" in ran.stderr


def test_another_python_is_told_what_to_make(archive: Path) -> None:
    suite = unpack(archive)
    settings = json.loads((suite / "suite.json").read_text())
    assert settings["seconds"] == plan.DEFAULT_SECONDS
    (suite / "suite.json").write_text(json.dumps({**settings, "python": "3.99"}))
    ran = run(suite)
    assert ran.returncode == 1
    assert ran.stderr == f"these wheels are for Python 3.99, this is {PYTHON}: make gpu-suite PYTHON_VERSION={PYTHON}\n"


def test_what_is_unpacked_belongs_to_root_and_nobody_else_may_write_it(archive: Path) -> None:
    """Or the kernel cache would refuse its kernels, where root unpacks them."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    assert {(member.uid, member.gid) for member in members} == {(0, 0)}
    assert not any(member.mode & 0o022 for member in members)
    assert "gpu-suite/bench/prebuilt/queue_jobs" in {member.name for member in members}


def test_a_library_that_the_machine_lacks_is_taken_from_the_archive(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = unpack(archive)
    (libcrypto,) = json.loads((suite / "suite.json").read_text())["libraries"]
    assert (suite / "lib" / libcrypto).read_bytes()[:4] == b"\x7fELF"
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    environment: Callable[[list[str]], dict[str, str]] = runpy.run_path(str(suite / "run.py"))["environment"]
    assert "LD_LIBRARY_PATH" not in environment([libcrypto])
    assert environment([libcrypto, "libabsent.so.9"])["LD_LIBRARY_PATH"] == str(suite / "lib")
    assert environment([])["PYTHONPATH"].split(":") == [str(suite / "site"), str(suite), "/mine"]


def test_what_was_compiled_before_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prebuilt = tmp_path / "prebuilt" / "queue_jobs"
    prebuilt.parent.mkdir()
    prebuilt.touch()
    monkeypatch.setattr(harness, "SOURCES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with harness.Bench() as bench:
        assert bench.compile("queue_jobs") == prebuilt
        with pytest.raises(harness.BenchError, match="no C compiler"):
            bench.compile("servers/load")


def test_kernels_that_were_compiled_before_are_packed_as_well_as_new_ones(tmp_path: Path) -> None:
    here, packed = CubinCache(tmp_path / "here"), CubinCache(tmp_path / "packed")
    here.write("old", b"\x7fELF old")
    copied = gpu_archive._Copied(tmp_path / "packed", here)
    assert copied.read("old") == b"\x7fELF old"
    assert copied.read("absent") is None
    copied.write("new", b"\x7fELF new")
    assert [packed.read(name) for name in ("old", "new", "absent")] == [b"\x7fELF old", b"\x7fELF new", None]
    assert here.read("new") == b"\x7fELF new"


def test_wheels_that_cannot_be_fetched_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = tmp_path / "absent.whl"
    assert gpu_archive.main([str(tmp_path / "x.tar"), "--wheel", str(absent), "--python", PYTHON]) == 1
    assert "absent.whl" in capsys.readouterr().err
    assert not (tmp_path / "x.tar").exists()
