"""The GPU suite on the host device: it runs to its end, says what it did, and finds what is wrong. Never how fast."""

from __future__ import annotations

import asyncio
import ctypes
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
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bench/ is no installed package: it is run from the repository's root

from bench import (  # noqa: E402
    gpu,
    gpu_batches,
    gpu_correctness,
    gpu_device,
    gpu_files,
    gpu_lanes,
    gpu_pipes,
    gpu_plan,
    gpu_process,
    gpu_report,
    gpu_smoke,
    gpu_summary,
    gpu_sweep,
    report,
)
from bench.gpu_report import Report  # noqa: E402
from bench.queue_overhead import NothingDevice  # noqa: E402
from gpu_provider.kernels import cubins, nvrtc, warp  # noqa: E402
from gpu_provider.kernels.cubin_cache import CubinCache  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gpu_provider import Key
    from gpu_provider.backends.base import Batch
    from gpu_provider.backends.cuda import CudaBackend

VARIANT = gpu_device.Variant(cubins.Arithmetic.INT32, 256, 8, 4)


def names() -> list[str]:
    return [section.name for section in gpu_plan.PLAN]


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
        of_gpus_alone = name in {"ncu", *gpu_plan.SANITIZERS}
        expected = "not run" if of_gpus_alone else "done"
        assert parameters["sections"][name]["status"] == expected, parameters["sections"][name]
        assert any(note.startswith(f"{name}: not run") for note in saved["notes"]) == of_gpus_alone
    kinds = {"opened", "smoke", "lanes", "pairs", "sustained", "correctness", "sweep", "end-to-end"}
    assert {sample["section"] for sample in saved["samples"]} == kinds
    lanes = [sample for sample in saved["samples"] if sample["section"] == "lanes"]
    assert {(sample["lanes"], sample["wiped"]) for sample in lanes} >= {(1, True), (2, True), (3, True), (3, False)}
    assert {sample["sizes"] for sample in saved["samples"] if sample["section"] == "pairs"} == {"uniform", "varied"}
    assert {sample["variant"] for sample in saved["samples"] if "variant" in sample} >= {str(VARIANT)}
    cases = {row["case"]: row for row in saved["rows"]}
    assert cases["correctness"]["met"]
    assert cases["RSA-2048, any batch"]
    assert cases["fastest, RSA-2048, batches of 1"]["baseline"].startswith("default fp64")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) <= 5
    assert any(name.endswith("-gpu-host.log") for name in files)


class FlippingDevice(gpu_device.HostDevice):
    """Flips one bit of one row as it comes back."""

    row = 2

    def download(self, array: NDArray[Any], source: int) -> None:
        super().download(array, source)
        if array.ndim == 2:
            array[self.row, 7] ^= 16


@pytest.mark.parametrize("operation", ["private", "modexp"])
def test_one_wrong_bit_is_found_and_reported_without_a_secret(operation: str) -> None:
    pipe = io.StringIO()
    if operation == "private":
        wrong = gpu_correctness.check_private(FlippingDevice(), VARIANT, 5, Report(pipe), rounds=1)
    else:
        wrong = gpu_correctness.check_modexp(FlippingDevice(), VARIANT, 5, 64, Report(pipe))
    assert wrong == 1
    (mismatch,) = (json.loads(line)["mismatch"] for line in pipe.getvalue().splitlines())
    assert mismatch["kernel"] == f"{VARIANT} {operation}"
    assert mismatch["row"] == FlippingDevice.row
    for key in gpu_batches.private_keys(2048):
        for secret in (key.p, key.q, key.d, key.dmp1, key.dmq1):
            assert f"{secret:x}" not in pipe.getvalue()


def test_a_verdict_that_should_not_be_there_is_found() -> None:
    class Trusting(gpu_device.HostDevice):
        def download(self, array: NDArray[Any], source: int) -> None:
            super().download(array, source)
            if array.ndim == 1:
                array[:] = 1

    wrong = gpu_correctness.check_private(Trusting(), VARIANT, 5, Report(io.StringIO()), rounds=1)
    assert wrong == 2  # the modulus itself, and the largest number that a row can hold


