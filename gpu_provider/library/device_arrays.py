"""Library calls over arrays in a GPU's memory, CuPy's and those of others: computed where they are.

Inputs and outputs do not pass through the host. What does are the moduli, to prepare their constants, and whatever the
kernels do not take: keys of more than one kernel size in a call, keys with three primes, exponents above 4096 bits, a
device that fails. That is computed as if it had come from the host.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.device import CudaArray, DeviceRows
from gpu_provider.client import class_of
from gpu_provider.errors import BackendError, InputError, OperationError
from gpu_provider.kinds import MODEXP, PRIVATE_ROWS
from gpu_provider.library.modexp import check_moduli, rows_of_all, units_per_row
from gpu_provider.library.operands import check_shape, limbs_of, to_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from gpu_provider.engine.engine import Engine
    from gpu_provider.kinds import Kind
    from gpu_provider.library.operands import Operand
    from gpu_provider.library.private_rows import KeysOfRows
    from gpu_provider.observe.stats import Statistics

__all__ = ["DeviceArrays", "locate"]

_log = logging.getLogger(__name__)
_MOST_ROWS = 16384  # at a time: what the staging has room for
_T = TypeVar("_T")


def locate(array: CudaArray, name: str) -> tuple[DeviceRows, int | None]:
    """Where an array is, and the stream that fills it (None: it is filled). Raises InputError."""
    try:
        described = array.__cuda_array_interface__
    except (AttributeError, TypeError, RuntimeError) as error:  # PyTorch's reasons not to have it just now
        raise InputError(f"the {name} array does not say where on a GPU it is: {error}") from None
    shape, strides = described["shape"], described.get("strides")
    if described["typestr"] != "<u8":
        raise InputError(
            f"the {name} array has the type {described['typestr']!r}; it must be uint64, least significant limb first"
        )
    if described.get("mask") is not None:
        raise InputError(f"the {name} array has a mask; give one without")
    check_shape(shape, name)
    rows, limbs = shape if len(shape) > 1 else (1, shape[0])
    pitch, step = (8 * limbs, 8) if strides is None else (8 * limbs, *strides)[-2:]
    if (limbs > 1 and step != 8) or (rows > 1 and pitch < 8 * limbs):
        raise InputError(f"the {name} array has strides {strides}; each row must be contiguous: copy it")
    return DeviceRows(described["data"][0], rows, limbs, pitch if rows > 1 else 8 * limbs, array), described.get(
        "stream"
    )


class _Pieces:
    """Of a call that is computed in pieces, what they took. They count when all of it is done: after a failure the host
    computes the whole call again, and counts it."""

    given_up = False
    """Whether the thread that waits for the call was interrupted, so that what is left need not be computed."""

    def __init__(self) -> None:
        self._took: list[tuple[int, float]] = []

    @contextlib.contextmanager
    def timed(self, rows: int) -> Iterator[None]:
        if self.given_up:
            raise OperationError("nobody waits for the call")
        started = time.monotonic()
        yield
        self._took.append((rows, time.monotonic() - started))

    def count(self, statistics: Statistics, backend: CudaBackend, kind: Kind) -> None:
        for rows, seconds in self._took:
            statistics.batch(backend.name, kind, rows, rows, seconds)


class DeviceArrays:
    """Any thread. What the methods take is CudaArray; what they return is an array of CuPy's."""

    def __init__(self, engine: Engine, statistics: Statistics, timeout: float) -> None:
        """``timeout``: seconds that a piece of a call may take."""
        self._engine = engine
        self._statistics = statistics
        self._timeout = timeout

    def private_op(
        self,
        backend: CudaBackend,
        keys: KeysOfRows,
        inputs: DeviceRows,
        on_host: Callable[[NDArray[np.uint64]], NDArray[np.uint64]],
    ) -> CudaArray:
        """``inputs``, ``backend``: by :meth:`find`. ``on_host``: the same call for an array on the host. Raises
        InputError, OperationError and what ``on_host`` raises."""
        longest = keys.sizes[1] or 8 * inputs.limbs
        limbs = longest // 8
        if inputs.limbs > limbs:
            raise InputError(f"the input has {inputs.limbs} limbs, and the longest modulus has {limbs}; slice it")
        result, outputs = self._new_array(backend, inputs.rows, limbs)
        if not inputs.rows:
            return result
        handles = keys.handles()
        kind = PRIVATE_ROWS[class_of(longest)]
        piece = self._engine.rows_at_a_time(backend, kind, 1, _MOST_ROWS)

        done = _Pieces()
        wrong = 0

        def compute() -> bool:
            nonlocal wrong
            with keys.pinned():
                for start in range(0, inputs.rows, piece):
                    some = slice(start, start + piece)
                    parts = (rows.part(start, start + piece) for rows in (inputs, outputs))
                    with done.timed(len(handles[some])):
                        ok = backend.private_rows(handles[some], keys.sizes, *parts)
                    if ok is None:
                        return False
                    wrong = len(ok) - int(np.count_nonzero(ok))
                    if wrong:
                        return False
                return True

        if self._run(backend, compute, inputs.rows // piece + 1, inputs.rows, done):
            done.count(self._statistics, backend, kind)
        else:
            answer = on_host(limbs_of(self._read(backend, inputs)))
            if wrong:  # although the inputs were right, or on_host() had not taken them
                self._statistics.fallback(backend.name, "wrong_result", wrong)
                backend.distrust()
            self._write(backend, outputs, answer)
        return result

    def modexp(
        self,
        bases: CudaArray,
        exponents: Operand | CudaArray,
        moduli: Operand | CudaArray,
        on_host: Callable[[NDArray[np.uint64], Operand, Operand], NDArray[np.uint64]],
    ) -> CudaArray:
        """As :meth:`private_op`. Bases that are not below their moduli are not noticed."""
        base_rows, backend = self.find(bases, "base")
        moduli_on_host = self.on_host(moduli, "modulus")
        modulus_rows = to_rows(moduli_on_host, "modulus")
        check_moduli(modulus_rows)
        limbs = modulus_rows.shape[1] // 8
        if base_rows.limbs > limbs:
            raise InputError(f"the base has {base_rows.limbs} limbs, and the longest modulus has {limbs}; slice it")
        exponent_rows: DeviceRows | NDArray[np.uint8]
        if isinstance(exponents, CudaArray):
            exponent_rows, other = self.find(exponents, "exponent")
            if other is not backend:
                raise InputError("bases and exponents are on different devices; copy one of them")
            exponent_count, exponent_bytes = exponent_rows.rows, exponent_rows.bytes
        else:
            exponent_rows = to_rows(exponents, "exponent")
            exponent_count, exponent_bytes = exponent_rows.shape
        count = rows_of_all(base_rows.rows, exponent_count, len(modulus_rows))
        if base_rows.rows != count:
            raise InputError(f"there is 1 base on a device for {count} operations; give one for each")
        result, outputs = self._new_array(backend, count, limbs)
        if not count:
            return result
        units = units_per_row(8 * limbs, exponent_bytes)
        piece = self._engine.rows_at_a_time(backend, MODEXP, units, _MOST_ROWS)

        done = _Pieces()

        def compute() -> bool:
            for start in range(0, count, piece):
                stop = start + piece
                powers = exponent_rows
                if exponent_count > 1:
                    powers = powers.part(start, stop) if isinstance(powers, DeviceRows) else powers[start:stop]
                some = modulus_rows[start:stop] if len(modulus_rows) > 1 else modulus_rows
                part = base_rows.part(start, stop)
                with done.timed(part.rows):
                    if not backend.modexp_rows(part, powers, some, outputs.part(start, stop)):
                        return False
            return True

        if self._run(backend, compute, count // piece + 1, count, done):
            done.count(self._statistics, backend, MODEXP)
        else:
            on_the_host = limbs_of(self._read(backend, base_rows))
            answer = on_host(on_the_host, self.on_host(exponents, "exponent"), moduli_on_host)
            self._write(backend, outputs, answer)
        return result

    def on_host(self, operand: Operand | CudaArray, name: str) -> Operand:
        """The operand, copied to the host if it is on a device."""
        if isinstance(operand, CudaArray):
            rows, backend = self.find(operand, name)
            return limbs_of(self._read(backend, rows))
        return operand

    def find(self, array: CudaArray, name: str) -> tuple[DeviceRows, CudaBackend]:
        """Where an array is, and whose memory that is; when all is done that was to fill it. Raises InputError,
        OperationError."""
        rows, stream = locate(array, name)
        backends = (backend for backend in self._engine.backends() if isinstance(backend, CudaBackend))
        # An array without rows may be nowhere.
        backend = next((backend for backend in backends if not rows.rows or backend.device.owns(rows.address)), None)
        if backend is None:
            raise InputError(
                f"the {name} array is on a GPU that this provider does not compute with; copy it to the host, or set "
                'backend to "cuda"'
            )
        self._settle(backend, stream)
        return rows, backend

    def _settle(self, backend: CudaBackend, stream: int | None) -> None:
        try:
            backend.device.settle(stream)
        except BackendError as error:
            raise OperationError(str(error)) from error

    def _new_array(self, backend: CudaBackend, rows: int, limbs: int) -> tuple[CudaArray, DeviceRows]:
        try:
            array = backend.device.new_array(rows, limbs)
        except BackendError as error:
            raise OperationError(str(error)) from error
        self._settle(backend, None)
        return array, locate(array, "result")[0]

    def _read(self, backend: CudaBackend, rows: DeviceRows) -> NDArray[np.uint8]:
        array = self._run(backend, lambda: backend.read(rows), 1)
        if array is None:
            raise OperationError(f"{backend.name}: the array can't be read from the device")
        return array

    def _write(self, backend: CudaBackend, rows: DeviceRows, answer: NDArray[np.uint64]) -> None:
        numbers = np.ascontiguousarray(answer, "<u8").view(np.uint8)

        def write() -> bool:
            backend.write(rows, numbers)
            return True

        if not self._run(backend, write, 1):
            raise OperationError(f"{backend.name}: the results can't be copied to the device")

    def _run(
        self,
        backend: CudaBackend,
        work: Callable[[], _T],
        pieces: int,
        rows: int = 0,
        progress: _Pieces | None = None,
    ) -> _T | None:
        """What ``work`` returns; None if the device failed ``rows`` operations. Raises OperationError if it hangs: what
        is in its memory is out of reach then."""
        # On a thread of its own, because a wait for a device can't be interrupted.
        outcome: Future[_T] = Future()

        def run() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                outcome.set_exception(error)

        seconds = self._timeout * pieces
        try:
            # In here, because a signal handler may raise in start(), which waits for the thread to run.
            threading.Thread(target=run, name=f"gpu-provider-{backend.name}-arrays", daemon=True).start()
            return outcome.result(seconds)
        except BackendError as error:
            _log.warning("backend %s: %s", backend.name, error)
            if rows:
                self._statistics.fallback(backend.name, "error", rows)
            return None
        except TimeoutError:
            raise OperationError(f"backend {backend.name}: no result within {seconds:g} s") from None
        finally:
            if progress is not None:
                progress.given_up = True
