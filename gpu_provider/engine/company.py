"""How long requests wait for company now: the scheduler's answer, from what the engine measures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpu_provider.engine.pace import Paces
from gpu_provider.engine.processors import Processors
from gpu_provider.engine.scheduler import NO_PATIENCE, Patience, patience
from gpu_provider.kinds import REQUESTS, RequestKind

if TYPE_CHECKING:
    from gpu_provider.client import Crowd
    from gpu_provider.engine.pool import Pool
    from gpu_provider.engine.scheduler import Limits
    from gpu_provider.observe.stats import Statistics

__all__ = ["Company"]


class Company:
    """The batching thread only."""

    def __init__(self, pool: Pool, limits: Limits, statistics: Statistics) -> None:
        self.patience: dict[RequestKind, Patience] = dict.fromkeys(REQUESTS, NO_PATIENCE)
        self._pool = pool
        self._limits = limits
        self._statistics = statistics
        self._processors = Processors()
        self._paces = Paces(REQUESTS)
        self._over = False

    def launched(self, kind: RequestKind, count: int, newest_ns: int, held_ns: int, crowd: Crowd) -> None:
        """A batch was launched, the last of its requests submitted at ``newest_ns``. It had waited for company for
        ``held_ns``. ``crowd``: how many were under way before."""
        if self._over:
            return
        least = self.patience[kind].least
        self._paces.launched(kind, count, newest_ns, least if held_ns else min(count, least), crowd)
        self._processors.look(time.monotonic_ns())
        self._statistics.processors = shortage = self._processors.shortage
        backend = self._pool.in_use()[-1]  # a processor's, if there is one: it would get what has no company
        self.patience[kind] = patience(
            backend.costs[kind],
            self._paces[kind],
            shortage,
            self._limits,
            together=self._paces.together,
            pipelined=backend.backend.pipelined,
        )

    def end(self) -> None:
        """From now on nothing waits."""
        self._over = True
        self.patience = dict.fromkeys(REQUESTS, NO_PATIENCE)
