"""What the check of the CUDA kernels' machine code finds, and with which compiler it compares counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from bench.kernels import check_cubins
from gpu_provider.kernels import nvrtc

if TYPE_CHECKING:
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
