"""How large a batch the batching thread computes itself, inside ``gp_consumer_wait``."""

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

__all__ = ["SmallBatches"]

_LONGEST_SECONDS = 0.001
"""Handing requests to a worker and taking it back costs about 0.1 ms of processor time, and as much latency. What
comes while the batching thread computes waits for half of this on average, at worst for all of it."""


class SmallBatches:
    """The largest batch of each size class. The batching thread only."""

    def __init__(self, inline: BackendWorkers) -> None:
        """``inline``: the processor's backend, in whose place the batching thread computes."""
        self.outdated = True
        """A cost curve or a backend's health has changed."""
        self.inline = inline
        self._largest = [0] * CLASSES
        self.rules = ffi.new("struct gp_class_rule[]", CLASSES)

    def apply(self, pool: Pool, patience: Mapping[RequestKind, Patience], allowed: bool) -> FFI.CData:
        if self.outdated:
            self.outdated = False
            in_use = pool.in_use()
            for kind in REQUESTS:
                cost = self.inline.costs[kind]
                others = [backend.costs[kind].seconds(1) for backend in in_use if backend is not self.inline]
                longest = min([_LONGEST_SECONDS, *others])
                sooner = self.inline in in_use and cost.seconds(1) <= longest
                self._largest[kind.class_index] = cost.largest(longest) if sooner else 0
        for kind in REQUESTS:
            rule = self.rules[kind.class_index]
            rule.small = self._largest[kind.class_index] if allowed else 0
            rule.least = patience[kind].least
            rule.wait_ns = int(patience[kind].seconds * 1e9)
        return self.rules
