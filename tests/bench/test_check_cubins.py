"""What the check of the CUDA kernels' machine code finds, and with which compiler it compares counts."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from bench.kernels import check_cubins
from gpu_provider.kernels import nvrtc

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ROW = next(row for row in check_cubins.read_table()[1] if row.architecture == "sm_90")
COUNTED = replace(ROW, warps=0, digit_cycles=0)


def test_a_count_that_moved_is_found() -> None:
    (fault,) = check_cubins.compare([replace(COUNTED, shfl=COUNTED.shfl + 1)], [ROW])
    assert f"shfl {COUNTED.shfl} -> {COUNTED.shfl + 1}" in fault
    assert not list(check_cubins.compare([COUNTED], [ROW]))


def test_the_table_is_to_have_what_the_backend_uses_and_nothing_else() -> None:
    other = replace(COUNTED, unit="fp64-2048-t4-w5")
    assert not list(check_cubins.compare([COUNTED, other], [ROW]))
    (missing,) = check_cubins.compare([COUNTED], [])
    assert "is not in machine_code.csv" in missing
    (gone,) = check_cubins.compare([], [ROW])
    assert "there is no such kernel" in gone


def test_another_compilers_code_is_checked_without_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: "99.0")
    monkeypatch.setattr(nvrtc, "architectures", lambda: ("sm_90",))
    asked: list[dict[str, int]] = []

    def compiled(todo: dict[str, list[object]], _console: Console) -> list[object]:
        asked.append({name: len(units) for name, units in todo.items()})
        return []

    monkeypatch.setattr(check_cubins, "compiled", compiled)
    assert check_cubins.check(["sm_90"], False, False, Console()) == 0
    assert check_cubins.check(["sm_90"], True, False, Console()) == 0
    assert asked == [{"sm_90": 12}, {"sm_90": 36}]
    said = capsys.readouterr().out
    assert "counts are not compared" in said
    assert "NVRTC 99.0: 0 kernels" in said


def test_everything_is_compiled_again_when_sources_or_compiler_moved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: "99.0")
    monkeypatch.setattr(check_cubins, "TABLE", tmp_path / "table.csv")
    (tmp_path / "table.csv").write_text(f"# NVRTC 99.0, inputs {check_cubins.inputs()}\n")
    checked: list[list[str]] = []
    monkeypatch.setattr(check_cubins, "check", lambda wanted, *_: checked.append(wanted) or 0)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["check_cubins", *arguments])
        assert check_cubins.main() == 0

    run()
    run("--update")
    run("--every-unit")
    run("--arch", "sm_75", "sm_80")
    everything = list(check_cubins.GPUS)
    assert checked == [["sm_90"], everything, everything, ["sm_75", "sm_80"]]

    checked.clear()
    sources = dict(nvrtc.source_files("gpu/kernels.cu"))
    monkeypatch.setattr(nvrtc, "source_files", lambda _name: sources | {"gpu/warp.h": "other"})
    run()
    monkeypatch.undo()
    assert checked == [everything]


def test_a_table_of_which_a_part_was_rewritten_does_not_vouch_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: "99.0")
    monkeypatch.setattr(check_cubins, "TABLE", tmp_path / "table.csv")
    (tmp_path / "table.csv").write_text("# NVRTC 99.0, inputs 0123\n")
    check_cubins.write_table([ROW], [replace(ROW, architecture="sm_75")])
    assert check_cubins.table_inputs() == "0123"
    check_cubins.write_table([ROW], [])
    assert check_cubins.table_inputs() == check_cubins.inputs()
    assert check_cubins.read_table() == ("99.0", [ROW])
