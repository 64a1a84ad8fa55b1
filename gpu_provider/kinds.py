"""The kinds of work. Requests of different kinds never share a batch."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_provider.client import CLASSES, class_bytes

__all__ = ["LABELS", "MODEXP", "PRIVATE_ROWS", "REQUESTS", "Kind", "RequestKind"]


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """There is one object of each kind, so they compare and hash by identity."""

    label: str
    """What the metrics count it as: the largest modulus of its size class in bits, or "modexp"."""


@dataclass(frozen=True, slots=True, eq=False)
class RequestKind(Kind):
    """RSA private operations that wait in the queue."""

    class_index: int


REQUESTS = tuple(RequestKind(str(class_bytes(index) * 8), index) for index in range(CLASSES))
"""By size class."""
PRIVATE_ROWS = tuple(Kind(request.label) for request in REQUESTS)
"""Rows of library calls of the same operations, by size class. They cost and count the same as requests."""
MODEXP = Kind("modexp")
"""Rows of library calls of modexp()."""
LABELS = (*(request.label for request in REQUESTS), MODEXP.label)
