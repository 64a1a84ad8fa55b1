"""What ``gp_consumer_wait`` may do by itself with the requests of each size class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_provider.client import CLASSES
from gpu_provider.kinds import REQUESTS
from gpu_provider.native import ffi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _cffi_backend import FFI

    from gpu_provider.engine.pool import Pool
    from gpu_provider.engine.scheduler import Patience
    from gpu_provider.engine.workers import BackendWorkers
    from gpu_provider.kinds import RequestKind

__all__ = ["ClassRules"]

_LONGEST_SECONDS = 0.001
"""Of a small batch. Handing requests to a worker and taking it back costs about 0.1 ms of processor time, and as much
latency. What comes while the batching thread computes waits for half of this on average, at worst for all of it."""


class ClassRules:
    """The small batches that it computes, and the requests that it lets wait for company. The batching thread only."""

    def __init__(self, inline: BackendWorkers) -> None:
        """``inline``: the processor's backend, in whose place the batching thread computes."""
        self.outdated = True
        """A cost curve or a backend's health has changed."""
        self._inline = inline
        self._small = [0] * CLASSES
        self._rules = ffi.new("struct gp_class_rule[]", CLASSES)

    def update(self, pool: Pool, patience: Mapping[RequestKind, Patience], *, idle: bool) -> FFI.CData:
        """The rules for C. ``idle``: nothing is being computed, so a small batch keeps nobody waiting. None is computed
        where a backend in use would compute a single request sooner."""
        if self.outdated:
            self.outdated = False
            in_use = pool.in_use()
            for kind in REQUESTS:
                cost = self._inline.costs[kind]
                others = [backend.costs[kind].seconds(1) for backend in in_use if backend is not self._inline]
                longest = min([_LONGEST_SECONDS, *others])
                allowed = self._inline in in_use and cost.seconds(1) <= longest
                self._small[kind.class_index] = cost.largest(longest) if allowed else 0
        for kind in REQUESTS:
            rule, (least, _, seconds) = self._rules[kind.class_index], patience[kind]
            rule.small = self._small[kind.class_index] if idle else 0
            rule.least = least
            rule.wait_ns = int(seconds * 1e9)
        return self._rules
