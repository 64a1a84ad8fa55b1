"""The screen of ``gpu-provider top``."""

from __future__ import annotations

import math
import time
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING

from rich.console import Group
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from gpu_provider.commands.scrapes import UnreachableError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from gpu_provider.commands.look import Backend, Connections, Latency, Look, Programs

__all__ = ["Screen"]

_GAP = (0, 2)
_NONE = "-"
_OTHER_LINES = 15
"""Of the screen, with three programs: not of the batch sizes."""


class Screen:
    """A rich renderable: the last look, as large as the terminal allows."""

    def __init__(self, address: str, interval: float) -> None:
        self._address = address
        self._interval = interval
        self._look: Look | None = None
        self._time = ""
        self._lost: str | None = None

    def show(self, look: Look | UnreachableError) -> None:
        """An UnreachableError is shown over the last look."""
        if isinstance(look, UnreachableError):
            self._lost = f"no answer since {self._time or 'the start'}, trying again: {look}"
        else:
            self._look, self._lost, self._time = look, None, time.strftime("%H:%M:%S")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._head(), options)
        if self._look is not None:
            sides = _sides(_batch_sizes(self._look, console.size.height - _OTHER_LINES), _costs(self._look))
            lines += console.render_lines(Group("", _summary(self._look), "", sides, ""), options)
            lines += console.render_lines(_lower(self._look, console.size.height - len(lines)), options)
        for i, line in enumerate(lines[: console.size.height]):
            if i > 0:
                yield Segment.line()
            yield from line

    def _head(self) -> RenderableType:
        if self._lost is not None:
            return Text(self._lost, style="bold red")
        if self._look is None:
            return Text(f"{self._address}: the first figures come in {self._interval:g} s")
        what = " and ".join(
            name
            for name, part in (("terminator", self._look.connections), ("service", self._look.programs))
            if part is not None
        )
        head = Table.grid(expand=True)
        head.add_column(ratio=1, no_wrap=True)
        head.add_column(justify="right", no_wrap=True)
        head.add_row(
            Text.assemble((what, "bold"), f" at {self._address}"), f"gpu-provider {self._look.version}   {self._time}"
        )
        return head