def run_with(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, Any]:
    """The suite with a shell script as the interpreter of its sections: $3 is the section's name. A section that hangs
    is ended after a second."""
    monkeypatch.setattr(sys, "executable", str(write_script(tmp_path / "python", program)))
    plan = [replace(section, least=0.1, most=1.0) for section in gpu_plan.PLAN]
    monkeypatch.setattr(gpu_plan, "PLAN", plan)
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
        lanes) echo 'illegal address' >&2; exit 3 ;;
        pairs) kill -SEGV $$ ;;
        sustained) sleep 60 & echo 'still here'; wait ;;
        correctness) printf '\\377\\376 rubbish\\n[1]\\n{{"sample": {{}}}}\\n' ;;
        pipes) echo '{PIPE}'; echo 'Traceback: it broke'; exit 1 ;;
        sweep) echo '{PIPE}'; exec sleep 60 ;;
        end-to-end) printf '{{"note": "unfin'; exit 1 ;;
    esac"""
    status, saved = run_with(program, tmp_path, monkeypatch, *(name for name in names() if name != "ncu"))
    sections = saved["parameters"]["sections"]
    assert status == 1
    ends = {name: (sections[name]["status"], sections[name]["reason"]) for name in sections}
    assert ends["lanes"] == ("failed", "exit status 3: illegal address")
    assert ends["pairs"] == ("failed", "signal 11")
    assert ends["sustained"][0] == "out of time"
    assert sections["sustained"]["output"] == "still here"
    assert ends["correctness"] == ("failed", "it printed what is no result")
    assert "rubbish" in sections["correctness"]["output"]
    assert ends["pipes"][0] == "failed"
    assert ends["sweep"][0] == "out of time"
    assert ends["end-to-end"] == ("failed", 'exit status 1: {"note": "unfin')
    for name in ("machine", "compile", "smoke", "compile-all", "kernels"):
        assert ends[name] == ("done", None)
    assert len([sample for sample in saved["samples"] if sample["section"] == "pipes"]) == 2
    limit = next(row for row in saved["rows"] if row["case"] == "RSA-2048, what the pipe allows")
    assert limit["measured"]["median"] == pytest.approx(64e9 * 132 / gpu_pipes.multiply_adds("fp64", 2048, 5))
    log = next((tmp_path / "output").glob("*-gpu-nvidia-h100.log")).read_text()
    assert "illegal address" in log
    assert "rubbish" in log


def test_such_sections_cost_nothing_on_a_device_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""case $3 in
        lanes) kill -KILL $$ ;;
        pairs) exec sleep 60 ;;
        pipes) echo rubbish ;;
        *) exec {sys.executable} "$@" ;;
    esac"""
    monkeypatch.setattr(sys, "executable", str(write_script(tmp_path / "python", program)))
    plan = [replace(section, most=1.0) if section.name == "pairs" else section for section in gpu_plan.PLAN]
    monkeypatch.setattr(gpu_plan, "PLAN", plan)
    wanted = ["smoke", "lanes", "pairs", "correctness", "pipes", "end-to-end"]
    assert gpu.main([*wanted, "--device", "host", "--tiny", "--output", str(tmp_path / "output")]) == 1
    saved = document(tmp_path / "output")
    sections = saved["parameters"]["sections"]
    assert {name: sections[name]["status"] for name in wanted} == {
        "smoke": "done", "lanes": "failed", "pairs": "out of time", "correctness": "done", "pipes": "failed",
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
    assert gpu_report.read_line(line) is None


def test_what_a_section_reports_is_read_as_it_was() -> None:
    pipe = io.StringIO()
    sample = gpu_report.Pipe(pipe="DFMA", per_clock=64.0, clock_hz=1e9)
    Report(pipe).sample(sample)
    line = gpu_report.read_line(pipe.getvalue().encode())
    assert line is not None
    assert line.sample == sample


def test_a_process_that_leaves_the_group_with_the_pipes_open_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_process, "ENDING_SECONDS", 0.2)
    program = 'case $3 in compile) setsid sleep 20 & echo \'{"note": "left"}\' ;; esac'
    started = time.monotonic()
    status, saved = run_with(program, tmp_path, monkeypatch, "compile", "smoke")
    assert time.monotonic() - started < 20
    assert status == 0
    assert saved["notes"] == ["left"]


def test_a_section_that_prints_without_end_fills_neither_memory_nor_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_files, "LOG_BYTES", 1000)
    monkeypatch.setattr(gpu_process, "LONGEST_LINE", 1000)
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


