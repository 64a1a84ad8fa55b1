"""Reports what happened in the demo: a table for people, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Report", "Summary"]

_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Summary:
    """What the demo measured. Latencies are seconds as the clients saw them, in ascending order."""

    handshakes: int
    errors: int
    first_error: str | None
    by_version: dict[str, int]
    seconds: float
    latencies: tuple[float, ...]
    batches: int
    mean_batch: float
    largest_batch: int
    retries: int
    backend: str
    terminator_exit_code: int

    @property
    def succeeded(self) -> bool:
        return self.errors == 0 and self.handshakes > 0 and self.terminator_exit_code == 0

    @property
    def handshakes_per_second(self) -> float:
        return self.handshakes / self.seconds if self.seconds else 0.0

    def latency(self, percent: int) -> float:
        """The nearest-rank percentile; 0 if nothing was measured."""
        if not self.latencies:
            return 0.0
        return self.latencies[max(0, -(-len(self.latencies) * percent // 100) - 1)]


class Report:
    """Progress while the demo runs, and the summary after it."""

    def __init__(self, connections: int, output: str) -> None:
        """``output``: "table", "json", or "auto": a table on a terminal, JSON lines into a pipe."""
        self._console = Console()
        self._as_table = output == "table" or (output == "auto" and self._console.is_terminal)
        self._told = 0.0
        self._connections = connections
        self._bar = Progress(
            TextColumn("connections"),
            BarColumn(),
            MofNCompleteColumn(),
            console=self._console,
            transient=True,
            disable=not (self._as_table and self._console.is_terminal),
        )
        self._task = self._bar.add_task("connections", total=connections)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def progress(self, succeeded: int, failed: int) -> None:
        self._bar.update(self._task, completed=succeeded + failed)
        now = time.monotonic()
        if not self._as_table and now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            _print_json(event="progress", succeeded=succeeded, failed=failed, connections=self._connections)

    def finish(self, summary: Summary) -> None:
        self._bar.stop()
        if self._as_table:
            self._print_table(summary)
        else:
            _print_json(
                event="result",
                succeeded=summary.succeeded,
                handshakes=summary.handshakes,
                errors=summary.errors,
                first_error=summary.first_error,
                by_version=summary.by_version,
                seconds=round(summary.seconds, 3),
                handshakes_per_second=round(summary.handshakes_per_second, 1),
                handshake_p50_seconds=round(summary.latency(50), 4),
                handshake_p99_seconds=round(summary.latency(99), 4),
                batches=summary.batches,
                mean_batch=summary.mean_batch,
                largest_batch=summary.largest_batch,
                retries=summary.retries,
                backend=summary.backend,
                terminator_exit_code=summary.terminator_exit_code,
            )

    def _print_table(self, summary: Summary) -> None:
        versions = ", ".join(f"{count} {version}" for version, count in summary.by_version.items())
        table = Table("gpu-provider demo", "", title_justify="left")
        for name, value in (
            ("handshakes", f"{summary.handshakes} ({versions})"),
            ("errors", str(summary.errors)),
            ("handshakes per second", f"{summary.handshakes_per_second:.0f}"),
            ("handshake latency, median", f"{summary.latency(50) * 1e3:.1f} ms"),
            ("handshake latency, 99th percentile", f"{summary.latency(99) * 1e3:.1f} ms"),
            ("batches", str(summary.batches)),
            ("RSA operations per batch, mean", f"{summary.mean_batch:.1f}"),
            ("largest batch", str(summary.largest_batch)),
            ("retries (queue full)", str(summary.retries)),
            ("computed by", summary.backend),
        ):
            table.add_row(name, value)
        self._console.print(table)
        if summary.first_error is not None:
            self._console.print(f"first error: {summary.first_error}", markup=False)
        if summary.terminator_exit_code:
            self._console.print(f"the terminator ended with exit code {summary.terminator_exit_code}")


def _print_json(**values: object) -> None:
    print(json.dumps(values), file=sys.stdout, flush=True)
