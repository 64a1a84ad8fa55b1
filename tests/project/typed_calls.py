"""The types of the library's calls, as a type checker sees them. `make lint` checks this file; nothing runs it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, assert_type

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gpu_provider import BatchingProvider, Key
    from gpu_provider.backends.cuda.device import CudaArray


def private_operations(provider: BatchingProvider, key: Key, array: NDArray[np.uint64], on_gpu: CudaArray) -> None:
    assert_type(provider.private_op(key, 2), int)
    assert_type(provider.private_op(key, np.uint64(2)), int)
    assert_type(provider.private_op(key, b"2"), bytes)
    assert_type(provider.private_op(key, bytearray(2)), bytes)
    assert_type(provider.private_op(key, array), NDArray[np.uint64])
    assert_type(provider.private_op([key, key], array), NDArray[np.uint64])
    assert_type(provider.private_op(key, on_gpu), "CudaArray")
    assert_type(provider.submit(key, 2), Future[int])
    assert_type(provider.submit(key, b"2"), Future[bytes])
    assert_type(
        [pow(future.result(), key.e, key.n) for future in [provider.submit(key, x) for x in range(3)]], list[int]
    )


def futures(provider: BatchingProvider, array: NDArray[np.uint64]) -> None:
    assert_type(provider.submit_modexp(2, 3, 7), Future[int])
    assert_type(provider.submit_modexp(b"2", -3, 7, public_exponents=True), Future[bytes])
    assert_type(provider.submit_modexp([2, 3], 3, 7), Future[list[int]])
    assert_type(provider.submit_modexp([b"2"], array, 7), Future[list[bytes]])
    assert_type(provider.submit_modexp(array, 3, 7), Future[NDArray[np.uint64]])


async def awaited(provider: BatchingProvider, key: Key) -> None:
    assert_type(await provider.private_op_async(key, 2), int)
    assert_type(await provider.private_op_async(key, memoryview(b"2")), bytes)

    assert_type(await provider.modexp_async(2, 3, 7), int)
    assert_type(await provider.modexp_async(b"2", 3, 7), bytes)
    assert_type(await provider.modexp_async([2, 3], b"3", [7, 11]), list[int])
    assert_type(await provider.modexp_async(2, [3, 4], 7), list[int])
    assert_type(await provider.modexp_async([b"2"], 3, 7), list[bytes])


def powers(provider: BatchingProvider, array: NDArray[np.uint64], on_gpu: CudaArray) -> None:
    assert_type(provider.modexp(2, 3, 7), int)
    assert_type(provider.modexp(np.uint64(2), 3, b"7"), int)
    assert_type(provider.modexp(b"2", 3, 7), bytes)
    assert_type(provider.modexp(2, [3, 4], 7), list[int])
    assert_type(provider.modexp(2, 3, [5, 7]), list[int])
    assert_type(provider.modexp(2, array, 7), list[int])
    assert_type(provider.modexp([2, 3], 3, 7), list[int])
    assert_type(provider.modexp(range(3), [b"1", b"2", b"3"], array), list[int])
    assert_type(provider.modexp(b"2", [3, 4], 7), list[bytes])
    assert_type(provider.modexp([b"2", b"3"], on_gpu, array), list[bytes])
    assert_type(provider.modexp(array, 3, 7), NDArray[np.uint64])
    assert_type(provider.modexp(array, [3, 4], b"7"), NDArray[np.uint64])
    assert_type(provider.modexp(on_gpu, array, 7), "CudaArray")