class Watched:
    """The suite in a process of its own, whose first section has told a result and then hangs: until the FIFO's writers
    have ended, all of the section's processes have not."""

    def __init__(self, tmp_path: Path, *arguments: str, ignored: signal.Signals | None = None) -> None:
        fifo, self.output = tmp_path / "fifo", tmp_path / "output"
        os.mkfifo(fifo)
        hang = f"exec 3>{fifo}; sleep 60 & echo >&3; wait"
        program = f"case $3 in machine) echo '{H100}' ;; pipes) echo '{PIPE}'; {hang} ;; esac"
        script = write_script(tmp_path / "python", program)
        code = f"import sys; sys.executable = {str(script)!r}; from bench import gpu; sys.exit(gpu.main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "pipes", *arguments, "--output", str(self.output)]
        self.process = subprocess.Popen(
            [*command, "--kernel-cache", str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=ignored and (lambda: signal.signal(ignored, signal.SIG_IGN)),  # noqa: PLW1509
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
    running = asyncio.ensure_future(gpu_process.run_process(["sleep", "60"], 60, lambda _: True, lambda _: None))
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
    first, second, third = (gpu_plan.Section(name, least=10, most=40, what="") for name in "abc")
    assert gpu_plan.time_for(first, [second, third], 200) == 40
    assert gpu_plan.time_for(first, [second, third], 50) == 30
    assert gpu_plan.time_for(first, [second, third], 25) == 10  # rather than a later one
    assert gpu_plan.time_for(first, [second, third], 9) is None


def test_all_is_over_in_the_time_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""case $3 in machine) echo '{H100}' ;; *) exec sleep 60 ;; esac"""
    started = time.monotonic()
    status, saved = run_with(program, tmp_path, monkeypatch, "--seconds", "5", "pipes", "sweep", "pairs", "lanes")
    assert time.monotonic() - started < 30
    assert status == 1
    ends = [saved["parameters"]["sections"][name]["status"] for name in ("lanes", "pairs", "pipes", "sweep")]
    assert set(ends) <= {"out of time", "skipped"}


@pytest.mark.parametrize("name", ["pipes", "sweep", "end-to-end"])
def test_a_section_runs_with_nothing_but_what_it_needs(name: str, tmp_path: Path) -> None:
    assert gpu.main([name, "--device", "host", "--tiny", "--output", str(tmp_path)]) == 0
    needed = {"pipes": set(), "sweep": {"compile-all"}, "end-to-end": {"compile"}}[name]
    assert set(document(tmp_path)["parameters"]["sections"]) == {"machine", name, *needed}


def test_every_section_can_be_chosen_alone_and_comes_after_what_it_needs() -> None:
    for section in gpu_plan.PLAN:
        chosen = [each.name for each in gpu_plan.chosen([section.name])]
        assert chosen == ["machine", *filter(None, [section.needs]), section.name][-len(chosen) :]
        assert (section.name == "machine") == (len(chosen) == 1)


@pytest.mark.parametrize("arguments", [["lane"], ["--device", "first"], ["--seconds", "0"], ["--seconds", "nan"]])
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


@pytest.mark.parametrize(
    ("measure", "samples"),
    [(gpu_smoke.check, 13), (gpu_lanes.measure_lanes, 29), (gpu_lanes.measure_pairs, 2),
     (gpu_lanes.measure_sustained, 1)],
)  # fmt: skip
def test_the_sizes_for_a_gpu_run_on_a_device_that_does_nothing(
    measure: Callable[[Any, bool, Report], None], samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or they would run for the first time where time is short."""

    def compute(backend: CudaBackend, _key: Key, batch: Batch) -> float:
        started = time.perf_counter()
        backend.private_op(batch)
        return time.perf_counter() - started

    for module in (gpu_smoke, gpu_lanes):
        monkeypatch.setattr(module, "compute_checked", compute)  # nothing computes nothing that is right
    for name in ("SECONDS", "WARM_UP_SECONDS", "PAIRS_SECONDS", "SUSTAINED_SECONDS"):
        monkeypatch.setattr(gpu_lanes, name, 0.0)
    pipe = io.StringIO()
    measure(NothingDevice(), False, Report(pipe))
    lines = [gpu_report.read_line(line.encode()) for line in pipe.getvalue().splitlines()]
    assert None not in lines
    assert len([line for line in lines if line is not None and line.sample is not None]) == samples


