"""Decides which batches to launch. Pure: no clock, no thread, no I/O, so that a simulated clock tests all of it.

The policy, in the order of its rules:

1. Earliest finish time. The requests of one kind go to the backends that finish them first, counting what each still
   computes. Backends join in the order in which they would finish a first group, as long as each brings down the time
   by which all of it is done (the horizon). So a few requests go to the processor, many to a GPU, and the processor
   helps out a busy GPU.
2. A request waits beside a free worker only if a busy one is expected to finish it earlier, or for company, where
   processors are so short that a full group is worth the wait: see :func:`patience`.
3. The kinds get the free workers of a backend in turn, the one with the oldest request first. So no kind starves: what
   waits becomes the oldest.
4. A kind's requests are spread evenly over the workers it got, in whole groups, so that no two workers compute half a
   group each at the price of two.
5. The backend that finishes a group the latest takes the rest. One that finishes earlier takes a part that keeps it
   busy for at most half of the horizon (but always a group): a longer batch has no advantage in latency over the rest
   of the requests, and keeps the worker from those that come next.
6. A batch holds at most ``max_batch`` requests, and only so many that its expected time stays within ``max_delay``: a
   request that arrives just after a launch waits no longer than that for the worker. It may always hold one request,
   and on a processor one group: a smaller batch would take hardly less time, and nobody would learn what a group costs.

Rule 1 is the shortest expected delay (Banawan and Zahorjan, "Load sharing in heterogeneous queueing systems", INFOCOM
1989) for batches: the expected delay of a batch depends on its size, so the size and the place are chosen together, by
filling up the workers to a common level.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpu_provider.costs import CostCurve
    from gpu_provider.engine.pace import Pace
    from gpu_provider.kinds import Kind

__all__ = ["BackendView", "Decision", "Launch", "Limits", "Patience", "Shortage", "Waiting", "decide", "patience"]

_SHARE_OF_HORIZON = 0.5
_DECIDE_AGAIN_NS = 1_000_000
_NEVER_NS = 1 << 63
_CONNECTIONS_PER_THREAD = 8.0
_SHARE = 2.0
"""So often does each request that comes beyond one for each processor count as waiting for its processor."""
_MOST_WAITING = 128.0
"""Connections that are taken to wait for a processor at most, since the estimate has no bound."""
_ALL_THERE_ARE = 0.85
"""Of a group: if fewer come together, they are all that there are."""
_SHORT = 0.65
"""Trials begin where processors are busy for a larger share of the time: one client and its server use half of two."""
_LAUNCH_SECONDS = 100e-6
"""Of a processor, for a device's batch."""
_GAPS = 2.0
"""A wait lasts so many times as long as those that it is for should take to come."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for every batch."""

    max_batch: int
    max_delay: float
    """Seconds that a batch may be expected to take."""


class Shortage(NamedTuple):
    """How short of processors the process is, as shares of the time from 0 to 1."""

    stalled: float
    """In which a thread waited for a processor; 0 where the kernel does not count it."""
    used: float
    """In which the processors that this process may use were busy, with whatever it was; or what its container has used
    of its quota, if that is more."""
    processors: float = 1.0
    """How many those are."""


class Patience(NamedTuple):
    """How long the requests of one kind wait for company."""

    least: int
    """The smallest batch that is launched before its time."""
    group: int
    """How many are computed at the price of one."""
    seconds: float
    """How long the oldest waits at most."""


NO_PATIENCE = Patience(1, 1, 0.0)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The requests of one kind that wait."""

    kind: Kind
    count: int
    oldest_ns: int
    """When the oldest of them was submitted."""
    operations: int = 1
    """How many operations one request counts as in the cost curves."""
    patience: Patience = NO_PATIENCE


@dataclass(frozen=True, slots=True)
class BackendView:
    """What the scheduler sees of a backend in use."""

    index: int
    """Launches refer to it."""
    free: int
    """Workers that can take a batch now."""
    costs: Mapping[Kind, CostCurve]
    busy: Sequence[float] = ()
    """Seconds until each busy worker should be done."""
    pipelined: bool = False
    """The workers share one device; otherwise each has a processor of its own."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One batch for one worker."""

    backend: int
    """``BackendView.index``."""
    kind: Kind
    count: int


