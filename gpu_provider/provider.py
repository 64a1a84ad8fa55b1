"""BatchingProvider: the public face of the batching provider, for TLS contexts and as a library."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, Self, overload

import numpy as np

from gpu_provider.backends.choice import open_gpus
from gpu_provider.backends.cpu import CpuBackend
from gpu_provider.backends.cuda.device import is_cuda_array
from gpu_provider.backends.libcrypto import LibcryptoBackend
from gpu_provider.client import Client, openssl_error
from gpu_provider.config import ProviderConfig
from gpu_provider.engine.engine import Engine
from gpu_provider.errors import BackendError, GpuProviderError, InputError, ProviderClosedError
from gpu_provider.library import keys
from gpu_provider.library.device_arrays import DeviceArrays
from gpu_provider.library.dlpack import adopted
from gpu_provider.library.futures import PendingFutures
from gpu_provider.library.keys import Key
from gpu_provider.library.many_operations import ManyOperations
from gpu_provider.library.modexp_calls import ModexpCalls
from gpu_provider.library.operands import array_to_rows, limbs_of
from gpu_provider.library.private_rows import keys_of_rows, private_calls
from gpu_provider.library.turns import Turn
from gpu_provider.native import ffi, lib
from gpu_provider.observe.stats import ProviderStats, Statistics
from gpu_provider.settings import load_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from _cffi_backend import FFI
    from numpy.typing import NDArray
    from prometheus_client import CollectorRegistry

    from gpu_provider.backends.base import Backend
    from gpu_provider.backends.cuda.device import CudaArray
    from gpu_provider.engine.calls import Call
    from gpu_provider.library.dlpack import DlpackArray
    from gpu_provider.library.key_formats import KeySource
    from gpu_provider.library.operands import BytesLike, Integer
    from gpu_provider.library.private_rows import Keys

__all__ = ["BatchingProvider", "LibraryContext", "ProviderStats"]

_log = logging.getLogger(__name__)


class LibraryContext:
    """An ``OSSL_LIB_CTX`` whose RSA operations go through a provider. Freed when nobody refers to it any more.

    It keeps the C side of the provider alive, but not its threads: once the provider is closed, OpenSSL computes at
    once.
    """

    def __init__(self, pointer: FFI.CData, keeps: object) -> None:
        """Owns ``pointer``, of one of the functions in provider/embedded.h. ``keeps`` lives as long. Raises
        BackendError if it is NULL."""
        if pointer == ffi.NULL:
            raise BackendError(f"OpenSSL can't load the provider: {openssl_error()}")
        self._context = ffi.gc(pointer, lib.gp_embedded_libctx_free)
        self._keeps = keeps

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LibraryContext can't be pickled or copied: take it from a provider of the other process")

    @property
    def pointer(self) -> int:
        """The address of the ``OSSL_LIB_CTX``, valid as long as this object is alive."""
        return int(ffi.cast("uintptr_t", self._context))


class BatchingProvider(ManyOperations, ModexpCalls):
    """Gathers the RSA private operations of many TLS connections and threads into batches, and computes them.

    ::

        with BatchingProvider() as provider:
            key = provider.load_key(pem)
            signature = provider.private_op(key, padded_digest)

    Every method may be called from any thread. No thread is started before :meth:`start` (or ``with``).

    Fork: in a process forked after the provider was made, OpenSSL computes the operations of TLS connections at once,
    the methods here raise ProviderClosedError, and :meth:`close` does nothing. Make a new provider in the child. A
    future from before the fork never ends in the child.
    """

    def __init__(
        self,
        config: ProviderConfig | None = None,
        *,
        backends: Sequence[Backend] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """``config`` None: defaults and ``GPU_PROVIDER_*`` environment variables.

        ``backends``: what computes instead of what ``config.backend`` names, the preferred one first. The provider
        opens and closes them. libcrypto computes whatever they fail, so it need not be among them.

        ``registry``: where the metrics go; None: to a new one, :attr:`registry`, when somebody asks for it.
        (``prometheus_client.REGISTRY`` has room for one provider only.)

        Raises ConfigError, and BackendError if there is no memory or descriptor for the queue.
        """
        self.config = load_config(ProviderConfig, environ=os.environ) if config is None else config
        given = (backend for backend in backends or () if isinstance(backend, LibcryptoBackend))
        libcrypto = next(given, LibcryptoBackend(self.config.threads))
        self._client = Client(self.config.queue_depth)
        self._futures = PendingFutures(self._client)
        open_more = None
        if backends is None:
            open_more = functools.partial(open_gpus, config=self.config)
            backends = [libcrypto if self.config.backend == "libcrypto" else CpuBackend(self.config.threads)]
        inline = next((backend for backend in backends if isinstance(backend, CpuBackend)), libcrypto)
        self._statistics = Statistics(self._client, inline.name)
        self._engine = Engine(
            config=self.config,
            client=self._client,
            backends=backends,
            inline=inline,
            libcrypto=libcrypto,
            open_more=open_more,
            futures=self._futures,
            statistics=self._statistics,
        )
        self._device_arrays = DeviceArrays(self._engine, self._statistics, self.config.backend_timeout)
        self._lock = threading.RLock()  # a signal handler may come in between
        self._started = False
        self._library_context: LibraryContext | None = None
        self._registry = registry
        if registry is not None:
            self._expose(registry)
        # When the provider is collected. It doesn't wait for the threads: whoever drops the last reference may hold a
        # lock that a future's callback needs.
        weakref.finalize(self, self._engine.begin_close).atexit = False

    # ---- lifetime ----

    def start(self) -> None:
        """Opens the backends and starts the threads. Does nothing if that was done already. Raises BackendError if a
        backend can't be opened, ProviderClosedError if the provider is closed or was made before a fork."""
        self._client.check_process()
        with self._lock:
            if self._engine.closing:
                raise ProviderClosedError("the provider is closed; make a new one")
            if self._started:
                return
            self._engine.start()
            self._started = True

    def close(self) -> None:
        """Completes the requests in the queue, then ends the threads. May be called again, from any thread, and from a
        signal handler; each call waits for the end.

        TLS connections go on: OpenSSL computes later operations, and those in the wait queue, at once. Library requests
        in the wait queue end with ProviderClosedError, and so do other threads' ``modexp`` calls and calls over arrays
        that are not done half a second later. If a backend hangs, this takes up to ``backend_timeout``. In a callback
        of a future it returns without waiting.

        A provider that is not closed is closed at the interpreter's exit. One that is collected ends its threads
        itself.
        """
        self._engine.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a provider can't be pickled or copied: make and start one in the other process")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def library_context(self) -> LibraryContext:
        """The OpenSSL library context for all TLS contexts that use this provider.

        Raises ProviderClosedError before :meth:`start`, because connections would wait for threads that don't exist.
        """
        self._client.check_process()  # a forked child may never get the lock
        with self._lock:
            self._check_started()
            if self._library_context is None:
                pointer = lib.gp_embedded_libctx_new(self._client.pointer)
                self._library_context = LibraryContext(pointer, self._client)
            return self._library_context

    # ---- RSA ----

    def load_key(
        self,
        source: KeySource,
        password: bytes | str | None = None,
        *,
        check_primes: bool = False,
        unsafe_skip_rsa_key_validation: bool = False,
    ) -> Key:
        """Adds an RSA private key of 2048 to 4096 bits to the key table.

        ``source``: the content of a key file in PEM or DER (PKCS#8 or PKCS#1) or in OpenSSH's format, encrypted if
        ``password`` is given; or a private key of the ``cryptography`` package. PEM may contain certificates as well.

        The key's numbers are checked against each other, and in one trial operation. ``check_primes`` also tests
        whether its factors are primes, which takes 40 to 70 times as long: for keys from somebody who is not trusted.
        ``unsafe_skip_rsa_key_validation`` checks nothing, as in ``cryptography``: for many keys that were
        checked before. An operation with a key whose numbers are wrong never gives a wrong result, since each is
        verified with the public exponent; it raises OperationError.

        Raises KeyLoadError, which says what is wrong with the key; InputError if it shall both check and skip;
        ProviderClosedError in a forked process.
        """
        self._client.check_process()
        key = keys.load(
            self._client,
            source,
            password,
            check_primes=check_primes,
            unsafe_skip_rsa_key_validation=unsafe_skip_rsa_key_validation,
        )
        key.provider = self
        return key

    @overload
    def private_op(self, key: Key, x: Integer) -> int: ...
    @overload
    def private_op(self, key: Key, x: BytesLike) -> bytes: ...
    @overload
    def private_op(self, key: Keys, x: NDArray[np.uint64]) -> NDArray[np.uint64]: ...
    @overload
    def private_op(self, key: Keys, x: CudaArray) -> CudaArray: ...
    @overload
    def private_op(self, key: Keys, x: DlpackArray) -> NDArray[np.uint64] | CudaArray: ...
    def private_op(
        self, key: Keys, x: Integer | BytesLike | NDArray[np.uint64] | CudaArray | DlpackArray
    ) -> int | bytes | NDArray[np.uint64] | CudaArray:
        """x^d mod n: the RSA private operation without any padding. Waits for the result, and for room in the queue.

        ``x``: an int from 0 to n - 1 (or NumPy's integers, or others with ``__index__``), or big-endian bytes, at most
        as many as the modulus has. The result has the same type; bytes are as many as the modulus has.

        To compute many at once, ``x`` is a uint64 array [n, limbs] or [limbs], least significant limb first, each row
        below its modulus, and ``key`` is one key or a sequence of n. Returns [n, limbs of the longest modulus]. Such a
        call does not go through the queue. It is computed in pieces of at most ``max_delay`` seconds, so TLS
        connections are served meanwhile.

        The array may be a CuPy array, or another with ``__cuda_array_interface__`` or ``__dlpack__``, in the memory of
        a GPU that the provider computes with. Then the result is a CuPy array on that GPU, and the numbers don't pass
        through the host, provided that all keys have up to 2048 bits, or all 2049 to 3072, or all more. The call waits
        for the array's stream and for the thread's current one; when it returns, the result is there.

        Raises InputError, OperationError, ProviderClosedError.
        """
        self._check_may_wait()
        given: Any = adopted(x, "input")
        if isinstance(given, np.ndarray):
            return self._private_rows(key, given)
        if is_cuda_array(given):
            return self._device_private_rows(key, given)
        if not isinstance(key, Key):
            raise InputError("several keys take an array of as many rows; an int or bytes take one key")
        self._check_key(key)
        return self._futures.compute(key, given)

    @overload
    def submit(self, key: Key, x: Integer) -> Future[int]: ...
    @overload
    def submit(self, key: Key, x: BytesLike) -> Future[bytes]: ...
    def submit(self, key: Key, x: Integer | BytesLike) -> Future[Any]:
        """Like :meth:`private_op`, but returns a future at once, or raises QueueFullError if the queue is full.

        The future's callbacks run on a thread of the provider and must not block. What they raise is logged, even
        SystemExit. Cancelling works until the result is there; the request is computed all the same.
        """
        self._check_key(key)
        return self._futures.submit(key, x, wait_for_room=False)

    @overload
    async def private_op_async(self, key: Key, x: Integer) -> int: ...
    @overload
    async def private_op_async(self, key: Key, x: BytesLike) -> bytes: ...
    async def private_op_async(self, key: Key, x: Integer | BytesLike) -> int | bytes:
        """Like :meth:`private_op`, for coroutines. May be cancelled at any time; the request is still computed."""
        self._check_key(key)
        with Turn.of(asyncio.get_running_loop()):
            future = self._futures.submit(key, x, wait_for_room=True)
        return await asyncio.wrap_future(future)

    def _check_key(self, key: Key) -> None:
        self._check_running()
        keys.check_key(self._client, key)

    def _private_rows(self, keys: Keys, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        self._check_running()
        inputs = array_to_rows(x, "input")
        of_rows = keys_of_rows(self._client, keys, len(inputs))
        calls = private_calls(self._client, of_rows, inputs)
        size = of_rows.sizes[1] or inputs.shape[1]
        outputs = np.zeros((len(inputs), size), np.uint8)
        for (rows, _), result in zip(calls, self._compute([call for _, call in calls]), strict=True):
            results = result[:, :size]
            outputs[rows, : results.shape[1]] = results
        return limbs_of(outputs)

    def _compute(self, calls: Sequence[Call]) -> list[NDArray[np.uint8]]:
        """Returns the calls' results. If this thread is interrupted it gives the calls up, so that close() need not
        wait for them."""
        try:
            self._engine.submit(calls)
            return [call.wait() for call in calls]
        except BaseException:
            for call in calls:
                call.give_up()
            raise

    def _device_private_rows(self, keys: Keys, x: CudaArray) -> CudaArray:
        self._check_running()
        inputs, backend = self._device_arrays.find(x, "input")
        of_rows = keys_of_rows(self._client, keys, inputs.rows)
        on_host = functools.partial(self._private_rows, keys)
        return self._device_arrays.private_op(backend, of_rows, inputs, on_host)

    @property
    def client(self) -> Client:
        """The request queue. For the service, which puts other processes' requests into it."""
        return self._client

    def pulse(self) -> int:
        """How often the batching thread has gone around so far; it goes around once more soon. For watchdogs."""
        self._client.wake()
        return self._engine.turns

    # ---- observation ----

    @property
    def registry(self) -> CollectorRegistry:
        """Where the metrics are, for ``prometheus_client.generate_latest(provider.registry)``."""
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 (heavy, and many programs have no metrics)

        with self._lock:
            if self._registry is None:
                self._registry = CollectorRegistry()
                self._expose(self._registry)
            return self._registry

    def _expose(self, registry: CollectorRegistry) -> None:
        from gpu_provider.observe.metrics import ProviderCollector  # noqa: PLC0415 (as above)

        registry.register(ProviderCollector(self._client, self._statistics, self.config.queue_depth, self._engine.gpus))

    @property
    def failure(self) -> str | None:
        """Why the provider no longer batches, or None: it ran out of memory, or has a fault. OpenSSL then computes at
        once for TLS connections, and library requests end with ProviderClosedError. Make a new provider, or exit."""
        return self._engine.failure

    def stats(self) -> ProviderStats:
        """A snapshot of the counters."""
        self._client.check_process()
        return self._statistics.snapshot(self._engine.in_use())

    def _check_may_wait(self) -> None:
        if self._engine.owns_current_thread():
            raise GpuProviderError("a future's callback must not wait for the provider that runs it; use submit()")

    def _check_started(self) -> None:
        self._client.check_process()
        if not self._started:
            raise ProviderClosedError("the provider is not started; use it in a with statement, or call start()")

    def _check_running(self) -> None:
        self._check_started()
        if self._engine.closing:
            raise ProviderClosedError("the provider is closed")
