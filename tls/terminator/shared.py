"""What all sessions of one server share, and all that a session knows of its server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpu_provider import tls
    from gpu_provider.tls.terminator.connecting import Connecting
    from gpu_provider.tls.terminator.connection_log import ConnectionLog
    from gpu_provider.tls.terminator.deadlines import Deadlines
    from gpu_provider.tls.terminator.failures import UpstreamFailure
    from gpu_provider.tls.terminator.metrics import TerminatorMetrics
    from gpu_provider.tls.terminator.newcomers import Newcomers
    from gpu_provider.tls.terminator.overload import Overload
    from gpu_provider.tls.terminator.poller import Poller
    from gpu_provider.tls.terminator.session import Session, State
    from gpu_provider.tls.terminator.upstream_tls import UpstreamTLS
    from gpu_provider.tls.terminator.upstreams import Upstreams

__all__ = ["Shared"]


@dataclass(slots=True, eq=False)
class Shared:
    """The server replaces ``context`` and ``upstream_tls`` when certificates are reloaded: what has begun keeps its
    own."""

    log: ConnectionLog
    metrics: TerminatorMetrics
    poller: Poller
    notifier: tls.LoopNotifier
    buffer: memoryview
    """Every read of every connection goes here: it is empty again before another handler runs."""
    proxy_version: int
    """The PROXY protocol's; 0: no header."""
    verifies_clients: bool
    deadlines: Mapping[State, Deadlines[Session]]
    attempts: Deadlines[Connecting]
    """When to try the upstream's next address."""
    connect_timeout: float
    overload: Overload
    newcomers: Newcomers
    ended: Callable[[Session], None]
    upstream_failed: Callable[[UpstreamFailure], None]
    """Called when no address of the upstream took the connection."""
    out_of_memory: Callable[[], None]
    context: tls.Context
    upstreams: Upstreams
    upstream_tls: UpstreamTLS | None
