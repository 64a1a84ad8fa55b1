"""The provider's methods for modular exponentiation: waiting, as a future, awaited."""

from __future__ import annotations

import asyncio
import functools
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, overload

from gpu_provider.backends.cuda.device import is_cuda_array
from gpu_provider.library.dlpack import adopted, adopted_on_host
from gpu_provider.library.futures import RequestFuture
from gpu_provider.library.modexp import modexp_call
from gpu_provider.library.operands import limbs_of
from gpu_provider.library.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from gpu_provider.backends.cuda.device import CudaArray
    from gpu_provider.engine.calls import Call
    from gpu_provider.engine.engine import Engine
    from gpu_provider.library.device_arrays import DeviceArrays
    from gpu_provider.library.dlpack import DlpackArray
    from gpu_provider.library.modexp import ModexpCall
    from gpu_provider.library.operands import AnyOperand, BytesLike, Integer, Number, Operand

__all__ = ["ModexpCalls"]


class ModexpCalls(ABC):
    """What :class:`gpu_provider.BatchingProvider` inherits of modular exponentiation."""

    _engine: Engine
    _device_arrays: DeviceArrays

    @abstractmethod
    def _check_running(self) -> None: ...
    @abstractmethod
    def _check_may_wait(self) -> None: ...
    @abstractmethod
    def _compute(self, calls: Sequence[Call]) -> list[NDArray[np.uint8]]: ...

    # To type checkers, bytes are also a sequence of ints; the first overload that matches is the right one.
    @overload
    def modexp(  # type: ignore[overload-overlap]
        self, bases: Integer, exponents: Number, moduli: Number, *, public_exponents: bool = ...
    ) -> int: ...
    @overload
    def modexp(  # type: ignore[overload-overlap]
        self, bases: BytesLike, exponents: Number, moduli: Number, *, public_exponents: bool = ...
    ) -> bytes: ...
    @overload
    def modexp(
        self, bases: NDArray[np.uint64], exponents: AnyOperand, moduli: AnyOperand, *, public_exponents: bool = ...
    ) -> NDArray[np.uint64]: ...
    @overload
    def modexp(
        self, bases: CudaArray, exponents: AnyOperand, moduli: AnyOperand, *, public_exponents: bool = ...
    ) -> CudaArray: ...
    @overload
    def modexp(
        self, bases: DlpackArray, exponents: AnyOperand, moduli: AnyOperand, *, public_exponents: bool = ...
    ) -> NDArray[np.uint64] | CudaArray: ...
    @overload
    def modexp(  # type: ignore[overload-overlap]
        self,
        bases: BytesLike | Sequence[BytesLike],
        exponents: AnyOperand,
        moduli: AnyOperand,
        *,
        public_exponents: bool = ...,
    ) -> list[bytes]: ...
    @overload
    def modexp(
        self,
        bases: Integer | Sequence[Integer],
        exponents: AnyOperand,
        moduli: AnyOperand,
        *,
        public_exponents: bool = ...,
    ) -> list[int]: ...
    def modexp(
        self, bases: AnyOperand, exponents: AnyOperand, moduli: AnyOperand, *, public_exponents: bool = False
    ) -> int | bytes | list[int] | list[bytes] | NDArray[np.uint64] | CudaArray:
        """bases[i]^exponents[i] mod moduli[i], as Python's ``pow`` has it. Waits for the results.

        Each operand is one number for all operations, a sequence of numbers, or a uint64 array [n, limbs] or [limbs],
        least significant limb first. A number is an int (or one of NumPy's integers, gmpy2's, or another with
        ``__index__``) or big-endian bytes. Moduli and exponents have at most 8192 bits, bases any number. A base that
        is negative or not below its modulus is reduced; with a negative exponent its inverse is raised.

        Returns [n, limbs of the moduli] if ``bases`` is an array; one number if every operand is one number; otherwise
        a list of numbers, which are ints or bytes like their bases; bytes are as many as the modulus has. The list or
        array is empty if there are no operations. Raises InputError, also for a base without an inverse;
        OperationError, ProviderClosedError.

        The time depends on the exponents' signs and width (the longest of them, or the array's limbs) but not on their
        values, nor on those of bases below their moduli. To hide the length of secret exponents as well, pass them as
        arrays of a fixed width. ``public_exponents`` says that they may decide the time: short ones such as 65537 are
        computed in less. Odd moduli are computed in batches by the kernels; even ones one at a time.

        Calls that wait at the same time are computed together if their numbers have as many 64-bit limbs. TLS
        connections are served meanwhile: a call is computed in pieces of at most ``max_delay`` seconds.

        Arrays may be on a GPU, as for :meth:`private_op`; if ``bases`` is, the result is there too. Then bases and
        exponents don't pass through the host (moduli do), provided that no number has more than 4096 bits, that there
        are at least eight bases per modulus, and that moduli are odd. Arrays of other libraries are taken over by
        DLPack.
        """
        self._check_running()
        self._check_may_wait()
        b, e, m = adopted(bases, "base"), adopted(exponents, "exponent"), adopted(moduli, "modulus")
        if is_cuda_array(b):
            on_host = functools.partial(self._modexp_rows, public_exponents=public_exponents)
            return self._device_arrays.modexp(b, e, m, on_host, public_exponents=public_exponents)
        e, m = self._device_arrays.on_host(e, "exponent"), self._device_arrays.on_host(m, "modulus")
        call = modexp_call(b, e, m, public_exponents=public_exponents)
        self._compute([call])
        return call.answer()

    @overload
    def submit_modexp(  # type: ignore[overload-overlap]
        self, bases: Integer, exponents: Number, moduli: Number, *, public_exponents: bool = ...
    ) -> Future[int]: ...
    @overload
    def submit_modexp(  # type: ignore[overload-overlap]
        self, bases: BytesLike, exponents: Number, moduli: Number, *, public_exponents: bool = ...
    ) -> Future[bytes]: ...
    @overload
    def submit_modexp(
        self, bases: NDArray[np.uint64], exponents: Operand, moduli: Operand, *, public_exponents: bool = ...
    ) -> Future[NDArray[np.uint64]]: ...
    @overload
    def submit_modexp(  # type: ignore[overload-overlap]
        self,
        bases: BytesLike | Sequence[BytesLike],
        exponents: Operand,
        moduli: Operand,
        *,
        public_exponents: bool = ...,
    ) -> Future[list[bytes]]: ...
    @overload
    def submit_modexp(
        self, bases: Integer | Sequence[Integer], exponents: Operand, moduli: Operand, *, public_exponents: bool = ...
    ) -> Future[list[int]]: ...
    def submit_modexp(
        self, bases: Operand, exponents: Operand, moduli: Operand, *, public_exponents: bool = False
    ) -> Future[Any]:
        """Like :meth:`modexp`, for operands on the host, but returns a future at once. Never waits for room: whoever
        submits without end needs memory without end.

        Cancelling the future stops the computation: what has not begun is not computed. The future's callbacks run on a
        thread of the provider and must not block.
        """
        future = self._enqueue(bases, exponents, moduli, public_exponents=public_exponents)
        self._engine.wake()
        return future

    def _enqueue(self, bases: Operand, exponents: Operand, moduli: Operand, *, public_exponents: bool) -> RequestFuture:
        self._check_running()
        call = modexp_call(
            adopted_on_host(bases, "base"),
            adopted_on_host(exponents, "exponent"),
            adopted_on_host(moduli, "modulus"),
            public_exponents=public_exponents,
        )
        future = RequestFuture()
        call.tell = functools.partial(_end, future, weakref.ref(call))
        future.add_done_callback(functools.partial(_give_up, weakref.ref(call)))
        self._engine.enqueue([call])
        return future

    @overload
    async def modexp_async(  # type: ignore[overload-overlap]
        self, bases: Integer, exponents: Number, moduli: Number, *, public_exponents: bool = ...
    ) -> int: ...
    @overload
    async def modexp_async(  # type: ignore[overload-overlap]
        self, bases: BytesLike, exponents: Number, moduli: Number, *, public_exponents: bool = ...
    ) -> bytes: ...
    @overload
    async def modexp_async(
        self, bases: NDArray[np.uint64], exponents: Operand, moduli: Operand, *, public_exponents: bool = ...
    ) -> NDArray[np.uint64]: ...
    @overload
    async def modexp_async(  # type: ignore[overload-overlap]
        self,
        bases: BytesLike | Sequence[BytesLike],
        exponents: Operand,
        moduli: Operand,
        *,
        public_exponents: bool = ...,
    ) -> list[bytes]: ...
    @overload
    async def modexp_async(
        self, bases: Integer | Sequence[Integer], exponents: Operand, moduli: Operand, *, public_exponents: bool = ...
    ) -> list[int]: ...
    async def modexp_async(
        self, bases: Operand, exponents: Operand, moduli: Operand, *, public_exponents: bool = False
    ) -> int | bytes | list[int] | list[bytes] | NDArray[np.uint64]:
        """Like :meth:`modexp`, for coroutines and operands on the host. Cancelling it stops the computation; a thread
        of ``asyncio.to_thread(provider.modexp, …)`` would go on, and ``asyncio.run`` would wait for it."""
        future = self._enqueue(bases, exponents, moduli, public_exponents=public_exponents)
        Turn.of(asyncio.get_running_loop()).at_end(self._engine.wake)
        return await asyncio.wrap_future(future)

    def _modexp_rows(
        self, bases: Operand, exponents: Operand, moduli: Operand, *, public_exponents: bool
    ) -> NDArray[np.uint64]:
        (result,) = self._compute([modexp_call(bases, exponents, moduli, public_exponents=public_exponents)])
        return limbs_of(result)


# Neither the future nor what ends it holds the call: its arrays would stay until the next collection of cycles.


def _end(future: RequestFuture, call: weakref.ref[ModexpCall], error: Exception | None) -> None:
    ended = call()
    outcome: Any = error
    if error is None and ended is not None:
        try:
            outcome = ended.answer()
        except MemoryError as lacking:
            outcome = lacking
    future.end(outcome)


def _give_up(call: weakref.ref[ModexpCall], future: Future[Any]) -> None:
    pending = call()
    if future.cancelled() and pending is not None:
        pending.give_up()
