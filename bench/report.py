"""Results: rows with spread and target, shown as a table or as JSON lines, and saved as JSON."""

import datetime
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import environment


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratios(cls, values: Sequence[float], baselines: Sequence[float]) -> Self:
        """The spread of the ratios within each round: what disturbs a whole round does not move them."""
        return cls.of([value / baseline for value, baseline in zip(values, baselines, strict=True)])

    def __str__(self) -> str:
        def digits(value: float) -> str:
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"

        return f"{digits(self.median)} ({digits(self.low)} to {digits(self.high)})"


@dataclass(frozen=True)
class Target:
    """A bound for the median of the ratio, or of the measured value where there is no baseline."""

    limit: float
    at_most: bool = True
    goal: bool = False  # worth reaching, not required

    def __str__(self) -> str:
        return f"{'goal ' if self.goal else ''}{'≤' if self.at_most else '≥'} {self.limit:,g}"


@dataclass(frozen=True)
class Row:
    case: str
    subject: str
    unit: str
    measured: Spread
    baseline: str | None = None
    ratio: Spread | None = None
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        median = (self.ratio or self.measured).median
        return median <= self.target.limit if self.target.at_most else median >= self.target.limit

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True)
class Curve:
    """A measured value that depends on a number."""

    subject: str
    x: str
    y: str
    points: list[tuple[float, Spread]]
    logarithmic: bool = False


@dataclass(frozen=True)
class Bars:
    """A measured value of several subjects in several cases, side by side."""

    title: str
    y: str
    heights: dict[str, dict[str, Spread]]
    """By subject, then by case."""


@dataclass
class Result:
    """One measurement: its parameters, every raw sample, what is drawn from them, and what could not be measured."""

    what: str
    title: str
    parameters: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    draw_rows: bool = True
    """False where the curves or bars say enough."""

    def values(self, key: str, **match: Any) -> list[float]:
        """``key`` of the samples that agree with ``match``, in the order they were taken."""
        return [
            sample[key]
            for sample in self.samples
            if all(sample.get(name) == value for name, value in match.items())
        ]  # fmt: skip

    def add_row(
        self, case: str, subject: str, unit: str, values: Sequence[float], *,
        to: tuple[str, Sequence[float]] | None = None, target: Target | None = None,
    ) -> None:  # fmt: skip
        """``values``: one for each round. ``to``: what they are compared with, and its values."""
        ratio = Spread.of_ratios(values, to[1]) if to else None
        self.rows.append(Row(case, subject, unit, Spread.of(values), to[0] if to else None, ratio, target))


def save(result: Result, directory: Path) -> Path:
    """Writes ``DATE-WHAT.json`` into the directory; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{result.what}.json"
    write(result, path)
    return path


def write(result: Result, path: Path) -> None:
    document = {
        "what": result.what,
        "title": result.title,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment.describe(),
        "parameters": result.parameters,
        "rows": [row.as_json() for row in result.rows],
        "curves": [asdict(curve) for curve in result.curves],
        "bars": [asdict(bars) for bars in result.bars],
        "notes": result.notes,
        "draw_rows": result.draw_rows,
        "samples": result.samples,
    }
    replace_file(path, json.dumps(document, indent=1) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Who opens the file meanwhile finds all of the old text or all of the new."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def progress_on(console: Console, *, prefix: str = "") -> Progress:
    """A bar that is shown on a terminal alone, and goes when its work is done."""
    columns = (TextColumn(f"{prefix}{{task.description}}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def show(result: Result, console: Console) -> None:
    """A table on a terminal, one JSON object per row into a pipe."""
    if not console.is_terminal:
        for row in result.rows:
            console.file.write(json.dumps({"what": result.what, **row.as_json()}) + "\n")
        for note in result.notes:
            console.file.write(json.dumps({"what": result.what, "note": note}) + "\n")
        console.file.flush()
        return
    table = Table(title=result.title, title_justify="left", caption_justify="left", caption="\n".join(result.notes))
    table.add_column("case")
    table.add_column("measured on")
    table.add_column("median (min to max)", justify="right")
    table.add_column("unit")
    table.add_column("ratio (min to max)", justify="right")
    table.add_column("to")
    table.add_column("target", justify="right")
    table.add_column("met")
    for _, group in itertools.groupby(result.rows, key=lambda row: (row.case, row.unit)):
        table.add_section()
        for row in group:
            met = {None: "", True: "[green]yes", False: "[yellow]no" if row.target and row.target.goal else "[red]no"}
            table.add_row(
                row.case, row.subject, str(row.measured), row.unit,
                str(row.ratio or ""), row.baseline or "", str(row.target or ""), met[row.met],
            )  # fmt: skip
    console.print(table)
