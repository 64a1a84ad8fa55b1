"""Decides which batches to launch. Pure: no clock, no thread, no I/O, so that a simulated clock tests all of it.

The policy, in the order of its rules:

1. Earliest finish time. A kind's requests (a kind is a size class, or something else that does not mix in one batch) go
   to the backends that finish them first, counting what each still computes. Backends join, in the order in which they
   would finish a first group, for as long as the time by which all of it is done (the horizon) comes down by that. So a
   few requests go to the processor, many to a GPU, and a GPU that is busy is helped out.
2. No timer waits for a batch to fill, and with one backend no worker is free while something waits. With several, a
   request is left waiting beside a free worker only if a busy one is expected to finish it earlier.
3. The kinds get the free workers of a backend in turn, the one with the oldest request first. So no kind starves: what
   waits becomes the oldest.
4. A kind's requests are spread evenly over the workers it got, in whole groups, so that no two workers compute half a
   group each at the price of two.
5. A backend that others help (it finishes a group the latest) takes the rest. What finishes earlier takes a part that
   keeps it busy for at most half of the horizon (but always a group): a longer batch has no advantage in latency over
   the rest of the requests, and keeps the worker from those that come next.
6. A batch holds at most ``max_batch`` requests, and only so many that its expected time stays within ``max_delay``: a
   request that arrives just after a launch waits no longer than that for the worker. It may always hold one request,
   and on a processor one group: cut smaller, it would take hardly less time, and nobody would learn what a group costs.

Rule 1 is the shortest expected delay (Banawan and Zahorjan, "Load sharing in heterogeneous queueing systems", INFOCOM
1989) for batches: the expected delay of a batch depends on its size, so the size and the place are chosen together, by
filling up the workers to a common level.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CostCurve", "Launch", "Limits", "Waiting", "Workers", "decide"]

_KNOTS = 41  # 1 to 2^40 operations: modexp counts in small units
_WEIGHT = 0.2
_MOST = 2.0
_UNBOUNDED = 1_000_000_000
_LEAST = 1e-12  # seconds per operation, so that nothing is ever divided by zero
_SHARE_OF_HORIZON = 0.5


class CostCurve:
    """The seconds that one worker of a backend takes for a batch of one kind of work, over the size of the batch.

    Knots at the powers of two, straight lines between them, never falling, and never more than doubling: twice as many
    could be computed as two batches. A knot is an exponentially weighted mean of what was measured near it. Where
    nothing was measured yet, the first guess gives the shape and the nearest measurement the height.

    An outlier does little harm. One measurement moves a knot that was measured before by at most a fifth, and another
    knot to at most twice what the others let expect; and what a stall made of one size is forgotten as soon as a
    smaller batch is fast, or that size would never be tried again. Every call takes a few microseconds. Not locked.
    """

    __slots__ = ("_measured", "_seconds", "granule")

    def __init__(self, points: Sequence[tuple[int, float]], granule: int = 1, *, measured: bool = False) -> None:
        """``points``: (operations, seconds) by rising size. Below the first one the cost is taken to be the same, above
        the last one in proportion.

        ``granule``: how many requests are computed together at the price of one: those of a vector, or those that fill
        a GPU. ``measured``: the points are no guess, so the first batch, which may have much to set up, corrects them
        rather than replaces them.
        """
        self.granule = granule
        self._measured = sorted({_nearest_knot(count) for count, _ in points}) if measured else []
        self._seconds = [max(_interpolate(points, 1 << knot), _LEAST * (1 << knot)) for knot in range(_KNOTS)]
        for knot in reversed(range(_KNOTS - 1)):  # what takes longer than a larger batch was held up by something else
            self._seconds[knot] = min(self._seconds[knot], self._seconds[knot + 1])
        for knot in range(1, _KNOTS):
            self._seconds[knot] = min(self._seconds[knot], 2 * self._seconds[knot - 1])

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
        part = (seconds - below) / (self._seconds[upper] - below)
        return min(_UNBOUNDED, int((1 << (upper - 1)) * (1 + part) + 1e-9))

    def seconds_pipelined(self, requests: int, operations: int, busy: float) -> float:
        """The time until a batch of requests, of so many operations each, is done on a device that is done with the
        batches before it in ``busy`` seconds. A batch of less than a group leaves room for others, so it adds only its
        part of a group's time to theirs."""
        occupied = self.seconds(max(requests, self.granule) * operations) * min(1.0, requests / self.granule)
        return max(self.seconds(requests * operations), busy + occupied)

    def observe(self, count: int, seconds: float) -> None:
        """Takes in that a batch of ``count`` operations took ``seconds``."""
        knot = _nearest_knot(count)
        factor = max(seconds, _LEAST * count) / self.seconds(count)
        if self._measured:
            factor = min(factor, _MOST)
        if knot in self._measured:
            if factor == 1:
                return
            factor = 1 + _WEIGHT * (factor - 1)
        self._scale(knot, factor)

    def observe_pipelined(self, count: int, seconds: float, since_last: float) -> None:
        """The same on a device that computed other batches at the time. Alone, the batch would have taken no longer
        than ``seconds``, and no less than ``since_last``, the time since the one before it was done (or since its
        start, if that was later). Between these bounds the curve stays as it is."""
        self.observe(count, min(max(self.seconds(count), since_last), seconds))

    def _scale(self, knot: int, factor: float) -> None:
        """Multiplies a knot, and its neighbours without measurements with it, and keeps the curve from falling."""
        curve, measured = self._seconds, self._measured
        curve[knot] *= factor
        place = bisect_left(measured, knot)
        if measured[place : place + 1] != [knot]:
            measured.insert(place, knot)
        if place:
            self._scale_down_to(measured[place - 1], knot, factor)
        else:
            curve[:knot] = [old * factor for old in curve[:knot]]
        if place + 1 < len(measured):
            self._scale_up_to(measured[place + 1], knot, factor)
        else:
            curve[knot + 1 :] = [old * factor for old in curve[knot + 1 :]]

    def _scale_down_to(self, below: int, knot: int, factor: float) -> None:
        """The knots between a measured one and ``knot``, which was scaled; then whatever lies too high or too low."""
        curve, value = self._seconds, self._seconds[knot]
        least = min(value, curve[below])
        curve[below + 1 : knot] = [max(least, old * factor) for old in curve[below + 1 : knot]]
        while below >= 0 and curve[below] > value:
            curve[below] = value
            below -= 1
        for lower in range(knot - 1, -1, -1):
            if curve[lower] < curve[lower + 1] / 2:
                curve[lower] = curve[lower + 1] / 2
            elif lower < below:
                break  # nothing has changed from there on

    def _scale_up_to(self, above: int, knot: int, factor: float) -> None:
        curve, value = self._seconds, self._seconds[knot]
        most = max(value, curve[above])
        curve[knot + 1 : above] = [min(most, old * factor) for old in curve[knot + 1 : above]]
        while above < _KNOTS and curve[above] < value:
            curve[above] = value
            above += 1
        for upper in range(knot + 1, _KNOTS):
            if curve[upper] > 2 * curve[upper - 1]:
                curve[upper] = 2 * curve[upper - 1]
            elif upper > above:
                break


