"""Arrays of other libraries by DLPack, on the processor and on a (pretended) GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from limb_arrays import limbs, numbers
from rsa_keys import private_key

from bench.gpu.host_device import HostArray, HostDevice
from gpu_provider import BatchingProvider, InputError
from gpu_provider.backends.cuda.backend import CudaBackend

M = (1 << 127) - 1


class Foreign:
    """Another library's array: DLPack's methods and nothing else."""

    def __init__(self, array: Any, device: int = 1) -> None:
        self.array = array
        self.device = device

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


def test_operands_on_the_processor() -> None:
    key = private_key(2048).private_numbers()
    with BatchingProvider() as provider:
        result = provider.modexp(Foreign(limbs([2, 3], 2)), Foreign(limbs([5, 6], 1)), Foreign(limbs([M], 2)))
        assert numbers(result) == [32, 729]
        assert provider.modexp(2, Foreign(limbs([5, 6], 1)), M) == [32, 64]
        assert numbers(provider.submit_modexp(Foreign(limbs([2], 2)), 5, M).result(10)) == [32]
        loaded = provider.load_key(private_key(2048))
        assert numbers(provider.private_op(loaded, Foreign(limbs([2], 32)))) == [pow(2, key.d, key.public_numbers.n)]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (Foreign(np.ones((1, 1), np.int64)), "dtype int64"),
        (Foreign(np.ones((1, 1), ">u8")), "can't be taken over by DLPack"),
        (Foreign(limbs([2], 1), device=4), "device of DLPack's type 4"),
        (Foreign(limbs([2], 1), device=2), "which takes CuPy"),
    ],
)
def test_what_cannot_be_taken_over_is_named(array: Foreign, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with BatchingProvider() as provider, pytest.raises(InputError, match=f"the base array .*{reason}"):
        provider.modexp(array, 3, M)


def test_an_array_on_a_gpu_is_computed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy is what reads DLPack's capsule there; a stand-in for it gives the array that the capsule would hold."""
    device = HostDevice()
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=lambda foreign: foreign.array))
    with BatchingProvider(backends=[CudaBackend(device, measured=16)]) as provider:
        on_device = device.new_array(8, 32)
        on_device.array[:] = limbs(list(range(2, 10)), 32)
        result = provider.modexp(Foreign(on_device, device=2), 5, (1 << 2048) - 1942289)
        assert isinstance(result, HostArray)
        assert numbers(result.array) == [base**5 for base in range(2, 10)]
