"""An event loop's turns: what is submitted in one of them makes one batch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from gpu_provider.native import lib

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Turn"]


class Turn:
    """Submit requests inside ``with turn``. Where requests wait for company, the batching thread is woken once, when
    the loop has handled everything that was ready. The loop's thread only."""

    __slots__ = ("_ending", "_wakes")

    def __init__(self) -> None:
        self._ending = False
        self._wakes: set[Callable[[], None]] = set()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Turn:
        """The turns of ``loop``."""
        turn = _by_loop.get(loop)
        if turn is None:
            turn = _by_loop[loop] = cls()
        return turn

    def __enter__(self) -> None:
        lib.gp_turn_begin()

    def __exit__(self, *_: object) -> None:
        if lib.gp_turn_suspend():
            self._end_soon()

    def at_end(self, wake: Callable[[], None]) -> None:
        """Has ``wake`` called, once, when the loop has handled everything that was ready."""
        self._wakes.add(wake)
        self._end_soon()

    def _end_soon(self) -> None:
        if not self._ending:
            asyncio.get_running_loop().call_soon(self._end)
            self._ending = True

    def _end(self) -> None:
        self._ending = False
        lib.gp_turn_end()
        while self._wakes:
            self._wakes.pop()()


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()
