"""How short of processors this process is, as the kernel counts it."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from gpu_provider.engine.scheduler import Shortage

__all__ = ["Processors"]

_STALLED = ("/sys/fs/cgroup/cpu.pressure", "/proc/pressure/cpu")
"""Pressure stall information: the container's own, which counts a used-up quota too, and the host's.
Documentation/accounting/psi.rst in Linux."""
_IDLE = "/proc/stat"
_QUOTA = "/sys/fs/cgroup/cpu.max"
_USAGE = "/sys/fs/cgroup/cpu.stat"
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_INTERVAL_NS = 200_000_000


class _Counters(NamedTuple):
    """Nanoseconds since some moment."""

    at: int
    stalled: int
    idle: int
    """The mean of the processors that this process may use."""
    usage: int
    """The container's."""


class Processors:
    """The batching thread only."""

    def __init__(self) -> None:
        self.shortage = Shortage(0.0, 0.0, _count())
        """Smoothed."""
        self._before: _Counters | None = None

    def look(self, now_ns: int) -> None:
        """Brings ``shortage`` up to date, if it is time."""
        before = self._before
        if before is not None and now_ns - before.at < _INTERVAL_NS:
            return
        try:
            now, quota = _Counters(now_ns, _stalled_ns(), _idle_ns(), _usage_ns()), _quota()
        except (ValueError, IndexError, ZeroDivisionError):  # whatever stands in for the kernel has a form of its own
            now, quota = _Counters(now_ns, 0, 0, 0), float("inf")
        self._before = now
        if before is None:
            return
        elapsed = now.at - before.at
        # A long pause says all there is to say; of two short ones, each says half.
        weight = 0.5 if elapsed < 2 * _INTERVAL_NS else 1.0
        used = max(1 - (now.idle - before.idle) / elapsed, (now.usage - before.usage) / elapsed / quota)
        stalled = (now.stalled - before.stalled) / elapsed
        self.shortage = Shortage(
            self.shortage.stalled + (min(1.0, max(0.0, stalled)) - self.shortage.stalled) * weight,
            self.shortage.used + (min(1.0, max(0.0, used)) - self.shortage.used) * weight,
            min(_count(), quota),
        )


def _count() -> float:
    """Of the processors that this process may use."""
    return float(len(os.sched_getaffinity(0)))


def _stalled_ns() -> int:
    for name in _STALLED:
        # some avg10=0.00 avg60=0.00 avg300=0.00 total=84456
        if words := next(iter(_lines(name)), []):
            return int(words[-1].removeprefix("total=")) * 1000
    return 0


def _idle_ns() -> int:
    # cpu0 user nice system idle iowait irq softirq steal guest guest_nice
    listed = {words[0]: words for words in _lines(_IDLE) if words[0].startswith("cpu") and words[0] != "cpu"}
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)} & listed.keys()
    counted = ours or listed.keys()  # a container's own /proc may number its processors anew
    return _TICK_NS * sum(int(listed[name][4]) + int(listed[name][5]) for name in counted) // max(1, len(counted))


def _quota() -> float:
    """In processors; infinite if there is none."""
    for limit, period in _lines(_QUOTA):
        if limit != "max":
            return int(limit) / int(period) or float("inf")
    return float("inf")


def _usage_ns() -> int:
    return sum(int(words[1]) * 1000 for words in _lines(_USAGE) if words[0] == "usage_usec")


def _lines(name: str) -> list[list[str]]:
    """The words of each line; none if the kernel has no such file, or does not count (``psi=0``)."""
    with contextlib.suppress(OSError), open(name) as file:
        return [words for line in file if (words := line.split())]
    return []
