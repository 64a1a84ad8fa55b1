"""Simulates a host whose processors do everything: the clients, the server's event loops, and the batches.

It shows what waiting for company does to whole connections where processors are short. The scheduler, its cost curves,
the paces and the patience are the real ones. Clients and server are event loops, each on a thread; a connection needs
one step of a client's loop, then one of a server's, the private operation, and one more of the server's.
"""

import heapq
import math
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count

import numpy as np
from numpy.typing import NDArray

from gpu_provider.client import Crowd
from gpu_provider.costs import CostCurve
from gpu_provider.engine.pace import Paces
from gpu_provider.engine.scheduler import NO_PATIENCE, Launch, Patience, Shortage, Waiting, decide, patience
from gpu_provider.kinds import Kind

from .simulated_hardware import (
    DECIDING_SECONDS,
    LAUNCHING_SECONDS,
    LIMITS,
    SMALL_BATCH,
    SMALL_BATCH_SECONDS,
    Backend,
    gpu,
    processor,
)

CLIENT_SECONDS = 300e-6
BEFORE_SECONDS = 200e-6
"""Of a processor, for the server's part of a handshake before its private operation."""
AFTER_SECONDS = 250e-6
"""With BEFORE_SECONDS and a private operation, about what ``python -m bench connections`` measures for the
terminator."""
CONNECTION_SECONDS = CLIENT_SECONDS + BEFORE_SECONDS + AFTER_SECONDS
NOISE = (0.9, 1.1)
"""Any piece of work takes so many times as long as it should."""
TURN_REQUESTS = 8
TURN_SECONDS = 0.002
"""GP_TURN_REQUESTS and GP_TURN_NS of ``queue/client.h``."""
LOOK_SECONDS = 0.2
"""As often, ``engine/processors.py`` asks the kernel, and takes half of the answer."""

Action = Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    mean_latency: float
    """Of whole connections, in seconds."""
    high_latency: float
    """The 99th percentile."""
    operation: float
    """Seconds of a processor per private operation. A GPU's cost none."""
    mean_batch: float