class Decision(NamedTuple):
    launches: list[Launch]
    """In this order."""
    until_ns: int | None
    """When to decide again about what is left waiting, if nothing happens before; None: only when something does."""


def patience(
    curve: CostCurve, pace: Pace, shortage: Shortage, limits: Limits, *, together: int, pipelined: bool
) -> Patience:
    """How long requests wait for company. ``together``: how many of all kinds are under way at the same time.

    In a batch of n, each costs c(n) / n seconds of a processor, and has waited (n - 1) / 2 gaps on average for the
    others. For a device, c(n) is what the launch costs the processor: a batch that leaves the device half empty leaves
    room for the next. Where w others wait for that processor, each second of it that is saved is worth w seconds. The
    best n minimizes the sum: the threshold of Deb and Serfozo, "Optimal control of batch service queues", Advances in
    Applied Probability 5, 1973. On an idle machine nobody waits for a processor: then no request waits.

    How many wait is estimated. Where processors are busy for a share u of the time, about u^3 / (1 - u) threads wait,
    as in any queue that grows and shrinks at random. Behind the thread of an event loop wait all its connections that
    are ready. But where few come together, no more than those wait, and each processor has one of them; where more do,
    none wait if all threads have a processor each, which the share of the time in which a thread waits tells. Power
    and factors were fitted in the simulator: the most with which hardly a latency suffers (bench/shared_host.py).

    A trial, to see whether more come than are known to, is worth it if it were so with the company that it wants.
    """
    group = min(curve.granule, limits.max_batch)
    most = _CONNECTIONS_PER_THREAD * shortage.used**3 / max(1e-9, 1 - shortage.used)
    waiting = min(most, _SHARE * max(0.0, together / shortage.processors - 1))
    if together >= _ALL_THERE_ARE * group:
        waiting = max(waiting, shortage.stalled * most)
    on_trial = pace.on_trial and shortage.used > _SHORT
    if waiting == 0 and not on_trial:
        return Patience(1, group, 0.0)
    best = _best_size(curve, group, pace.gap, waiting, pipelined=pipelined)
    least = max(1, min(best, pace.reach))
    if on_trial:
        wanted = min(2 * pace.reach, _best_size(curve, group, pace.gap, most, pipelined=pipelined))
        if wanted > pace.reach:
            waiting, least = most, wanted
    seconds = min(
        limits.max_delay,
        min(waiting, _MOST_WAITING) * _processor_seconds(curve, group, pipelined=pipelined),
        _GAPS * (least - 1) * pace.gap,
    )
    return Patience(least, group, seconds)


def _best_size(curve: CostCurve, group: int, gap: float, waiting: float, *, pipelined: bool) -> int:
    """The size of a batch at which waiting for company costs the least, where ``waiting`` others want its processor."""
    sizes = [1 << power for power in range((group - 1).bit_length())] + [group]
    waiting = min(waiting, _MOST_WAITING)

    def cost(size: int) -> float:
        return (size - 1) / 2 * gap + waiting * _processor_seconds(curve, size, pipelined=pipelined) / size

    return min(sizes, key=cost)


def _processor_seconds(curve: CostCurve, size: int, *, pipelined: bool) -> float:
    return _LAUNCH_SECONDS if pipelined else curve.seconds(size)


class _Load:
    """How busy a backend is, including what this decision has planned for it so far."""

    __slots__ = ("backend", "backlog", "groups", "start", "width")

    def __init__(self, backend: BackendView, kinds: int) -> None:
        self.backend = backend
        self.groups = [0] * kinds  # how many it could compute of each kind
        busy = backend.busy or (0.0,)
        self.start = 0.0 if backend.free else min(busy)
        self.width = 1 if backend.pipelined else backend.free + len(backend.busy)
        self.backlog = max(busy) if backend.pipelined else sum(busy)  # in seconds of one worker, or of the device


