"""Timeouts for very many connections with one timer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Deadlines"]

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Items that each have the same number of seconds.

    They expire in the order in which they were started, and a dict keeps that order: starting and stopping cost one
    dict operation, and one timer waits for the first. When the first item is stopped or started again, the timer is not
    moved: it fires early and looks for the next item, at most once per ``seconds``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, expire: Callable[[T], None]) -> None:
        """``expire(item)`` is called once for an item whose time is up. ``seconds`` = 0: no item ever expires."""
        self._loop = loop
        self._seconds = seconds
        self._expire = expire
        self._started: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, item: T) -> None:
        """Gives the item its full time from now on, even if it was started before."""
        if not self._seconds:
            return
        self._started.pop(item, None)
        self._started[item] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def stop(self, item: T) -> None:
        self._started.pop(item, None)

    def close(self) -> None:
        self._started.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        overdue = self._loop.time() - self._seconds
        expired = []
        for item, started in self._started.items():
            if started > overdue:
                self._timer = self._loop.call_at(started + self._seconds, self._look)
                break
            expired.append(item)
        for item in expired:
            del self._started[item]
        for item in expired:
            self._expire(item)
