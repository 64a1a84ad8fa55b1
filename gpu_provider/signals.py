"""Handles signals from the command's first moment to the process's last.

An event loop removes its handlers when it closes, and by default most signals kill. So these handlers belong to the
process, and stay. Before it serves, a signal to end simply ends it; while it serves, signals go to the loop; after
that, they come too late to change anything.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType

__all__ = ["SignalHandlers"]

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
"""SIGQUIT and SIGUSR1 as nginx and HAProxy take them, for scripts that were made for those."""
_HARMLESS = (signal.SIGUSR2, signal.SIGPIPE, signal.SIGTTOU)
"""SIGTTOU would stop a background program that writes to a terminal."""


class SignalHandlers:
    """Create it on the main thread."""

    def __init__(self) -> None:
        self._reload_is_due = False
        self._deliver: Callable[[signal.Signals], object] | None = None
        for number in _HARMLESS:
            signal.signal(number, signal.SIG_IGN)
        for number in (*_ENDING, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def deliver_to(self, loop: asyncio.AbstractEventLoop, handle: Callable[[signal.Signals], None]) -> None:
        """Calls ``handle(number)`` on the loop from now on, first for a SIGHUP that has already come."""
        self._deliver = lambda number: loop.call_soon_threadsafe(handle, number)
        if self._reload_is_due:
            loop.call_soon(handle, signal.SIGHUP)

    def ignore_all(self) -> None:
        """Ignores all signals until the process has ended."""
        for number in (*_ENDING, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._deliver is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._deliver(signal.Signals(number))
        elif number == signal.SIGHUP:
            self._reload_is_due = True
        else:
            raise SystemExit(0)
