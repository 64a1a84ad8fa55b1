"""Delivers async callbacks: on one dispatcher thread to plain Python callables, or on an asyncio loop.

libssl's callback (wakeup.c) puts a connection's id into its notifier's ring. Here the ids become connections again. A
connection is in ``waiting`` from before an operation until after it, since the callback may run before libssl has even
returned. Ids that are not there belong to operations that are over, and are dropped.
"""

import asyncio
import contextlib
import itertools
import os
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

from gpu_provider.library.turns import Turn
from gpu_provider.tls._ssl import ffi, lib
from gpu_provider.tls.drain import Parked, Waiter

if TYPE_CHECKING:
    from gpu_provider.tls.connection import Connection

_TAKE = 1024
new_id = itertools.count(1).__next__


class Notifier:
    """A ring of ids and its eventfd. The connections' threads change ``waiting``; the notifier's thread reads it."""

    def __init__(self) -> None:
        self.ring: int = lib.gp_wakeup_open()
        if self.ring < 0:
            raise OSError(-self.ring, f"no eventfd for async callbacks: {os.strerror(-self.ring)}")
        self.descriptor: int = lib.gp_wakeup_descriptor(self.ring)
        self.waiting: dict[int, Waiter] = {}
        self._process = os.getpid()
        self._ids = ffi.new("uint64_t[]", _TAKE)
        self._lost = ffi.new("int *")

    def take(self) -> list[Waiter]:
        """Returns those that were called back since the last time, each once. For one thread only."""
        taken: dict[int, None] = {}
        lost = False
        count = _TAKE
        while count == _TAKE:
            count = lib.gp_wakeup_take(self.ring, self._ids, _TAKE, self._lost)
            lost = lost or self._lost[0] != 0
            taken.update(dict.fromkeys(ffi.unpack(self._ids, count)))
        if lost:  # for lack of memory; resuming one that is not ready is harmless
            return list(self.waiting.copy().values())
        waiting = self.waiting
        return [waiting[identity] for identity in taken if identity in waiting]

    def close(self) -> None:
        """Stops listening. From now on the jobs of closed connections are their threads' business."""
        if self.ring < 0:
            return
        if self._process == os.getpid():
            lib.gp_wakeup_close(self.ring)
        else:
            lib.gp_wakeup_abandon(self.ring)
        self.ring = -1
        for waiter in self.waiting.values():
            if isinstance(waiter, Parked):
                waiter.abandon()
        self.waiting = {}


class Dispatcher(Notifier):
    """Calls Python callables one after the other on its own daemon thread."""

    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=self._run, name="tls-async-callbacks", daemon=True).start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        while True:
            poll.poll()
            self._wake()

    def _wake(self) -> None:  # a function, so that no connection is kept when it has returned
        for waiter in self.take():
            waiter.wake()


_dispatcher: Dispatcher | None = None
_lock = threading.Lock()


def dispatcher() -> Dispatcher:
    """This process's dispatcher; its thread starts at the first call."""
    global _dispatcher  # noqa: PLW0603
    if _dispatcher is None:
        with _lock:
            if _dispatcher is None:
                _dispatcher = Dispatcher()
    return _dispatcher


def _forget_in_child() -> None:
    """The thread does not exist in a forked child, and the eventfd is the parent's: the child creates both for
    itself."""
    global _dispatcher, _lock  # noqa: PLW0603
    _lock = threading.Lock()
    if _dispatcher is not None:
        lib.gp_wakeup_abandon(_dispatcher.ring)
        _dispatcher = None


os.register_at_fork(after_in_child=_forget_in_child)


class LoopNotifier(Notifier):
    """Resumes connections on an asyncio loop: ``add_reader`` on one eventfd, whatever the number of connections.

    Get it with :meth:`of`: one serves all connections of a loop. Make all calls on the loop's thread, which must also
    run the connections' operations. It is closed with its loop. The loop keeps a connection that was closed with an
    operation in flight until its job has ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = ref(loop)  # weak: the loop keeps this object, and must not be kept by it
        self._starved: list[Callable[[], object]] = []
        self.turn = Turn.of(loop)
        """For operations that may submit a request."""
        loop.add_reader(self.descriptor, self._wake)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "LoopNotifier":
        """The notifier of ``loop``, created at the first call."""
        notifier = _by_loop.get(loop)
        if notifier is None or notifier.ring < 0:
            notifier = _by_loop[loop] = cls(loop)
        return notifier

    def attach(self, connection: "Connection", on_ready: Callable[[], object]) -> None:
        """Calls ``on_ready()`` on the loop when the connection's paused operation can be resumed: it should make the
        same call again. It may be called more often than needed, but not after ``connection.close()``.

        This sets the connection's async callback, so call it before the first operation; the caller sets
        ``SSL_MODE_ASYNC``. Raises Error as ``Connection.set_async_callback`` does.
        """
        connection.attach(self, on_ready)

    def when_job_ends(self, retry: Callable[[], object]) -> None:
        """For use after WantAsyncJobError: calls ``retry()`` once, after another connection of this loop was
        resumed."""
        self._starved.append(retry)

    def _wake(self) -> None:
        loop = asyncio.get_running_loop()
        # One loop callback for each: the loop reports what one raises, and the others still run.
        for waiter in self.take():
            loop.call_soon(waiter.wake)
        loop.call_soon(self._retry_starved)

    def _retry_starved(self) -> None:
        """Runs behind the connections that were woken. If it ran before them, what finds no job while they still hold
        theirs would wait for a wake-up that nobody is left to give."""
        starved, self._starved = self._starved, []
        for retry in starved:
            asyncio.get_running_loop().call_soon(retry)

    def close(self) -> None:
        loop = self._loop()
        # Not in a forked child: it shares the selector with its parent, and would remove the parent's reader.
        if loop is not None and not loop.is_closed() and self.ring >= 0 and self._process == os.getpid():
            loop.remove_reader(self.descriptor)
        super().close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # __init__ failed
            self.close()


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopNotifier] = WeakKeyDictionary()
