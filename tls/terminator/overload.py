"""What to do while handshakes come faster than they can be done.

An operation waits for all that were submitted before it. If every connection were accepted, all of them would wait for
longer than handshake_timeout, and none would be served. So only as many operations may wait as are computed in a part
of that time. Further connections stay in the kernel's backlog. Those that have been there for too long are turned away,
since their clients would hardly wait for the result. The same holds where it is the event loop that can't keep up, but
only if that lasts: after a short standstill everybody is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider.tls.terminator.listening import Arrival

__all__ = ["Overload"]

_QUEUE_SHARE = 0.1
"""Of handshake_timeout, for the private operation."""
_BACKLOG_SHARE = 0.25
"""Of handshake_timeout, from the client's first bytes until it is accepted."""
_ALWAYS = 64
"""So many operations may wait however slow they are, and before their pace is known: large enough for full groups."""
_WEIGHT = 1 / 16
"""Of one operation in the moving average."""
_PRESENT_SECONDS = 1.0
_LASTING_SECONDS = 1.0
"""For which all that come from the backlog must have been late."""


class Overload:
    """Knows how fast operations are computed, and so how many may wait. Has no clock of its own."""

    def __init__(self, clock: Callable[[], float], handshake_timeout: float) -> None:
        self._clock = clock
        self._queue_seconds = _QUEUE_SHARE * handshake_timeout
        self._backlog_seconds = _BACKLOG_SHARE * handshake_timeout
        self._pace = 0.0  # operations a second
        self._last = -float("inf")
        self._late_since = self._late_last = -float("inf")

    def computed(self, waiting: int, seconds: float) -> None:
        """An operation is done. When it began there were ``waiting``, itself included, and all were computed in these
        seconds."""
        if seconds > 0:
            self._pace += _WEIGHT * (waiting / seconds - self._pace)

    def has_room(self, waiting: int) -> bool:
        """Whether a further connection may be accepted while so many operations wait."""
        if waiting < max(_ALWAYS, self._pace * self._queue_seconds):
            return True
        self._last = self._clock()
        return False

    def no_backlog(self) -> None:
        """Nobody is late: the backlog is empty, or has to wait for something else than handshakes."""
        self._late_last = -float("inf")

    @property
    def present(self) -> bool:
        """Whether there was no room within the last second, or connections have been accepted late for a second."""
        now = self._clock()
        is_late = now - self._late_last <= _PRESENT_SECONDS
        return now - self._last <= _PRESENT_SECONDS or (is_late and now - self._late_since >= _LASTING_SECONDS)

    def turns_away(self, arrival: Arrival) -> bool:
        """Whether to close this connection, which was accepted now, instead of serving it: others need the time."""
        late = arrival.waited > self._backlog_seconds
        if late:
            now = self._clock()
            if now - self._late_last > _PRESENT_SECONDS:
                self._late_since = now
            self._late_last = now
        else:
            self.no_backlog()
        return self.present and (late or arrival.has_left)
