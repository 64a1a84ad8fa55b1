"""The GPU suite on the host device: it ends in time and saves what it has, whatever its sections do."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu import files, pipes, plan, process, report
from bench.gpu.report import Report

ROOT = Path(__file__).resolve().parents[2]


def names() -> list[str]:
    return [section.name for section in plan.PLAN]


def document(output: Path) -> dict[str, Any]:
    (path,) = output.glob("*.json")
    saved: dict[str, Any] = json.loads(path.read_text())
    return saved


def test_the_suite_runs_on_the_host_device_and_its_file_is_complete(tmp_path: Path) -> None:
    assert gpu.main(["--device", "host", "--tiny", "--output", str(tmp_path), "--commit", "0123abc"]) == 0
    saved = document(tmp_path)
    parameters = saved["parameters"]
    assert parameters["device"]["name"] == "host"
    assert parameters["device"]["defaults"]["2048/1"].startswith("fp64-2048-")
    assert parameters["device"]["system"]
    assert parameters["commit"] == "0123abc"
    assert saved["environment"]["versions"]["numpy"]
    for name in names():
        of_gpus_alone = name in {"ncu", *plan.SANITIZERS}
        expected = "not run" if of_gpus_alone else "done"
        assert parameters["sections"][name]["status"] == expected, parameters["sections"][name]
        assert any(note.startswith(f"{name}: not run") for note in saved["notes"]) == of_gpus_alone
    kinds = {"opened", "smoke", "in-flight", "pairs", "sustained", "correctness", "sweep", "end-to-end"}
    assert {sample["section"] for sample in saved["samples"]} == kinds
    made = [sample for sample in saved["samples"] if sample["section"] == "in-flight"]
    assert {(sample["in_flight"], sample["wiped"]) for sample in made} >= {(1, True), (2, True), (3, True), (3, False)}
    assert {sample["sizes"] for sample in saved["samples"] if sample["section"] == "pairs"} == {
        "one size", "varied sizes", "one size, after those",
    }  # fmt: skip
    assert {sample["variant"] for sample in saved["samples"] if "variant" in sample} >= {"int32-2048-t8-w4"}
    cases = {row["case"]: row for row in saved["rows"]}
    assert cases["correctness"]["met"]
    assert cases["RSA-2048, any batch"]
    assert cases["fastest, RSA-2048, batches of 1"]["baseline"].startswith("default fp64")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) <= 5
    assert any(name.endswith("-gpu-host.log") for name in files)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plot, which takes longer than what it shows."""

    async def draw_nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(gpu, "_plot", draw_nothing)


def run_with(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, hang: tuple[str, ...] = ()
) -> tuple[int, Any]:
    """The suite with a shell script as the interpreter of its sections: $3 is the section's name. Those that hang are
    ended after a second."""
    monkeypatch.setattr(sys, "executable", str(write_script(tmp_path / "python", program)))
    sections = [
        replace(section, least=0.1, most=1.0 if section.name in hang else section.most) for section in plan.PLAN
    ]
    monkeypatch.setattr(plan, "PLAN", sections)
    output = tmp_path / "output"
    status = gpu.main([*arguments, "--device", "0", "--output", str(output), "--kernel-cache", str(tmp_path)])
    return status, document(output)


