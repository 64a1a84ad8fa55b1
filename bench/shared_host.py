"""Connections on a simulated host whose processors do everything: the handshakes' other work, and the batches.

The scheduler, the cost curves and the paces are the real ones. The processors are taken first come, first served.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from gpu_provider.costs import CostCurve
from gpu_provider.engine.pace import Pace
from gpu_provider.engine.scheduler import NO_PATIENCE, Patience, Waiting, decide, patience
from gpu_provider.kinds import Kind

from .scheduling import (
    DECIDING_SECONDS,
    LAUNCHING_SECONDS,
    LIMITS,
    SMALL_BATCH,
    SMALL_BATCH_SECONDS,
    Backend,
    Hardware,
)

CLIENT_SECONDS = 300e-6
BEFORE_SECONDS = 200e-6
"""Of a processor, for what a connection needs before its private operation, at the client and at the server."""
AFTER_SECONDS = 250e-6


@dataclass(frozen=True)
class Outcome:
    latency: float
    """Of whole connections, the mean in seconds."""
    worst: float
    """The 99th percentile."""
    cpu: float
    """Seconds of a processor per private operation."""
    mean_batch: float
    throughput: float


@dataclass(eq=False)
class Connection:
    kind: Kind
    began: float
    submitted: float = 0.0
    server: "Loop | None" = None


@dataclass
class Processors:
    """First come, first served."""

    free: int
    waiting: deque[Callable[[], None]] = field(default_factory=deque)
    urgent: deque[Callable[[], None]] = field(default_factory=deque)
    since: float = 0.0
    used: float = 0.0
    read: float = 0.0
    pressure: float = 0.0


@dataclass(eq=False)
class Loop:
    items: deque = field(default_factory=deque)
    running: bool = False
    left: int = 0
    held: int = 0
    since: float = 0.0


class Host:
    """One run until ``connections`` have ended."""

    def __init__(
        self,
        machine: Sequence[Hardware],
        cores: int,
        kinds: Sequence[Kind],
        mix: Sequence[float],
        *,
        waits: bool,
        seed: int,
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._kinds, self._mix = kinds, np.cumsum(mix)
        self._backends = [Backend(h, {k: CostCurve(h.points[k], h.granules[k]) for k in kinds}) for h in machine]
        self._inline = next((b for b in self._backends if not b.hardware.pipelined), None)
        self._processors = Processors(cores)
        self._cores = cores
        self._servers = [Loop() for _ in range(max(1, cores // 2))]
        self._clients = [Loop() for _ in range(max(1, cores // 2))]
        self._waits = waits
        self._paces = {kind: Pace() for kind in kinds}
        self._patience: dict[Kind, Patience] = dict.fromkeys(kinds, NO_PATIENCE)
        self._queues: dict[Kind, deque[Connection]] = {kind: deque() for kind in kinds}
        self._silence = dict.fromkeys(kinds, 0.0)
        self._last = dict.fromkeys(kinds, -1e9)
        self._completed = -1e9
        self._computing = 0
        self._thread_busy = False
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = count()
        self._timer = float("inf")
        self._slowdown = {id(b): 1.0 for b in self._backends}
        self._latencies: list[float] = []
        self._cpu = 0.0
        self._batches = 0
        self._again: Callable[[], None] = lambda: None

    def closed(self, clients: int, connections: int) -> Outcome:
        """Clients that connect again as soon as they are served."""
        self._again = self._begin
        for _ in range(clients):
            self._at(self._random.uniform(0, 0.001), self._begin)
        return self._run(connections)

    def open(self, rate: float, connections: int) -> Outcome:
        """Poisson arrivals."""
        for time in np.cumsum(self._random.exponential(1 / rate, connections)):
            self._at(float(time), self._begin)
        return self._run(connections)

    def _run(self, connections: int) -> Outcome:
        skipped = connections // 5  # until it is in balance
        cpu = batches = start = 0.0
        while len(self._latencies) < connections and self._events:
            self._now, _, action = heapq.heappop(self._events)
            before = len(self._latencies)
            action()
            if before < skipped <= len(self._latencies):
                cpu, batches, start = self._cpu, self._batches, self._now
        latencies = np.array(self._latencies[skipped:])
        done = len(latencies)
        return Outcome(
            float(latencies.mean()), float(np.quantile(latencies, 0.99)), (self._cpu - cpu) / done,
            done / max(1.0, self._batches - batches), done / (self._now - start),
        )  # fmt: skip

    def _at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._sequence), action))

    def _work(self, seconds: float, done: Callable[[float], None], urgent: bool = True) -> None:
        """``done(wall)`` is called when a processor has worked for so long, with the time that it took."""
        ready = self._now

        def start() -> None:
            self._at(self._now + seconds, end)

        def end() -> None:
            self._note()
            if self._processors.urgent or self._processors.waiting:
                (self._processors.urgent or self._processors.waiting).popleft()()
            else:
                self._processors.free += 1
            done(self._now - ready)

        self._note()
        if self._processors.free:
            self._processors.free -= 1
            start()
        elif urgent:
            self._processors.urgent.append(start)
        else:
            self._processors.waiting.append(start)

    def _note(self) -> None:
        """Before the run queue changes."""
        p = self._processors
        if p.waiting or p.urgent:
            p.used += self._now - p.since
        p.since = self._now

    def _pressure(self) -> float:
        self._note()
        p = self._processors
        if self._now - p.read >= 0.1:
            p.pressure += (p.used / (self._now - p.read) - p.pressure) / 2
            p.used, p.read = 0.0, self._now
        return p.pressure

    def _loop_work(self, loop: "Loop", seconds: float, done: Callable[[float], None]) -> None:
        loop.items.append((seconds, done))
        if not loop.running:
            loop.running = True
            self._turn(loop)

    def _turn(self, loop: "Loop") -> None:
        if loop.left == 0:
            loop.left = len(loop.items)
            if loop.held:
                loop.held = 0
                self._look()
        if not loop.items:
            loop.running = False
            return
        loop.left -= 1
        seconds, done = loop.items.popleft()

        def end(wall: float) -> None:
            done(wall)
            self._turn(loop)

        self._work(seconds, end, urgent=False)

    def _noise(self) -> float:
        return float(self._random.uniform(0.9, 1.1))

    # ---- connections ----

    def _begin(self) -> None:
        place = int(np.searchsorted(self._mix, self._random.random(), "right"))
        connection = Connection(self._kinds[min(place, len(self._kinds) - 1)], self._now)
        server = connection.server = self._servers[int(self._random.integers(len(self._servers)))]
        client = self._clients[int(self._random.integers(len(self._clients)))]
        self._loop_work(
            client,
            CLIENT_SECONDS * self._noise(),
            lambda _: self._loop_work(server, BEFORE_SECONDS * self._noise(), lambda _: self._submit(connection)),
        )

    def _submit(self, connection: Connection) -> None:
        kind, queue = connection.kind, self._queues[connection.kind]
        connection.submitted = self._now
        if not queue:
            self._silence[kind] = self._now - max(self._last[kind], self._completed)
        self._last[kind] = self._now
        queue.append(connection)
        loop = connection.server
        if self._patience[kind].least > 1:
            if not loop.held:
                loop.since = self._now
            loop.held += 1
            if loop.held < 8 and self._now - loop.since < 0.002:
                return
        loop.held = 0
        self._look()

    def _complete(self, batch: Sequence[Connection]) -> None:
        self._completed = self._now
        for connection in batch:
            self._loop_work(connection.server, AFTER_SECONDS * self._noise(), lambda _, c=connection: self._end(c))

    def _end(self, connection: Connection) -> None:
        self._latencies.append(self._now - connection.began)
        self._again()

    # ---- the batching thread ----

    def _due(self, kind: Kind) -> float:
        queue, patience_of = self._queues[kind], self._patience[kind]
        if len(queue) >= patience_of.least or (len(queue) == 1 and self._silence[kind] > patience_of.seconds):
            return 0.0
        return queue[0].submitted + patience_of.seconds

    def _look(self) -> None:
        if self._thread_busy:
            return
        waiting = [kind for kind, queue in self._queues.items() if queue]
        ready = [kind for kind in waiting if self._due(kind) <= self._now + 1e-12]
        if len(ready) < len(waiting):
            timer = min(self._due(kind) for kind in waiting if kind not in ready)
            if self._timer <= self._now or timer < self._timer:
                self._timer = timer
                self._at(timer, self._look)
        if not ready:
            return
        if len(ready) == 1 and self._is_small(ready[0]):
            self._thread_busy = True
            kind = ready[0]
            batch = self._take(kind, SMALL_BATCH)
            seconds = self._inline.hardware.curves[kind](len(batch)) * self._noise()
            self._cpu += seconds
            inline = self._inline

            def done(wall: float) -> None:
                self._feel(inline, wall, seconds)
                self._thread_busy = False
                self._complete(batch)
                self._look()

            self._work(seconds, done)
        elif any(len(b.busy) < b.hardware.workers for b in self._backends):
            self._thread_busy = True
            self._work(DECIDING_SECONDS, lambda _: self._decide())

    def _is_small(self, kind: Kind) -> bool:
        if self._inline is None or self._computing or len(self._queues[kind]) > SMALL_BATCH:
            return False
        seconds = self._inline.costs[kind].seconds(len(self._queues[kind]))
        others = [b.costs[kind].seconds(1) for b in self._backends if b is not self._inline]
        return seconds <= min([SMALL_BATCH_SECONDS, *others])

    def _decide(self) -> None:
        waiting = [
            Waiting(kind, len(queue), int(queue[0].submitted * 1e9), patience=self._patience[kind])
            for kind, queue in self._queues.items()
            if queue
        ]
        views = [backend.view(i, self._now) for i, backend in enumerate(self._backends)]
        launches = deque(decide(waiting, views, LIMITS, int(self._now * 1e9)).launches)

        def next_launch(_: float) -> None:
            launch = launches.popleft()
            self._launch(self._backends[launch.backend], launch.kind, launch.count)
            if launches:
                self._work(LAUNCHING_SECONDS, next_launch)
            else:
                self._thread_busy = False
                self._look()

        if launches:
            self._work(LAUNCHING_SECONDS, next_launch)
        else:
            self._thread_busy = False

    def _launch(self, backend: Backend, kind: Kind, size: int) -> None:
        batch = self._take(kind, size)
        if not batch:
            return
        self._computing += 1
        start = self._now
        if backend.hardware.pipelined:
            expected, end = backend.launch(kind, len(batch), self._now, self._noise())
            alone = backend.costs[kind].seconds(len(batch))

            def finish() -> None:
                backend.finish(kind, len(batch), start, expected, self._now)
                self._feel(backend, self._now - start, alone)
                self._returned(batch)

            self._at(end, finish)
            return
        seconds = backend.hardware.curves[kind](len(batch)) * self._noise()
        self._cpu += seconds
        expected = self._now + backend.costs[kind].seconds(len(batch))
        backend.busy.append(expected)

        def done(wall: float) -> None:
            backend.busy.remove(expected)
            backend.costs[kind].observe(len(batch), wall)
            self._feel(backend, wall, seconds)
            self._returned(batch)

        self._work(seconds, done)

    def _returned(self, batch: Sequence[Connection]) -> None:
        self._computing -= 1
        self._complete(batch)
        self._look()

    def _take(self, kind: Kind, size: int) -> list[Connection]:
        queue = self._queues[kind]
        least = self._patience[kind].least
        if len(queue) == 1 and self._silence[kind] > self._patience[kind].seconds:
            least = 1
        batch = [queue.popleft() for _ in range(min(size, len(queue)))]
        self._silence[kind] = 0.0
        self._batches += 1
        if batch:
            self._paces[kind].launched(len(batch), int(batch[-1].submitted * 1e9), least)
            if self._waits:
                backend = self._backends[-1]
                pace = self._paces[kind]
                self._patience[kind] = patience(
                    backend.costs[kind], pace, self._pressure(), LIMITS, pipelined=backend.hardware.pipelined
                )
        return batch

    def _feel(self, backend: Backend, wall: float, alone: float) -> None:
        self._slowdown[id(backend)] += (max(1.0, wall / alone) - self._slowdown[id(backend)]) / 8
