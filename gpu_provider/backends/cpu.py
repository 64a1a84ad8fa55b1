"""The processor's own backend: our kernels, eight operations at a time with AVX-512 IFMA, and libcrypto where it wins.

A group of rows costs the kernels the same however many of its rows are used. So whole groups are theirs, and what is
left over goes to OpenSSL if that takes less time. Where that begins is measured, for each size, with the first key of
that size.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import numpy as np

from gpu_provider import kernels
from gpu_provider.backends.libcrypto import c_arguments, libcrypto_cost_curves, libcrypto_modexp
from gpu_provider.costs import CostCurve, CostCurves
from gpu_provider.errors import BackendError
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from gpu_provider.backends.base import Batch, Rows
    from gpu_provider.client import Client

__all__ = ["CpuBackend"]

_MAX_BYTES = 1024  # of a number, in the kernels
_MEASURED_EXPONENT_BYTES = 16
_MEASUREMENTS = 3

# Seconds for one operation and for a group of eight, until batches have been measured: one core with AVX-512 IFMA, by
# size class; then for a unit of modexp() in a single row, and eight of them.
_FIRST_GUESSES = (
    (0.0003, 0.0007),
    (0.001, 0.0015),
    (0.0016, 0.0022),
    (0.003, 0.0037),
    (0.0037, 0.0049),
    (4e-9, 6e-9),
)


class CpuBackend:
    """One batch per processor core at a time. Constant time, blinded, and every result verified with e.

    Keys are prepared when they are loaded for TLS, or at their first use: their constants lie in locked memory (if the
    limit on it allows), and are wiped with the key. Keys that the kernels don't support (more than two primes, no
    factors, e above 64 bits) are left to libcrypto.
    """

    name = "cpu"
    pipelined = False
    verifies = True

    def __init__(
        self, threads: int | None = None, *, isa: kernels.Isa = kernels.Isa.BEST, smallest: int | None = None
    ) -> None:
        """``threads``: batches at a time; None: as many as this process may use processor cores. ``isa``: the kernels'
        arithmetic. ``smallest``: the smallest group that the kernels compute; None: as measured."""
        self.workers = threads or len(os.sched_getaffinity(0))
        self.isa = kernels.isa(isa)
        self._lanes = kernels.lanes(self.isa)
        self._smallest = smallest
        self._smallest_modexp: dict[int, int] = {}
        self._client: Client | None = None

    def open(self, client: Client) -> None:
        functions = ffi.cast("void *", kernels.functions_address(self.isa))
        lib.gp_cpu_use_kernels(client.cpu, functions, self._smallest or 0)
        self._client = client

    def cost_curves(self) -> CostCurves:
        if self._lanes == 1:
            return libcrypto_cost_curves()
        *private, modexp = (CostCurve([(1, one), (self._lanes, group)], self._lanes) for one, group in _FIRST_GUESSES)
        return CostCurves(private, modexp)

    def private_op(self, batch: Batch) -> None:
        if self._client is None:
            raise BackendError("cpu: the backend is not open")
        failed = lib.gp_cpu_private(self._client.cpu, *c_arguments(batch))
        if failed:
            raise BackendError(f"cpu: {failed} of {len(batch)} results are wrong, or there was no memory for them")

    def modexp(
        self, bases: Rows, exponents: Rows, moduli: Rows, outputs: Rows, *, public_exponents: bool = False
    ) -> None:
        count, stride = bases.shape
        ours = self._rows_for_kernels(count, stride) if max(stride, exponents.shape[1]) <= _MAX_BYTES else 0
        if ours:
            ok = np.zeros(ours, np.uint8)
            kernels.modexp(
                bases[:ours],
                exponents[:ours],
                moduli[:ours],
                outputs[:ours],
                ok,
                public_exponents=public_exponents,
                isa=self.isa,
            )
            if not ok.all():
                raise BackendError("cpu: a modulus is even or below 3")
        if ours < count:
            libcrypto_modexp(
                bases[ours:], exponents[ours:], moduli[ours:], outputs[ours:], public_exponents=public_exponents
            )

    def close(self) -> None:
        self._client = None

    def _rows_for_kernels(self, count: int, stride: int) -> int:
        """Whole groups, and what is left over if a group of its own is faster than libcrypto."""
        if self._smallest is None and stride not in self._smallest_modexp:
            self._smallest_modexp[stride] = self._measure_modexp(stride)
        smallest = self._smallest or self._smallest_modexp[stride]
        if smallest > self._lanes:
            return 0
        rest = count % self._lanes
        return count if rest >= smallest else count - rest

    def _measure_modexp(self, stride: int) -> int:
        """The smallest group for which the kernels win, for moduli of this many bytes; more than they have lanes if
        they never do."""
        moduli = np.full((1, stride), 0xFF, np.uint8)
        bases, outputs = np.full_like(moduli, 0x55), np.empty_like(moduli)
        exponents = np.full((1, min(stride, _MEASURED_EXPONENT_BYTES)), 0xAA, np.uint8)
        ok = np.zeros(1, np.uint8)
        group = single = float("inf")
        for _ in range(_MEASUREMENTS):
            start = time.perf_counter()
            kernels.modexp(bases, exponents, moduli, outputs, ok, isa=self.isa)
            between = time.perf_counter()
            libcrypto_modexp(bases, exponents, moduli, outputs)
            group, single = min(group, between - start), min(single, time.perf_counter() - between)
        return int(group / single) + 1
