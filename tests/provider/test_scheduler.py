"""The scheduler alone, with a simulated clock: what goes where, no worker idle beside work, no starvation, the bound on
a batch's time, never too many workers; and the cost curves."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_provider.client import Crowd
from gpu_provider.costs import CostCurve
from gpu_provider.engine import scheduler
from gpu_provider.engine.pace import Pace, Paces
from gpu_provider.engine.scheduler import BackendView, Launch, Limits, Patience, Shortage, Waiting, patience
from gpu_provider.kinds import REQUESTS, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = A, B, C = REQUESTS[:3]
SECOND = 1_000_000_000


def curves(*seconds: float) -> dict[Kind, CostCurve]:
    """A constant cost per operation, by kind."""
    return {kind: CostCurve([(1, cost)]) for kind, cost in zip(KINDS, seconds, strict=False)}


def decide(waiting: list[Waiting], backends: Sequence[BackendView], limits: Limits) -> list[Launch]:
    """Of requests that don't wait for company."""
    return scheduler.decide(waiting, backends, limits, 100).launches


@dataclass
class Simulation:
    """Backends with workers of a fixed true cost per kind; requests arrive at given times. No real clock anywhere."""

    workers: list[int]
    costs: list[list[float]]
    limits: Limits
    arrivals: list[tuple[int, int]]
    now: int = 0
    waiting: list[deque[int]] = field(default_factory=lambda: [deque() for _ in KINDS])
    waits: list[tuple[Kind, int]] = field(default_factory=list)  # kind, nanoseconds
    launches: list[Launch] = field(default_factory=list)

    def run(self) -> None:
        busy: list[tuple[int, int]] = []  # when, and which backend
        views = [curves(*costs) for costs in self.costs]
        arrivals = deque(sorted(self.arrivals))
        while arrivals or busy or any(self.waiting):
            while arrivals and arrivals[0][0] <= self.now:
                time, place = arrivals.popleft()
                self.waiting[place].append(time)
            while busy and busy[0][0] <= self.now:
                heapq.heappop(busy)
            for launch in self.decide(busy, views):
                place = KINDS.index(launch.kind)
                for _ in range(launch.count):
                    self.waits.append((launch.kind, self.now - self.waiting[place].popleft()))
                end = self.now + max(1, int(launch.count * self.costs[launch.backend][place] * SECOND))
                heapq.heappush(busy, (end, launch.backend))
            upcoming = [time for time, _ in [*busy[:1], *list(arrivals)[:1]]]
            self.now = min(upcoming) if upcoming else self.now

    def decide(self, busy: list[tuple[int, int]], views: list[list[CostCurve]]) -> list[Launch]:
        waiting = [
            Waiting(kind, len(queue), queue[0]) for kind, queue in zip(KINDS, self.waiting, strict=True) if queue
        ]
        backends = []
        for index, count in enumerate(self.workers):
            ends = [(end - self.now) / SECOND for end, backend in busy if backend == index]
            backends.append(BackendView(index, count - len(ends), views[index], ends))
        launches = decide(waiting, backends, self.limits)

        for view in backends:
            assert sum(launch.backend == view.index for launch in launches) <= view.free, "too many workers"
        for kind, queue in zip(KINDS, self.waiting, strict=True):
            assert sum(launch.count for launch in launches if launch.kind == kind) <= len(queue)
        for launch in launches:
            assert 1 <= launch.count <= self.limits.max_batch
            cost = self.costs[launch.backend][KINDS.index(launch.kind)]
            assert launch.count == 1 or launch.count * cost <= self.limits.max_delay * (1 + 1e-9), "the bound is broken"
        idle_workers = sum(view.free for view in backends) - len(launches)
        left_waiting = sum(map(len, self.waiting)) - sum(launch.count for launch in launches)
        if idle_workers and left_waiting:
            assert len(self.workers) > 1, "not work-conserving"
            assert busy or launches, "nothing is computed"
        self.launches += launches
        return launches