def sweep_sample(variant: str, rows: int, kernel: float) -> gpu_report.Sweep:
    bits = int(variant.split("-")[1])
    return gpu_report.Sweep(
        variant=variant, bits=bits, rows=rows, kernel_seconds=[kernel], latency_seconds=[kernel + 1e-4], ok=True
    )


def lanes_sample(rate: float, **values: Any) -> gpu_report.Lanes:
    given = {"bits": 2048, "rows": 2048, "lanes": 3, "wiped": True, "latency_seconds": [0.002], **values}
    return gpu_report.Lanes(rate=rate, **given)


def summarised(samples: list[gpu_report.AnySample], **device: Any) -> list[report.Row]:
    result = report.Result("gpu", "", {})
    gpu_summary.summarise(result, samples, gpu_report.Device(**device), {"lanes": 1.755e9})
    return result.rows


def test_rates_are_held_against_the_goals_and_the_defaults() -> None:
    samples = [
        sweep_sample("fp64-2048-t4-w4", 1024, 0.002),
        sweep_sample("fp64-2048-t8-w5", 1024, 0.001),
        sweep_sample("fp64-2048-t4-w4", 8192, 0.004),
    ]
    made = summarised([*samples], architecture="sm_90", defaults={"2048/1024": "fp64-2048-t4-w4"})
    rows = {(row.case, row.unit): row for row in made}
    quick = rows["RSA-2048, at most 3 ms", gpu_summary.UNIT]
    assert quick.measured.median == pytest.approx(1024e3)
    assert quick.met
    goal = rows["RSA-2048, any batch", gpu_summary.UNIT]
    assert goal.measured.median == pytest.approx(2048e3)
    assert (str(goal.target), goal.met) == ("goal ≥ 2e+06", True)
    fastest = rows["fastest, RSA-2048, batches of 1024", gpu_summary.UNIT]
    assert (fastest.subject, fastest.baseline) == ("fp64-2048-t8-w5", "default fp64-2048-t4-w4")
    assert fastest.ratio is not None
    assert fastest.ratio.median == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("architecture", "bits", "goal"),
    [("sm_90", 2048, 2.0e6), ("sm_90", 3072, 0.5e6), ("sm_90", 4096, 0.25e6), ("sm_89", 2048, 0.78e6),
     ("sm_120", 2048, 0.78e6), ("sm_89", 4096, 98e3), ("sm_80", 2048, None)],
)  # fmt: skip
def test_each_architecture_has_its_own_goal(architecture: str, bits: int, goal: float | None) -> None:
    rows = summarised([lanes_sample(1e5, bits=bits)], architecture=architecture)
    row = next(row for row in rows if row.case == f"RSA-{bits}, any batch" and row.unit == gpu_summary.UNIT)
    assert (row.target and row.target.limit) == goal


def test_a_rate_is_compared_with_the_peer_and_with_what_the_gpu_can_issue() -> None:
    rows = summarised([lanes_sample(1.59e6)], architecture="sm_90", multiprocessors=132)
    by_case = {row.case: row for row in rows if row.ratio}
    assert by_case["RSA-2048, peer"].ratio.median == pytest.approx(1.59e6 / 0.39e6)  # type: ignore[union-attr]
    share = by_case["RSA-2048, share of what issue allows"]
    assert share.ratio is not None
    assert share.ratio.median == pytest.approx(0.75)
    assert share.met is False


def test_what_wiping_costs_is_a_ratio() -> None:
    rows = summarised([lanes_sample(1e6), lanes_sample(1.1e6, wiped=False)])
    (row,) = (row for row in rows if "without wiping" in row.case)
    assert row.ratio is not None
    assert row.ratio.median == pytest.approx(1.1)
    assert not any(row.measured.median == 1.1e6 for row in rows if "any batch" in row.case)