def _nearest_knot(count: int) -> int:
    return min(_KNOTS - 1, (count * 4 // 3).bit_length() - 1)


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
class Workers:
    """A backend that is in use."""

    backend: int
    free: int
    """Workers that can take a batch now."""
    costs: Sequence[CostCurve]
    """By kind."""
    busy: Sequence[float] = ()
    """In how many seconds each worker that computes should be done."""
    pipelined: bool = False
    """The workers are batches in flight on one device, not processors of their own."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One batch for one worker."""

    backend: int
    kind: int
    count: int


class _Load:
    """How busy a backend is, with what this decision has planned for it so far."""

    __slots__ = ("backlog", "groups", "start", "width", "workers")

    def __init__(self, workers: Workers, kinds: int) -> None:
        self.workers = workers
        self.groups = [0] * kinds  # that it could compute of each kind
        busy = workers.busy or (0.0,)
        self.start = 0.0 if workers.free else min(busy)
        self.width = 1 if workers.pipelined else workers.free + len(workers.busy)
        self.backlog = max(busy) if workers.pipelined else sum(busy)  # in seconds of one worker, or of the device


class _Offer:
    """What a backend can do for one kind, and the most that it shall take now."""

    __slots__ = ("curve", "group", "group_done", "load", "most", "price", "together")

    def __init__(self, work: Waiting, load: _Load, limits: Limits) -> None:
        self.load = load
        self.curve = curve = load.workers.costs[work.kind]
        least = 1 if load.workers.pipelined else curve.granule
        most = min(limits.max_batch, max(least, curve.largest(limits.max_delay) // work.operations))
        self.group = group = min(curve.granule, most)
        self.most = most // group * group
        """Of one batch."""
        self.together = _UNBOUNDED
        """Of all batches."""
        seconds = curve.seconds(group * work.operations)
        self.price = seconds / group
        """Seconds of one worker, or of the device, for one request in a full group."""
        if work.count < group:
            seconds = curve.seconds(work.count * work.operations)
        first = min(work.count, group)
        self.group_done = max(load.start + seconds, (load.backlog + first * self.price) / load.width)
        """In how many seconds a first group, or all that waits if that is less, should be done."""

    def limit(self, work: Waiting, seconds: float) -> None:
        """No batch longer than ``seconds``, but always a group."""
        fitting = self.curve.largest(seconds) // work.operations // self.group * self.group
        self.most = min(self.most, max(self.group, fitting))


def decide(waiting: Sequence[Waiting], backends: Sequence[Workers], limits: Limits) -> list[Launch]:
    """The batches to launch now, in the order to launch them. Never more per backend than it has free workers."""
    by_age = sorted((work for work in waiting if work.count), key=attrgetter("oldest_ns"))
    loads = [_Load(backend, len(by_age)) for backend in backends]
    plans = [_plan(place, work, loads, limits) for place, work in enumerate(by_age)]
    shares = {id(load): _share_workers(load.workers.free, load.groups) for load in loads}
    launches = []
    for place, (work, plan) in enumerate(zip(by_age, plans, strict=True)):
        left = work.count
        for offer in plan:
            workers = shares[id(offer.load)][place]
            part = min(left, offer.together)
            left -= part
            while workers and part:
                count = min(part, offer.most, -(-part // (workers * offer.group)) * offer.group)
                launches.append(Launch(offer.load.workers.backend, work.kind, count))
                part -= count
                workers -= 1
            left += part
    return launches


def _plan(place: int, work: Waiting, loads: Sequence[_Load], limits: Limits) -> list[_Offer]:
    """The backends that shall compute this kind, those that finish a group first before the others."""
    offers = sorted((_Offer(work, load, limits) for load in loads), key=attrgetter("group_done"))
    if len(offers) > 1:
        offers = _fill_to_a_level(work, offers)
    for offer in offers:
        offer.load.groups[place] = -(-work.count // offer.group)
    return offers


def _fill_to_a_level(work: Waiting, offers: Sequence[_Offer]) -> list[_Offer]:
    """Those of ``offers`` that bring the horizon down, each limited to its part of the work."""
    horizon = rate = 0.0
    to_do = float(work.count)
    joined: list[_Offer] = []
    for offer in offers:
        if joined and offer.group_done >= horizon:
            break
        joined.append(offer)
        rate += offer.load.width / offer.price
        to_do += offer.load.backlog / offer.price
        horizon = max(offer.group_done, to_do / rate)
    for offer in joined:
        load = offer.load
        if offer is joined[-1]:
            offer.limit(work, horizon)
        elif load.workers.pipelined:
            offer.together = max(offer.group, int((horizon - load.backlog) / offer.price))
        else:
            offer.limit(work, horizon * _SHARE_OF_HORIZON)
        load.backlog = max(load.backlog, load.width * horizon)
    return joined


def _share_workers(workers: int, groups: Sequence[int]) -> list[int]:
    """Deals workers to the kinds in turn, to none more than it has groups."""
    shares = [0] * len(groups)
    while workers:
        hungry = [place for place, most in enumerate(groups) if shares[place] < most]
        if not hungry:
            break
        for place in hungry[:workers]:
            shares[place] += 1
        workers -= min(workers, len(hungry))
    return shares