class TestSimulation:
    @given(
        workers=st.lists(st.integers(1, 4), min_size=1, max_size=3),
        data=st.data(),
        max_batch=st.integers(1, 64),
        max_delay=st.sampled_from([0.0005, 0.01, 3600.0]),
    )
    def test_rules_hold_at_every_decision_and_everything_is_served(
        self, workers: list[int], data: st.DataObject, max_batch: int, max_delay: float
    ) -> None:
        costs = data.draw(
            st.lists(
                st.lists(st.sampled_from([0.0, 1e-6, 0.0003, 0.0045]), min_size=len(KINDS), max_size=len(KINDS)),
                min_size=len(workers),
                max_size=len(workers),
            )
        )
        arrivals = data.draw(
            st.lists(st.tuples(st.integers(0, SECOND // 10), st.integers(0, len(KINDS) - 1)), max_size=200)
        )
        simulation = Simulation(workers, costs, Limits(max_batch, max_delay), arrivals)
        simulation.run()
        assert len(simulation.waits) == len(arrivals)

    def test_a_rare_kind_does_not_starve_beside_an_overload_of_another(self) -> None:
        """Kind A brings twice what the worker can compute. After 100 ms its backlog is 100 ms of work. A request of
        kind B that arrives then waits for no more than that and two batches, though the overload goes on for another
        500 ms."""
        cost = 0.0003
        arrivals = [(int(index * cost / 2 * SECOND), 0) for index in range(4000)] + [(SECOND // 10, 1)]
        simulation = Simulation([1], [[cost, cost, cost]], Limits(1024, 0.010), arrivals)
        simulation.run()
        (wait,) = [wait for kind, wait in simulation.waits if kind is B]
        assert wait <= 0.120 * SECOND


class TestDecideWithOneBackend:
    limits = Limits(max_batch=1000, max_delay=0.010)

    def test_nothing_waits_nothing_is_launched(self) -> None:
        assert decide([], [BackendView(0, 4, curves(1))], self.limits) == []
        assert decide([Waiting(A, 0, 0)], [BackendView(0, 4, curves(1))], self.limits) == []

    def test_no_worker_is_free(self) -> None:
        assert decide([Waiting(A, 5, 1)], [], self.limits) == []
        assert decide([Waiting(A, 5, 1)], [BackendView(0, 0, curves(1), [0.1])], self.limits) == []

    def test_one_request_leaves_at_once_without_waiting_for_company(self) -> None:
        assert decide([Waiting(A, 1, 1)], [BackendView(0, 4, curves(0.001))], self.limits) == [Launch(0, A, 1)]

    def test_what_waits_is_spread_over_the_free_workers(self) -> None:
        launches = decide([Waiting(A, 10, 1)], [BackendView(0, 4, curves(1e-6))], self.limits)
        assert sorted(launch.count for launch in launches) == [2, 2, 3, 3]

    @pytest.mark.parametrize(
        ("waiting", "counts"),
        [(1, [1]), (8, [8]), (9, [8, 1]), (16, [8, 8]), (17, [16, 1]), (40, [16, 16, 8])],
    )
    def test_a_group_is_not_torn_apart(self, waiting: int, counts: list[int]) -> None:
        """Eight cost as much as one: four on each of two workers would take twice the processor time."""
        costs = {A: CostCurve([(1, 0.0007), (8, 0.0007)], granule=8)}
        workers = len(counts) if waiting > 8 else 3
        launches = decide([Waiting(A, waiting, 1)], [BackendView(0, workers, costs)], self.limits)
        assert [launch.count for launch in launches] == counts

    def test_the_oldest_kind_gets_the_only_worker(self) -> None:
        waiting = [Waiting(A, 500, 20), Waiting(B, 1, 10)]
        assert decide(waiting, [BackendView(0, 1, curves(1e-6, 1e-6))], self.limits) == [Launch(0, B, 1)]

    def test_kinds_take_workers_in_turn(self) -> None:
        waiting = [Waiting(A, 500, 20), Waiting(B, 500, 10)]
        launches = decide(waiting, [BackendView(0, 2, curves(1e-6, 1e-6))], self.limits)
        assert {launch.kind for launch in launches} == {A, B}

    def test_a_long_batch_is_cut_to_the_bound_but_never_to_nothing(self) -> None:
        waiting = [Waiting(A, 500, 1), Waiting(B, 500, 1)]
        launches = decide(waiting, [BackendView(0, 2, curves(0.001, 0.5))], self.limits)
        assert sorted((launch.kind.label, launch.count) for launch in launches) == [(A.label, 10), (B.label, 1)]

    def test_a_group_of_a_processor_is_never_cut(self) -> None:
        """A busy core makes one request look as long as the bound. If batches of one were all that is launched then,
        nobody would ever learn that eight cost the same."""
        costs = {A: CostCurve([(1, 0.012), (8, 0.02)], granule=8)}
        assert decide([Waiting(A, 64, 0)], [BackendView(0, 2, costs)], Limits(1024, 0.01)) == [Launch(0, A, 8)] * 2
        assert decide([Waiting(A, 64, 0)], [BackendView(0, 2, costs)], Limits(5, 0.01)) == [Launch(0, A, 5)] * 2

    def test_the_bound_holds_for_requests_of_many_operations(self) -> None:
        launches = decide([Waiting(A, 500, 1, operations=50)], [BackendView(0, 1, curves(1e-5))], self.limits)
        assert launches == [Launch(0, A, 20)]


class TestDecideWithSeveralBackends:
    """A GPU (2 ms for up to 2,048) and the processor (0.25 ms for each)."""

    limits = Limits(max_batch=4000, max_delay=0.010)
    gpu_costs = dict.fromkeys((A, B), CostCurve([(1, 0.002), (2048, 0.002), (16384, 0.016)], granule=2048))
    cpu_costs = dict.fromkeys((A, B), CostCurve([(1, 0.00025)]))

    def gpu(self, backend: int = 0, free: int = 3, busy: tuple[float, ...] = ()) -> BackendView:
        return BackendView(backend, free, self.gpu_costs, busy, pipelined=True)

    def cpu(self, free: int = 2, busy: tuple[float, ...] = ()) -> BackendView:
        return BackendView(9, free, self.cpu_costs, busy)

    def counts(self, waiting: int, *backends: BackendView) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for launch in decide([Waiting(A, waiting, 1)], backends, self.limits):
            found.setdefault(launch.backend, []).append(launch.count)
        return found

    def test_few_go_to_the_processor(self) -> None:
        assert self.counts(1, self.gpu(), self.cpu()) == {9: [1]}
        assert self.counts(6, self.gpu(), self.cpu()) == {9: [3, 3]}

    def test_many_go_to_the_gpu_and_the_processor_takes_a_few_of_them(self) -> None:
        found = self.counts(500, self.gpu(), self.cpu())
        assert found == {0: [500 - sum(found[9])], 9: found[9]}
        assert all(0 < count * 0.00025 < 0.002 for count in found[9])

    def test_the_processor_does_not_take_what_a_busy_gpu_finishes_first(self) -> None:
        found = self.counts(2048, self.gpu(free=0, busy=(0.001, 0.002, 0.003)), self.cpu())
        assert set(found) == {9}
        assert all(0 < count * 0.00025 < 0.005 for count in found[9])

    def test_a_free_gpu_does_not_take_what_the_busy_processor_finishes_first(self) -> None:
        assert self.counts(2, self.gpu(), self.cpu(free=0, busy=(0.0001, 0.0002))) == {}
        assert self.counts(2, self.gpu(), self.cpu(free=0, busy=(0.003, 0.004))) == {0: [2]}

    def test_the_idle_gpu_of_several_gets_the_batch(self) -> None:
        devices = [self.gpu(0, free=2, busy=(0.002,)), self.gpu(1), self.gpu(2, free=2, busy=(0.002,))]
        assert self.counts(2000, *devices) == {1: [2000]}

    def test_a_backlog_is_spread_over_all_gpus(self) -> None:
        found = self.counts(16_000, *[self.gpu(index) for index in range(8)])
        assert sum(map(sum, found.values())) == 16_000
        assert all(sum(counts) <= 2048 for counts in found.values())

    def test_an_older_kind_does_not_keep_the_gpu_from_one_that_needs_it(self) -> None:
        """Three requests for the processor have waited longer than many of another kind."""
        gpu = BackendView(0, 1, self.gpu_costs, pipelined=True)
        cpu = BackendView(9, 1, self.cpu_costs)
        launches = decide([Waiting(A, 3, 1), Waiting(B, 2048, 2)], [gpu, cpu], self.limits)
        assert Launch(9, A, 3) in launches
        assert any(launch.backend == 0 and launch.kind is B and launch.count > 1800 for launch in launches)


class TestCompany:
    """A group of eight costs as much as one request: 3 ms. 1,000 requests come in a second."""

    limits = Limits(max_batch=1024, max_delay=0.010)
    curve = CostCurve([(1, 0.003), (8, 0.003)], granule=8)

    def pace(self, size: int = 8, gap: float = 0.001) -> Pace:
        pace = Pace()
        for turn in range(100):
            pace.launched(size, int((turn + 1) * size * gap * SECOND), 1, size)
        return pace

    def of(
        self,
        pace: Pace,
        used: float,
        *,
        curve: CostCurve | None = None,
        together: int = 0,
        processors: int = 1,
        pipelined: bool = False,
    ) -> Patience:
        """While a thread waits for a processor for as large a share of the time as processors are ``used``.
        ``together``: of all kinds, if they are more than the pace's own."""
        return patience(
            curve or self.curve,
            pace,
            Shortage(used, used, processors),
            self.limits,
            together=max(together, pace.reach),
            pipelined=pipelined,
        )

    def decide(self, count: int, patience: Patience, waited: float, workers: int = 1) -> tuple[list[int], int | None]:
        now_ns = 5 * SECOND
        work = Waiting(A, count, now_ns - int(waited * SECOND), patience=patience)
        backend = BackendView(0, workers, {A: self.curve})
        launches, until_ns = scheduler.decide([work], [backend], self.limits, now_ns)
        return [launch.count for launch in launches], None if until_ns is None else until_ns - now_ns

    def test_nothing_waits_where_nobody_waits_for_a_processor(self) -> None:
        assert self.of(self.pace(), 0.0).least == 1
        assert self.of(self.pace(), 0.05).least == 1

    def test_a_full_group_is_worth_the_wait_where_others_wait_for_a_processor(self) -> None:
        assert self.of(self.pace(), 0.95).least == 8
        assert [self.of(self.pace(), used).least for used in (0.3, 0.4, 0.6, 0.7)] == [1, 2, 4, 8]

    def test_nothing_waits_where_each_request_has_a_processor(self) -> None:
        """Busy as they are, nobody waits for one."""
        shortage = Shortage(0.0, 1.0, 8)
        assert patience(self.curve, self.pace(), shortage, self.limits, together=8, pipelined=False).least == 1
        assert patience(self.curve, self.pace(), shortage, self.limits, together=32, pipelined=False).least == 8

    def test_requests_of_other_kinds_wait_for_the_same_processors(self) -> None:
        pace = self.pace(size=2)
        pace.launched(2, int(0.202 * SECOND), 4, 2)  # a trial has shown that no more come
        assert self.of(pace, 0.95, processors=4).least == 1
        assert self.of(pace, 0.95, processors=4, together=16).least == 2

    def test_nothing_waits_for_what_comes_too_seldom(self) -> None:
        assert self.of(self.pace(gap=1.0), 0.95).least == 1

    def test_nothing_waits_where_a_batch_costs_as_much_as_its_requests_alone(self) -> None:
        assert self.of(self.pace(), 0.95, curve=CostCurve([(1, 0.003)])).least == 1
        assert self.of(self.pace(), 0.95, curve=CostCurve([(1, 0.003), (8, 0.024)], granule=8)).least == 1

    def test_a_wait_is_bounded(self) -> None:
        """By what it can save, by how long those that are expected take to come, and by max_delay."""
        assert 0.0 < self.of(self.pace(), 0.4).seconds <= 0.003
        assert self.of(self.pace(gap=1e-5), 0.95).seconds <= 2 * 8 * 1e-5
        assert self.of(self.pace(), 1.0).seconds <= self.limits.max_delay

    def test_a_device_waits_only_for_what_its_launches_cost(self) -> None:
        """A batch that leaves it half empty leaves room for the next one."""
        device = CostCurve([(1, 0.002), (2048, 0.002)], granule=2048)
        assert self.of(self.pace(), 0.1, curve=device, pipelined=True).least == 1
        assert self.of(self.pace(size=64, gap=1e-5), 0.9, curve=device, pipelined=True).least == 32

    def test_few_are_held_until_their_time_and_not_longer(self) -> None:
        patience = Patience(8, 8, 0.004)
        assert self.decide(3, patience, waited=0.001) == ([], 3_000_000)
        assert self.decide(3, patience, waited=0.004) == ([3], None)
        assert self.decide(8, patience, waited=0.0) == ([8], None)

    def test_full_groups_go_and_the_rest_waits(self) -> None:
        patience = Patience(8, 8, 0.004)
        assert self.decide(19, patience, waited=0.001, workers=3) == ([8, 8], 3_000_000)
        assert self.decide(19, patience, waited=0.010, workers=3) == ([8, 8, 3], None)
        assert self.decide(14, Patience(4, 8, 0.004), waited=0.0, workers=2) == ([8, 6], None)

    def test_what_another_kind_waits_for_does_not_hold_a_kind_up(self) -> None:
        held = Waiting(A, 1, 0, patience=Patience(8, 8, 0.004))
        backend = BackendView(0, 1, {A: self.curve, B: self.curve})
        launches, until_ns = scheduler.decide([held, Waiting(B, 1, 0)], [backend], self.limits, 0)
        assert (launches, until_ns) == ([Launch(0, B, 1)], 4_000_000)

    def test_a_closed_loop_of_one_is_recognised(self) -> None:
        """A client that connects again when it is served: the next request comes only if the one before is computed, so
        no wait ever brings one. Of a thousand, hardly any waits."""
        pace, now, waited = Pace(), 0.0, 0
        for _ in range(1000):
            now += 0.001
            found = self.of(pace, 0.95)
            pace.launched(1, int(now * SECOND), found.least, 1)
            waited += found.least > 1
            now += found.seconds if found.least > 1 else 0.0
        assert 0 < waited < 10
        assert pace.reach == 1

    def test_those_that_are_under_way_together_are_waited_for(self) -> None:
        """Five are computed while three wait: the three soon wait for the five to come back."""
        pace = Pace()
        for turn in range(20):
            least = self.of(pace, 0.95).least
            pace.launched(max(3, least), turn * 4_000_000, least, 8)
        assert self.of(pace, 0.95).least == 8

    def test_those_that_never_wait_together_are_found_by_a_trial(self) -> None:
        """Each is computed before the next comes, and yet a wait would bring eight."""
        pace = Pace()
        for turn in range(100):
            least = self.of(pace, 0.95).least
            pace.launched(least, turn * 1_000_000, least, least)
        assert pace.reach == 8

    def test_company_that_has_gone_is_not_waited_for(self) -> None:
        """Of eight clients, two are left."""
        pace = self.pace()
        vain = 0
        for turn in range(1000):
            least = self.of(pace, 0.95).least
            pace.launched(min(2, least), 2 * SECOND + turn * 2_000_000, least, 2)
            vain += least > 2
        assert vain < 20

    def test_those_of_before_a_silence_are_not_waited_for(self) -> None:
        """A crowd has come and gone. Of the hundred that one client sends after it none waits, not even for a trial:
        the client and this process take turns on two processors."""
        paces = Paces([A, B])
        for turn in range(100):
            paces.launched(A, 8, turn * 8_000_000, 1, Crowd(8, 8))
            paces.launched(B, 4, turn * 8_000_000, 1, Crowd(4, 8))
        assert (self.of(paces[A], 0.95).least, paces.together) == (8, 8)
        for turn in range(100):
            paces.launched(A, 1, 2 * SECOND + turn * 1_000_000, 1, Crowd(1, 1))
            assert (self.of(paces[A], 0.6).least, paces.together) == (1, 1)
        paces.launched(A, 8, 3 * SECOND, 1, Crowd(8, 8))
        assert self.of(paces[A], 0.95).least == 8  # it is back

    def test_a_silence_says_little_of_the_pace(self) -> None:
        pace = self.pace()
        pace.launched(8, int((0.8 + 3600) * SECOND), 1, 8)
        assert pace.gap <= 0.004


class TestCostCurve:
    def test_between_and_beyond_what_is_known(self) -> None:
        curve = CostCurve([(1, 0.002), (1024, 0.002), (4096, 0.008)])
        assert curve.seconds(1) == curve.seconds(1000) == pytest.approx(0.002)
        assert curve.seconds(2560) == pytest.approx(0.005)
        assert curve.seconds(8192) == pytest.approx(0.016)
        assert curve.seconds(1 << 45) == pytest.approx(0.008 / 4096 * (1 << 45))

    @given(count=st.integers(1, 100_000), fixed=st.floats(0, 0.01), each=st.floats(1e-9, 0.01))
    def test_the_largest_batch_within_a_time_takes_that_time_at_most(
        self, count: int, fixed: float, each: float
    ) -> None:
        curve = CostCurve([(1, fixed + each), (512, fixed + 512 * each)])
        bound = curve.seconds(count)
        assert curve.largest(bound) >= count
        assert curve.seconds(curve.largest(bound)) <= bound * (1 + 1e-6)

    @pytest.mark.parametrize("slow", range(4))
    def test_a_point_that_was_measured_too_slow_raises_no_other(self, slow: int) -> None:
        """The device stood still while it was measured, or its clock was low."""
        points = [(1, 0.002), (64, 0.002), (1024, 0.003), (4096, 0.008)]
        spoiled = [(count, 10 * seconds if place == slow else seconds) for place, (count, seconds) in enumerate(points)]
        curve = CostCurve(spoiled)
        for place, (count, seconds) in enumerate(points):
            if place < slow:
                assert curve.seconds(count) == pytest.approx(seconds)
            elif place > slow:
                assert seconds <= curve.seconds(count) * 1.001
                assert curve.seconds(count) == pytest.approx(seconds, rel=0.001)
            else:
                assert curve.seconds(count) <= min([10 * seconds, *(s for _, s in points[slow + 1 :])]) * 1.001

    def test_a_slow_first_batch_does_not_replace_what_was_measured(self) -> None:
        """It allocates memory, uploads a key and makes its blinding pairs."""
        curve = CostCurve([(1, 0.002), (1024, 0.002), (4096, 0.008)], measured=True)
        curve.observe(1000, 0.1)
        assert curve.seconds(1024) <= 0.002 * 1.25
        assert curve.seconds(4096) <= 0.008 * 1.25
        for _ in range(50):
            curve.observe(1000, 0.001)
        assert curve.seconds(1) <= curve.seconds(1000) == pytest.approx(0.001, rel=0.05)

    def test_the_first_measurement_replaces_the_guess_everywhere(self) -> None:
        """A machine at a quarter of the speed."""
        curve = CostCurve([(1, 0.001)])
        curve.observe(10, 0.04)
        assert curve.seconds(10) == pytest.approx(0.04)
        assert curve.seconds(1) == pytest.approx(0.004)
        assert curve.seconds(1000) == pytest.approx(4)

    def test_later_ones_move_it_towards_what_was_measured(self) -> None:
        curve = CostCurve([(1, 1.0)])
        curve.observe(1, 0.001)
        for _ in range(50):
            curve.observe(1, 0.002)
        assert curve.seconds(1) == pytest.approx(0.002, rel=0.01)

    def test_one_outlier_changes_little_anywhere(self) -> None:
        curve = CostCurve([(1, 0.002), (1024, 0.002), (4096, 0.008)])
        for count in (1, 32, 1024, 4096):
            curve.observe(count, curve.seconds(count))
        before = [curve.seconds(1 << knot) for knot in range(17)]
        curve.observe(40, 3.0)
        after = [curve.seconds(1 << knot) for knot in range(17)]
        assert all(old <= new <= old * 1.25 for old, new in zip(before, after, strict=True))

    @pytest.mark.parametrize("stalled", [1, 4, 64])
    def test_a_stall_does_not_keep_a_size_from_being_tried_again(self, stalled: int) -> None:
        """The first batch of a size takes a tenth of a second once. If the curve believed it, only smaller ones would
        be launched from then on, and nobody would measure that size again."""
        curve = CostCurve([(1, 0.001), (8, 0.001), (16, 0.002)], granule=4)
        curve.observe(stalled, 0.1)
        launched = []
        for _ in range(40):
            (launch,) = decide(
                [Waiting(A, 1000, 0)], [BackendView(0, 1, {A: curve}, pipelined=True)], Limits(1024, 0.01)
            )
            curve.observe(launch.count, 20e-6 + launch.count * 1e-7)
            launched.append(launch.count)
        assert launched[-1] >= 999

    def test_a_shape_unlike_the_guess_is_learned(self) -> None:
        def true(count: int) -> float:
            return 0.002 + max(0, count - 3000) / 1.6e6

        curve, source = CostCurve([(1, 0.0003)]), random.Random(1)  # noqa: S311 (a simulation)
        for _ in range(1000):
            count = int(2 ** source.uniform(0, 14))
            curve.observe(count, true(count) * source.uniform(0.95, 1.1))
        for count in (1, 3, 10, 100, 1000, 3000, 10_000):
            assert curve.seconds(count) == pytest.approx(true(count), rel=0.25)

    @given(st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 10)), max_size=50))
    def test_it_never_falls(self, measurements: list[tuple[int, float]]) -> None:
        curve = CostCurve([(1, 0.001), (8, 0.002)], granule=8)
        for count, seconds in measurements:
            curve.observe(count, seconds)
        costs = [curve.seconds(1 << knot) for knot in range(24)]
        assert all(after >= before * (1 - 1e-9) for before, after in pairwise(costs))

    def test_free_work_is_not_bounded(self) -> None:
        curve = CostCurve([(1, 1.0)])
        curve.observe(1000, 0.0)
        assert curve.largest(0.001) > 65536

    def test_a_batch_in_flight_with_others_is_not_charged_for_them(self) -> None:
        """Each of three in flight takes three times as long as alone, and one is done every 2 ms."""
        curve = CostCurve([(1, 0.002), (2048, 0.002), (16384, 0.016)], granule=2048)
        for _ in range(100):
            curve.observe_pipelined(2048, 0.006, since_last=0.002)
        assert curve.seconds(2048) == pytest.approx(0.002, rel=0.1)
        for _ in range(100):  # the device has slowed down
            curve.observe_pipelined(2048, 0.012, since_last=0.004)
        assert curve.seconds(2048) == pytest.approx(0.004, rel=0.1)

    def test_small_batches_in_flight_leave_room_for_each_other(self) -> None:
        curve = CostCurve([(1, 0.002), (2048, 0.002), (16384, 0.016)], granule=2048)
        assert curve.seconds_pipelined(200, 1, 0.001) == pytest.approx(0.002)
        assert curve.seconds_pipelined(2048, 1, 0.001) == pytest.approx(0.003, rel=0.05)
