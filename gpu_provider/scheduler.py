"""Decides which batches to launch. Pure: no clock, no thread, no I/O, so that a simulated clock tests all of it.

The policy, in the order of its rules:

1. Work-conserving: a free lane never stays empty while something waits that its backend can compute. There is no timer
   that waits for a batch to fill: batches grow by themselves while the lanes are busy.
2. Backends are filled in the order given, the preferred one first.
3. The kinds of work (a kind is a size class, or something else that does not mix in one batch) get the free lanes of a
   backend in turn, the one with the oldest request first. So no kind starves: whatever waits becomes the oldest.
4. A kind's requests are spread evenly over the lanes it got.
5. A batch holds at most ``max_batch`` requests, and only so many that its expected time stays within ``max_delay`` (but
   always at least one): a request that arrives just after a launch waits no longer than that for the lane.

The expected time of a batch is count times the measured cost per operation. A backend with a fixed cost per launch
needs another ``CostCurve.largest``; nothing else here changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CostCurve", "FreeLanes", "Launch", "Limits", "Waiting", "decide"]

_EWMA_WEIGHT = 0.2


class CostCurve:
    """The cost of one kind of work on one backend: an exponentially weighted mean of seconds per operation on one lane.

    The only state there is; whoever measures feeds it with ``observe``. Not locked.
    """

    __slots__ = ("_measured", "seconds_per_operation")

    def __init__(self, first_guess: float) -> None:
        """``first_guess``: seconds per operation until something has been measured."""
        self.seconds_per_operation = first_guess
        self._measured = False

    def observe(self, count: int, seconds: float) -> None:
        """Takes in that a batch of ``count`` operations took ``seconds``."""
        measured = seconds / count
        weight = _EWMA_WEIGHT if self._measured else 1.0
        self.seconds_per_operation += weight * (measured - self.seconds_per_operation)
        self._measured = True

    def largest(self, seconds: float) -> int:
        """The largest batch that should take no longer than ``seconds``; at least 1."""
        if seconds >= self.seconds_per_operation * 1e9:  # far beyond any batch; also avoids dividing by zero
            return 1_000_000_000
        return max(1, int(seconds / self.seconds_per_operation))


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for every batch."""

    max_batch: int
    max_delay: float
    """In seconds."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The requests of one kind that wait."""

    kind: int
    count: int
    oldest_ns: int
    """When the oldest of them was submitted. Only compared with that of other kinds."""
    divisible: bool = True
    """False: launched one by one, because each is a batch of its own already."""


@dataclass(frozen=True, slots=True)
class FreeLanes:
    """A backend that can take work now."""

    backend: int
    lanes: int
    costs: Sequence[CostCurve]
    """By kind."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One batch for one lane."""

    backend: int
    kind: int
    count: int


def decide(waiting: Sequence[Waiting], free: Sequence[FreeLanes], limits: Limits) -> list[Launch]:
    """The batches to launch now, in the order to launch them. Never more per backend than it has free lanes."""
    by_age = sorted((work for work in waiting if work.count), key=lambda work: work.oldest_ns)
    left = {work.kind: work.count for work in by_age}
    launches = []
    for backend in free:
        shares = _share_lanes(backend.lanes, [(work.kind, left[work.kind]) for work in by_age])
        for work in by_age:
            lanes = shares[work.kind]
            bound = min(limits.max_batch, backend.costs[work.kind].largest(limits.max_delay)) if work.divisible else 1
            for lane in range(lanes):
                count = min(bound, -(-left[work.kind] // (lanes - lane)))
                launches.append(Launch(backend.backend, work.kind, count))
                left[work.kind] -= count
    return launches


def _share_lanes(lanes: int, by_age: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Deals lanes to kinds in turn, to none more than it has requests."""
    shares = dict.fromkeys((kind for kind, _ in by_age), 0)
    while lanes:
        hungry = [kind for kind, count in by_age if shares[kind] < count]
        if not hungry:
            break
        for kind in hungry[:lanes]:
            shares[kind] += 1
        lanes -= min(lanes, len(hungry))
    return shares
