"""What the batching thread learns about requests: how fast they come, and how many come together.

Reads no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from gpu_provider.client import Crowd

__all__ = ["Pace", "Paces"]

_WEIGHT = 1 / 16
_LONGEST_GAP = 4.0
"""Times the mean. A silence says little about how fast requests come once they do."""
_FIRST_GAP = 1.0
_FAITH_WEIGHT = 1 / 8
_LEAST_FAITH = 1 / 512
_CROWD_WEIGHT = 1 / 8
_SILENCE_NS = 50_000_000
"""After a silence this long, those that came together before are taken for gone. If they are not, the next batch shows
it; if they are, nobody waits for them in vain."""
_OFTEN, _SELDOM = 16, 512
"""One of so many batches is a trial; the interval is four times as long after each that was in vain, so that the 99th
percentile of the latency sees none of them."""

KindT = TypeVar("KindT", bound="Hashable")


class Pace:
    """Of one kind. The batching thread only.

    :attr:`reach` is what keeps a closed loop of a few clients from waiting for company that can't come because all of
    it is here. It rises to what was under way at the same time, and to what came together in a trial; it falls with
    each wait that ended with fewer, the faster the more of the last waits did.
    """

    __slots__ = ("_batches", "_faith", "_gap", "_interval", "_newest_ns", "_reach")

    def __init__(self) -> None:
        self._gap = _FIRST_GAP
        self._newest_ns = 0
        self._reach = 1.0
        self._faith = 1.0  # the share of the last waits that were not in vain
        self._interval = _OFTEN
        self._batches = 0  # since the last trial

    @property
    def gap(self) -> float:
        """Mean seconds from one request to the next, silences left out."""
        return self._gap

    @property
    def reach(self) -> int:
        """How many requests come together if those that are there wait for company."""
        return int(self._reach + 0.05)  # it approaches a number of clients, and never gets there

    @property
    def on_trial(self) -> bool:
        """Whether the next batch may wait for more than :attr:`reach`, to see whether they come."""
        return self._batches >= self._interval

    def forget(self) -> None:
        """Nothing has come for a while, so how many came together before says nothing about those that come now."""
        self._reach, self._interval, self._batches = 1.0, _OFTEN, 0

    def launched(self, count: int, newest_ns: int, least: int, together: int) -> None:
        """A batch of ``count`` was launched, the last of them submitted at ``newest_ns``. They were to wait until they
        were ``least``; fewer have waited in vain for more. ``together``: the most that were under way at the same time
        since the batch before."""
        if self._newest_ns:
            gap = max(1e-9, (newest_ns - self._newest_ns) / 1e9 / count)
            self._gap += (min(gap, _LONGEST_GAP * self._gap) - self._gap) * (1 - (1 - _WEIGHT) ** count)
        self._newest_ns = max(newest_ns, self._newest_ns)
        self._batches += 1
        if together > self._reach:
            self._reach += (together - self._reach) * max(self._faith, _LEAST_FAITH)
        if self.on_trial and least > self.reach:
            self._batches = 0
            self._interval = _OFTEN if count > self._reach else min(4 * self._interval, _SELDOM)
            self._reach = max(self._reach, count)
        elif least > 1:
            self._faith += ((count >= least) - self._faith) * _FAITH_WEIGHT
            if count < least:
                self._reach += (count - self._reach) * max(0.5, 1 - self._faith)


class Paces(Generic[KindT]):
    """Of all kinds. The batching thread only."""

    def __init__(self, kinds: Iterable[KindT]) -> None:
        self._paces = {kind: Pace() for kind in kinds}
        self._crowd = 0.0
        self._newest_ns = 0

    def __getitem__(self, kind: KindT) -> Pace:
        return self._paces[kind]

    @property
    def together(self) -> int:
        """How many requests of any kind are under way together: they share the processors."""
        return max(round(self._crowd), *(pace.reach for pace in self._paces.values()))

    def launched(self, kind: KindT, count: int, newest_ns: int, least: int, crowd: Crowd) -> None:
        """As :meth:`Pace.launched`."""
        if newest_ns - self._newest_ns > _SILENCE_NS:
            self._crowd = 0.0
            for pace in self._paces.values():
                pace.forget()
        self._newest_ns = max(newest_ns, self._newest_ns)
        self._paces[kind].launched(count, newest_ns, least, crowd.of_class)
        self._crowd += (crowd.of_all - self._crowd) * _CROWD_WEIGHT
