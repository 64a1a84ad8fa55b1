"""A pytest plugin: a batching provider whose batches a test holds and releases, and whose backend it makes fail.

Every environment with this package and pytest has it; nothing is imported until a fixture is used.

For example::

    import pytest
    from gpu_provider import QueueFullError
    from gpu_provider.testing import fill_queue

    @pytest.mark.gpu_provider(queue_depth=4)
    def test_my_code_bears_a_full_queue(held_provider, held_backend):
        key = held_provider.load_key(MY_KEY)
        futures = fill_queue(held_provider, key)      # nothing is computed: the backend holds what it gets
        with pytest.raises(QueueFullError):
            held_provider.submit(key, 2)
        held_backend.release_all()
        assert [future.result(timeout=10) for future in futures] == [pow(2, D, N)] * 4

    def test_my_code_bears_a_broken_accelerator(held_provider, held_backend):
        key = held_provider.load_key(MY_KEY)
        future = held_provider.submit(key, 2)
        held_backend.wait_for_batch()                 # the request has arrived at the backend
        held_backend.fail_next()
        held_backend.release()
        assert future.result(timeout=10) == pow(2, D, N)  # computed again, on libcrypto
        assert held_provider.stats().fallbacks == 1

Fixtures:

``held_backend``
    A :class:`HeldBackend`, which holds every batch until the test releases it.
``held_provider``
    A started :class:`gpu_provider.BatchingProvider` that computes with ``held_backend``, closed after the test. The
    marker ``@pytest.mark.gpu_provider(queue_depth=…, …)`` sets fields of its ``ProviderConfig``. Three of them have
    other defaults than usual, so that no test depends on time: batches may take an hour (``max_delay``) and may be
    held for an hour (``backend_timeout``), and once the backend has failed, libcrypto computes until the test ends
    (``backend_retry``).
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest

from gpu_provider.errors import QueueFullError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from gpu_provider.backends.base import Batch, Rows
    from gpu_provider.client import Client
    from gpu_provider.costs import CostCurves
    from gpu_provider.library.keys import Key
    from gpu_provider.provider import BatchingProvider

__all__ = ["HeldBackend", "HeldBatch", "fill_queue", "held_backend", "held_provider"]

_HOUR = 3600.0


@dataclass(eq=False)
class HeldBatch:
    """A batch that has arrived at a :class:`HeldBackend`."""

    requests: int
    """The number of requests in it."""
    bits: int
    """The bits of its size class, or for modexp of the widest modulus."""
    _released: bool = field(default=False, init=False, repr=False)


class HeldBackend:
    """A backend that computes with OpenSSL, but only when told to. Every method may be called from any thread.

    It holds from the start. The faults of ``fail_next``, ``lie_next`` and ``hang_next`` happen in the order of the
    calls, one to each batch that is released.
    """

    name = "held"
    pipelined = False
    verifies = False

    def __init__(self, workers: int = 1) -> None:
        """``workers``: how many batches it takes at a time."""
        from gpu_provider.backends.libcrypto import LibcryptoBackend  # noqa: PLC0415 (heavy)

        self.workers = workers
        self._libcrypto = LibcryptoBackend(workers)
        self._changed = threading.Condition()
        self._holding = True
        self._unseen: deque[HeldBatch] = deque()
        self._held: deque[HeldBatch] = deque()
        self._faults: deque[BaseException | Literal["lie", "hang"]] = deque()
        self._hangs_over = False

    # ---- what a test calls ----

    def wait_for_batch(self, timeout: float = 30.0) -> HeldBatch:
        """The next batch that arrives, or has arrived since the last call. TimeoutError after ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._unseen, timeout):
                raise TimeoutError(f"no batch arrived within {timeout:g} seconds")
            return self._unseen.popleft()

    def release(self, batch: HeldBatch | None = None) -> None:
        """Releases ``batch``, or the one held longest. RuntimeError if none is held: see :meth:`wait_for_batch`."""
        with self._changed:
            if batch is None:
                if not self._held:
                    raise RuntimeError("no batch is held; call wait_for_batch() first")
                batch = self._held[0]
            batch._released = True
            self._changed.notify_all()

    def release_all(self) -> None:
        """Releases everything, and holds nothing from now on."""
        with self._changed:
            self._holding = False
            self._changed.notify_all()

    def hold(self) -> None:
        """Holds every batch that arrives from now on."""
        with self._changed:
            self._holding = True

    def fail_next(self, error: BaseException | None = None) -> None:
        """The next batch that is released raises ``error`` instead of being computed."""
        self._faults.append(error or RuntimeError("made to fail by a test"))

    def lie_next(self) -> None:
        """The next batch that is released comes back with a wrong first result."""
        self._faults.append("lie")

    def hang_next(self) -> None:
        """The next batch that is released does not return until :meth:`end_hang`. Only useful with a short
        ``backend_timeout``, after which the provider has libcrypto compute it."""
        self._faults.append("hang")

    def end_hang(self) -> None:
        """Every hanging call returns, and no later one hangs."""
        with self._changed:
            self._hangs_over = True
            self._changed.notify_all()

    @property
    def holding(self) -> bool:
        return self._holding

    # ---- what the provider calls ----

    def open(self, client: Client) -> None:
        self._libcrypto.open(client)

    def cost_curves(self) -> CostCurves:
        return self._libcrypto.cost_curves()

    def private_op(self, batch: Batch) -> None:
        fault = self._wait_for_release(HeldBatch(len(batch), batch.class_bytes * 8))
        self._libcrypto.private_op(batch)
        if fault == "lie":
            batch.outputs[0, 0] ^= 1

    def modexp(
        self, bases: Rows, exponents: Rows, moduli: Rows, outputs: Rows, *, public_exponents: bool = False
    ) -> None:
        self._wait_for_release(HeldBatch(len(moduli), moduli.shape[1] * 8))
        self._libcrypto.modexp(bases, exponents, moduli, outputs, public_exponents=public_exponents)

    def close(self) -> None:
        self._libcrypto.close()

    def _wait_for_release(self, batch: HeldBatch) -> str | None:
        with self._changed:
            self._unseen.append(batch)
            self._held.append(batch)
            self._changed.notify_all()
            self._changed.wait_for(lambda: batch._released or not self._holding)
            self._held.remove(batch)
            fault = self._faults.popleft() if self._faults else None
            if fault == "hang":
                self._changed.wait_for(lambda: self._hangs_over)
        if isinstance(fault, BaseException):
            raise fault
        return fault


