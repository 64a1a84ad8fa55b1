"""Which of a device's kernels computes what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_provider.kernels.warp import Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpu_provider.kernels.warp import Kernel

__all__ = ["KernelChoice"]


class KernelChoice:
    """The kernels of one device, all of one radix, so that they share the constants of keys."""

    def __init__(self, kernels: Sequence[Kernel], parallel_threads: int) -> None:
        """``parallel_threads``: what the device runs at full speed."""
        self.kernels = kernels
        self._parallel_threads = parallel_threads
        self._measured: dict[tuple[int, int], Kernel] = {}  # by width, and bits of the number of rows
        self._by_use: dict[tuple[Operation, int], list[Kernel]] = {}
        for kernel in sorted(kernels, key=lambda kernel: kernel.threads):
            self._by_use.setdefault((kernel.operation, kernel.class_bytes), []).append(kernel)
        private = [kernel for kernel in kernels if kernel.operation is Operation.PRIVATE]
        self.radix_bits = kernels[0].radix_bits
        self.record_bytes = {kernel.class_bytes: kernel.record_bytes for kernel in private}
        """Of a key's constants, by bytes of the kernel's rows."""
        self.pair_bytes = {kernel.class_bytes: kernel.pair_bytes for kernel in private}
        """Of a blinding pair, likewise."""

    def measure(self, seconds: Callable[[Kernel, int], float], largest: int) -> dict[int, list[tuple[int, float]]]:
        """Finds the fastest kernel for each width and batches of 1, 2, 4, … rows up to ``largest``, by which
        :meth:`choose` goes from then on. Returns, by width, the rows and what ``seconds(kernel, rows)`` says of it."""
        curves: dict[int, list[tuple[int, float]]] = {}
        for width in sorted(self.record_bytes):
            rows = 1
            while rows <= largest:
                took = {kernel: seconds(kernel, rows) for kernel in self._by_use[Operation.PRIVATE, width]}
                best = min(took, key=lambda kernel: took[kernel])
                self._measured[width, rows.bit_length()] = best
                curves.setdefault(width, []).append((rows, took[best]))
                rows *= 2
        return curves

    def width(self, operation: Operation, number_bytes: int) -> int | None:
        """The bytes of the narrowest kernel's rows that take such a number; None if there is no such kernel."""
        widths = [width for kind, width in self._by_use if kind is operation and width >= number_bytes]
        return min(widths, default=None)

    def choose(self, operation: Operation, width: int, rows: int) -> Kernel:
        """The fastest, where that was measured. Otherwise the kernel with the fewest threads per row, which do the
        least work together; but where there are so few rows that more threads also run at the same time, the one with
        the most of them: a row is done earlier."""
        kernels = self._by_use[operation, width]
        measured = self._measured.get((width, rows.bit_length()))
        if measured is not None and operation is Operation.PRIVATE:
            return measured
        for kernel in reversed(kernels):
            if rows * kernel.threads <= self._parallel_threads:
                return kernel
        return kernels[0]
