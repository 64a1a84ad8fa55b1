"""The GPU behind the device interface, on CUDA functions that work on the processor. And what a user is told where
there is no GPU."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import fake_cuda
import numpy as np
import ptx_units
import pytest
from batches import PATIENT
from fake_cuda import GPU, HOST, Cuda, CupyArray
from limb_arrays import limbs, numbers
from msgspec import structs
from rsa_keys import private_key

from gpu_provider import BackendError, BatchingProvider, InputError, OperationError, ProviderConfig
from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.cupy_device import CupyDevice
from gpu_provider.kernels import cubins
from gpu_provider.kernels.cubin_cache import CubinCache
from gpu_provider.kernels.cubins import Arithmetic

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def device(cuda: Cuda, tmp_path: Path) -> CupyDevice:
    return CupyDevice(GPU, CubinCache(tmp_path))


@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_record_sizes_are_those_of_the_kernels(cuda: Cuda, tmp_path: Path, arithmetic: Arithmetic) -> None:
    device = CupyDevice(GPU, CubinCache(tmp_path), arithmetic)
    device.use()
    compared = 0
    for kernel in device.open():
        host = HOST.get((kernel.operation, kernel.radix_bits, kernel.class_bytes))
        if host is not None:
            assert (kernel.record_bytes, kernel.pair_bytes) == (host.record_bytes, host.pair_bytes)
            compared += 1
    assert compared > 8
    device.close()


def check(provider: BatchingProvider, bits: int, count: int) -> None:
    key = provider.load_key(private_key(bits))
    futures = [provider.submit(key, x) for x in range(2, count)]
    for x, future in enumerate(futures, 2):
        result = future.result(timeout=30)
        assert isinstance(result, int)
        assert pow(result, key.e, key.n) == x


def test_batches_on_it(cuda: Cuda, device: CupyDevice) -> None:
    with BatchingProvider(PATIENT, backends=[CudaBackend(device)]) as provider:
        check(provider, 2048, 20)
        check(provider, 3072, 6)
        stats = provider.stats()
        assert (stats.backend, stats.fallbacks) == ("cuda", 0)
    assert not cuda.memory
    assert not cuda.streams
    assert not cuda.events
    assert not any(cuda.modules)


def test_a_thread_chooses_its_device_once(cuda: Cuda, device: CupyDevice) -> None:
    """CuPy holds the GIL in that call, and the driver may take its time. But other code on the same thread, such as a
    future's call-back, may choose another device."""
    with BatchingProvider(structs.replace(PATIENT, max_batch=4), backends=[CudaBackend(device, workers=1)]) as provider:
        check(provider, 2048, 20)
        chosen = dict(cuda.chosen)
        check(provider, 2048, 20)
        assert {thread: cuda.chosen[thread] for thread in chosen} == chosen  # another may have had its first turn now
        key = provider.load_key(private_key(2048))
        for x in range(2, 12):
            future = provider.submit(key, x)
            future.add_done_callback(lambda _: cuda.setDevice(0))
            assert pow(future.result(timeout=30), key.e, key.n) == x
        assert provider.stats().by_backend == {"cuda": 18 + 18 + 10}


