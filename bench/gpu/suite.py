"""One run of the GPU suite: its sections one after the other, within the time that is given, and what they find."""

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import msgspec
from rich.progress import Progress

from gpu_provider.errors import BackendError
from gpu_provider.observe.nvml import GpuFigures, Nvml

from .. import report
from . import plan
from .files import Files
from .goals import GOALS
from .plan import SANITIZERS, Section, default_unit
from .process import Outcome, run_process
from .report import AnySample, Device, Profiled, read_line
from .section import NO_DEVICE, Options
from .summary import summarise

WATCH_SECONDS = 0.25
SANITIZER_FOUND_ERRORS = 66
ENDING_SECONDS = 3.0
"""Kept free for ending the last section and saving."""
METRIC = re.compile(
    r"^\s+(Duration|Elapsed Cycles|SM Frequency|Executed Ipc Active|Issue Slots Busy|No Eligible|Theoretical Occupancy"
    r"|Achieved Occupancy|Registers Per Thread)\s+(\S+)\s+([\d,.]+)\s*$"
)


class Suite:
    """Runs the sections, and saves everything that is known after each."""

    def __init__(self, options: Options, commit: str | None, end: float, files: Files, progress: Progress) -> None:
        """``end``: when all must be over, by ``time.monotonic()``."""
        self.outcomes: dict[str, Outcome] = {}
        self.mismatches: list[dict[str, Any]] = []
        self.unsaved: OSError | None = None
        self._device: dict[str, Any] = {}
        self._samples: list[AnySample] = []
        self._notes: list[str] = []
        self._watched: dict[str, dict[str, dict[str, float]]] = {}
        self._texts: dict[str, str] = {}
        self._figures: list[tuple[float, GpuFigures]] = []  # and when each was read
        self._options = options
        self._commit = commit
        self._end = end
        self._files = files
        self._progress = progress

    @property
    def device(self) -> Device:
        return msgspec.convert(self._device, Device)

    @property
    def _what(self) -> str:
        return "-".join(["gpu", *re.findall("[a-z0-9]+", (self.device.name or "").lower())])

    async def run(self, names: Sequence[str]) -> None:
        """Runs the named sections and those that they need. Raises BackendError if the device is not there; then
        nothing is saved. When this is cancelled, the running section is ended, and the others are not run."""
        sections = plan.chosen(names)
        try:
            for place, section in enumerate(sections):
                self.outcomes[section.name] = Outcome("stopped", reason="by a signal")
                self.outcomes[section.name] = outcome = await self._run_section(section, sections[place + 1 :])
                if section.name == "machine":
                    if outcome.code == NO_DEVICE:
                        raise BackendError(outcome.output or "there is no such device")
                    if self.device.pci_bus_id:
                        threading.Thread(target=self._watch, args=(self.device.pci_bus_id,), daemon=True).start()
                self._tell(section.name, outcome)
                self.save()
                if section.name in {"machine", "smoke"} and outcome.status in {"failed", "out of time"}:
                    await self._give_up(section, sections[place + 1 :])
                    break
        except asyncio.CancelledError:
            for section in sections:
                self.outcomes.setdefault(section.name, Outcome("not run", reason="the run was stopped by a signal"))
            self.save()
            raise

    def _watch(self, pci_bus_id: str) -> None:
        """Reads the GPU's figures, on a thread of its own, so that a hanging driver holds up nothing else."""
        nvml = Nvml()
        while (now := nvml.read(pci_bus_id)) is not None:
            self._figures.append((time.monotonic(), now))
            time.sleep(WATCH_SECONDS)

    def _tell(self, name: str, outcome: Outcome) -> None:
        reason = f": {outcome.reason}" if outcome.reason else ""
        after = f" after {outcome.seconds:.1f} s" if outcome.seconds else ""
        line = f"{name}: {outcome.status}{after}{reason}"
        self._files.write(line)
        style = "red" if outcome.status in {"failed", "out of time"} else None
        self._progress.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    async def _give_up(self, failed: Section, later: Sequence[Section]) -> None:
        """After a failed smoke test no measurement means anything, but why it failed is worth knowing."""
        for section in later:
            self.outcomes[section.name] = Outcome("not run", reason=f"{failed.name} failed")
        if failed.name == "smoke":
            tool = next(section for section in plan.PLAN if section.name == SANITIZERS[0])
            unit = default_unit(self.device.architecture)
            self.outcomes[f"{tool.name} of {unit}"] = outcome = await self._sanitize(tool, [], [unit])
            self._tell(f"{tool.name} of {unit}", outcome)
        self.save()

    async def _run_section(self, section: Section, later: Sequence[Section]) -> Outcome:
        if section.name in SANITIZERS:
            return await self._sanitize(section, later, plan.sanitized_units(self.device.architecture))
        if section.name == "ncu":
            return await self._profile(section, later)
        outcome, _ = await self._run_child(section, later, section.name, self._options)
        return outcome

    async def _run_child(
        self, section: Section, later: Sequence[Section], program: str, options: Options, before: Sequence[str] = ()
    ) -> tuple[Outcome, list[str]]:
        """``before``: the tool that runs the section, and its arguments. What the tool prints is returned, and is no
        fault."""
        started = time.monotonic()
        left = self._end - ENDING_SECONDS - started
        seconds = plan.time_for(section, later, left)
        if seconds is None:
            return Outcome("skipped", reason=f"{max(0, left):.0f} s left, {section.least:g} needed"), []
        printed: list[str] = []
        task = self._progress.add_task(section.name, total=None)

        def log(line: str) -> None:
            if self._files.log(line):
                printed.append(line)

        self._files.begin_section(f"{section.name}, at most {seconds:.0f} s")
        command = [*before, sys.executable, "-m", "bench.gpu.section", program, json.dumps(asdict(options))]
        try:
            is_tool = bool(before)
            outcome = await run_process(
                command, seconds, lambda line: self._take(line, section.name, task, is_tool), log,
                reports_only=not is_tool,
            )  # fmt: skip
        except OSError as error:
            return Outcome("failed", reason=f"it can't be started: {error}"), []
        finally:
            self._progress.remove_task(task)
            if figures := [now for at, now in self._figures if at >= started]:
                self._watched[section.name] = _spreads(figures)
        return outcome, printed

    def _take(self, text: bytes, section: str, task: Any, is_tool: bool) -> bool:
        """Uses a line of a section; False if it means nothing."""
        line = read_line(text)
        if line is None:
            return False
        if line.progress is not None:
            what = f"{section}: {line.progress.what}"
            self._progress.update(task, description=what, total=line.progress.total, advance=1)
        if line.sample is not None and not is_tool:  # a tool slows down what it looks at
            self._samples.append(line.sample)
        if line.note is not None:
            self._notes.append(line.note)
        if line.device is not None:
            self._device |= line.device
        if line.mismatch is not None:
            self.mismatches.append(line.mismatch)
        return True

    async def _profile(self, section: Section, later: Sequence[Section]) -> Outcome:
        program = self._find("ncu")
        if isinstance(program, Outcome):
            return program
        choice = [argument for name in plan.NCU_SECTIONS for argument in ("--section", name)]
        arguments = ("--clock-control", "none", "--kernel-name", "gpk_private", "--launch-skip", "1")
        before = (program, *arguments, "--launch-count", "1", *choice)
        options = replace(self._options, names=[default_unit(self.device.architecture)])
        outcome, printed = await self._run_child(section, later, "profile", options, before)
        self._texts["ncu"] = "\n".join(printed)
        for found in filter(None, map(METRIC.match, printed)):
            metric, unit, value = found.groups()
            self._samples.append(Profiled(metric=metric, unit=unit, value=float(value.replace(",", ""))))
        return outcome

    async def _sanitize(self, section: Section, later: Sequence[Section], units: list[str]) -> Outcome:
        program = self._find("compute-sanitizer")
        if isinstance(program, Outcome):
            return program
        before = (program, "--tool", section.name, "--error-exitcode", str(SANITIZER_FOUND_ERRORS))
        options = replace(self._options, names=units, rows=plan.SANITIZED_ROWS)
        outcome, printed = await self._run_child(section, later, "correctness", options, before)
        text = [self._texts.get("sanitizer", ""), f"{section.name} of {' '.join(units)}: {outcome.status}", *printed]
        self._texts["sanitizer"] = "\n".join(text).lstrip()
        return outcome

    def _find(self, tool: str) -> str | Outcome:
        if self._options.device == "host":
            return Outcome("not run", reason=f"{tool} looks at GPUs alone")
        return plan.find_tool(tool) or Outcome("not run", reason=f"{tool} is not installed")

    def save(self) -> None:
        """What can't be saved now may be saved after the next section."""
        self._files.name(self._what)
        try:
            for name, text in self._texts.items():
                report.replace_file(self._files.path(f"-{name}.txt"), text + "\n")
            report.write(self.result(), self._files.path(".json"))
            self.unsaved = None
        except OSError as error:
            self.unsaved = error
            self._progress.console.print(f"the results can't be saved: {error}", style="red", markup=False)

    def result(self) -> report.Result:
        name = self.device.name or f"device {self._options.device}"
        parameters = {
            "tiny": self._options.tiny,
            "device": self._device,
            "sections": {name: asdict(outcome) for name, outcome in self.outcomes.items()},
            "mismatches": self.mismatches,
            "nvml": self._watched,
            "commit": self._commit,
            "goals": {bits: asdict(goal) for bits, goal in GOALS.get(self.device.architecture or "", {}).items()},
        }
        result = report.Result(self._what, f"CUDA kernels and backend on {name}", parameters)
        result.samples = [msgspec.to_builtins(sample) for sample in self._samples]
        result.notes = list(self._notes)
        for section, outcome in self.outcomes.items():
            if outcome.status != "done":
                result.notes.append(f"{section}: {outcome.status}: {outcome.reason}")
        for mismatch in self.mismatches:
            result.notes.append(f"WRONG: {mismatch.get('kernel')}, row {mismatch.get('row')}: see the file")
        clocks = {
            section: figures["sm_clock_hertz"]["median"]
            for section, figures in self._watched.items()
            if "sm_clock_hertz" in figures
        }
        summarise(result, self._samples, self.device, clocks)
        return result


def _spreads(figures: Sequence[GpuFigures]) -> dict[str, dict[str, float]]:
    columns = {name: [asdict(now)[name] for now in figures] for name in asdict(figures[0])}
    return {name: asdict(report.Spread.of(values)) for name, values in columns.items() if None not in values}
