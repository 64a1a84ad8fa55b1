"""RSA signatures as a program with OpenSSL makes them in this environment: who computes them, and how fast."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_provider.commands.counts import Counts
from gpu_provider.commands.openssl_config import PREFERENCE, text
from gpu_provider.errors import GpuProviderError
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _cffi_backend import FFI

__all__ = ["MEASUREMENTS", "SIZES", "Signing", "Speed", "measure", "one_core", "queued_error", "sign"]

SIZES = (2048, 3072, 4096)
_THREADS = (1, 32)
MEASUREMENTS = len(SIZES) * len(_THREADS) * 2
"""Of so many seconds `measure()` makes its speeds."""

_MESSAGE = b"gpu-provider check"
_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class Signing:
    """One signature in OpenSSL's default library context, which is configured by OPENSSL_CONF."""

    provider: FFI.CData
    """Who made it."""
    is_ours: bool

    @property
    def provider_name(self) -> str:
        return text(lib.OSSL_PROVIDER_get0_name(self.provider))

    def counts(self, bits: int) -> Counts:
        """Of this process, by our module's own count."""
        names = [ffi.new("char[]", f"{name}-{bits}".encode()) for name in _COUNTS]
        values = [ffi.new("uint64_t *") for _ in names]
        params = [lib.OSSL_PARAM_construct_uint64(*each) for each in zip(names, values, strict=True)]
        lib.OSSL_PROVIDER_get_params(self.provider, ffi.new("OSSL_PARAM[]", [*params, lib.OSSL_PARAM_construct_end()]))
        return Counts(*(value[0] for value in values))


_COUNTS = ("singles", "groups", "grouped", "waits", "waits-in-vain", "served")


def sign() -> Signing:
    """Signs once, as TLS does. Raises GpuProviderError."""
    key = _new_key(2048)
    context = ffi.gc(lib.EVP_MD_CTX_new(), lib.EVP_MD_CTX_free)
    operation = ffi.new("EVP_PKEY_CTX **")
    size, signature = ffi.new("size_t *", 256), ffi.new("unsigned char[256]")
    if (
        lib.EVP_DigestSignInit_ex(context, operation, b"SHA256", ffi.NULL, ffi.NULL, key, ffi.NULL) != 1
        or lib.EVP_DigestSign(context, signature, size, _MESSAGE, len(_MESSAGE)) != 1
    ):
        raise _failure()
    provider = lib.EVP_PKEY_CTX_get0_provider(operation[0])
    ours = ffi.gc(
        lib.EVP_SIGNATURE_fetch(ffi.NULL, b"RSA", PREFERENCE.removeprefix("?").encode()), lib.EVP_SIGNATURE_free
    )
    is_ours = bool(ours) and lib.EVP_SIGNATURE_get0_provider(ours) == provider
    lib.ERR_clear_error()
    return Signing(provider, is_ours)


@dataclass(frozen=True, slots=True)
class Speed:
    """Signatures per second on one core."""

    bits: int
    threads: int
    """That sign at the same time."""
    openssl: float
    """Per second, by OpenSSL alone."""
    module: float
    """Per second, with the module."""
    counts: Counts
    """Of the latter."""


def measure(signing: Signing, seconds: float) -> Iterator[Speed | None]:
    """Measures one size after the other, each by one thread and by many. Yields None between a speed's two
    measurements. Raises GpuProviderError."""
    # Without a configuration, it has OpenSSL's own provider. It is never freed, as keys keep what they used of it.
    alone = lib.OSSL_LIB_CTX_new()
    if not alone:
        raise _failure()
    for bits in SIZES:
        key = _new_key(bits)
        for threads in _THREADS:
            openssl = _per_second(alone, key, threads, seconds)
            yield None
            _per_second(ffi.NULL, key, threads, seconds / 4)  # the module learns how requests come here
            before = signing.counts(bits)
            module = _per_second(ffi.NULL, key, threads, seconds)
            yield Speed(bits, threads, openssl, module, signing.counts(bits) - before)


@contextmanager
def one_core() -> Iterator[None]:
    """For `measure()`, so that many threads of Python don't hold each other up. Begins before `sign()`: the module sees
    once how many cores the process has."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _per_second(libctx: FFI.CData, key: FFI.CData, threads: int, seconds: float) -> float:
    contexts = [_new_operation(libctx, key) for _ in range(threads)]
    began = time.perf_counter()

    def work(context: FFI.CData) -> int:
        size, signature = ffi.new("size_t *"), ffi.new("unsigned char[512]")
        done = 0
        while done == 0 or time.perf_counter() < began + seconds:
            size[0] = 512
            if lib.EVP_PKEY_sign(context, signature, size, _NO_DIGEST, len(_NO_DIGEST)) != 1:
                raise _failure()
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, contexts))
    return done / (time.perf_counter() - began)


def _new_operation(libctx: FFI.CData, key: FFI.CData) -> FFI.CData:
    context = ffi.gc(lib.EVP_PKEY_CTX_new_from_pkey(libctx, key, ffi.NULL), lib.EVP_PKEY_CTX_free)
    if not context or lib.EVP_PKEY_sign_init(context) != 1:
        raise _failure()
    return context


def _new_key(bits: int) -> FFI.CData:
    key = ffi.gc(lib.EVP_PKEY_Q_keygen(ffi.NULL, ffi.NULL, b"RSA", ffi.cast("size_t", bits)), lib.EVP_PKEY_free)
    if not key:
        raise _failure()
    return key


def _failure() -> GpuProviderError:
    return GpuProviderError(f"no RSA signature can be made with this configuration: {queued_error()}")


def queued_error() -> str:
    """The first error in OpenSSL's queue of this thread, which is emptied."""
    code = lib.ERR_get_error()
    buffer = ffi.new("char[256]")
    lib.ERR_error_string_n(code, buffer, 256)
    lib.ERR_clear_error()
    return text(buffer) if code else "OpenSSL does not say why"
