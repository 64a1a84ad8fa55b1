"""How large a batch the batching thread computes itself, inside ``gp_consumer_wait``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_provider.client import CLASSES
from gpu_provider.kinds import REQUESTS
from gpu_provider.native import ffi

if TYPE_CHECKING:
    from _cffi_backend import FFI

    from gpu_provider.engine.pool import Pool
    from gpu_provider.engine.workers import BackendWorkers

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
        self._inline = inline
        self._largest = ffi.new("uint32_t[]", CLASSES)
        self._any = False

    def largest(self, pool: Pool) -> FFI.CData:
        """By size class, for C: 0 where a backend in use would compute a single request sooner; NULL if that is so in
        all of them."""
        if self.outdated:
            self.outdated = False
            in_use = pool.in_use()
            for kind in REQUESTS:
                cost = self._inline.costs[kind]
                others = [backend.costs[kind].seconds(1) for backend in in_use if backend is not self._inline]
                longest = min([_LONGEST_SECONDS, *others])
                allowed = self._inline in in_use and cost.seconds(1) <= longest
                self._largest[kind.class_index] = cost.largest(longest) if allowed else 0
            self._any = any(self._largest)
        return self._largest if self._any else ffi.NULL
