"""What the batching provider requires of a backend.

A backend never sees a connection, a callback or a future: it gets rows of numbers and fills rows of numbers. It may
fail in any way: the provider verifies results (unless the backend does), has libcrypto compute a failed batch again,
and takes a failing backend out of use for a while.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpu_provider.client import Client
    from gpu_provider.costs import CostCurves

__all__ = ["Backend", "Batch", "KeyHolder", "OnGpu", "Rows"]

Rows: TypeAlias = "NDArray[np.uint8]"
"""Numbers as an array [n, bytes], least significant byte first."""


@dataclass(slots=True)
class Batch:
    """RSA private operations of one size class, with any mix of keys.

    The arrays are C-contiguous views of buffers that the provider uses again: a backend must not keep them after
    :meth:`Backend.private_op` has returned or raised.
    """

    class_bytes: int
    """Bytes per row: 256, 320, 384, 448 or 512. Shorter numbers have zeros at their most significant end."""
    keys: NDArray[np.uint64]
    """[n] key handles."""
    inputs: Rows
    """[n, class_bytes], each row less than its modulus. Read-only."""
    outputs: Rows
    """[n, class_bytes] to fill, all bytes of each row."""
    ok: NDArray[np.uint8]
    """[n] zeros; the backend sets 1 where ``outputs`` holds a result."""

    def __len__(self) -> int:
        return len(self.keys)


class Backend(Protocol):
    """One way to compute. ``private_op`` and ``modexp`` run on up to ``workers`` threads of the provider at once."""

    @property
    def name(self) -> str:
        """What logs and metrics call it."""

    @property
    def workers(self) -> int:
        """The number of batches that it can usefully compute at a time. Fixed once ``open`` has returned."""

    @property
    def verifies(self) -> bool:
        """True if it has checked every result that it reports as ok with the public exponent."""

    @property
    def pipelined(self) -> bool:
        """True if the workers share one device, so that batches in flight wait for each other; False if each worker has
        a processor core of its own."""

    def cost_curves(self) -> CostCurves:
        """What a batch costs on one worker, as measured by ``open``, or a first guess for this sort of hardware. The
        provider refines it with what it measures. Called once, after ``open``."""

    def open(self, client: Client) -> None:
        """Called once, before anything is computed and after any fork that the program makes. ``client`` knows the keys
        behind the handles. Raises BackendError if the backend can't work here."""

    def private_op(self, batch: Batch) -> None:
        """Computes ``outputs[i] = inputs[i]^d mod n`` with the key ``keys[i]``, and sets ``ok[i]``.

        Must release the GIL for the arithmetic. Rows whose ``ok`` stays 0 are computed again on libcrypto. Raising
        anything, or a wrong result, means that the backend is broken: it is taken out of use for a while.
        """

    def modexp(
        self, bases: Rows, exponents: Rows, moduli: Rows, outputs: Rows, *, public_exponents: bool = False
    ) -> None:
        """Computes ``outputs[i] = bases[i]^exponents[i] mod moduli[i]``; odd moduli above 1, bases less than them.

        Exponents have a width of their own. Constant time in bases and, unless they are public, in exponents. Raising
        anything means that all of it failed.
        """

    def close(self) -> None:
        """Called once, when none of its calls is running."""


@runtime_checkable
class OnGpu(Protocol):
    """A backend that computes on one NVIDIA GPU."""

    @property
    def pci_bus_id(self) -> str | None:
        """The GPU's address, such as ``0000:3b:00.0``; None for what stands in for a GPU."""


@runtime_checkable
class KeyHolder(Protocol):
    """A backend with copies of keys, which it must wipe when the keys are removed."""

    def keys_removed(self) -> None:
        """Some keys have left the key table since the last call, and no request uses them. Must not block."""
