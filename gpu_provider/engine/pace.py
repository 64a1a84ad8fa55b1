"""What the batching thread learns about requests of one kind: how fast they come, and whether waiting brings more.

Reads no clock.
"""

from __future__ import annotations

__all__ = ["Pace"]

_WEIGHT = 1 / 16
_LONGEST_GAP = 4.0
"""Times the mean. A silence says little about how fast requests come once they do."""
_FIRST_GAP = 1.0
_DISAPPOINTMENT = 1 / 8
_ENCOURAGEMENT = 1.005
"""So of 139 waits for one more than ever come, one is made: the 99th percentile of the latency does not see it."""
_MOST_HOPE = 1 / 16
_LEAST_HOPE = 1 / 2048


class Pace:
    """Of one kind. The batching thread only.

    :attr:`reach` is what keeps a closed loop of a few clients from waiting for company that can't come because all of
    it is here. It falls with each wait that ended too early for the scheduler's taste, and grows when waits succeed,
    the slower the more often that was wrong.
    """

    __slots__ = ("_gap", "_hope", "_newest_ns", "_reach")

    def __init__(self) -> None:
        self._gap = _FIRST_GAP
        self._newest_ns = 0
        self._reach = 2.0
        self._hope = _MOST_HOPE  # by how much a successful wait raises the reach

    @property
    def gap(self) -> float:
        """Mean seconds from one request to the next, silences left out."""
        return self._gap

    @property
    def reach(self) -> int:
        """How many requests come together if those that are there wait for company."""
        return int(self._reach + 0.05)  # it approaches a number of clients, and never gets there

    def launched(self, count: int, newest_ns: int, least: int) -> None:
        """A batch of ``count`` was launched, the last of them submitted at ``newest_ns``. They were to wait until they
        were ``least``; fewer have waited in vain for more."""
        if self._newest_ns:
            gap = max(1e-9, (newest_ns - self._newest_ns) / 1e9 / count)
            self._gap += (min(gap, _LONGEST_GAP * self._gap) - self._gap) * (1 - (1 - _WEIGHT) ** count)
        self._newest_ns = max(newest_ns, self._newest_ns)
        if count < least:
            self._reach += (count - self._reach) * _DISAPPOINTMENT
            self._hope = max(self._hope / 2, _LEAST_HOPE)
        elif count > self.reach:
            self._reach += (count - self._reach) / 4
        elif least >= self.reach:
            self._reach *= 1 + self._hope
            if least > 1:
                self._hope = min(self._hope * _ENCOURAGEMENT, _MOST_HOPE)