class _Offer:
    """What a backend can do for one kind, and how much of it the backend may take now."""

    __slots__ = ("curve", "group", "group_done", "load", "most", "price", "together")

    def __init__(self, work: Waiting, load: _Load, limits: Limits) -> None:
        self.load = load
        self.curve = curve = load.backend.costs[work.kind]
        least = 1 if load.backend.pipelined else curve.granule
        most = min(limits.max_batch, max(least, curve.largest(limits.max_delay) // work.operations))
        self.group = group = min(curve.granule, most)
        self.most = most // group * group
        """Requests in one batch."""
        self.together = work.count
        """Requests in all batches."""
        seconds = curve.seconds(group * work.operations)
        self.price = seconds / group
        """Seconds of one worker, or of the device, for one request in a full group."""
        if work.count < group:
            seconds = curve.seconds(work.count * work.operations)
        first = min(work.count, group)
        self.group_done = max(load.start + seconds, (load.backlog + first * self.price) / load.width)
        """Seconds until a first group should be done, or all that waits if that is less."""

    def limit(self, work: Waiting, seconds: float) -> None:
        """Allows no batch longer than ``seconds``, but always a group."""
        fitting = self.curve.largest(seconds) // work.operations // self.group * self.group
        self.most = min(self.most, max(self.group, fitting))


def decide(waiting: Sequence[Waiting], backends: Sequence[BackendView], limits: Limits, now_ns: int) -> Decision:
    """The batches to launch now. A backend never gets more than it has free workers. ``now_ns``: on the clock of
    ``Waiting.oldest_ns``."""
    by_age, until_ns = _ready(waiting, now_ns)
    loads = [_Load(backend, len(by_age)) for backend in backends]
    plans = [_plan(place, work, loads, limits) for place, work in enumerate(by_age)]
    shares = {id(load): _share_workers(load.backend.free, load.groups) for load in loads}
    launches = []
    remaining = 0
    for place, (work, plan) in enumerate(zip(by_age, plans, strict=True)):
        left = work.count
        for offer in plan:
            workers = shares[id(offer.load)][place]
            part = min(left, offer.together)
            left -= part
            while workers and part:
                count = min(part, offer.most, -(-part // (workers * offer.group)) * offer.group)
                launches.append(Launch(offer.load.backend.index, work.kind, count))
                part -= count
                workers -= 1
            left += part
        remaining += left
    if remaining and len(launches) < sum(backend.free for backend in backends):
        # Beside a free worker, something waits for a busy one: that may be late.
        busy = min((seconds for backend in backends for seconds in backend.busy), default=0.0)
        until_ns = min(until_ns or _NEVER_NS, now_ns + max(_DECIDE_AGAIN_NS, int(busy * 1e9)))
    return Decision(launches, until_ns)


def _ready(waiting: Sequence[Waiting], now_ns: int) -> tuple[list[Waiting], int | None]:
    """What need not wait for company, the oldest first, and when the rest will have waited long enough."""
    ready = []
    until_ns = None
    for work in waiting:
        least, group, seconds = work.patience
        due_ns = work.oldest_ns + int(seconds * 1e9)
        rest = work.count % group if work.count > group else work.count
        if 0 < rest < least and now_ns < due_ns:
            until_ns = due_ns if until_ns is None else min(due_ns, until_ns)
        else:
            rest = 0
        if work.count > rest:
            ready.append(replace(work, count=work.count - rest))
    return sorted(ready, key=attrgetter("oldest_ns")), until_ns


def _plan(place: int, work: Waiting, loads: Sequence[_Load], limits: Limits) -> list[_Offer]:
    """The backends that compute this kind, ordered by when they finish a first group."""
    offers = sorted((_Offer(work, load, limits) for load in loads), key=attrgetter("group_done"))
    if len(offers) > 1:
        offers = _fill_to_a_level(work, offers)
    for offer in offers:
        offer.load.groups[place] = -(-work.count // offer.group)
    return offers


def _fill_to_a_level(work: Waiting, offers: Sequence[_Offer]) -> list[_Offer]:
    """Those of ``offers`` that bring the horizon down, each limited to its share of the work."""
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
        elif load.backend.pipelined:
            offer.together = max(offer.group, int((horizon - load.backlog) / offer.price))
        else:
            offer.limit(work, horizon * _SHARE_OF_HORIZON)
        load.backlog = max(load.backlog, load.width * horizon)
    return joined


def _share_workers(workers: int, groups: Sequence[int]) -> list[int]:
    """Deals workers to the kinds in turn, to each at most one per group."""
    shares = [0] * len(groups)
    while workers:
        hungry = [place for place, most in enumerate(groups) if shares[place] < most]
        if not hungry:
            break
        for place in hungry[:workers]:
            shares[place] += 1
        workers -= min(workers, len(hungry))
    return shares
