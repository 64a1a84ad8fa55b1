"""Library calls over arrays in a GPU's memory, such as CuPy's: computed where they are.

Inputs and outputs don't pass through the host. Moduli do, to prepare their constants, and so does whatever the kernels
don't support: keys of more than one kernel size in a call, keys with three primes, moduli that are even or above 4096
bits, exponents that are negative or above 4096 bits. That, and what a device fails, is computed as if it had come from
the host.

These calls go past the scheduler, because they can't be served like others. No other backend can take over their rows
without the device. A row without a result may be the caller's mistake (an input that isn't below its modulus), which
must not put the backend out of use. And a device that is out of use for the queue is still the only one that can read
the array.
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
from gpu_provider.backends.cuda.device import DeviceRows, is_cuda_array
from gpu_provider.client import class_of
from gpu_provider.errors import BackendError, InputError, OperationError
from gpu_provider.kinds import MODEXP, PRIVATE_ROWS
from gpu_provider.library.modexp import check_moduli, exponents_to_rows, only_libcrypto, rows_of_all, units_per_row
from gpu_provider.library.operands import check_shape, limbs_of, to_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Rows
    from gpu_provider.backends.cuda.device import CudaArray
    from gpu_provider.engine.engine import Engine
    from gpu_provider.kinds import Kind
    from gpu_provider.library.operands import Operand
    from gpu_provider.library.private_rows import KeysOfRows
    from gpu_provider.observe.stats import Statistics

__all__ = ["DeviceArrays", "locate"]

_log = logging.getLogger(__name__)
_MOST_ROWS = 16384  # at a time; more would need larger staging
_T = TypeVar("_T")


def locate(array: CudaArray, name: str) -> tuple[DeviceRows, int | None]:
    """Where an array is, and the stream that fills it (None: it is filled already). Raises InputError."""
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


class DeviceArrays:
    """Calls over arrays on any of the engine's GPUs. Takes CudaArrays and returns CuPy arrays. Any thread."""

    def __init__(self, engine: Engine, statistics: Statistics, timeout: float) -> None:
        """``timeout``: seconds that each piece of a call may take."""
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
        """``inputs``, ``backend``: from :meth:`find`. ``on_host``: the same call for an array on the host. Raises
        InputError, OperationError, and what ``on_host`` raises."""
        longest = keys.sizes[1] or 8 * inputs.limbs
        limbs = longest // 8
        if inputs.limbs > limbs:
            raise InputError(f"the input has {inputs.limbs} limbs, and the longest modulus has {limbs}; slice it")
        result, outputs = self._new_array(backend, inputs.rows, limbs)
        if not inputs.rows:
            return result
        handles = keys.handles()
        wrong = 0

        def compute(start: int, stop: int) -> bool:
            nonlocal wrong
            parts = (rows.part(start, stop) for rows in (inputs, outputs))
            ok = backend.private_rows(handles[start:stop], keys.sizes, *parts)
            wrong = 0 if ok is None else len(ok) - int(np.count_nonzero(ok))
            return ok is not None and not wrong

        kind = PRIVATE_ROWS[class_of(longest)]
        if not self._compute(backend, kind, inputs.rows, 1, compute, during=keys.pinned()):
            answer = on_host(limbs_of(self._read(backend, inputs)))
            if wrong:  # and the inputs were right, or on_host() would have refused them
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
        *,
        public_exponents: bool,
    ) -> CudaArray:
        """Like :meth:`private_op`."""
        base_rows, backend = self.find(bases, "base")
        moduli_on_host = self.on_host(moduli, "modulus")
        modulus_rows = to_rows(moduli_on_host, "modulus")
        check_moduli(modulus_rows)
        limbs = modulus_rows.shape[1] // 8
        if base_rows.limbs > limbs:
            raise InputError(f"the base has {base_rows.limbs} limbs, and the longest modulus has {limbs}; slice it")
        exponent_rows: Rows | DeviceRows
        by_kernels = not only_libcrypto(modulus_rows).any()
        if is_cuda_array(exponents):
            exponent_rows, other = self.find(exponents, "exponent")
            if other is not backend:
                raise InputError("bases and exponents are on different devices; copy one of them")
        else:
            exponent_rows, negative = exponents_to_rows(exponents, public=public_exponents)
            by_kernels = by_kernels and negative is None
        exponent_count, exponent_bytes = exponent_rows.shape
        count = rows_of_all(base_rows.rows, exponent_count, len(modulus_rows))
        if base_rows.rows != count:
            raise InputError(f"there is 1 base on a device for {count} operations; give one for each")
        result, outputs = self._new_array(backend, count, limbs)
        if not count:
            return result

        def compute(start: int, stop: int) -> bool:
            powers = exponent_rows
            if exponent_count > 1:
                powers = powers.part(start, stop) if isinstance(powers, DeviceRows) else powers[start:stop]
            some = modulus_rows[start:stop] if len(modulus_rows) > 1 else modulus_rows
            return backend.modexp_rows(base_rows.part(start, stop), powers, some, outputs.part(start, stop))

        units = units_per_row(8 * limbs, exponent_bytes)
        if not (by_kernels and self._compute(backend, MODEXP, count, units, compute)):
            on_the_host = limbs_of(self._read(backend, base_rows))
            answer = on_host(on_the_host, self.on_host(exponents, "exponent"), moduli_on_host)
            self._write(backend, outputs, answer)
        return result

    def on_host(self, operand: Operand | CudaArray, name: str) -> Operand:
        """The operand, copied to the host if it is on a device."""
        if is_cuda_array(operand):
            rows, backend = self.find(operand, name)
            return limbs_of(self._read(backend, rows))
        return operand

    def find(self, array: CudaArray, name: str) -> tuple[DeviceRows, CudaBackend]:
        """Waits until an array is filled; returns where it is, and whose memory that is. Raises InputError,
        OperationError."""
        rows, stream = locate(array, name)
        backends = (backend for backend in self._engine.backends() if isinstance(backend, CudaBackend))
        # An array without rows need not have an address.
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

    def _read(self, backend: CudaBackend, rows: DeviceRows) -> Rows:
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

    def _compute(
        self,
        backend: CudaBackend,
        kind: Kind,
        rows: int,
        units_per_row: int,
        compute: Callable[[int, int], bool],
        *,
        during: AbstractContextManager[None] | None = None,
    ) -> bool:
        """Has ``compute(start, stop)`` compute all rows, as many at a time as the backend computes within
        ``max_delay``. False if the device failed or left some of them. ``during``: entered on the thread that computes.
        """
        step = self._engine.rows_at_a_time(backend, kind, units_per_row, _MOST_ROWS)
        took: list[tuple[int, float]] = []
        given_up = False

        def work() -> bool:
            with during or contextlib.nullcontext():
                for start in range(0, rows, step):
                    if given_up:
                        raise OperationError("nobody waits for the call")
                    stop, started = min(rows, start + step), time.monotonic()
                    if not compute(start, stop):
                        return False
                    took.append((stop - start, time.monotonic() - started))
            return True

        try:
            done = self._run(backend, work, rows // step + 1, rows) is True
        finally:
            given_up = True  # also when the thread that waits was interrupted
        if done:  # otherwise the host computes, and counts, all of it
            for count, seconds in took:
                self._statistics.batch(backend.name, kind, count, count, seconds)
        return done

    def _run(self, backend: CudaBackend, work: Callable[[], _T], pieces: int, rows: int = 0) -> _T | None:
        """What ``work`` returns; None if the device failed ``rows`` operations. Raises OperationError if it hangs: then
        what is in its memory is out of reach."""
        # On a thread of its own, because a wait for a device can't be interrupted.
        outcome: Future[_T] = Future()

        def run() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                outcome.set_exception(error)

        seconds = self._timeout * pieces
        try:
            threading.Thread(target=run, name=f"gpu-provider-{backend.name}-arrays", daemon=True).start()
            return outcome.result(seconds)
        except BackendError as error:
            _log.warning("backend %s: %s", backend.name, error)
            if rows:
                self._statistics.fallback(backend.name, "error", rows)
            return None
        except TimeoutError:
            raise OperationError(f"backend {backend.name}: no result within {seconds:g} s") from None
