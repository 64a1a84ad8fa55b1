"""``gpu-provider top``: what a service or a terminator does now."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from gpu_provider.addresses import named, parse_address
from gpu_provider.commands.look import look
from gpu_provider.commands.scrapes import Change, UnreachableError, scrape
from gpu_provider.commands.top_screen import Screen
from gpu_provider.errors import ConfigError
from gpu_provider.observe.admin import SERVICE_ADDRESS, TERMINATOR_ADDRESS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from gpu_provider.addresses import Address
    from gpu_provider.commands.look import Look
    from gpu_provider.commands.scrapes import Scrape

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Show what a service or a terminator does now: requests and batches per second, how large batches are, the queue, how
long requests take, what computes them, and for whom. The figures come from its admin port, and are for the time since
the last look. Ctrl-C ends it."""

_DEFAULTS = (SERVICE_ADDRESS, TERMINATOR_ADDRESS)
_TERMINATED = 128 + signal.SIGTERM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--admin",
        metavar="HOST:PORT",
        help=f"the admin port of a service or a terminator (default: {SERVICE_ADDRESS}, the service's; if nothing "
        f"answers there, {TERMINATOR_ADDRESS}, the terminator's)",
    )
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="time between two looks (default: 1)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="end after so many looks (default: on Ctrl-C)")
    parser.add_argument(
        "--output",
        choices=("auto", "json"),
        default="auto",
        help="one JSON object per look (default: a screen on a terminal, JSON into a pipe)",
    )


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError, and UnreachableError if nothing answers at first."""
    if not 0.1 <= args.interval <= 3600:
        raise ConfigError(f"--interval {args.interval:g}: it must be from 0.1 to 3600 seconds")
    if args.count is not None and args.count < 1:
        raise ConfigError(f"--count {args.count}: it must be at least 1")
    with named("--admin"):
        addresses = [parse_address(text, any_host=False) for text in ([args.admin] if args.admin else _DEFAULTS)]
    address, first = _find(addresses)
    console = Console()
    try:
        if args.output == "json" or not console.is_terminal:
            _print_json(_looks(address, first, args.interval, args.count))
        else:
            _show(console, address, _looks(address, first, args.interval, args.count), args.interval)
    except KeyboardInterrupt:
        pass  # it has no other end
    return 0


def _find(addresses: Sequence[Address]) -> tuple[Address, Scrape]:
    failures = []
    for address in addresses:
        try:
            return address, scrape(address)
        except UnreachableError as error:
            failures.append(str(error))
    raise UnreachableError(f"{'; '.join(failures)}. Name the admin port of one that runs: --admin HOST:PORT")


def _looks(address: Address, last: Scrape, interval: float, count: int | None) -> Iterator[Look | UnreachableError]:
    """One after each interval. An UnreachableError is yielded, and it is tried again."""
    due = last.seconds
    for _ in itertools.count() if count is None else range(count):
        due = max(due + interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            now = scrape(address)
        except UnreachableError as error:
            yield error
            continue
        yield look(now, Change(last, now))
        last = now


def _print_json(looks: Iterator[Look | UnreachableError]) -> None:
    for one in looks:
        timestamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        if isinstance(one, UnreachableError):
            event: dict[str, object] = {"event": "unreachable", "time": timestamp, "reason": str(one)}
        else:
            event = {"event": "look", "time": timestamp, **asdict(one)}
        print(json.dumps(event), flush=True)


def _show(console: Console, address: Address, looks: Iterator[Look | UnreachableError], interval: float) -> None:
    """In the terminal's other screen, if it has one. The last look is left in the usual one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # so that the terminal is left as it was
    screen = Screen(str(address), interval)
    try:
        with Live(screen, console=console, screen=True, auto_refresh=False) as live:
            for one in looks:
                screen.show(one)
                live.refresh()
    finally:
        console.print(screen)
