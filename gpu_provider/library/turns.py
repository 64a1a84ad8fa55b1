"""An event loop's turns: what is submitted in one of them makes one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

from gpu_provider.native import lib

if TYPE_CHECKING:
    import asyncio

__all__ = ["Turn"]


class Turn:
    """Submit inside ``with turn``. The batching thread is woken once, when the loop has handled everything that was
    ready. The loop's thread only."""

    __slots__ = ("_ending", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # weak: the loop must not be kept by what is found by it
        self._ending = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Turn:
        """The turns of ``loop``."""
        turn = _by_loop.get(loop)
        if turn is None:
            turn = _by_loop[loop] = cls(loop)
        return turn

    def __enter__(self) -> None:
        lib.gp_turn_begin()

    def __exit__(self, *_: object) -> None:
        if not lib.gp_turn_suspend() or self._ending:
            return
        loop = self._loop()
        if loop is None or loop.is_closed():
            lib.gp_turn_end()
            return
        loop.call_soon(self._end)
        self._ending = True

    def _end(self) -> None:
        self._ending = False
        lib.gp_turn_end()


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()
