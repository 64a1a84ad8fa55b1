"""OpenSSL's libcrypto as a backend: the one that is always there, and the last resort when another one fails."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gpu_provider.client import u8, u64
from gpu_provider.costs import CostCurve, CostCurves
from gpu_provider.errors import BackendError
from gpu_provider.native import lib

if TYPE_CHECKING:
    from _cffi_backend import FFI

    from gpu_provider.backends.base import Batch, Rows
    from gpu_provider.client import Client

__all__ = [
    "LibcryptoBackend",
    "c_arguments",
    "libcrypto_cost_curves",
    "libcrypto_inverse",
    "libcrypto_modexp",
    "libcrypto_verify",
]

# Seconds per operation: OpenSSL 3.0 on one core of a current machine, by size class; then for a unit of modexp().
_FIRST_GUESSES = (0.0003, 0.001, 0.002, 0.003, 0.0045, 4e-9)


def c_arguments(batch: Batch) -> tuple[int, FFI.CData, FFI.CData, FFI.CData, int, FFI.CData]:
    """A batch as the functions of ``native/keys`` take it: count, keys, inputs, outputs, stride, ok."""
    inputs, outputs = u8(batch.inputs), u8(batch.outputs)
    return len(batch), u64(batch.keys), inputs, outputs, batch.class_bytes, u8(batch.ok)


def libcrypto_verify(client: Client, batch: Batch) -> int:
    """Clears ``ok[i]`` where ``outputs[i]^e mod n`` is not ``inputs[i]``. Returns how many it cleared."""
    return lib.gp_libcrypto_verify(client.keys, *c_arguments(batch))


def libcrypto_modexp(
    bases: Rows, exponents: Rows, moduli: Rows, outputs: Rows, *, public_exponents: bool = False
) -> None:
    """``Backend.modexp`` by OpenSSL on this thread, without the GIL; for any moduli, even ones and 1 included. Raises
    BackendError without memory."""
    (count, stride), width = bases.shape, exponents.shape[1]
    rows = (u8(bases), u8(exponents), width, u8(moduli), u8(outputs))
    if not lib.gp_libcrypto_modexp(count, *rows, stride, public_exponents):
        raise BackendError("libcrypto: out of memory")


def libcrypto_inverse(numbers: Rows, moduli: Rows, outputs: Rows) -> int:
    """``outputs[i] = 1 / numbers[i] mod moduli[i]``, in constant time, without the GIL. Returns the first row whose
    number has no inverse, or the number of rows. Raises MemoryError."""
    count, stride = numbers.shape
    done = int(lib.gp_libcrypto_inverse(count, u8(numbers), u8(moduli), u8(outputs), stride))
    if done < 0:
        raise MemoryError("no memory for OpenSSL's numbers")
    return done


def libcrypto_cost_curves() -> CostCurves:
    """``Backend.cost_curves``: every operation costs the same."""
    *private, modexp = (CostCurve([(1, seconds)]) for seconds in _FIRST_GUESSES)
    return CostCurves(private, modexp)


class LibcryptoBackend:
    """One batch per processor core at a time. Constant time and blinded, by OpenSSL; no state of its own."""

    name = "libcrypto"
    pipelined = False
    verifies = True
    """OpenSSL checks every CRT result with the public exponent, and computes again without the CRT if it is wrong
    (``rsa_ossl_mod_exp``); checking it a second time would only cost time."""

    def __init__(self, threads: int | None = None) -> None:
        """``threads``: batches at a time; None: as many as this process may use processor cores."""
        self.workers = threads or len(os.sched_getaffinity(0))
        self._client: Client | None = None

    def open(self, client: Client) -> None:
        self._client = client

    def cost_curves(self) -> CostCurves:
        return libcrypto_cost_curves()

    def private_op(self, batch: Batch) -> None:
        if self._client is None:
            raise BackendError("libcrypto: the backend is not open")
        lib.gp_libcrypto_private(self._client.keys, *c_arguments(batch))

    def modexp(
        self, bases: Rows, exponents: Rows, moduli: Rows, outputs: Rows, *, public_exponents: bool = False
    ) -> None:
        libcrypto_modexp(bases, exponents, moduli, outputs, public_exponents=public_exponents)

    def close(self) -> None:
        self._client = None
