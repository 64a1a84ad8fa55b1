"""RSA private operations in batches on a device: a GPU, or the processor in place of one.

Several batches are in flight, each with a stream of its own, so that the copies of one overlap with the arithmetic of
another. Their threads sleep meanwhile. A device's failed call raises and delivers nothing: the provider has OpenSSL
compute the batch, and tries the device again later, from scratch: device, kernels, memory, keys.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from gpu_provider.backends.cpu import CpuBackend
from gpu_provider.backends.cuda.device import DeviceError, DeviceMemoryError
from gpu_provider.backends.cuda.kernels import KernelChoice
from gpu_provider.backends.cuda.keys import DeviceKeys
from gpu_provider.backends.cuda.trial import Trial
from gpu_provider.backends.cuda.worker import DeviceWorker
from gpu_provider.backends.libcrypto import libcrypto_modexp
from gpu_provider.client import class_bytes
from gpu_provider.costs import CostCurve, CostCurves
from gpu_provider.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Batch, Rows
    from gpu_provider.backends.cuda.device import Device, DeviceRows
    from gpu_provider.client import Client

__all__ = ["CudaBackend"]

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 10.0
_SAMPLES = 2
_THREADS_PER_ROW = 8

# Until batches have been measured, by size class: seconds for a batch that does not fill the device, and for one that
# does, on an H100 as bench/kernels/check_cubins.py estimates it. Then seconds for a unit of modexp().
_FIRST_GUESSES = ((0.0024, 0.0028), (0.0055, 0.0058), (0.0055, 0.0058), (0.0089, 0.01), (0.0089, 0.01))
_FIRST_GUESS_MODEXP = 1e-10


class _State:
    """All that is on a device, from its opening until it is closed or fails."""

    def __init__(self, device: Device, client: Client, workers: int, choice: KernelChoice | None) -> None:
        """``choice``: the one of the state before."""
        self.users = 0
        self.ended = False
        """It takes no new users, and the last one discards it."""
        kernels = device.open()
        if choice is None or choice.kernels != kernels:
            choice = KernelChoice(kernels, device.parallel_threads)
        self.choice = choice
        self.keys = DeviceKeys(device, client, choice.radix_bits, choice.record_bytes)
        self.free_workers: SimpleQueue[DeviceWorker] = SimpleQueue()
        """Workers for the provider's batches."""
        self.array_worker = DeviceWorker(device, self.keys, choice)
        """The worker for the callers' arrays."""
        self.all_workers = [*(DeviceWorker(device, self.keys, choice) for _ in range(workers)), self.array_worker]
        for worker in self.all_workers[:workers]:
            self.free_workers.put(worker)

    def remove_gone(self) -> None:
        """Wipes everything of keys that have left the provider, in each worker between its batches. Raises
        DeviceError."""
        with self.keys.remove_gone() as handles:
            if len(handles):
                for worker in self.all_workers:
                    with worker.lock:
                        worker.forget(handles)

    def wipe(self) -> None:
        """Wipes everything secret on it, as far as that works, while nobody uses it."""
        parts: list[DeviceWorker | DeviceKeys] = [*self.all_workers, self.keys]
        for part in parts:
            with contextlib.suppress(DeviceError):
                part.close()


def _sampled(worker: DeviceWorker, operand: Rows | DeviceRows, rows: Sequence[int]) -> Rows:
    """A copy of some rows of an operand, of which one row serves all."""
    places = rows if operand.shape[0] > 1 else [0] * len(rows)
    if isinstance(operand, np.ndarray):
        return operand[places]
    return np.concatenate([worker.read(operand.part(place, place + 1)) for place in places])


