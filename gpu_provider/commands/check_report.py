"""What ``gpu-provider check`` prints."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from gpu_provider.commands.signatures import MEASUREMENTS, measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gpu_provider.commands.counts import Counts, Program
    from gpu_provider.commands.signatures import Signing, Speed

__all__ = ["Report"]


class Report:
    """Tables for people, JSON lines for programs."""

    def __init__(self, output: str) -> None:
        self._console = Console()
        self._as_table = output == "table" or (output == "auto" and self._console.is_terminal)

    def _event(self, event: str, /, **values: object) -> None:
        if not self._as_table:
            print(json.dumps({"event": event, **values}), flush=True)

    def _print(self, line: str) -> None:
        if self._as_table:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def environment(self, path: Path, version: str, libcrypto: str) -> None:
        self._event(
            "environment", configuration=str(path), is_there=path.is_file(), version=version, libcrypto=libcrypto
        )
        self._print(f"configuration  {path}" + ("" if path.is_file() else " (not there)"))
        self._print(f"libcrypto      {version}, {libcrypto}")

    def signed(self, provider: str, reason: str | None) -> None:
        """``reason``: why the module is not reached."""
        self._event("signed", computed_by=provider, reached=reason is None, reason=reason)
        self._print(f"computed by    {provider}")
        self._print("The module is reached." if reason is None else f"The module is not reached: {reason}.")

    def mistake(self, mistake: str) -> None:
        self._event("mistake", mistake=mistake)
        self._print(f"Mistake: {mistake}.")

    def groups(self, by: str | None, words: str) -> None:
        self._event("groups", computed_by=by, words=words)
        self._print(words)

    def speeds(self, signing: Signing, seconds: float) -> None:
        table = Table(
            "key", "at a time", "OpenSSL alone", "with the module", "in groups", "of", "by the service",
            title="Signatures per second, on one core",
        )  # fmt: skip
        progress = Progress(
            TextColumn("measuring"),
            BarColumn(),
            MofNCompleteColumn(),
            console=self._console,
            transient=True,
            disable=not (self._as_table and self._console.is_terminal),
        )
        with progress as bar:
            task = bar.add_task("", total=MEASUREMENTS)
            for speed in measure(signing, seconds):
                bar.advance(task)
                if speed is not None:
                    self._event("speed", **asdict(speed))
                    table.add_row(*_speed_row(speed))
        if self._as_table:
            self._console.print(table)

    def counts(self, directory: Path, programs: Sequence[Program]) -> None:
        for program in programs:
            self._event("counts", **asdict(program) | {"file": str(program.file)})
        if not self._as_table:
            return
        table = Table(
            "process", "key", "by OpenSSL", "in groups", "of", "waited", "groups in vain", "by the service",
            title=f"Operations counted in {directory}",
        )  # fmt: skip
        for program in programs:
            _add_counts(table, str(program.process), program.counts)
        if programs:
            self._console.print(table)
        else:
            self._print(f"No running program counts in {directory}.")

    def advice(self, advice: Mapping[str, tuple[str, list[str]]]) -> None:
        for program, (sentence, lines) in advice.items():
            self._event("advice", program=program, sentence=f"{sentence}.", lines=lines)
            self._print(f"\n{program}. {sentence}:")
            for line in lines:
                self._print(f"    {line}")


def _speed_row(speed: Speed) -> list[str]:
    return [
        f"RSA-{speed.bits}",
        str(speed.threads),
        f"{speed.openssl:,.0f}",
        f"{speed.module:,.0f}",
        f"{speed.counts.grouped / speed.counts.operations:.0%}",
        _group_size(speed.counts),
        f"{speed.counts.served / speed.counts.operations:.0%}",
    ]


def _add_counts(table: Table, process: str, counts: Mapping[int, Counts]) -> None:
    used = {bits: count for bits, count in counts.items() if count.operations}
    if not used:
        table.add_row(process, "none yet")
    for bits, count in used.items():
        table.add_row(
            process,
            f"RSA-{bits}",
            f"{count.singles:,}",
            f"{count.grouped:,}",
            _group_size(count),
            f"{count.waits:,}",
            f"{count.waits_in_vain:,}",
            f"{count.served:,}",
        )
        process = ""


def _group_size(counts: Counts) -> str:
    return f"{counts.grouped / counts.groups:.1f}" if counts.groups else ""
