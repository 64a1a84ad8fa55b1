"""Connections that were closed while their async job was paused.

libssl frees nothing of a job when its SSL is freed: the job and its stack would leak, and the provider's callback,
still to come, would find a freed SSL. So the SSL is kept here, cut off from its peer, until its job has ended.

A job can be resumed only on the thread that began it. A connection of an event loop is finished by that loop. Any other
is finished by the first call of this package on its thread after the request is done. A thread that makes no more
calls, and wants its memory back before it ends, calls :func:`drain_closed_connections`. What a thread leaves behind
when it ends is kept forever (one SSL and one job's stack each), which is safe.
"""

import select
import threading
from collections import deque
from typing import Any, Protocol

from gpu_provider.tls._ssl import ffi, lib

_WANT_ASYNC: int = lib.SSL_ERROR_WANT_ASYNC


class Waiter(Protocol):
    """Has a paused operation."""

    def wake(self) -> None:
        """Called on any thread when the operation can probably be resumed; maybe more often than needed."""


class _Thread(threading.local):
    """What one thread has to drain."""

    def __init__(self) -> None:
        self.home = Home()


class Home:
    """The closed connections whose jobs belong to one thread."""

    def __init__(self) -> None:
        self.identity = threading.get_ident()
        self.ready: deque[Parked] = deque()
        self.by_descriptor: dict[int, Parked] = {}
        self.poll = select.poll()

    def drain(self) -> None:
        for descriptor, _ in self.poll.poll(0) if self.by_descriptor else ():
            self.by_descriptor[descriptor].step()
        # One round: those that can't end yet, and that nobody will wake, are queued again.
        for _ in range(len(self.ready)):
            self.ready.popleft().step()


_thread = _Thread()
parked: set["Parked"] = set()
"""All that no event loop looks after. It is nearly always empty, which is all that a connection checks before an
operation."""


def current_home() -> Home:
    return _thread.home


def drain_closed_connections() -> int:
    """Finishes this thread's connections that were closed with an operation in flight, as far as that is possible now.

    Does not block. Returns how many of this thread's connections still wait for their request. Those of an event loop
    are not counted: the loop finishes them.
    """
    home = _thread.home
    home.drain()
    return sum(one.home is home for one in tuple(parked))


class Parked:
    """A closed connection with a job in flight. Owns the SSL and the buffer that the job works on."""

    __slots__ = ("_arguments", "_descriptors", "_id", "_keep", "_ssl", "_waiting", "home")

    def __init__(self, ssl: Any, arguments: tuple[int, Any, int], home: Home, keep: object) -> None:
        """``keep`` must live as long as the SSL: its Context and table of server names."""
        self._ssl = ssl
        self._arguments = arguments
        self._keep = keep
        self._waiting: dict[int, Waiter] | None = None
        self._id = 0
        self._descriptors: list[int] = []
        self.home = home

    def wait_for_callback(self, waiting: dict[int, Waiter], identity: int, *, looked_after: bool) -> None:
        """Has the notifier wake this instead of the connection."""
        self._waiting, self._id = waiting, identity
        waiting[identity] = self
        if not looked_after:
            parked.add(self)
        self.wake()  # the callback may have run already

    def wait_for_descriptors(self, descriptors: list[int]) -> None:
        parked.add(self)
        self._descriptors = descriptors
        for descriptor in descriptors:
            self.home.by_descriptor[descriptor] = self
            self.home.poll.register(descriptor, select.POLLIN)
        if not descriptors:
            self.home.ready.append(self)

    def abandon(self) -> None:
        """Called when nobody will wake this any more: from now on its thread tries it at each call."""
        self._waiting = None
        parked.add(self)
        self.home.ready.append(self)

    def wake(self) -> None:
        if threading.get_ident() == self.home.identity:
            self.step()
        else:
            self.home.ready.append(self)

    def step(self) -> None:
        """Resumes the job. It may pause again: because it was woken early, or for its next request."""
        if self._ssl is None:
            return
        if lib.gp_connection_operate(self._ssl, *self._arguments) & 0xFF == _WANT_ASYNC:
            if self._waiting is None and not self._descriptors:
                self.home.ready.append(self)
            return
        # Unregister them before SSL_free closes them.
        for descriptor in self._descriptors:
            del self.home.by_descriptor[descriptor]
            self.home.poll.unregister(descriptor)
        lib.SSL_free(self._ssl)
        self._ssl = None
        self._arguments = (0, ffi.NULL, 0)
        if self._waiting is not None:
            self._waiting.pop(self._id, None)
        parked.discard(self)
