"""Hazards: a device fails, or hangs, at any of its calls. Every request still gets its right result, and the device
comes back when it works again."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from limb_arrays import limbs, numbers
from rsa_keys import private_key

from bench.gpu.host_device import HostDevice, HostKernels
from gpu_provider import BackendError, BatchingProvider, Key, ProviderConfig
from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.device import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from gpu_provider.kernels.launch import Kernel

CALLS = ["use", "upload", "download", "clear", "launch", "record", "wait", "allocate", "allocate_pinned"]


class Faults:
    """Which calls fail, and how often each was made."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.fail: set[str] = set()
        self.hang: set[str] = set()
        self.hangs_over = threading.Event()
        self.armed = False

    def before(self, call: str) -> None:
        self.made[call] += 1
        if call in self.fail:
            raise DeviceError(f"device test: {call}: made to fail")
        if call in self.hang:
            self.hangs_over.wait()


@pytest.fixture
def faults() -> Faults:
    return Faults()


def config(**settings: float) -> ProviderConfig:
    return ProviderConfig(**{"threads": 1, "backend_retry": 0.001, "backend_timeout": 3600, **settings})  # type: ignore[arg-type]


def check(provider: BatchingProvider, key: Key, inputs: range) -> None:
    futures = [provider.submit(key, x) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        result = future.result(timeout=30)
        assert isinstance(result, int)
        assert pow(result, key.e, key.n) == x


def come_back(provider: BatchingProvider, key: Key) -> None:
    for x in range(2, 2000):
        check(provider, key, range(x, x + 1))
        if provider.stats().backend == "cuda":
            return
    pytest.fail("the backend did not come back")


@pytest.mark.parametrize("call", CALLS)
def test_a_call_fails_and_later_works_again(faults: Faults, call: str) -> None:
    backend = CudaBackend(HostDevice(before=faults.before), workers=2)
    with BatchingProvider(config(), backends=[backend]) as provider:
        key = provider.load_key(private_key(2048))
        if call not in {"allocate", "allocate_pinned"}:  # those happen with the first batch alone
            check(provider, key, range(2, 4))
        faults.fail.add(call)
        check(provider, key, range(4, 8))
        assert provider.stats().backend == "libcrypto"
        check(provider, key, range(8, 10))
        faults.fail.clear()
        come_back(provider, key)
        stats = provider.stats()
        assert stats.failed == 0
        assert stats.fallbacks > 0
        check(provider, key, range(10, 14))


def test_every_single_call_can_fail(faults: Faults) -> None:
    """The n-th call that two batches make, for each n, after the device was opened. The first has pairs made for its
    rows, and the second has the rest of their block made for later batches."""
    n, names = 0, []
    while True:
        calls = iter(range(-n, 1_000_000))

        def before(call: str, calls: Iterator[int] = calls) -> None:
            if faults.armed and next(calls) == 0:
                names.append(call)
                raise DeviceError(f"device test: {call}: made to fail")

        faults.armed = False
        with BatchingProvider(
            config(backend_retry=3600), backends=[CudaBackend(HostDevice(before=before), workers=1)]
        ) as provider:
            key = provider.load_key(private_key(2048))
            faults.armed = True
            for x in ([2, 3, 4], [5, 6, 7]):
                assert [pow(y, key.e, key.n) for y in numbers(provider.private_op(key, limbs(x, 32)))] == x
            faults.armed = False
            assert provider.stats().failed == 0
        if len(names) == n:
            break
        n += 1
    assert n > 40
    assert set(names) >= set(CALLS)


@pytest.mark.parametrize("call", ["upload", "launch", "wait"])
def test_a_call_hangs(faults: Faults, call: str) -> None:
    backend = CudaBackend(HostDevice(before=faults.before), workers=2)
    with BatchingProvider(config(backend_timeout=0.5), backends=[backend]) as provider:
        key = provider.load_key(private_key(2048))
        check(provider, key, range(2, 4))
        faults.hang.add(call)
        check(provider, key, range(4, 8))
        assert provider.stats().backend == "libcrypto"
        faults.hang.clear()
        faults.hangs_over.set()
        come_back(provider, key)
        assert provider.stats().failed == 0


def test_a_worker_hangs_while_a_key_is_removed(faults: Faults) -> None:
    """The key's numbers are wiped at once, its blinding pairs in that worker when the worker comes back."""
    device = HostDevice(HostKernels(32), before=faults.before)
    backend = CudaBackend(device, workers=2)

    def holds(prime: int) -> bool:
        needle = prime.to_bytes(128, "little")
        return any(needle in array.tobytes() for array in list(device.memory.values()))

    with BatchingProvider(config(backend_timeout=0.5), backends=[backend]) as provider:
        gone, stays = (provider.load_key(private_key(bits)) for bits in (2048, 2056))
        check(provider, gone, range(2, 4))
        prime = private_key(2048).private_numbers().p
        assert holds(prime)
        faults.hang.add("launch")
        check(provider, stays, range(2, 4))
        faults.hang.clear()
        gone.close()
        pause = threading.Event()
        while holds(prime):
            assert not pause.wait(0.005)
        check(provider, stays, range(4, 8))
        faults.hangs_over.set()
        come_back(provider, stays)


@pytest.mark.parametrize("call", ["upload", "launch"])
def test_a_device_that_failed_is_wiped_at_once(faults: Faults, call: str) -> None:
    """Not when it is tried again: that may be an hour later, or never."""
    left: list[bool] = []

    class Device(HostDevice):
        def close(self) -> None:
            left.extend(bool(array.any()) for array in (*self.memory.values(), *self.pinned.values()))
            super().close()

    device = Device(before=faults.before)
    with BatchingProvider(config(backend_retry=3600), backends=[CudaBackend(device, workers=2)]) as provider:
        key = provider.load_key(private_key(2048))
        check(provider, key, range(2, 8))
        assert not left
        faults.fail.add(call)
        check(provider, key, range(8, 10))
        assert provider.stats().backend == "libcrypto"
        assert len(left) > 5
        assert not any(left)
        assert not device.memory


class WrongKernels(HostKernels):
    """Computes with a key that changed in the device's memory."""

    def __init__(self) -> None:
        super().__init__(32)
        self.device: HostDevice | None = None
        self.spoil = False

    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        if self.spoil and self.device is not None:
            records = self.device.memory[int(arguments[0]["records"])]
            records[kernel.record_bytes // 2] ^= 1
        super().run(kernel, arguments)


def test_a_bit_flips_in_a_key_on_the_device() -> None:
    """A single wrong signature would give the key away (Boneh, DeMillo, Lipton). The kernel's own check finds it."""
    kernels = WrongKernels()
    kernels.device = HostDevice(kernels)
    with BatchingProvider(config(), backends=[CudaBackend(kernels.device, workers=1)]) as provider:
        key = provider.load_key(private_key(2048))
        check(provider, key, range(2, 4))
        kernels.spoil = True
        check(provider, key, range(4, 6))
        assert provider.stats().backend == "libcrypto"
        kernels.spoil = False
        come_back(provider, key)  # with the key's constants copied again


def test_two_devices_and_one_fails() -> None:
    """The one that gets the next batch; which that is depends on how fast each was measured to be."""
    names = ("cuda0", "cuda1")
    armed, lost = threading.Event(), dict[str, str]()

    def backend(name: str) -> CudaBackend:
        def before(call: str) -> None:
            if call == "launch" and armed.is_set() and lost.setdefault("device", name) == name:
                raise DeviceError(f"device {name}: launch: made to fail")

        return CudaBackend(HostDevice(name=name, before=before), name=name, workers=1)

    with BatchingProvider(config(backend_retry=3600), backends=[backend(name) for name in names]) as provider:
        key = provider.load_key(private_key(2048))
        check(provider, key, range(2, 6))
        armed.set()
        for start in range(6, 22, 4):
            check(provider, key, range(start, start + 4))
        stats = provider.stats()
        (remaining,) = set(names) - set(lost.values())
        assert stats.failed == 0
        assert stats.fallbacks > 0
        assert stats.backend == remaining
        assert stats.by_backend[remaining] > 0


@pytest.mark.parametrize("call", ["open", "stream"])
def test_a_device_that_cannot_be_opened_is_named_at_start(faults: Faults, call: str) -> None:
    faults.fail.add(call)
    device = HostDevice(before=faults.before)
    provider = BatchingProvider(config(), backends=[CudaBackend(device)])
    with pytest.raises(BackendError, match=f"device test: {call}"):
        provider.start()
    assert not device.memory
    provider.close()
