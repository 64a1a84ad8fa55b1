"""Which of a device's kernels computes what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_provider.kernels.warp import Operation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpu_provider.kernels.warp import Kernel

__all__ = ["KernelChoice"]


class KernelChoice:
    """The kernels of one device, all of one radix, so that they share the constants of keys."""

    def __init__(self, kernels: Sequence[Kernel], parallel_threads: int, crossover: Mapping[int, int]) -> None:
        """``parallel_threads``: what the device runs at full speed. ``crossover``: by bytes of a kernel's rows, the
        rows from which on the kernel with the fewest threads per row computes, instead of by rule."""
        self._parallel_threads = parallel_threads
        self._crossover = crossover
        self._by_use: dict[tuple[Operation, int], list[Kernel]] = {}
        for kernel in sorted(kernels, key=lambda kernel: kernel.threads):
            self._by_use.setdefault((kernel.operation, kernel.class_bytes), []).append(kernel)
        private = [kernel for kernel in kernels if kernel.operation is Operation.PRIVATE]
        self.radix_bits = kernels[0].radix_bits
        self.record_bytes = {kernel.class_bytes: kernel.record_bytes for kernel in private}
        """Of a key's constants, by bytes of the kernel's rows."""
        self.pair_bytes = {kernel.class_bytes: kernel.pair_bytes for kernel in private}
        """Of a blinding pair, likewise."""

    def width(self, operation: Operation, number_bytes: int) -> int | None:
        """The bytes of the narrowest kernel's rows that take such a number; None if there is no such kernel."""
        widths = [width for kind, width in self._by_use if kind is operation and width >= number_bytes]
        return min(widths, default=None)

    def choose(self, operation: Operation, width: int, rows: int) -> Kernel:
        """The kernel with the fewest threads per row, which do the least work together. But where there are so few rows
        that more threads also run at the same time, the one with the most: a row is done earlier."""
        kernels = self._by_use[operation, width]
        crossover = self._crossover.get(width)
        for kernel in reversed(kernels):
            if rows < crossover if crossover is not None else rows * kernel.threads <= self._parallel_threads:
                return kernel
        return kernels[0]
