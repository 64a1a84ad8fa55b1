"""The backends of one engine: their start and end, which of them are in use, and which workers are free."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from gpu_provider.backends.base import KeyHolder, OnGpu
from gpu_provider.engine.health import Health
from gpu_provider.engine.workers import BackendWorkers

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from gpu_provider.backends.base import Backend
    from gpu_provider.client import Client
    from gpu_provider.engine.workers import Finished, Worker

__all__ = ["Pool"]

_log = logging.getLogger(__name__)


class Pool:
    """The backends in order of preference, and the last resort, which may be one of them."""

    def __init__(self, backends: Sequence[Backend], last_resort: Backend, first_pause: float) -> None:
        """``last_resort``: always in use. ``first_pause``: seconds that a backend is out of use after a failure."""
        self.last_resort = BackendWorkers(last_resort, None)
        self._first_pause = first_pause
        self.backends = [self._workers_of(backend) for backend in backends]

    def _workers_of(self, backend: Backend) -> BackendWorkers:
        if backend is self.last_resort.backend:
            return self.last_resort
        return BackendWorkers(backend, Health(backend.name, self._first_pause, self.last_resort.name))

    def start(
        self,
        client: Client,
        open_more: Callable[[Client], Sequence[Backend]] | None,
        batch_size: int,
        finished: Finished,
    ) -> contextlib.ExitStack:
        """Opens the backends and starts their workers. Returns what undoes that. ``open_more``: opens further backends,
        which are preferred to the others. Raises BackendError; then nothing is left open or running."""
        with contextlib.ExitStack() as undo:
            for backend in self.all():
                backend.backend.open(client)
                undo.callback(backend.backend.close)
            more = open_more(client) if open_more is not None else []
            for opened in more:
                undo.callback(opened.close)
            undo.callback(setattr, self, "backends", self.backends)
            self.backends = [*map(self._workers_of, more), *self.backends]
            for backend in self.all():
                undo.callback(backend.stop)
                backend.start(batch_size, finished)
            return undo.pop_all()

    def close(self, timeout: float) -> None:
        """Ends the workers and closes the backends. Waits ``timeout`` seconds for each worker, for libcrypto's without
        limit. A worker whose backend hangs is left behind."""
        for backend in self.all():
            backend.stop()
            for worker in backend.workers:
                if not worker.hung:
                    worker.thread.join(None if backend.health is None else timeout)
            left = sum(worker.thread.is_alive() for worker in backend.workers)
            if left:
                _log.warning("backend %s: %d calls still hang; their threads are left behind", backend.name, left)
                continue
            try:
                backend.backend.close()
            except BaseException:  # noqa: BLE001 (foreign code; the others must be closed and the futures ended all the same)
                _log.exception("backend %s failed to close", backend.name)

    def all(self) -> list[BackendWorkers]:
        """The last resort too."""
        return self.backends if self.last_resort in self.backends else [*self.backends, self.last_resort]

    def in_use(self) -> list[BackendWorkers]:
        """The preferred one first; never empty."""
        return [backend for backend in self.backends if backend.in_use] or [self.last_resort]

    def end_pauses(self, now: float) -> None:
        """Puts backends on trial that have been out of use for long enough."""
        for backend in self.backends:
            backend.end_pause(now)

    def free_workers(self) -> list[tuple[BackendWorkers, list[Worker]]]:
        """Who may take new work, the preferred one first. The last resort stands in while no other backend is in
        use."""
        free = [(backend, backend.free_workers()) for backend in self.backends]
        if not any(backend.in_use for backend in self.backends):
            free.append((self.last_resort, self.last_resort.free_workers()))
        return [(backend, workers) for backend, workers in free if workers or backend.in_use]

    def owns(self, thread: threading.Thread) -> bool:
        return any(thread is worker.thread for backend in self.all() for worker in backend.workers)

    def announce_removed_keys(self) -> None:
        for backend in self.backends:
            if isinstance(backend.backend, KeyHolder):
                backend.backend.keys_removed()

    def gpus(self) -> dict[str, str]:
        """The GPUs' PCI bus ids, by the name of the backend that computes there."""
        backends = [backend.backend for backend in self.backends]
        return {
            backend.name: backend.pci_bus_id
            for backend in backends
            if isinstance(backend, OnGpu) and backend.pci_bus_id is not None
        }
