"""What a batch costs on a backend, by its size: first a guess, then what was measured."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CostCurve", "CostCurves"]

_KNOTS = 41  # 1 to 2^40 operations: modexp counts in small units
_WEIGHT = 0.2
_MOST = 2.0
_UNBOUNDED = 1_000_000_000
_LEAST = 1e-12  # seconds per operation, so that nothing is ever divided by zero


class CostCurve:
    """The seconds that one worker of a backend takes for a batch of one kind, by the size of the batch.

    The curve has knots at the powers of two and straight lines between them. It never falls, and it never more than
    doubles, because twice as many could be computed as two batches. A knot is an exponentially weighted mean of what
    was measured near it. Where nothing has been measured, the first guess gives the shape and the nearest measurement
    the height.

    An outlier does little harm. One measurement moves a knot that was measured before by at most a fifth, and another
    knot to at most twice what its neighbours suggest. A stall at one size is forgotten as soon as a smaller batch is
    fast; otherwise that size would never be tried again. Every call takes a few microseconds. Not locked.
    """

    __slots__ = ("_measured", "_seconds", "granule")

    def __init__(self, points: Sequence[tuple[int, float]], granule: int = 1, *, measured: bool = False) -> None:
        """``points``: (operations, seconds) by rising size. Below the first one the cost is constant, above the last
        one proportional.

        ``granule``: how many requests are computed together at the price of one, such as those of a vector, or those
        that fill a GPU. ``measured``: the points are measurements, so the first batch, which may have much to set up,
        corrects them instead of replacing them.
        """
        self.granule = granule
        self._measured = sorted({_nearest_knot(count) for count, _ in points}) if measured else []
        self._seconds = [max(_interpolate(points, 1 << knot), _LEAST * (1 << knot)) for knot in range(_KNOTS)]
        for knot in reversed(range(_KNOTS - 1)):  # a batch that took longer than a larger one was held up
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
        """The time until a batch of ``requests``, of ``operations`` each, is done on a device that needs another
        ``busy`` seconds for the batches before it. A batch smaller than a group leaves room for others, so it adds only
        its share of a group's time to theirs."""
        occupied = self.seconds(max(requests, self.granule) * operations) * min(1.0, requests / self.granule)
        return max(self.seconds(requests * operations), busy + occupied)

    def observe(self, count: int, seconds: float) -> None:
        """Records that a batch of ``count`` operations took ``seconds``."""
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
        """The same on a device that computed other batches meanwhile. Alone, the batch would have taken at most
        ``seconds`` and at least ``since_last``, the time since the batch before it was done (or since its own start, if
        that was later). Between these bounds the curve stays as it is."""
        self.observe(count, min(max(self.seconds(count), since_last), seconds))

    def _scale(self, knot: int, factor: float) -> None:
        """Multiplies a knot and its unmeasured neighbours, and keeps the curve from falling."""
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
        """Scales the knots between a measured one and ``knot``, then corrects whatever is too high or too low."""
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


class CostCurves(NamedTuple):
    """The curves of one backend."""

    private: Sequence[CostCurve]
    """RSA private operations, by size class."""
    modexp: CostCurve
    """Exponentiations, in units of ``library.modexp.units_per_row``."""


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
