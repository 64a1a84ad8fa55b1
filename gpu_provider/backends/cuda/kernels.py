"""Which of a device's kernels computes what."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from gpu_provider.kernels.launch import Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gpu_provider.kernels.launch import Kernel

__all__ = ["KernelChoice"]

_WARM_UP_SECONDS = 0.1
_WARM_UP_BATCHES = 500


class KernelChoice:
    """The kernels of one device, all of one radix, so that they share the constants of keys.

    Kernels with few threads per row do the least work together; those with many are done with a row sooner, as long as
    all of their threads run at the same time. So the number of rows decides, and what counts is not one batch alone:
    three batches of 1,400 rows in flight fill a device like one of 4,200. The kernel that is fastest for a single batch
    of all the rows in flight has the highest throughput for these batches.
    """

    def __init__(self, kernels: Sequence[Kernel], parallel_threads: int) -> None:
        """``parallel_threads``: what the device runs at full speed."""
        self.kernels = kernels
        self._parallel_threads = parallel_threads
        self._measured: dict[tuple[int, int], Kernel] = {}  # by width, and bits of the number of rows less one
        self._by_use: dict[tuple[Operation, int], list[Kernel]] = {}
        for kernel in sorted(kernels, key=lambda kernel: kernel.threads):
            self._by_use.setdefault((kernel.operation, kernel.class_bytes), []).append(kernel)
        private = [kernel for kernel in kernels if kernel.operation is Operation.PRIVATE]
        self.radix_bits = kernels[0].radix_bits
        self.record_bytes = {kernel.class_bytes: kernel.record_bytes for kernel in private}
        """Bytes of a key's constants, by bytes of the kernel's rows."""
        self.pair_bytes = {kernel.class_bytes: kernel.pair_bytes for kernel in private}
        """Bytes of a blinding pair, by bytes of the kernel's rows."""
        self._rows_in_flight = 0
        self._lock = threading.Lock()

    def measure(
        self,
        compute: Callable[[Kernel, int], None],
        largest: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> dict[int, list[tuple[int, float]]]:
        """Finds the fastest kernel for each width and batches of 1, 2, 4, … rows up to ``largest``; :meth:`choose` uses
        them from then on. ``compute(kernel, rows)`` returns when such a batch is done. Returns, by width, the rows and
        the seconds that they took at best.

        An idle GPU has a low clock, and raises it after some tens of milliseconds under load, so it is kept busy before
        anything is timed. Then the batches are timed once from the largest to the smallest and once the other way, so
        that what remains of the rise does not make some sizes look slower than others.
        """
        sizes = [1 << bits for bits in range(largest.bit_length())]
        kernels = [kernel for width in sorted(self.record_bytes) for kernel in self._by_use[Operation.PRIVATE, width]]
        self._warm_up(compute, kernels[0], sizes[-1], clock)
        took: dict[tuple[Kernel, int], float] = {}
        for rows in (*reversed(sizes), *sizes):
            for kernel in kernels:
                started = clock()
                compute(kernel, rows)
                took[kernel, rows] = min(took.get((kernel, rows), float("inf")), clock() - started)
        curves: dict[int, list[tuple[int, float]]] = {}
        for width in self.record_bytes:
            for rows in sizes:
                best = min(self._by_use[Operation.PRIVATE, width], key=lambda kernel: took[kernel, rows])
                self._measured[width, (rows - 1).bit_length()] = best
                curves.setdefault(width, []).append((rows, took[best, rows]))
        return curves

    @contextlib.contextmanager
    def in_flight(self, rows: int) -> Iterator[int]:
        """While a batch of so many rows is on the device. The block gets the rows of all batches on it, this one
        included."""
        with self._lock:
            self._rows_in_flight += rows
            together = self._rows_in_flight
        try:
            yield together
        finally:
            with self._lock:
                self._rows_in_flight -= rows

    def width(self, operation: Operation, number_bytes: int) -> int | None:
        """Bytes of a row of the narrowest kernel that takes such numbers; None if there is no such kernel."""
        widths = [width for kind, width in self._by_use if kind is operation and width >= number_bytes]
        return min(widths, default=None)

    def choose(self, operation: Operation, width: int, rows: int) -> Kernel:
        """The kernel for a batch that has so many rows together with all others in flight: the one that was the fastest
        for the next power of two. Where nothing was measured, it is the one with the most threads per row that can all
        run at the same time, or else the one with the fewest."""
        kernels = self._by_use[operation, width]
        measured = self._measured.get((width, (rows - 1).bit_length()))
        if measured is not None and operation is Operation.PRIVATE:
            return measured
        for kernel in reversed(kernels):
            if rows * kernel.threads <= self._parallel_threads:
                return kernel
        return kernels[0]

    @staticmethod
    def _warm_up(compute: Callable[[Kernel, int], None], kernel: Kernel, rows: int, clock: Callable[[], float]) -> None:
        end = clock() + _WARM_UP_SECONDS
        for _ in range(_WARM_UP_BATCHES):
            compute(kernel, rows)
            if clock() >= end:
                return