ONE_OF_EACH: list[gpu_report.AnySample] = [
    gpu_report.Compiled(nvrtc="13.0", units=6, cached=2, seconds=9.0),
    gpu_report.Smoke(bits=2048, rows=9, first_seconds=0.1, again_seconds=0.01),
    gpu_report.Opened(seconds=1.0, curves={}),
    lanes_sample(1.0),
    lanes_sample(1.0, wiped=False),
    gpu_report.Pairs(sizes="varied", rate=1.0, latency_seconds=[1.0]),
    gpu_report.Sustained(at_seconds=1.0, rate=0.0),
    gpu_report.Sustained(at_seconds=1.0, rate=1.0, power_watts=1.0, sm_clock_hertz=1.0, temperature_celsius=1.0),
    gpu_report.Correctness(variant="x", operation="private", rows=1, wrong=0),
    gpu_report.Pipe(pipe="DFMA", per_clock=64.0, clock_hz=1e9),
    sweep_sample("fp64-2048-t4-w4", 1, 1.0),
    gpu_report.EndToEnd(by="futures", in_flight=1, rate=1.0),
    gpu_report.Profiled(metric="Duration", unit="ms", value=1.0),
]


@pytest.mark.parametrize("sample", ONE_OF_EACH, ids=lambda sample: type(sample).__name__)
def test_any_sample_is_summarised_without_the_others(sample: gpu_report.AnySample) -> None:
    assert summarised([sample])


