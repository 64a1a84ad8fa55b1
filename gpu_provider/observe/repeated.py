"""Warnings of what happens again and again, such as a program that is refused and comes back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RepeatedWarnings"]

_SECONDS = 10.0


class RepeatedWarnings:
    """Logs a warning at once when it is new, and then at most every ten seconds, with how often it has come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._log = structlog.stdlib.get_logger(__name__)
        self._seen: dict[tuple[str, str, object], tuple[float, int]] = {}
        """When it was logged, and how often it has come since."""

    def warn(self, event: str, *, reason: str, **details: object) -> None:
        """With another event, reason or ``uid``, it is another warning."""
        now, key = self._clock(), (event, reason, details.get("uid"))
        logged, since = self._seen.get(key, (now - _SECONDS, 0))
        if now - logged < _SECONDS:
            self._seen[key] = (logged, since + 1)
            return
        self._seen = {other: seen for other, seen in self._seen.items() if now - seen[0] < _SECONDS}
        self._seen[key] = (now, 0)
        self._log.warning(event, reason=reason, times=since + 1, **details)
