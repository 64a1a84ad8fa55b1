"""Decides which batches to launch. Pure: no clock, no thread, no I/O, so that a simulated clock tests all of it.

The policy, in the order of its rules:

1. Earliest finish time. A kind's requests (a kind is a size class, or something else that does not mix in one batch) go
   to the backends that finish them first, counting what each still computes. Backends join, in the order in which they
   would finish a first group, for as long as the time by which all of it is done (the horizon) comes down by that. So a
   few requests go to the processor, many to a GPU, and a GPU that is busy is helped out.
2. No timer waits for a batch to fill, and with one backend no lane is free while something waits. With several, a
   request is left waiting beside a free lane only if a busy one is expected to finish it earlier.
3. The kinds get the free lanes of a backend in turn, the one with the oldest request first. So no kind starves: what
   waits becomes the oldest.
4. A kind's requests are spread evenly over the lanes it got, in whole groups, so that no two lanes compute half a group
   each at the price of two.
5. A backend that others help (it finishes a group the latest) takes the rest. What finishes earlier takes a part that
   keeps it busy for at most half of the horizon (but always a group): a longer batch has no advantage in latency over
   the rest of the requests, and keeps the lane from those that come next.
6. A batch holds at most ``max_batch`` requests, and only so many that its expected time stays within ``max_delay`` (but
   always at least one): a request that arrives just after a launch waits no longer than that for the lane.

Rule 1 is the shortest expected delay (Banawan and Zahorjan, "Load sharing in heterogeneous queueing systems", INFOCOM
1989) for batches: the expected delay of a batch depends on its size, so the size and the place are chosen together, by
filling up the lanes to a common level.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CostCurve", "Lanes", "Launch", "Limits", "Waiting", "decide"]

_KNOTS = 41  # 1 to 2^40 operations: modexp counts in small units
_WEIGHT = 0.2
_MOST = 2.0
_UNBOUNDED = 1_000_000_000
_LEAST = 1e-12  # seconds per operation: no division by zero where work is free
_LEAST = 1e-12  # seconds per operation: no division by zero where work is free
_SHARE_OF_HORIZON = 0.5


class CostCurve:
    """The seconds that one lane of a backend takes for a batch of one kind of work, over the size of the batch.

    Knots at the powers of two, straight lines between them, never falling. A knot is an exponentially weighted mean of
    what was measured near it. Where nothing was measured yet, the first guess gives the shape and the nearest
    measurement the height. One measurement moves a knot that was measured before by at most a fifth, so an outlier does
    little harm. Every call takes a few microseconds. Not locked.
    """

    __slots__ = ("_measured", "_seconds", "granule")

    def __init__(self, points: Sequence[tuple[int, float]], granule: int = 1) -> None:
        """``points``: (operations, seconds) by rising size, measured or guessed. Below the first one the cost is taken
        to be the same, above the last one in proportion.

        ``granule``: how many requests are computed together at the price of one: those of a vector, or those that fill
        a GPU.
        """
        self.granule = granule
        self._measured = [False] * _KNOTS
        self._seconds = [_interpolate(points, 1 << knot) for knot in range(_KNOTS)]
        for knot in range(1, _KNOTS):
            self._seconds[knot] = max(self._seconds[knot - 1 : knot + 1])

    def seconds(self, count: int) -> float:
        """The time that a batch of ``count`` operations (at least 1) should take."""
        upper = (count - 1).bit_length()
        if upper >= _KNOTS:
            return self._seconds[-1] * count / (1 << (_KNOTS - 1))
        if upper == 0:
            return self._seconds[0]
        below = self._seconds[upper - 1]
        return below + (self._seconds[upper] - below) * (count / (1 << (upper - 1)) - 1)

    def largest(self, seconds: float) -> int:
        """The largest batch that should take no longer than ``seconds``; at least 1."""
        upper = bisect_right(self._seconds, seconds)
        if upper >= _KNOTS:
            return _UNBOUNDED
        if upper == 0:
            return 1
        below = self._seconds[upper - 1]
        # Never a division by zero: the upper one is above ``seconds``, and the lower one is not.
        return min(
            _UNBOUNDED, int((1 << (upper - 1)) * (1 + (seconds - below) / (self._seconds[upper] - below)) + 1e-9)
        )

    def seconds_pipelined(self, requests: int, operations: int, busy: float) -> float:
        """The time until a batch of requests, of so many operations each, is done on a device that is done with the
        batches before it in ``busy`` seconds. A batch of less than a group leaves room for others, so it adds only its
        part of a group's time to theirs."""
        occupied = self.seconds(max(requests, self.granule) * operations) * min(1.0, requests / self.granule)
        return max(self.seconds(requests * operations), busy + occupied)

    def observe(self, count: int, seconds: float) -> None:
        """Takes in that a batch of ``count`` operations took ``seconds``."""
        knot = min(_KNOTS - 1, (count * 4 // 3).bit_length() - 1)  # the nearest
        expected = self.seconds(count)
        if expected <= 0:
            factor, value = 1.0, seconds
        else:
            factor = seconds / expected
            if self._measured[knot]:
                factor = 1 + _WEIGHT * (min(factor, _MOST) - 1)
            value = self._seconds[knot] * factor
        self._set(knot, value, factor)

    def observe_pipelined(self, count: int, seconds: float, since_last: float) -> None:
        """The same on a device that computed other batches at the time. Alone, the batch would have taken no longer
        than ``seconds``, and no less than ``since_last``, the time since the one before it was done (or since its
        start, if that was later). Between these bounds the curve stays as it is."""
        self.observe(count, min(max(self.seconds(count), since_last), seconds))

    def _set(self, knot: int, value: float, factor: float) -> None:
        """Sets a knot, gives its neighbours without measurements its factor, and keeps the curve from falling."""
        curve, measured = self._seconds, self._measured
        measured[knot] = True
        curve[knot] = value
        below = next((other for other in range(knot - 1, -1, -1) if measured[other]), -1)
        above = next((other for other in range(knot + 1, _KNOTS) if measured[other]), _KNOTS)
        least = min(value, curve[below]) if below >= 0 else 0.0
        most = max(value, curve[above]) if above < _KNOTS else math.inf
        for lower in range(below + 1, knot):
            curve[lower] = max(least, min(value, curve[lower] * factor))
        for upper in range(knot + 1, above):
            curve[upper] = min(most, max(value, curve[upper] * factor))
        for lower in range(below, -1, -1):
            curve[lower] = min(value, curve[lower])
        for upper in range(above, _KNOTS):
            curve[upper] = max(value, curve[upper])


def _interpolate(points: Sequence[tuple[int, float]], count: int) -> float:
    """Straight lines between the points; level below the first one, through zero above the last one."""
    before, after = (1, points[0][1]), None
    for point in points:
        if point[0] >= count:
            after = point
            break
        before = point
    if after is None:
        return before[1] * count / before[0]
    if after[0] <= before[0]:
        return after[1]
    return before[1] + (after[1] - before[1]) * (count - before[0]) / (after[0] - before[0])


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
    operations: int = 1
    """What the cost curves count for one request."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """A backend that is in use."""

    backend: int
    free: int
    """Lanes that can take a batch now."""
    costs: Sequence[CostCurve]
    """By kind."""
    busy: Sequence[float] = ()
    """In how many seconds each lane that computes should be done."""
    pipelined: bool = False
    """The lanes are batches in flight on one device, not processors of their own."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One batch for one lane."""

    backend: int
    kind: int
    count: int


class _Load:
    """How busy a backend is, with what this decision has planned for it so far."""

    __slots__ = ("backlog", "lanes", "start", "width")

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.start = 0.0 if lanes.free else min(lanes.busy, default=0.0)
        self.width = 1 if lanes.pipelined else lanes.free + len(lanes.busy)
        # In seconds of one lane, or of the device.
        self.backlog = max(lanes.busy, default=0.0) if lanes.pipelined else sum(lanes.busy)


@dataclass(frozen=True, slots=True)
class _Offer:
    """What a backend can do for one kind, and the most that it shall take now."""

    group_done: float
    """In how many seconds a first group, or all that waits if that is less, should be done."""
    load: _Load
    price: float
    """Seconds of one lane, or of the device, for one request in a full group."""
    group: int
    most: int
    """Of one batch."""
    together: int = _UNBOUNDED
    """Of all batches."""


def decide(waiting: Sequence[Waiting], backends: Sequence[Lanes], limits: Limits) -> list[Launch]:
    """The batches to launch now, in the order to launch them. Never more per backend than it has free lanes."""
    if not any(backend.free for backend in backends):
        return []
    by_age = sorted((work for work in waiting if work.count), key=lambda work: work.oldest_ns)
    loads = [_Load(backend) for backend in backends]
    plans = [_plan(work, loads, limits) for work in by_age]
    shares = {load.lanes.backend: _share_lanes(load, by_age, plans) for load in loads if load.lanes.free}
    launches = []
    for place, (work, plan) in enumerate(zip(by_age, plans, strict=True)):
        left = work.count
        for offer in plan:
            backend = offer.load.lanes.backend
            lanes = shares[backend][place] if backend in shares else 0
            part = min(left, offer.together)
            left -= part
            while lanes and part:
                count = min(part, offer.most, _whole(-(-part // lanes), offer.group))
                launches.append(Launch(backend, work.kind, count))
                part -= count
                lanes -= 1
            left += part
    return launches


def _plan(work: Waiting, loads: Sequence[_Load], limits: Limits) -> list[_Offer]:
    """The backends that shall compute this kind, those that finish a group first before the others."""
    offers = sorted((_offer(work, load, limits) for load in loads), key=lambda offer: offer.group_done)
    if len(offers) == 1:
        return offers
    # Filled to a common level: the horizon, by which all is done if every lane takes as much as it can until then.
    horizon = rate = 0.0
    to_do = float(work.count)
    joined = 0
    for offer in offers:
        if joined and offer.group_done >= horizon:
            break
        joined += 1
        rate += offer.load.width / offer.price
        to_do += offer.load.backlog / offer.price
        horizon = max(offer.group_done, to_do / rate)
    plan = []
    for place, offer in enumerate(offers[:joined], 1):
        if place == joined:
            plan.append(replace(offer, most=min(offer.most, _fitting(offer, work, horizon))))
        elif offer.load.lanes.pipelined:
            together = int((horizon - offer.load.backlog) / offer.price)
            plan.append(replace(offer, together=max(offer.group, together)))
        else:
            most = _fitting(offer, work, horizon * _SHARE_OF_HORIZON)
            plan.append(replace(offer, most=min(offer.most, most)))
        offer.load.backlog = max(offer.load.backlog, offer.load.width * horizon)
    return plan


def _offer(work: Waiting, load: _Load, limits: Limits) -> _Offer:
    curve = load.lanes.costs[work.kind]
    most = max(1, min(limits.max_batch, curve.largest(limits.max_delay) // work.operations))
    group = min(curve.granule, most)
    first = min(work.count, group)
    price = max(curve.seconds(group * work.operations) / group, _LEAST)
    done = max(load.start + curve.seconds(first * work.operations), (load.backlog + first * price) / load.width)
    return _Offer(done, load, price, group, most // group * group)


def _fitting(offer: _Offer, work: Waiting, seconds: float) -> int:
    """The largest batch of whole groups within a time, at least one group."""
    largest = offer.load.lanes.costs[work.kind].largest(seconds) // work.operations
    return max(offer.group, largest // offer.group * offer.group)


def _whole(count: int, group: int) -> int:
    return -(-count // group) * group


def _share_lanes(load: _Load, by_age: Sequence[Waiting], plans: Sequence[Sequence[_Offer]]) -> list[int]:
    """Deals a backend's free lanes to the kinds in turn, to none more than it has groups."""
    wanted = [
        next((-(-work.count // offer.group) for offer in plan if offer.load is load), 0)
        for work, plan in zip(by_age, plans, strict=True)
    ]
    shares = [0] * len(wanted)
    lanes = load.lanes.free
    while lanes:
        hungry = [place for place, groups in enumerate(wanted) if shares[place] < groups]
        if not hungry:
            break
        for place in hungry[:lanes]:
            shares[place] += 1
        lanes -= min(lanes, len(hungry))
    return shares