def test_without_a_gpu_the_suite_says_why_and_saves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it is that this machine lacks: CuPy, a driver, a GPU."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is a GPU here")
    assert gpu.main(["--output", str(tmp_path), "--kernel-cache", str(tmp_path)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert any(what in said for what in ("CuPy", "driver", "device"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", gpu_pipes.PIPES)
def test_the_microbenchmarks_compile(name: str) -> None:
    try:
        nvrtc.version()
    except nvrtc.CompilerMissingError as error:
        pytest.skip(str(error))
    assert nvrtc.compile_cubin({"pipe.cu": gpu_pipes.source(name)}, ("--std=c++17",), "sm_90")


class Cupy:
    """The part of CuPy that the suite uses, on the processor: a cubin is its unit's name, and launches are computed by
    the host build's kernels of that arithmetic and size."""

    __version__ = "0"
    multiprocessors = 2

    def __init__(self) -> None:
        self.cuda = self.runtime = self.driver = self.function = self
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.shared: dict[int, int] = {}
        self.functions: list[tuple[str, str]] = []
        self.CUDADriverError = RuntimeError
        self.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
        self.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9
        self.CU_FUNC_ATTRIBUTE_NUM_REGS = 4
        self.memcpyHostToDevice, self.memcpyDeviceToHost = 1, 2
        self.clock = 0.0
        cupy = self

        class Module:
            def load(self, cubin: bytes) -> None:
                self.unit = cubin.decode()

            def get_function(self, entry: str) -> Function:
                cupy.functions.append((self.unit, entry))
                return Function(len(cupy.functions) - 1)

        class Function:
            def __init__(self, ptr: int) -> None:
                self.ptr = ptr

            def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any], shared: int, _: Any) -> None:
                unit, entry = cupy.functions[self.ptr]
                assert shared == cupy.shared[self.ptr]
                launch = arguments[0]
                assert launch.size == 1  # CuPy passes such an array by value
                arithmetic, bits = unit.split("-")[:2]
                kernel = next(
                    kernel
                    for kernel in warp.host_kernels()
                    if (gpu_device.ARITHMETIC[kernel.radix_bits], 8 * kernel.class_bytes) == (arithmetic, int(bits))
                    and gpu_device.ENTRIES[kernel.operation] == entry
                )
                threads = int(unit.split("-t")[1].split("-")[0])
                assert grid[0] * block[0] >= int(launch["count"][0]) * threads
                warp.launch(kernel, launch.ctypes.data)

        class Event:
            def record(self, _stream: Any) -> None:
                cupy.clock += 1.0
                self.at = cupy.clock

            def synchronize(self) -> None:
                pass

        self.Module, self.Event = Module, Event

    def setDevice(self, index: int) -> None:  # noqa: N802
        assert index == 0

    def getDeviceProperties(self, _index: int) -> dict[str, Any]:  # noqa: N802
        names = {"multiProcessorCount": self.multiprocessors, "totalGlobalMem": 1, "sharedMemPerMultiprocessor": 1}
        return {"name": b"Test GPU", "major": 9, "minor": 0, **names}

    def Stream(self, non_blocking: bool) -> SimpleNamespace:  # noqa: N802
        assert non_blocking
        return SimpleNamespace(ptr=5, synchronize=lambda: None)

    def Memory(self, size: int) -> SimpleNamespace:  # noqa: N802
        memory = np.zeros(size + 16, np.uint8)
        return SimpleNamespace(ptr=memory.ctypes.data + -memory.ctypes.data % 16, memory=memory)

    def alloc_pinned_memory(self, size: int) -> bytearray:
        return bytearray(size + 3)  # CuPy's are larger than asked for

    def memcpyAsync(self, to: int, source: int, size: int, _kind: int, _stream: int) -> None:  # noqa: N802
        ctypes.memmove(to, source, size)

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:  # noqa: N802
        if value > 64 << 10:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE")
        if attribute == self.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
            self.shared[function] = value

    def funcGetAttribute(self, attribute: int, _function: int) -> int:  # noqa: N802
        assert attribute == self.CU_FUNC_ATTRIBUTE_NUM_REGS
        return 96

    def occupancyMaxActiveBlocksPerMultiprocessor(self, _function: int, threads: int, _shared: int) -> int:  # noqa: N802
        assert threads == 32
        return 1

    def deviceGetPCIBusId(self, _index: int) -> str:  # noqa: N802
        return "0000:3b:00.0"

    def driverGetVersion(self) -> int:  # noqa: N802
        return 13000

    runtimeGetVersion = driverGetVersion  # noqa: N815

    def get_elapsed_time(self, first: Any, second: Any) -> float:
        elapsed: float = second.at - first.at
        return elapsed


def test_a_gpu_is_measured_through_cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = Cupy()
    monkeypatch.setattr(nvrtc, "import_cupy", lambda: cupy)
    monkeypatch.setattr(cubins, "architecture_for", lambda major, minor: f"sm_{major}{minor}")
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    units = [unit for unit in gpu_device.all_units() if unit.bytes == 256]
    names = {unit: str(unit).encode() for unit in units if str(unit) != "int32-2048-t8-w3"}
    monkeypatch.setattr(cubins, "cached_cubins", lambda *_: names)
    device = gpu_device.CudaDevice(0, CubinCache(tmp_path), units)
    assert device.missing()["int32-2048-t8-w3"] == "not compiled"
    assert "shared memory" in device.missing()["fp64-2048-t4-w5"]  # 80 KiB are more than this GPU has
    described = json.loads(json.dumps({**device.describe(), **device.describe_kernels()}))
    assert described["pci_bus_id"] == "0000:3b:00.0"
    assert described["full_rows"]["fp64-2048-t8-w5"] == 8
    pipe = io.StringIO()
    variants = sorted(set(device.variants()) & set(gpu_device.HostDevice().variants()))
    gpu_correctness.check(device, variants, 5, True, Report(pipe))
    gpu_sweep.measure(device, variants, True, Report(pipe))
    lines = [json.loads(line) for line in pipe.getvalue().splitlines()]
    assert not any("mismatch" in line for line in lines)
    samples = [line["sample"] for line in lines if "sample" in line]
    assert {sample["variant"] for sample in samples} == {str(variant) for variant in variants}
    cupy.functions.clear()
    (one,) = (unit for unit in units if str(unit) == "int32-2048-t8-w4")
    assert gpu_device.CudaDevice(0, CubinCache(tmp_path), [one]).variants() == [VARIANT]
    assert {unit for unit, _ in cupy.functions} == {"int32-2048-t8-w4"}  # nothing else was loaded
    assert all(
        sample["ok"] and sample["kernel_seconds"] == [1e-3] for sample in samples if sample["section"] == "sweep"
    )


def test_the_files_need_nothing_that_a_cuda_image_lacks() -> None:
    """No matplotlib, and no test's package."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'trustme', 'uvloop', 'cupy']))"
    code = f"{blocked}; from bench import gpu, gpu_section; sys.exit(gpu.main(['--help']))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_rows_and_numbers_are_each_others_inverse() -> None:
    numbers = [0, 1, 2**2048 - 1, 0x0102]
    rows = gpu_batches.to_rows(numbers, 256)
    assert rows.dtype == np.uint8
    assert rows[3, :2].tolist() == [2, 1]
    assert gpu_batches.to_numbers(rows) == numbers
