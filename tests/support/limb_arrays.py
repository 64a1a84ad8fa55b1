"""Numbers as arrays of limbs, for tests: uint64 [n, limbs], least significant limb first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def limbs(numbers: Sequence[int], count: int) -> NDArray[np.uint64]:
    data = b"".join(number.to_bytes(count * 8, "little") for number in numbers)
    return np.frombuffer(data, "<u8").reshape(len(numbers), count).astype(np.uint64)


def numbers(array: NDArray[np.uint64]) -> list[int]:
    return [int.from_bytes(row.astype("<u8").tobytes(), "little") for row in array]
