"""The types of the library's calls, as mypy and pyright see them. `make lint` checks this file; nothing runs it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, assert_type

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from gpu_provider import BatchingProvider, ProviderConfig, ProviderStats

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

    from gpu_provider import Key
    from gpu_provider.backends.cuda.device import CudaArray


def lifetime(pem: bytes, of_cryptography: rsa.RSAPrivateKey) -> None:
    with BatchingProvider(ProviderConfig(threads=1)) as provider:
        assert_type(provider, BatchingProvider)
        key = provider.load_key(pem, "password")
        assert_type(key, "Key")
        assert_type((key.n, key.e, key.bits, key.bytes, key.closed), tuple[int, int, int, int, bool])
        assert_type(provider.load_key(of_cryptography, check_primes=True), "Key")
        assert_type(provider.load_key(memoryview(pem), unsafe_skip_rsa_key_validation=True), "Key")
        assert_type(provider.stats(), ProviderStats)
        assert_type(provider.registry, CollectorRegistry)
        assert_type(provider.failure, str | None)


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


def an_rsa_private_key(key: Key) -> rsa.RSAPrivateKey:
    return key


def many(
    provider: BatchingProvider, key: Key, public: rsa.RSAPublicKey, padding: AsymmetricPadding, algorithm: HashAlgorithm
) -> None:
    assert_type(provider.sign_many(key, [b"", bytearray()], padding, algorithm), list[bytes])
    assert_type(provider.sign_many([key], (b"" for _ in range(1)), padding, algorithm, progress=print), list[bytes])
    assert_type(provider.submit_sign_many(key, [b""], padding, algorithm), Future[list[bytes]])
    assert_type(provider.decrypt_many(key, [b""], padding), list[bytes])
    assert_type(provider.submit_decrypt_many(key, [b""], padding), Future[list[bytes]])
    assert_type(provider.verify_many(public, [b""], [b""], padding, algorithm), list[bool])
    assert_type(provider.submit_verify_many([key, public], [b""], [b""], padding, algorithm), Future[list[bool]])


async def many_awaited(provider: BatchingProvider, key: Key, padding: AsymmetricPadding, sha: HashAlgorithm) -> None:
    assert_type(await key.sign_async(b"", padding, sha), bytes)
    assert_type(await key.decrypt_async(b"", padding), bytes)
    assert_type(await provider.sign_many_async(key, [b""], padding, sha), list[bytes])
    assert_type(await provider.decrypt_many_async(key, [b""], padding), list[bytes])
    assert_type(await provider.verify_many_async(key, [b""], [b""], padding, sha), list[bool])