def test_a_gpu_gets_the_arithmetic_that_it_is_good_at_whatever_its_code_is_compiled_for(
    cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A B300 runs what an older NVRTC compiles for a B200, but has few FP64 units."""
    monkeypatch.setattr(cubins, "architecture_for", lambda _major, _minor: "sm_100")
    for minor, arithmetic in ((0, Arithmetic.FP64), (3, Arithmetic.INT32)):
        device = CupyDevice(replace(GPU, major=10, minor=minor), CubinCache(tmp_path))
        device.use()
        assert {kernel.radix_bits for kernel in device.open()} == {arithmetic.radix_bits}
        device.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_a_batch_by_the_kernels_that_a_gpu_gets(cuda: Cuda, tmp_path: Path, arithmetic: Arithmetic) -> None:
    ptx_units.skip_without_compiler()
    device = CupyDevice(GPU, CubinCache(tmp_path), arithmetic)
    with BatchingProvider(PATIENT, backends=[CudaBackend(device)]) as provider:
        cuda.on_ptx = True
        key = provider.load_key(private_key(2048))
        x = [key.n - 1, 2, key.n // 3]
        y = provider.private_op(key, limbs(x, 32))
        assert [pow(one, key.e, key.n) for one in numbers(y)] == x
        assert provider.stats().by_backend == {"cuda": 3}


def test_a_device_without_room_for_a_stream_leaves_nothing_behind(cuda: Cuda, device: CupyDevice) -> None:
    """It is tried again for as long as the process runs."""
    cuda.fail["streamCreateWithFlags"] = 2
    with (
        pytest.raises(BackendError, match="making a stream: cudaError2"),
        BatchingProvider(PATIENT, backends=[CudaBackend(device)]),
    ):
        pass
    assert not cuda.events
    assert not cuda.memory
    assert not any(cuda.modules)


@pytest.mark.parametrize("call", ["memcpyAsync", "launchKernel", "eventSynchronize", "getDevice"])
def test_a_call_that_fails_is_named(
    cuda: Cuda, device: CupyDevice, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    with BatchingProvider(structs.replace(PATIENT, backend_retry=0.001), backends=[CudaBackend(device)]) as provider:
        check(provider, 2048, 4)
        cuda.fail[call] = 700
        check(provider, 2048, 4)
        assert "Test GPU (1)" in caplog.text
        assert "cudaError700" in caplog.text
        cuda.fail.clear()
        while provider.stats().backend != "cuda":
            check(provider, 2048, 3)
        assert provider.stats().failed == 0
    assert not cuda.memory


def test_an_error_that_stays_is_told_once_and_nothing_is_reset(
    cuda: Cuda, device: CupyDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever else the process has on the GPU is there still: the driver is not asked to end it."""
    with BatchingProvider(structs.replace(PATIENT, backend_retry=0.001), backends=[CudaBackend(device)]) as provider:
        check(provider, 2048, 4)
        modules, asked = list(cuda.modules), cuda.asked
        cuda.stuck = True
        while cuda.asked < asked + 4:
            check(provider, 2048, 3)
        assert provider.stats().backend == "libcrypto"
        assert caplog.text.count("Test GPU (1) does not work in this process: cudaError700") == 1
        assert len(cuda.modules) == len(modules)  # nothing was loaded
        cuda.stuck = False  # it was not one of those errors
        while provider.stats().backend != "cuda":
            check(provider, 2048, 3)
        assert provider.stats().failed == 0


def test_memory_that_a_launch_lacks_is_not_taken_for_staging_that_is_lacking(cuda: Cuda, device: CupyDevice) -> None:
    """The blinding pairs of a batch count as made once it is launched: a launch that fails fails the device."""
    with BatchingProvider(structs.replace(PATIENT, backend_retry=3600), backends=[CudaBackend(device)]) as provider:
        key = provider.load_key(private_key(2048))
        x = cuda.empty((2, 32), np.uint64)
        x.array[:] = limbs([5, 6], 32)
        cuda.fail["launchKernel"] = 2
        result = provider.private_op(key, x)
        assert isinstance(result, CupyArray)
        assert [pow(y, key.e, key.n) for y in numbers(result.array)] == [5, 6]
        assert provider.stats().backend == "libcrypto"


@pytest.mark.parametrize("name", ["moduleLoadData", "funcSetAttribute"])
def test_another_cupy_is_an_error_that_names_it(
    cuda: Cuda, device: CupyDevice, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Cuda, name, property())
    provider = BatchingProvider(PATIENT, backends=[CudaBackend(device)])
    with pytest.raises(BackendError, match=r"CuPy 0\.1 is not one that this works with"):
        provider.start()
    provider.close()


def test_a_device_without_memory_stays_in_use(cuda: Cuda, device: CupyDevice) -> None:
    with BatchingProvider(PATIENT, backends=[CudaBackend(device, workers=1)]) as provider:
        check(provider, 2048, 4)
        cuda.fail["malloc"] = 2
        check(provider, 3072, 4)
        cuda.fail.clear()
        check(provider, 3072, 4)
        assert provider.stats().backend == "cuda"
        assert provider.stats().fallbacks == 2


def test_arrays_of_the_caller(cuda: Cuda, device: CupyDevice) -> None:
    with BatchingProvider(PATIENT, backends=[CudaBackend(device)]) as provider:
        key = provider.load_key(private_key(2048))
        x = cuda.empty((3, 32), np.uint64)
        x.array[:] = limbs([5, 6, 7], 32)
        result = provider.private_op(key, CupyArray(x.array, stream=77))
        assert isinstance(result, CupyArray)
        assert [pow(y, key.e, key.n) for y in numbers(result.array)] == [5, 6, 7]
        assert {0, 77} <= set(cuda.waited_for)  # the thread's own stream and the array's
        powers = provider.modexp(x, 3, key.n)
        assert numbers(powers.array) == [125, 216, 343]  # type: ignore[attr-defined]
        elsewhere = CupyArray(limbs([5], 32))
        with pytest.raises(InputError, match="on a GPU that this provider does not compute with"):
            provider.private_op(key, elsewhere)
        cuda.fail["streamSynchronize"] = 700
        with pytest.raises(OperationError, match=r"Test GPU \(1\): waiting for the caller's stream: cudaError700"):
            provider.private_op(key, x)
    assert not cuda.memory


def test_all_gpus_are_used_and_the_processor_with_them(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gpu_provider.backends.choice.find_devices", lambda: [GPU])
    with (
        caplog.at_level(logging.INFO),
        BatchingProvider(ProviderConfig(kernel_cache=tmp_path, arithmetic="int32", max_batch=1)) as provider,
    ):
        check(provider, 2048, 10)
        assert {unit.split("-")[0] for unit in cuda.modules} == {"int32"}
    assert 'backend "auto": computing with cuda, cpu' in caplog.text
    assert not cuda.memory


def test_a_gpu_that_does_not_work_is_left_out_or_an_error(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gpu_provider.backends.choice.find_devices", lambda: [GPU])
    cuda.fail["malloc"] = 46
    with BatchingProvider(ProviderConfig(kernel_cache=tmp_path)) as provider:
        assert provider.stats().backend == "cpu"
    assert 'backend "auto": cuda is not used: device Test GPU (1): allocating' in caplog.text
    with pytest.raises(BackendError, match=r"device Test GPU \(1\): allocating"):
        BatchingProvider(ProviderConfig(backend="cuda", kernel_cache=tmp_path)).start()


def test_without_cupy_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(BackendError, match=r'backend "cuda": CuPy is not installed .*gpu-provider\[cuda13\]'):
        BatchingProvider(ProviderConfig(backend="cuda")).start()
    with BatchingProvider(ProviderConfig(backend="auto")) as provider:
        assert provider.stats().backend == "cpu"