class Clock:
    """Simulated time, and what will happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._order = count()

    def at(self, time: float, action: Action) -> None:
        heapq.heappush(self._events, (time, next(self._order), action))

    def step(self) -> bool:
        """Lets the next thing happen; returns False if there is none."""
        if not self._events:
            return False
        self.now, _, action = heapq.heappop(self._events)
        action()
        return True


class Processors:
    """Each finishes what it has begun. The rest is taken first come, first served, but urgent work before other."""

    def __init__(self, clock: Clock, processors: int) -> None:
        self._clock = clock
        self._processors = self._free = processors
        self._urgent: deque[Action] = deque()
        self._waiting: deque[Action] = deque()
        self._stalled = 0.0  # seconds in which somebody waited, since _looked_at
        self._used = 0.0  # seconds of processors
        self._counted_at = 0.0
        self._looked_at = 0.0
        self._shortage = Shortage(0.0, 0.0, processors)

    def work(self, seconds: float, done: Action, *, urgent: bool) -> None:
        """Calls ``done`` when a processor has worked for so long."""

        def start() -> None:
            self._clock.at(self._clock.now + seconds, end)

        def end() -> None:
            self._count()
            if waiting := self._urgent or self._waiting:
                waiting.popleft()()
            else:
                self._free += 1
            done()

        self._count()
        if self._free:
            self._free -= 1
            start()
        else:
            (self._urgent if urgent else self._waiting).append(start)

    def shortage(self) -> Shortage:
        """As ``engine/processors.py`` measures it."""
        self._count()
        elapsed = self._clock.now - self._looked_at
        if elapsed >= LOOK_SECONDS:
            stalled, used, _ = self._shortage
            self._shortage = Shortage(
                stalled + (self._stalled / elapsed - stalled) / 2,
                used + (self._used / elapsed / self._processors - used) / 2,
                self._processors,
            )
            self._stalled, self._used, self._looked_at = 0.0, 0.0, self._clock.now
        return self._shortage

    def _count(self) -> None:
        """Called before anybody starts or ends waiting or working."""
        elapsed = self._clock.now - self._counted_at
        if self._waiting or self._urgent:
            self._stalled += elapsed
        self._used += elapsed * (self._processors - self._free)
        self._counted_at = self._clock.now


class EventLoop:
    """A thread that handles in each turn what was ready when the turn began."""

    def __init__(self, clock: Clock, processors: Processors, wake: Action) -> None:
        self._clock = clock
        self._processors = processors
        self._wake = wake
        self._ready: deque[tuple[float, Action]] = deque()
        self._running = False
        self._left = 0  # of what this turn handles
        self._held = 0  # requests of which the batching thread has not been told
        self._held_since = 0.0

    def handle(self, seconds: float, done: Action) -> None:
        self._ready.append((seconds, done))
        if not self._running:
            self._running = True
            self._next()

    def submitted(self, *, hold: bool) -> None:
        """Wakes the batching thread; with ``hold`` only when the turn ends, unless that would be late: as
        ``gp_turn_begin()`` and its like do."""
        if hold:
            if not self._held:
                self._held_since = self._clock.now
            self._held += 1
            if self._held < TURN_REQUESTS and self._clock.now - self._held_since < TURN_SECONDS:
                return
        self._wake_thread()

    def _wake_thread(self) -> None:
        self._held = 0
        self._wake()

    def _next(self) -> None:
        if not self._left:  # a turn ends, and the next begins
            self._left = len(self._ready)
            if self._held:
                self._wake_thread()
        if not self._left:
            self._running = False
            return
        self._left -= 1
        seconds, done = self._ready.popleft()

        def end() -> None:
            done()
            self._next()

        self._processors.work(seconds, end, urgent=False)


@dataclass(frozen=True)
class Request:
    submitted: float
    done: Action


@dataclass
class Queue:
    """What waits of one kind, and what the batching thread has learnt about it."""

    requests: deque[Request] = field(default_factory=deque)
    patience: Patience = NO_PATIENCE
    last: float = -math.inf
    """When a request was submitted last."""
    silence: float = 0.0
    """Seconds without a request before the first of those that wait."""
    computed: int = 0
    """Requests that are being computed."""
    most: int = 0
    """Requests under way at the same time, since a batch was taken."""

    def under_way(self) -> int:
        return self.computed + len(self.requests)

    def least(self) -> int:
        """How many must be together. A request that comes after a silence longer than a wait need not wait: hardly
        anybody would join it."""
        alone = len(self.requests) == 1 and self.silence > self.patience.seconds
        return 1 if alone else self.patience.least

    def due(self) -> float:
        """When those that wait have waited long enough."""
        if len(self.requests) >= self.least():
            return 0.0
        return self.requests[0].submitted + self.patience.seconds

    def take(self, most: int) -> list[Request]:
        batch = [self.requests.popleft() for _ in range(min(most, len(self.requests)))]
        self.silence = 0.0
        self.computed += len(batch)
        self.most = 0
        return batch


class BatchingThread:
    """Decides, launches, and computes small batches itself, as the engine and ``gp_consumer_wait`` do together.

    It and the workers go first where processors are short: they have slept, and Linux prefers such threads to event
    loops that never do.
    """

    def __init__(
        self, clock: Clock, processors: Processors, backends: Sequence[Backend], kinds: Iterable[Kind],
        noise: Callable[[], float], *, waits: bool,
    ) -> None:  # fmt: skip
        self.batches = 0
        self.seconds = 0.0
        """Of processors, for private operations."""
        self._clock = clock
        self._processors = processors
        self._backends = backends
        self._inline = backends[-1]
        self._queues = {kind: Queue() for kind in kinds}
        self._paces = Paces(self._queues)
        self._most = 0  # requests of any kind under way at the same time, since a batch was taken
        self._noise = noise
        self._waits = waits
        self._busy = False
        self._computing = 0  # batches of the workers
        self._completed = -math.inf  # when a batch was completed last
        self._timer = math.inf

    def submit(self, kind: Kind, loop: EventLoop, done: Action) -> None:
        """``done`` is called with the result. ``loop`` submits."""
        now, queue = self._clock.now, self._queues[kind]
        if not queue.requests:
            queue.silence = now - max(queue.last, self._completed)
        queue.last = now
        queue.requests.append(Request(now, done))
        queue.most = max(queue.most, queue.under_way())
        self._most = max(self._most, sum(each.under_way() for each in self._queues.values()))
        loop.submitted(hold=queue.patience.least > 1)

    def look(self) -> None:
        """Starts whatever can be started now."""
        if self._busy:
            return
        now = self._clock.now
        due = {kind: queue.due() for kind, queue in self._queues.items() if queue.requests}
        ready = [kind for kind, time in due.items() if time <= now]
        if len(ready) < len(due):
            self._look_at(min(time for time in due.values() if time > now))
        if len(ready) == 1 and self._is_small(ready[0]):
            self._compute_inline(ready[0])
        elif ready and any(len(backend.busy) < backend.hardware.workers for backend in self._backends):
            self._work(DECIDING_SECONDS, self._decide)

    def _look_at(self, time: float) -> None:
        """Looks then at the latest."""
        if time < self._timer or self._timer <= self._clock.now:
            self._timer = time
            self._clock.at(time, self.look)

    def _work(self, seconds: float, done: Action) -> None:
        def end() -> None:
            self._busy = False
            done()

        self._busy = True
        self._processors.work(seconds, end, urgent=True)

    def _is_small(self, kind: Kind) -> bool:
        waiting = len(self._queues[kind].requests)
        if self._computing or waiting > SMALL_BATCH:
            return False
        others = [backend.costs[kind].seconds(1) for backend in self._backends if backend is not self._inline]
        return self._inline.costs[kind].seconds(waiting) <= min([SMALL_BATCH_SECONDS, *others])

    def _compute_inline(self, kind: Kind) -> None:
        batch = self._take(kind, SMALL_BATCH)

        def done() -> None:
            self._complete(kind, batch)
            self.look()

        self._work(self._seconds_of(self._inline, kind, len(batch)), done)

    def _decide(self) -> None:
        waiting = [
            Waiting(kind, len(queue.requests), int(queue.requests[0].submitted * 1e9), patience=queue.patience)
            for kind, queue in self._queues.items()
            if queue.requests
        ]
        views = [backend.view(index, self._clock.now) for index, backend in enumerate(self._backends)]
        decision = decide(waiting, views, LIMITS, int(self._clock.now * 1e9))
        if decision.until_ns is not None:
            self._look_at(decision.until_ns / 1e9)
        if decision.launches:
            self._launch_in_turn(deque(decision.launches))

    def _launch_in_turn(self, launches: deque[Launch]) -> None:
        def launch() -> None:
            self._launch(launches.popleft())
            if launches:
                self._launch_in_turn(launches)
            else:
                self.look()

        self._work(LAUNCHING_SECONDS, launch)

    def _launch(self, launch: Launch) -> None:
        kind, backend, start = launch.kind, self._backends[launch.backend], self._clock.now
        batch = self._take(kind, launch.count)
        self._computing += 1

        def done() -> None:
            backend.finish(kind, len(batch), start, expected, self._clock.now)
            self._computing -= 1
            self._complete(kind, batch)
            self.look()

        if backend.hardware.pipelined:
            expected, end = backend.launch(kind, len(batch), start, self._noise())
            self._clock.at(end, done)
        else:
            # When it ends depends on when the worker gets a processor.
            expected = start + backend.costs[kind].seconds(len(batch))
            backend.busy.append(expected)
            self._processors.work(self._seconds_of(backend, kind, len(batch)), done, urgent=True)

    def _seconds_of(self, backend: Backend, kind: Kind, size: int) -> float:
        """How long a processor will truly compute the batch."""
        seconds = backend.hardware.curves[kind](size) * self._noise()
        self.seconds += seconds
        return seconds

    def _take(self, kind: Kind, most: int) -> list[Request]:
        queue = self._queues[kind]
        least, crowd = queue.least(), Crowd(queue.most, self._most)
        batch = queue.take(most)
        self._most = 0
        self.batches += 1
        self._paces.launched(kind, len(batch), int(batch[-1].submitted * 1e9), least, crowd)
        if self._waits:
            queue.patience = patience(
                self._inline.costs[kind],
                self._paces[kind],
                self._processors.shortage(),
                LIMITS,
                together=self._paces.together,
                pipelined=False,
            )
        return batch

    def _complete(self, kind: Kind, batch: Sequence[Request]) -> None:
        self._completed = self._clock.now
        self._queues[kind].computed -= len(batch)
        for request in batch:
            request.done()


class Host:
    """One run: either :meth:`serve_clients` or :meth:`serve_arrivals`, once."""

    def __init__(self, processors: int, gpus: int, mix: Mapping[Kind, float], *, waits: bool, seed: int) -> None:
        """``mix``: the share of each kind. ``waits``: whether requests may wait for company."""
        self._random = np.random.default_rng(seed)
        self._kinds = list(mix)
        self._up_to = list(accumulate(mix.values()))[:-1]
        self._clock = Clock()
        self._processors = Processors(self._clock, processors)
        backends = [
            Backend(hardware, {kind: CostCurve(hardware.points[kind], hardware.granules[kind]) for kind in mix})
            for hardware in [*(gpu() for _ in range(gpus)), processor(processors)]
        ]
        self._thread = BatchingThread(self._clock, self._processors, backends, mix, self._noise, waits=waits)
        self._servers = self._loops(max(1, processors // 2))
        self._clients = self._loops(max(1, processors // 2))
        self._connect_again = False
        self._latencies: list[float] = []

    def serve_clients(self, clients: int, connections: int) -> Outcome:
        """Clients that connect again as soon as they are served, until there have been so many connections."""
        self._connect_again = True
        return self._serve(self._random.uniform(0, 0.001, clients), connections)

    def serve_arrivals(self, times: NDArray[np.float64]) -> Outcome:
        """A connection at each of the times."""
        return self._serve(times, len(times))

    def _serve(self, times: NDArray[np.float64], connections: int) -> Outcome:
        for time in times.tolist():
            self._clock.at(time, self._connect)
        skipped = connections // 5  # until it is in balance
        self._run_until(skipped)
        seconds, batches = self._thread.seconds, self._thread.batches
        self._run_until(connections)
        latencies = np.array(self._latencies[skipped:])
        return Outcome(
            float(latencies.mean()),
            float(np.quantile(latencies, 0.99)),
            (self._thread.seconds - seconds) / len(latencies),
            len(latencies) / max(1, self._thread.batches - batches),
        )

    def _run_until(self, connections: int) -> None:
        while len(self._latencies) < connections:
            if not self._clock.step():
                raise RuntimeError(f"only {len(self._latencies)} of {connections} connections were served")

    def _connect(self) -> None:
        """One connection, from its client's first step to its server's last."""
        began = self._clock.now
        kind = self._kinds[bisect(self._up_to, self._random.random())]
        server, client = self._any_of(self._servers), self._any_of(self._clients)

        def connect() -> None:
            server.handle(BEFORE_SECONDS * self._noise(), sign)

        def sign() -> None:
            self._thread.submit(kind, server, go_on)

        def go_on() -> None:
            server.handle(AFTER_SECONDS * self._noise(), end)

        def end() -> None:
            self._latencies.append(self._clock.now - began)
            if self._connect_again:
                self._connect()

        client.handle(CLIENT_SECONDS * self._noise(), connect)

    def _loops(self, number: int) -> list[EventLoop]:
        return [EventLoop(self._clock, self._processors, self._thread.look) for _ in range(number)]

    def _any_of(self, loops: Sequence[EventLoop]) -> EventLoop:
        return loops[int(self._random.integers(len(loops)))]

    def _noise(self) -> float:
        low, high = NOISE
        return low + (high - low) * self._random.random()