def write_script(path: Path, program: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{program}\n")
    path.chmod(0o700)
    return path


H100 = json.dumps({"device": {"name": "NVIDIA H100", "architecture": "sm_90", "multiprocessors": 132}})
PIPE = json.dumps({"sample": {"section": "pipes", "pipe": "DFMA", "per_clock": 64.0, "clock_hz": 1e9}})


def test_a_wrong_result_is_the_suites_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mismatch = {"kernel": "fp64-2048-t4-w5 private", "row": 3, "got": "0x1"}
    status, saved = run_with(f"echo '{json.dumps({'mismatch': mismatch})}'", tmp_path, monkeypatch, "correctness")
    assert status == 1
    assert saved["parameters"]["mismatches"][0] == mismatch
    assert any("fp64-2048-t4-w5 private" in note for note in saved["notes"])


def test_a_section_that_dies_hangs_or_prints_rubbish_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"""case $3 in
        machine) echo '{H100}' ;;
        in-flight) echo 'illegal address' >&2; exit 3 ;;
        pairs) kill -SEGV $$ ;;
        sustained) sleep 60 & echo 'still here'; wait ;;
        correctness) printf '\\377\\376 rubbish\\n[1]\\n{{"sample": {{}}}}\\n' ;;
        pipes) echo '{PIPE}'; echo 'Traceback: it broke'; exit 1 ;;
        sweep) echo '{PIPE}'; exec sleep 60 ;;
        end-to-end) printf '{{"note": "unfin'; exit 1 ;;
    esac"""
    wanted = [name for name in names() if name != "ncu"]
    status, saved = run_with(program, tmp_path, monkeypatch, *wanted, hang=("sustained", "sweep"))
    sections = saved["parameters"]["sections"]
    assert status == 1
    ends = {name: (sections[name]["status"], sections[name]["reason"]) for name in sections}
    assert ends["in-flight"] == ("failed", "exit status 3: illegal address")
    assert ends["pairs"] == ("failed", "signal 11")
    assert ends["sustained"][0] == "out of time"
    assert sections["sustained"]["output"] == "still here"
    assert ends["correctness"] == ("failed", "it printed something that is not a result")
    assert "rubbish" in sections["correctness"]["output"]
    assert ends["pipes"][0] == "failed"
    assert ends["sweep"][0] == "out of time"
    assert ends["end-to-end"] == ("failed", 'exit status 1: {"note": "unfin')
    for name in ("machine", "compile", "smoke", "compile-all", "kernels"):
        assert ends[name] == ("done", None)
    assert len([sample for sample in saved["samples"] if sample["section"] == "pipes"]) == 2
    limit = next(row for row in saved["rows"] if row["case"] == "RSA-2048, what the pipe allows")
    assert limit["measured"]["median"] == pytest.approx(64e9 * 132 / pipes.multiply_adds("fp64", 2048, 5))
    log = next((tmp_path / "output").glob("*-gpu-nvidia-h100.log")).read_text()
    assert "illegal address" in log
    assert "rubbish" in log


@pytest.mark.usefixtures("undrawn")
def test_such_sections_cost_nothing_on_a_device_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""case $3 in
        in-flight) kill -KILL $$ ;;
        pairs) exec sleep 60 ;;
        pipes) echo rubbish ;;
        *) exec {sys.executable} "$@" ;;
    esac"""
    monkeypatch.setattr(sys, "executable", str(write_script(tmp_path / "python", program)))
    hurried = [replace(section, most=1.0) if section.name == "pairs" else section for section in plan.PLAN]
    monkeypatch.setattr(plan, "PLAN", hurried)
    wanted = ["smoke", "in-flight", "pairs", "correctness", "pipes", "end-to-end"]
    assert gpu.main([*wanted, "--device", "host", "--tiny", "--output", str(tmp_path / "output")]) == 1
    saved = document(tmp_path / "output")
    sections = saved["parameters"]["sections"]
    assert {name: sections[name]["status"] for name in wanted} == {
        "smoke": "done", "in-flight": "failed", "pairs": "out of time", "correctness": "done", "pipes": "failed",
        "end-to-end": "done",
    }  # fmt: skip
    assert {sample["section"] for sample in saved["samples"]} == {"opened", "smoke", "correctness", "end-to-end"}


@pytest.mark.parametrize(
    "line",
    [
        b"", b"rubbish", b"\xff\xfe", b"{", b"[]", b"3", b"null", b"{}", b'{"samples": {}}', b'{"sample": {}}',
        b'{"sample": {"section": "unheard of"}}', b'{"sample": {"section": "pipes"}}', b'{"note": 3}',
        b'{"sample": {"section": "pipes", "pipe": "DFMA", "per_clock": NaN, "clock_hz": 1}}',
        b'{"sample": {"section": "pipes", "pipe": "DFMA", "per_clock": 0, "clock_hz": 1}}',
        b'{"device": {"multiprocessors": "many"}}', b'{"device": {"name": 3}}', b'{"progress": {"what": "x"}}',
        b'{"note": "x"}{"note": "y"}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_result_is_told_from_one(line: bytes) -> None:
    assert report.read_line(line) is None


def test_what_a_section_reports_is_read_as_it_was() -> None:
    pipe = io.StringIO()
    sample = report.Pipe(pipe="DFMA", per_clock=64.0, clock_hz=1e9)
    Report(pipe).sample(sample)
    line = report.read_line(pipe.getvalue().encode())
    assert line is not None
    assert line.sample == sample


def test_a_process_that_leaves_the_group_with_the_pipes_open_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ENDING_SECONDS", 0.2)
    program = """case $3 in compile) setsid sleep 600 & echo "{\\"note\\": \\"$!\\"}" ;; esac"""
    status, saved = run_with(program, tmp_path, monkeypatch, "compile", "smoke")
    (left,) = saved["notes"]
    os.kill(int(left), signal.SIGKILL)  # it still ran
    assert status == 0


def test_a_section_that_prints_without_end_fills_neither_memory_nor_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOG_BYTES", 1000)
    monkeypatch.setattr(process, "LONGEST_LINE", 1000)
    program = "case $3 in compile) exec head -c 5000000 /dev/zero ;; smoke) seq 100000 ;; esac"
    status, saved = run_with(program, tmp_path, monkeypatch, "compile", "smoke")
    assert status == 1
    assert all(saved["parameters"]["sections"][name]["status"] == "failed" for name in ("compile", "smoke"))
    assert sum(path.stat().st_size for path in (tmp_path / "output").iterdir()) < 100_000


def test_a_failed_smoke_test_ends_the_run_and_is_looked_at_by_compute_sanitizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = write_script(tmp_path / "bin" / "compute-sanitizer", 'echo "========= Invalid read of size 8 $*"; exit 66')
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    program = f"""case $3 in machine) echo '{H100}' ;; smoke) echo 'row 0 is wrong' >&2; exit 1 ;; esac"""
    status, saved = run_with(program, tmp_path, monkeypatch)
    sections = saved["parameters"]["sections"]
    assert status == 1
    assert sections["smoke"]["reason"] == "exit status 1: row 0 is wrong"
    assert sections["memcheck of fp64-2048-t4-w3"]["status"] == "failed"
    for name in names()[names().index("smoke") + 1 :]:
        assert (sections[name]["status"], sections[name]["reason"]) == ("not run", "smoke failed")
    text = next((tmp_path / "output").glob("*-sanitizer.txt")).read_text()
    assert "Invalid read of size 8" in text
    assert '"names": ["fp64-2048-t4-w3"]' in text


def test_nvidias_tools_are_given_the_kernels_that_they_look_at_and_their_text_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_script(tmp_path / "bin" / "ncu", "echo '==PROF== Connected'; echo '    Issue Slots Busy     %     82.97'")
    write_script(tmp_path / "bin" / "compute-sanitizer", 'echo "========= ERROR SUMMARY: 0 errors $*"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    program = f"""case $3 in machine) echo '{H100}' ;; esac"""
    status, saved = run_with(program, tmp_path, monkeypatch, "ncu", "racecheck")
    assert status == 0
    (row,) = (row for row in saved["rows"] if row["case"] == "Nsight Compute")
    assert (row["subject"], row["unit"], row["measured"]["median"]) == ("Issue Slots Busy", "%", 82.97)
    output = tmp_path / "output"
    assert "==PROF==" in next(output.glob("*-ncu.txt")).read_text()
    text = next(output.glob("*-sanitizer.txt")).read_text()
    assert text.count("2048-t") == 2 * 4  # of both arithmetics, in the title and in the command
    assert len(list(output.iterdir())) <= 8


def dispose(ignored: signal.Signals | None) -> None:
    """In a new process, whatever the tests were started with: nohup and a background job of a shell ignore some."""
    for number in gpu.SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)


class Watched:
    """The suite in a process of its own, whose first section has told a result and then hangs: until the FIFO's writers
    have ended, all of the section's processes have not."""

    def __init__(self, tmp_path: Path, *arguments: str, ignored: signal.Signals | None = None) -> None:
        fifo, self.output = tmp_path / "fifo", tmp_path / "output"
        os.mkfifo(fifo)
        hang = f"exec 3>{fifo}; sleep 60 & echo >&3; wait"
        program = f"case $3 in machine) echo '{H100}' ;; pipes) echo '{PIPE}'; {hang} ;; esac"
        script = write_script(tmp_path / "python", program)
        main = "from bench.gpu.__main__ import main; sys.exit(main(sys.argv[1:]))"
        code = f"import sys; sys.executable = {str(script)!r}; {main}"
        command = [sys.executable, "-c", code, "pipes", *arguments, "--output", str(self.output)]
        self.process = subprocess.Popen(
            [*command, "--kernel-cache", str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: dispose(ignored),  # noqa: PLW1509
        )
        self._fifo = fifo.open()
        assert self._fifo.readline() == "\n"  # the section runs

    def end(self) -> tuple[int, Any]:
        assert self._fifo.read() == ""
        self._fifo.close()
        self.process.communicate(timeout=30)
        return self.process.returncode, document(self.output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_section_and_saves_what_there_is(tmp_path: Path, number: signal.Signals) -> None:
    watched = Watched(tmp_path)
    watched.process.send_signal(number)
    watched.process.send_signal(number)  # as timeout does, to the process and to its group
    status, saved = watched.end()
    assert status == 128 + number
    assert saved["parameters"]["sections"]["machine"]["status"] == "done"
    assert saved["parameters"]["sections"]["pipes"]["status"] == "stopped"
    assert [sample["section"] for sample in saved["samples"]] == ["pipes"]


@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_section_that_is_just_being_started_is_ended_too(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    killpg = os.killpg

    def kill(group: int, number: int) -> None:
        ended.append(group)
        killpg(group, number)

    monkeypatch.setattr(os, "killpg", kill)
    running = asyncio.ensure_future(process.run_process(["sleep", "60"], 60, lambda _: True, lambda _: None))
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(ended) == 1


def test_nohup_keeps_the_suite_running_when_its_terminal_goes(tmp_path: Path) -> None:
    watched = Watched(tmp_path, ignored=signal.SIGHUP)
    watched.process.send_signal(signal.SIGHUP)
    watched.process.send_signal(signal.SIGTERM)
    assert watched.end()[0] == 128 + signal.SIGTERM


def test_what_was_saved_is_whole_when_the_suite_is_killed(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv, which ends a process with its parent, is not installed")
    watched = Watched(tmp_path)
    watched.process.kill()
    watched.process.communicate(timeout=30)
    assert document(watched.output)["parameters"]["sections"]["machine"]["status"] == "done"


def test_sections_for_which_too_little_time_is_left_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--device", "host", "--tiny", "--seconds", "2", "--output", str(tmp_path)]) == 1
    saved = document(tmp_path)
    assert {section["status"] for section in saved["parameters"]["sections"].values()} == {"skipped", "not run"}
    assert "smoke: skipped: 0 s left, 10 needed" in saved["notes"]
    assert "smoke: skipped" in capsys.readouterr().err


def test_a_section_gets_what_is_left_but_the_least_of_the_later_ones() -> None:
    first, second, third = (plan.Section(name, least=10, most=40, what="") for name in "abc")
    assert plan.time_for(first, [second, third], 200) == 40
    assert plan.time_for(first, [second, third], 50) == 30
    assert plan.time_for(first, [second, third], 25) == 10  # rather than a later one
    assert plan.time_for(first, [second, third], 9) is None


def test_all_is_over_in_the_time_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""case $3 in machine) echo '{H100}' ;; *) exec sleep 60 ;; esac"""
    started = time.monotonic()
    status, saved = run_with(program, tmp_path, monkeypatch, "--seconds", "5", "pipes", "sweep", "pairs", "in-flight")
    assert time.monotonic() - started < 30
    assert status == 1
    ends = [saved["parameters"]["sections"][name]["status"] for name in ("in-flight", "pairs", "pipes", "sweep")]
    assert set(ends) <= {"out of time", "skipped"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["pipes", "sweep", "end-to-end"])
def test_a_section_runs_with_nothing_but_what_it_needs(name: str, tmp_path: Path) -> None:
    assert gpu.main([name, "--device", "host", "--tiny", "--output", str(tmp_path)]) == 0
    needed = {"pipes": set(), "sweep": {"compile-all"}, "end-to-end": {"compile"}}[name]
    assert set(document(tmp_path)["parameters"]["sections"]) == {"machine", name, *needed}


def test_every_section_can_be_chosen_alone_and_comes_after_what_it_needs() -> None:
    for section in plan.PLAN:
        chosen = [each.name for each in plan.chosen([section.name])]
        assert chosen == ["machine", *filter(None, [section.needs]), section.name][-len(chosen) :]
        assert (section.name == "machine") == (len(chosen) == 1)


@pytest.mark.parametrize("arguments", [["in flight"], ["--device", "first"], ["--seconds", "0"], ["--seconds", "nan"]])
def test_a_mistake_in_the_arguments_is_told_at_once(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        gpu.main([*arguments, "--output", str(tmp_path)])
    assert error.value.code == 2
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_no_directory_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        gpu.main(["--device", "host", "--output", str(tmp_path / "file")])
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_without_a_gpu_the_suite_says_why_and_saves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it is that this machine lacks: CuPy, a driver, a GPU."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is a GPU here")
    assert gpu.main(["--output", str(tmp_path), "--kernel-cache", str(tmp_path)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert any(what in said for what in ("CuPy", "driver", "device"))
    assert not list(tmp_path.iterdir())


def test_the_files_need_nothing_that_a_cuda_image_lacks() -> None:
    """No matplotlib, and no test's package."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'trustme', 'uvloop', 'cupy']))"
    code = f"{blocked}; from bench.gpu import __main__, section; sys.exit(__main__.main(['--help']))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)
