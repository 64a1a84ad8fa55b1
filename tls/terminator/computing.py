"""What computes the RSA operations of the connections: this process, or a service."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from gpu_provider import BatchingProvider
from gpu_provider.service.provider import ServiceProvider

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Computing", "backend_name", "failure_of", "pulse_of", "totals"]

Computing = BatchingProvider | ServiceProvider


def backend_name(computing: Computing) -> str:
    if isinstance(computing, ServiceProvider):
        return f"service {computing.socket}"
    return computing.stats().backend


def failure_of(computing: Computing) -> str | None:
    """Why it can't go on. Without its service, a process computes by itself."""
    return None if isinstance(computing, ServiceProvider) else computing.failure


def pulse_of(computing: Computing) -> Callable[[], int]:
    """For a watchdog: what changes as long as this process can go on."""
    return itertools.count().__next__ if isinstance(computing, ServiceProvider) else computing.pulse


def totals(computing: Computing) -> dict[str, int | float]:
    """For the log's last line."""
    if isinstance(computing, ServiceProvider):
        return computing.computed()._asdict()
    stats = computing.stats()
    return {
        "requests": stats.submitted,
        "batches": stats.batches,
        "mean_batch": round(stats.mean_batch, 2),
        "largest_batch": stats.largest_batch,
        "retries": stats.retries,
        "failed": stats.failed,
    }
