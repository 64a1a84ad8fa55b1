"""Edge-triggered readiness for the data path, inside an asyncio event loop.

``loop.add_reader`` and ``add_writer`` tell the kernel about every change of interest, and wrap every call in a Handle
and a context. A terminator changes its interest several times per connection, which costs as much as its own work. So
the sockets of the data path are in their own epoll set, edge-triggered: each is added once and never changed. The event
loop (asyncio's or uvloop's) watches that set as a single descriptor, and handles everything else itself.

Edge-triggered means that after an event a handler continues until the socket would block, or calls ``again``.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from gpu_provider.tls.connection import Socket

__all__ = ["GONE", "PEER_ENDED", "READABLE", "WRITABLE", "Poller"]

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
GONE = select.EPOLLERR | select.EPOLLHUP
"""Both directions are closed, or the connection was reset: nothing more can be sent."""

PEER_ENDED = select.EPOLLRDHUP | GONE
"""The peer sends nothing more. There may be unread bytes before its end."""

_INTEREST = READABLE | WRITABLE | select.EPOLLRDHUP | select.EPOLLET
_BURST = 512

Handler = Callable[[int], None]


class Poller:
    """One epoll set. All methods run on the event loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, out_of_memory: Callable[[int], None]) -> None:
        """``out_of_memory(descriptor)`` is called when a handler raised MemoryError: its event is lost."""
        self._loop = loop
        self._out_of_memory = out_of_memory
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._events: deque[tuple[int, int]] = deque()
        self._discarded: list[Socket] = []
        self._dispatching = False
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def add(self, sock: Socket, handler: Handler) -> None:
        """Calls ``handler(events)`` at each change to readable, writable or gone, beginning with the present state."""
        descriptor = sock.fileno()
        self._handlers[descriptor] = handler
        self._epoll.register(descriptor, _INTEREST)

    def discard(self, sock: Socket) -> None:
        """Forgets the socket, if it was added, and closes it.

        During a burst of events the socket is closed at the burst's end. Otherwise a new socket could get the same
        descriptor while an event of the old one is still to be handled.
        """
        self._handlers.pop(sock.fileno(), None)
        if self._dispatching:
            self._discarded.append(sock)
        else:
            sock.close()

    def set_handler(self, sock: Socket, handler: Handler) -> None:
        """Replaces the handler of the socket's events."""
        self._handlers[sock.fileno()] = handler

    def again(self, action: Callable[[], None]) -> None:
        """Calls the action in the loop's next turn. For a handler that stops early so that others get their turn."""
        self._loop.call_soon(action)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._handlers.clear()

    def _dispatch(self) -> None:
        events, handlers = self._events, self._handlers
        self._dispatching = True
        try:
            events.extend(self._epoll.poll(0, _BURST))
            while events:
                descriptor, what = events.popleft()
                handler = handlers.get(descriptor)
                if handler is not None:
                    try:
                        handler(what)
                    except MemoryError:
                        self._out_of_memory(descriptor)
        finally:
            # An edge comes once. If a handler raises, which the loop reports, the other events must still be handled.
            self._dispatching = bool(events)
            if events:
                self._loop.call_soon(self._dispatch)
            elif self._discarded:
                for sock in self._discarded:
                    sock.close()
                self._discarded.clear()