class CudaBackend:
    """One device. Constant time, blinded, and every result verified with e, by the kernel itself.

    Keys are copied to the device with their first request, and wiped there when they have left the provider. Keys that
    the kernels don't support (more than two primes, no factors, e above 64 bits, primes of too unequal length) are left
    to OpenSSL.

    No device is touched before :meth:`open`, so a program may fork until then.
    """

    pipelined = True
    verifies = True

    def __init__(
        self,
        device: Device,
        *,
        name: str = "cuda",
        workers: int = 3,
        measured: int = 0,
    ) -> None:
        """``workers``: batches in flight, at most. ``measured``: rows of the largest batch that is timed at the
        opening, to find the fastest kernels and what they cost; 0 for a rule and a guess instead."""
        self.name = name
        self.workers = workers
        self.device = device
        self._processor = CpuBackend()
        self._measured = measured
        self._choice: KernelChoice | None = None
        self.measurements: dict[int, list[tuple[int, float]]] = {}
        """What open() measured: by bytes of the kernels' rows, the rows of a batch and the seconds that it took."""
        self._client: Client | None = None
        self._state: _State | None = None
        self._lock = threading.Lock()  # for changes of the state; never held while a batch is computed
        self._removals: SimpleQueue[bool] = SimpleQueue()
        self._remover: threading.Thread | None = None

    def open(self, client: Client) -> None:
        self._client = client
        self._state = self._make_state()
        if self._measured:
            with self._in_use() as state:
                trial = Trial(self.device, state.choice, self._measured)
                self.measurements = state.choice.measure(trial.compute, self._measured)
                trial.close()
        self._remover = threading.Thread(target=self._remove_keys, name=f"gpu-provider-{self.name}-keys", daemon=True)
        self._remover.start()

    @property
    def pci_bus_id(self) -> str | None:
        return self.device.pci_bus_id

    def cost_curves(self) -> CostCurves:
        rows = max(1, self.device.parallel_threads // _THREADS_PER_ROW)
        curves = []
        for kind, (few, full) in enumerate(_FIRST_GUESSES):
            widths = [width for width in self.measurements if width >= class_bytes(kind)]
            points = self.measurements[min(widths)] if widths else [(1, few), (rows, full)]
            curves.append(CostCurve(points, rows, measured=bool(widths)))
        return CostCurves(curves, CostCurve([(1, _FIRST_GUESS_MODEXP)], rows))

    def private_op(self, batch: Batch) -> None:
        with self._worker() as worker:
            worker.private_op(batch)

    def modexp(
        self, bases: Rows, exponents: Rows, moduli: Rows, outputs: Rows, *, public_exponents: bool = False
    ) -> None:
        """``Backend.modexp``. There is no public exponent to check a result with, so libcrypto computes two random rows
        of each call again. That finds a broken device, not a fault in a single row."""
        with self._worker() as worker:
            if worker.modexp(bases, exponents, moduli, outputs):
                self._check_powers(worker, bases, exponents, moduli, outputs)
                return
        self._processor.modexp(bases, exponents, moduli, outputs, public_exponents=public_exponents)

    def _check_powers(self, worker: DeviceWorker, *operands: Rows | DeviceRows) -> None:
        rows = [secrets.randbelow(operands[0].shape[0]) for _ in range(_SAMPLES)]
        bases, exponents, moduli, outputs = (_sampled(worker, operand, rows) for operand in operands)
        again = np.empty_like(outputs)
        wide = np.zeros_like(outputs)
        wide[:, : bases.shape[1]] = bases
        libcrypto_modexp(wide, exponents, moduli, again)
        exponents.fill(0)  # may be secrets; the rows are copies
        if not np.array_equal(again, outputs):
            raise DeviceError(f"device {self.device.name}: a result of an exponentiation is wrong")

    # ---- the callers' own arrays on the device (``gpu_provider/library/device_arrays.py``) ----

    def private_rows(
        self, keys: NDArray[np.uint64], sizes: tuple[int, int], inputs: DeviceRows, outputs: DeviceRows
    ) -> NDArray[np.uint8] | None:
        """``DeviceWorker.private_rows``; None also if the device has no memory for it. Raises BackendError."""
        with self._array_worker() as worker:
            try:
                return worker.private_rows(keys, sizes, inputs, outputs)
            except DeviceMemoryError as error:
                _log.warning("%s; the processor computes %d operations in its place", error, len(keys))
                return None

    def modexp_rows(self, bases: DeviceRows, exponents: Rows | DeviceRows, moduli: Rows, outputs: DeviceRows) -> bool:
        """``DeviceWorker.modexp``, and two rows of it checked like those of :meth:`modexp`. Raises BackendError."""
        with self._array_worker() as worker:
            try:
                if not worker.modexp(bases, exponents, moduli, outputs):
                    return False
            except DeviceMemoryError as error:
                _log.warning("%s; the processor computes %d exponentiations in its place", error, bases.rows)
                return False
            self._check_powers(worker, bases, exponents, moduli, outputs)
            return True

    def read(self, rows: DeviceRows) -> Rows:
        """The caller's array. Raises BackendError."""
        with self._array_worker() as worker:
            return worker.read(rows)

    def write(self, rows: DeviceRows, array: Rows) -> None:
        """Raises BackendError."""
        with self._array_worker() as worker:
            worker.write(rows, array)

    def distrust(self) -> None:
        """Tells the backend that a result of this device is wrong: its next call rebuilds the state."""
        with contextlib.suppress(DeviceError), self._in_use():
            raise DeviceError(f"device {self.device.name}: a result is wrong")

    def keys_removed(self) -> None:
        """Tells the backend that keys have left the provider's table. They are wiped on the device soon; this returns
        at once."""
        self._removals.put(True)

    def close(self) -> None:
        """What a call for a caller's array still uses is wiped and given back when that call ends."""
        self._removals.put(False)
        if self._remover is not None:
            self._remover.join(_CLOSE_SECONDS)
        if not self._lock.acquire(timeout=_CLOSE_SECONDS):
            _log.warning("backend %s: the device hangs and can't be closed", self.name)
            return
        try:
            self._client = None
            if self._state is not None:
                self._state.ended = True
                self._discard_unused(self._state)
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[DeviceWorker]:
        with self._in_use() as state:
            worker = state.free_workers.get()
            try:
                with worker.lock:
                    yield worker
            finally:
                state.free_workers.put(worker)

    @contextlib.contextmanager
    def _array_worker(self) -> Iterator[DeviceWorker]:
        """The worker for the callers' arrays, for one call at a time."""
        with self._in_use() as state, state.array_worker.lock:
            yield state.array_worker

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[_State]:
        """The state, rebuilt if the one before has failed."""
        with self._lock:
            if self._state is None:
                self._state = self._make_state()
            state = self._state
            if state.ended:
                raise BackendError(f"{self.name}: {state.users} calls from before its failure still run")
            state.users += 1
        try:
            self.device.use()
            yield state
        except BaseException:
            state.ended = True
            raise
        finally:
            with self._lock:
                state.users -= 1
                self._discard_unused(state)

    # ---- with the lock ----

    def _make_state(self) -> _State:
        if self._client is None:
            raise BackendError(f"{self.name}: the backend is not open")
        try:
            state = _State(self.device, self._client, self.workers, self._choice)
        except BaseException:
            self.device.close()
            raise
        self._choice = state.choice
        return state

    def _discard_unused(self, state: _State) -> None:
        """A state that has ended, when its last user leaves it: at once, because it holds keys."""
        if state.ended and not state.users:
            self._state = None
            with contextlib.suppress(DeviceError):
                self.device.use()
                state.wipe()
            self.device.close()

    # ---- the thread that wipes keys ----

    def _remove_keys(self) -> None:
        while self._removals.get():
            if self._state is None or self._state.ended:
                continue  # rebuilt, it begins without keys
            try:
                with self._in_use() as state:
                    state.remove_gone()
            except BackendError as error:
                _log.warning("backend %s: the keys that were removed can't be wiped now: %s", self.name, error)