class _Bar:
    """A renderable: this share of the width."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        mark = "#" if options.ascii_only else "█"
        yield Text(mark * math.ceil(self._share * options.max_width), style="cyan")


def _lower(look: Look, height: int) -> Group:
    parts: list[RenderableType] = []
    if look.connections is not None:
        parts += [_connections(look.connections), ""]
        height -= 4
    if look.programs is not None:
        parts.append(_programs(look.programs, height))
    return Group(*parts)


def _sides(left: RenderableType, right: RenderableType) -> Table:
    sides = Table.grid(expand=True, padding=(0, 3, 0, 0))
    sides.add_column(ratio=1)
    sides.add_column(ratio=1)
    sides.add_row(left, right)
    return sides


def _figures(rows: list[list[tuple[str, str | Text]]]) -> Table:
    """Names with their values."""
    table = Table.grid(padding=_GAP, expand=True)
    for _ in range(max(map(len, rows))):
        table.add_column(no_wrap=True, style="dim")
        table.add_column(no_wrap=True, justify="right")
    for row in rows:
        table.add_row(*(cell for pair in row for cell in pair))
    return table


def _summary(look: Look) -> Table:
    return _figures(
        [
            [
                ("requests/s", _rate(look.requests_per_second)),
                ("batches/s", _rate(look.batches_per_second)),
                ("queue", f"{look.queue_in_use:,} of {look.queue_depth:,}"),
            ],
            [
                ("failed/s", _alarming(look.failed_per_second)),
                ("mean batch", _NONE if look.mean_batch is None else f"{look.mean_batch:,.1f}"),
                ("in line", f"{look.queue_in_line:,}"),
            ],
            [
                ("retries/s", _rate(look.retries_per_second)),
                ("groups full", _NONE if look.fill is None else f"{look.fill:.0%}"),
                ("", ""),
            ],
        ]
    )


def _batch_sizes(look: Look, height: int) -> Table:
    """In at most ``height`` lines, if they are enough for a few buckets: neighbours are put together for that."""
    sizes = list(look.batch_sizes.items())
    while len(sizes) > max(4, height):
        pairs = zip_longest(sizes[::2], sizes[1::2], fillvalue=(0, 0.0))
        sizes = [(max(low, high), below + above) for (low, below), (high, above) in pairs]
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True, header_style="bold", pad_edge=False)
    table.add_column("batch size", justify="right", no_wrap=True)
    table.add_column("", ratio=1)
    table.add_column("batches/s", justify="right", no_wrap=True)
    most = max((count for _, count in sizes), default=0.0)
    for (lower, _), (upper, count) in pairwise([(0, 0.0), *sizes]):
        size = str(upper) if upper == lower + 1 else f"{lower + 1:,}-{upper:,}"
        table.add_row(size, _Bar(count / most if most else 0.0), _rate(count / look.seconds))
    return table


def _costs(look: Look) -> Group:
    times = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="bold", pad_edge=False)
    times.add_column("time of a batch", ratio=1, no_wrap=True)
    times.add_column("p50", justify="right", no_wrap=True)
    times.add_column("p99", justify="right", no_wrap=True)
    times.add_row("in the queue", *_quantiles(look.queued))
    times.add_row("being computed", *_quantiles(look.computed))
    total = sum(backend.requests_per_second for backend in look.backends)
    backends: list[RenderableType] = [_backend(Text("computed by"), "requests/s", "share", "bold")]
    for backend in look.backends:
        rate = backend.requests_per_second
        name = Text(backend.name) if backend.in_use else Text(f"{backend.name}: out of use", style="red")
        backends.append(_backend(name, _rate(rate), f"{rate / total:.0%}" if total else _NONE))
        if figures := _gpu_figures(backend):
            backends.append(Text(f"  {figures}", style="dim", no_wrap=True))
    return Group(times, "", *backends)


def _backend(name: Text, rate: str, share: str, style: str = "none") -> Table:
    row = Table.grid(expand=True, padding=_GAP)
    row.add_column(ratio=1, no_wrap=True, style=style)
    row.add_column(width=10, justify="right", no_wrap=True, style=style)
    row.add_column(width=5, justify="right", no_wrap=True, style=style)
    row.add_row(name, rate, share)
    return row


def _gpu_figures(backend: Backend) -> str:
    used, total = backend.memory_used_bytes, backend.memory_total_bytes
    figures = (
        None if backend.utilization is None else f"{backend.utilization:.0%} busy",
        None if backend.power_watts is None else f"{backend.power_watts:.0f} W",
        None if backend.temperature_celsius is None else f"{backend.temperature_celsius:.0f} C",
        None if used is None or total is None else f"{used / 2**30:.0f} of {total / 2**30:.0f} GiB",
    )
    return ", ".join(figure for figure in figures if figure is not None)


def _connections(connections: Connections) -> Table:
    handshake = connections.handshake
    return _figures(
        [
            [
                ("connections", f"{connections.open:,} of {connections.max_connections:,}"),
                ("accepted/s", _rate(connections.accepted_per_second)),
                ("relayed", f"{connections.bytes_per_second / 1e6:,.1f} MB/s"),
            ],
            [
                ("handshakes/s", _rate(connections.handshakes_per_second)),
                ("resumed/s", _rate(connections.resumed_per_second)),
                ("failed/s", _alarming(connections.failed_per_second)),
            ],
            [("handshake p50", _seconds(handshake.p50)), ("p99", _seconds(handshake.p99)), ("", "")],
        ]
    )


def _programs(programs: Programs, height: int) -> Group:
    """At most ``height`` lines."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("program", min_width=15, no_wrap=True)
    table.add_column("user", width=10, no_wrap=True)
    for name in ("processes", "requests/s", "failed/s", "keys", "descriptors"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = max(1, height - 2)
    for one in programs.by_program[:shown]:
        table.add_row(
            Text(one.program),
            Text(one.user),
            f"{one.processes:,}",
            _rate(one.requests_per_second),
            _alarming(one.failed_per_second),
            f"{one.keys:,}",
            f"{one.descriptors:,}",
        )
    more = len(programs.by_program) - shown
    totals = f"{programs.processes:,} of {programs.max_processes:,} processes"
    if more > 0:
        totals = f"and {more} more; {totals}"
    since_start = f"{programs.refused:,} refused and {programs.protocol_errors:,} cut off since the start"
    return Group(table, Text(f"{totals}; {since_start}", style="dim", no_wrap=True))


def _quantiles(latency: Latency) -> tuple[str, str]:
    return _seconds(latency.p50), _seconds(latency.p99)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.{1 if seconds < 0.1 else 0}f} ms"


def _alarming(rate: float) -> Text:
    return Text(_rate(rate), style="bold red" if rate else "")


def _rate(rate: float) -> str:
    return f"{rate:,.1f}" if 0 < rate < 10 else f"{math.floor(rate + 0.5):,}"