def fill_queue(provider: BatchingProvider, key: Key) -> list[Future[int]]:
    """Submits 2^d mod n until the queue is full; returns the futures. The provider's backend must be holding."""
    futures: list[Future[int]] = []
    while True:
        try:
            futures.append(provider.submit(key, 2))
        except QueueFullError:
            return futures


@pytest.fixture
def held_backend() -> Iterator[HeldBackend]:
    """A backend that holds every batch until the test releases it."""
    backend = HeldBackend()
    try:
        yield backend
    finally:
        backend.release_all()
        backend.end_hang()


@pytest.fixture
def held_provider(held_backend: HeldBackend, request: pytest.FixtureRequest) -> Iterator[BatchingProvider]:
    """A started provider on ``held_backend``; the marker ``gpu_provider`` sets fields of its configuration."""
    from gpu_provider import BatchingProvider, ProviderConfig, load_config  # noqa: PLC0415 (heavy: only when the fixture is used)

    settings: dict[str, object] = {"max_delay": _HOUR, "backend_timeout": _HOUR, "backend_retry": _HOUR}
    for marker in request.node.iter_markers("gpu_provider"):
        settings |= marker.kwargs
    with BatchingProvider(load_config(ProviderConfig, overrides=settings), backends=[held_backend]) as provider:
        try:
            yield provider
        finally:  # otherwise leaving the provider's context would wait for what the backend holds
            held_backend.release_all()
            held_backend.end_hang()


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker."""
    config.addinivalue_line("markers", "gpu_provider(**settings): ProviderConfig fields of the fixture held_provider")
