"""Batches as the provider hands them to a backend, and what is in them afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpu_provider import ProviderConfig
from gpu_provider.backends.base import Batch

if TYPE_CHECKING:
    from gpu_provider import Key

PATIENT = ProviderConfig(backend_timeout=3600)
"""For a processor in place of a GPU: on a busy machine it may take longer than the default allows."""


def batch_of(requests: list[tuple[Key, int]], class_bytes: int = 256) -> Batch:
    inputs = np.zeros((len(requests), class_bytes), np.uint8)
    for row, (_, x) in zip(inputs, requests, strict=True):
        row[:] = np.frombuffer(x.to_bytes(class_bytes, "little"), np.uint8)
    return Batch(
        class_bytes=class_bytes,
        keys=np.array([key.handle for key, _ in requests], np.uint64),
        inputs=inputs,
        outputs=np.full_like(inputs, 0xAA),
        ok=np.zeros(len(requests), np.uint8),
    )


def results(batch: Batch) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in batch.outputs]
