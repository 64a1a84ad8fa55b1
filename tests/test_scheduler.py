"""The scheduler alone, with a simulated clock: work conservation, no starvation, the bound kept, never too many
lanes."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_provider.scheduler import CostCurve, FreeLanes, Launch, Limits, Waiting, decide

KINDS = 3
SECOND = 1_000_000_000


def curves(*seconds: float) -> list[CostCurve]:
    return [CostCurve(cost) for cost in seconds]


@dataclass
class Simulation:
    """Backends with lanes of a fixed true cost per kind; requests arrive at given times. No real clock anywhere."""

    lanes: list[int]
    costs: list[list[float]]
    limits: Limits
    arrivals: list[tuple[int, int]]
    now: int = 0
    waiting: list[deque[int]] = field(default_factory=lambda: [deque() for _ in range(KINDS)])
    waits: list[tuple[int, int]] = field(default_factory=list)  # kind, nanoseconds
    launches: list[Launch] = field(default_factory=list)

    def run(self) -> None:
        busy: list[tuple[int, int]] = []
        free = list(self.lanes)
        views = [curves(*costs) for costs in self.costs]
        arrivals = deque(sorted(self.arrivals))
        while arrivals or busy or any(self.waiting):
            while arrivals and arrivals[0][0] <= self.now:
                time, kind = arrivals.popleft()
                self.waiting[kind].append(time)
            while busy and busy[0][0] <= self.now:
                free[heapq.heappop(busy)[1]] += 1
            for launch in self.decide(free, views):
                for _ in range(launch.count):
                    self.waits.append((launch.kind, self.now - self.waiting[launch.kind].popleft()))
                free[launch.backend] -= 1
                end = self.now + max(1, int(launch.count * self.costs[launch.backend][launch.kind] * SECOND))
                heapq.heappush(busy, (end, launch.backend))
            upcoming = [time for time, _ in [*busy[:1], *list(arrivals)[:1]]]
            self.now = min(upcoming) if upcoming else self.now

    def decide(self, free: list[int], views: list[list[CostCurve]]) -> list[Launch]:
        waiting = [Waiting(kind, len(queue), queue[0]) for kind, queue in enumerate(self.waiting) if queue]
        lanes = [FreeLanes(index, count, views[index]) for index, count in enumerate(free) if count]
        launches = decide(waiting, lanes, self.limits)

        for index, count in enumerate(free):
            assert sum(launch.backend == index for launch in launches) <= count, "more lanes than there are"
        for kind, queue in enumerate(self.waiting):
            assert sum(launch.count for launch in launches if launch.kind == kind) <= len(queue)
        for launch in launches:
            assert 1 <= launch.count <= self.limits.max_batch
            cost = self.costs[launch.backend][launch.kind]
            assert launch.count == 1 or launch.count * cost <= self.limits.max_delay * (1 + 1e-9), "the bound is broken"
        idle_lanes = sum(free) - len(launches)
        left_waiting = sum(map(len, self.waiting)) - sum(launch.count for launch in launches)
        assert not (idle_lanes and left_waiting), "not work-conserving"
        self.launches += launches
        return launches


class TestSimulation:
    @given(
        lanes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
        data=st.data(),
        max_batch=st.integers(1, 64),
        max_delay=st.sampled_from([0.0005, 0.01, 3600.0]),
    )
    def test_rules_hold_at_every_decision_and_everything_is_served(
        self, lanes: list[int], data: st.DataObject, max_batch: int, max_delay: float
    ) -> None:
        costs = data.draw(
            st.lists(
                st.lists(st.sampled_from([0.0, 1e-6, 0.0003, 0.0045]), min_size=KINDS, max_size=KINDS),
                min_size=len(lanes),
                max_size=len(lanes),
            )
        )
        arrivals = data.draw(st.lists(st.tuples(st.integers(0, SECOND // 10), st.integers(0, KINDS - 1)), max_size=200))
        simulation = Simulation(lanes, costs, Limits(max_batch, max_delay), arrivals)
        simulation.run()
        assert len(simulation.waits) == len(arrivals)

    def test_a_rare_kind_does_not_starve_beside_an_overload_of_another(self) -> None:
        """Kind 0 brings twice what the lane can compute. After 100 ms its backlog is 100 ms of work, and no more than
        that and two batches go before a request of kind 1 that arrives then; the overload goes on for another 500
        ms."""
        cost = 0.0003
        arrivals = [(int(index * cost / 2 * SECOND), 0) for index in range(4000)] + [(SECOND // 10, 1)]
        simulation = Simulation([1], [[cost, cost, cost]], Limits(1024, 0.010), arrivals)
        simulation.run()
        (wait,) = [wait for kind, wait in simulation.waits if kind == 1]
        assert wait <= 0.120 * SECOND


class TestDecide:
    limits = Limits(max_batch=1000, max_delay=0.010)

    def test_nothing_waits_nothing_is_launched(self) -> None:
        assert decide([], [FreeLanes(0, 4, curves(1))], self.limits) == []
        assert decide([Waiting(0, 0, 0)], [FreeLanes(0, 4, curves(1))], self.limits) == []

    def test_no_lane_is_free(self) -> None:
        assert decide([Waiting(0, 5, 1)], [], self.limits) == []

    def test_one_request_leaves_at_once_without_waiting_for_company(self) -> None:
        assert decide([Waiting(0, 1, 1)], [FreeLanes(0, 4, curves(0.001))], self.limits) == [Launch(0, 0, 1)]

    def test_what_waits_is_spread_over_the_free_lanes(self) -> None:
        launches = decide([Waiting(0, 10, 1)], [FreeLanes(0, 4, curves(1e-6))], self.limits)
        assert sorted(launch.count for launch in launches) == [2, 2, 3, 3]

    def test_the_oldest_kind_gets_the_only_lane(self) -> None:
        waiting = [Waiting(0, 500, 20), Waiting(1, 1, 10)]
        assert decide(waiting, [FreeLanes(0, 1, curves(1e-6, 1e-6))], self.limits) == [Launch(0, 1, 1)]

    def test_kinds_take_lanes_in_turn(self) -> None:
        waiting = [Waiting(0, 500, 20), Waiting(1, 500, 10)]
        launches = decide(waiting, [FreeLanes(0, 2, curves(1e-6, 1e-6))], self.limits)
        assert {launch.kind for launch in launches} == {0, 1}

    def test_a_long_batch_is_cut_to_the_bound_but_never_to_nothing(self) -> None:
        waiting = [Waiting(0, 500, 1), Waiting(1, 500, 1)]
        launches = decide(waiting, [FreeLanes(0, 2, curves(0.001, 0.5))], self.limits)
        assert sorted((launch.kind, launch.count) for launch in launches) == [(0, 10), (1, 1)]

    def test_what_the_preferred_backend_cannot_take_goes_to_the_next(self) -> None:
        free = [FreeLanes(7, 1, curves(1e-6)), FreeLanes(3, 2, curves(1e-3))]
        launches = decide([Waiting(0, 1014, 1)], free, self.limits)
        assert launches == [Launch(7, 0, 1000), Launch(3, 0, 7), Launch(3, 0, 7)]

    def test_indivisible_work_is_launched_one_by_one(self) -> None:
        launches = decide([Waiting(0, 9, 1, divisible=False)], [FreeLanes(0, 3, curves(1e-9))], self.limits)
        assert launches == [Launch(0, 0, 1)] * 3


class TestCostCurve:
    def test_the_first_measurement_replaces_the_guess(self) -> None:
        curve = CostCurve(1.0)
        curve.observe(10, 0.01)
        assert curve.seconds_per_operation == pytest.approx(0.001)

    def test_later_ones_move_it_towards_what_was_measured(self) -> None:
        curve = CostCurve(1.0)
        curve.observe(1, 0.001)
        for _ in range(50):
            curve.observe(1, 0.002)
        assert curve.seconds_per_operation == pytest.approx(0.002, rel=0.01)

    def test_free_work_is_not_bounded(self) -> None:
        curve = CostCurve(1.0)
        curve.observe(1000, 0.0)
        assert curve.largest(0.001) > 65536
