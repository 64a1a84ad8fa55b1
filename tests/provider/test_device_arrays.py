"""private_op() and modexp() over arrays in a device's memory, on the host device: computed there, left there, and
computed by way of the host where the device can't."""

from __future__ import annotations

import gc
import random
import signal
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from limb_arrays import limbs, numbers
from rsa_keys import private_key, program_key

from bench.gpu.host_device import HostArray, HostDevice, HostKernels
from gpu_provider import (
    BackendError,
    BatchingProvider,
    InputError,
    OperationError,
    ProviderClosedError,
    ProviderConfig,
)
from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.device import DeviceError, DeviceMemoryError
from gpu_provider.library import device_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gpu_provider import Key
    from gpu_provider.kernels.launch import Kernel

MODULUS = (1 << 2048) - 1942289
ODD = 0xB5


class CountingKernels(HostKernels):
    """Kernels that count the rows they compute, and return wrong results on request."""

    def __init__(self, radix_bits: int = 32) -> None:
        super().__init__(radix_bits)
        self.rows: dict[str, int] = {}
        self.wrong = False

    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        super().run(kernel, arguments)
        name = kernel.operation.name
        self.rows[name] = self.rows.get(name, 0) + int(arguments[0]["count"])
        if self.wrong:
            size = int(arguments[0]["count"]) * kernel.class_bytes
            results = np.ctypeslib.as_array(
                (np.ctypeslib.ctypes.c_uint8 * size).from_address(int(arguments[0]["outputs"]))
            )
            results[:] ^= 1
            if name == "PRIVATE":
                np.ctypeslib.as_array(
                    (np.ctypeslib.ctypes.c_uint8 * int(arguments[0]["count"])).from_address(int(arguments[0]["ok"]))
                )[:] = 0


class Faults:
    """Raises or waits before calls of a device, by name."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}
        self.hang = threading.Event()
        self.hang.set()
        self.launching = threading.Event()

    def __call__(self, call: str) -> None:
        if call in self.errors:
            raise self.errors[call]
        if call == "launch":
            self.launching.set()
            self.hang.wait()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def kernels() -> CountingKernels:
    return CountingKernels()


@pytest.fixture
def device(kernels: CountingKernels, faults: Faults) -> HostDevice:
    return HostDevice(kernels, before=faults)


@pytest.fixture
def provider(device: HostDevice) -> Iterator[BatchingProvider]:
    with BatchingProvider(ProviderConfig(backend_timeout=20), backends=[CudaBackend(device)]) as provider:
        yield provider


def place(device: HostDevice, values: Sequence[int], width: int) -> HostArray:
    array = device.new_array(len(values), width)
    array.array[:] = limbs(values, width)
    return array


class View:
    """Part of an array, as another library would describe it."""

    def __init__(self, owner: HostArray, array: NDArray[Any], **more: object) -> None:
        self._owner = owner
        self._array = array
        self._more = more

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._array.__array_interface__, "version": 3, **self._more}


def values(result: Any) -> list[int]:
    assert isinstance(result, HostArray)
    return numbers(result.array)


def check(result: Any, keys: Sequence[Key], xs: Sequence[int]) -> None:
    for y, key, x in zip(values(result), keys, xs, strict=True):
        assert y < key.n
        assert pow(y, key.e, key.n) == x


class TestPrivateOperation:
    @pytest.mark.parametrize("bits", [2048, 2560, 3072, 4096])
    def test_stays_on_the_device(
        self, provider: BatchingProvider, device: HostDevice, kernels: CountingKernels, bits: int
    ) -> None:
        key, source = provider.load_key(private_key(bits)), random.Random(bits)  # noqa: S311 (test data)
        xs = [0, 1, key.n - 1, *(source.randrange(key.n) for _ in range(3))]
        result = provider.private_op(key, place(device, xs, bits // 64))
        check(result, [key] * 6, xs)
        assert kernels.rows["PRIVATE"] == 6
        size = str(-(-bits // 512) * 512)
        assert provider.stats().by_backend == {"cuda": 6}
        assert provider.registry.get_sample_value("gpu_provider_requests_total", {"size": size, "result": "ok"}) == 6

    def test_keys_of_one_width_mixed_narrow_rows_and_one_row(
        self, provider: BatchingProvider, device: HostDevice, kernels: CountingKernels
    ) -> None:
        keys = [provider.load_key(private_key(bits)) for bits in (2560, 3072, 2560)]
        check(provider.private_op(keys, place(device, [2, 3, 4], 48)), keys, [2, 3, 4])
        check(provider.private_op(keys, place(device, [2, 3, 4], 1)), keys, [2, 3, 4])
        (one,) = values(provider.private_op(keys[1], View(row := place(device, [9], 48), row.array[0])))
        assert pow(one, keys[1].e, keys[1].n) == 9
        assert kernels.rows["PRIVATE"] == 7

    def test_rows_with_gaps_between_them(
        self, provider: BatchingProvider, device: HostDevice, kernels: CountingKernels
    ) -> None:
        key = provider.load_key(private_key(2048))
        array = place(device, [2, 1 << 3000, 3, 1 << 3000, 4], 50)
        check(provider.private_op(key, View(array, array.array[::2, :32])), [key] * 3, [2, 3, 4])
        assert kernels.rows["PRIVATE"] == 3

    def test_more_rows_than_fit_in_one_launch(self, device: HostDevice, kernels: CountingKernels) -> None:
        config = ProviderConfig(backend_timeout=50, max_delay=1e-9)
        with BatchingProvider(config, backends=[CudaBackend(device)]) as provider:
            key = provider.load_key(private_key(2048))
            check(provider.private_op(key, place(device, range(7), 32)), [key] * 7, range(7))
        assert kernels.rows["PRIVATE"] == 7

    def test_what_the_device_does_not_take_goes_by_way_of_the_host(
        self, provider: BatchingProvider, device: HostDevice, kernels: CountingKernels
    ) -> None:
        three_primes = program_key("RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_keygen_primes:3")
        keys = [provider.load_key(three_primes), provider.load_key(private_key(2048))]
        check(provider.private_op(keys, place(device, [5, 6], 32)), keys, [5, 6])
        assert kernels.rows.get("PRIVATE", 0) == 1  # the one row that the device supports of the call's host part
        keys = [provider.load_key(private_key(2048)), provider.load_key(private_key(4096))]
        check(provider.private_op(keys, place(device, [5, 6], 64)), keys, [5, 6])
        assert provider.stats().backend == "cuda"

    def test_beside_requests_from_the_queue(self, provider: BatchingProvider, device: HostDevice) -> None:
        key = provider.load_key(private_key(2048))
        futures = [provider.submit(key, x) for x in range(2, 30)]
        check(provider.private_op(key, place(device, [7] * 20, 32)), [key] * 20, [7] * 20)
        assert [pow(future.result(timeout=20), key.e, key.n) for future in futures] == list(range(2, 30))  # type: ignore[arg-type]

    def test_nothing_is_left_in_the_devices_memory(self, provider: BatchingProvider, device: HostDevice) -> None:
        key = provider.load_key(private_key(2048))
        x = place(device, [random.Random(3).randrange(key.n)], 32)  # noqa: S311 (test data)
        result = provider.private_op(key, x)
        assert isinstance(result, HostArray)
        provider.private_op(key, place(device, [2], 32))  # comes after the steps that the call before left behind
        for secret in (x.array.tobytes(), result.array.tobytes()):
            assert not any(secret in memory.tobytes() for memory in (*device.memory.values(), *device.pinned.values()))


class TestModexp:
    @pytest.mark.parametrize("radix_bits", [32, 52])
    @pytest.mark.parametrize("bits", [200, 2048, 3000])
    def test_stays_on_the_device(self, faults: Faults, radix_bits: int, bits: int) -> None:
        kernels = CountingKernels(radix_bits)
        device = HostDevice(kernels, before=faults)
        source = random.Random(bits)  # noqa: S311 (test data)
        modulus = source.getrandbits(bits) | 1 | 1 << (bits - 1)
        width = -(-bits // 64)
        bases = [0, 1, modulus - 1, modulus, (1 << 64 * width) - 1, *(source.randrange(modulus) for _ in range(4))]
        exponents = [source.getrandbits(225) for _ in bases]
        with BatchingProvider(ProviderConfig(backend_timeout=50), backends=[CudaBackend(device)]) as provider:
            expected = [pow(base, exponent, modulus) for base, exponent in zip(bases, exponents, strict=True)]
            for powers in (place(device, exponents, 4), limbs(exponents, 4), exponents):
                result = provider.modexp(place(device, bases, width), powers, modulus)
                assert values(result) == expected
            result = provider.modexp(place(device, bases, width), 65537, limbs([modulus], width), public_exponents=True)
            assert values(result) == [pow(base, 65537, modulus) for base in bases]
            one = place(device, [3], 1)
            assert values(provider.modexp(place(device, bases, width), one, modulus)) == [
                pow(base, 3, modulus) for base in bases
            ]
        assert kernels.rows["MODEXP"] == 5 * len(bases)

    def test_even_moduli_and_negative_exponents_go_by_way_of_the_host(
        self, provider: BatchingProvider, device: HostDevice, kernels: CountingKernels
    ) -> None:
        array = place(device, range(3, 35, 2), 32)
        assert values(provider.modexp(array, 5, MODULUS - 1)) == [pow(x, 5, MODULUS - 1) for x in range(3, 35, 2)]
        assert not kernels.rows
        assert values(provider.modexp(array, -5, MODULUS)) == [pow(x, -5, MODULUS) for x in range(3, 35, 2)]

    def test_operands_on_the_device_for_bases_on_the_host(self, provider: BatchingProvider, device: HostDevice) -> None:
        moduli = place(device, [MODULUS, ODD], 32)
        assert provider.modexp([3, 4], place(device, [5], 1), moduli) == [pow(3, 5, MODULUS), pow(4, 5, ODD)]
        array = provider.modexp(limbs([3], 2), 5, View(moduli, moduli.array[:1]))
        assert isinstance(array, np.ndarray)
        assert numbers(array) == [pow(3, 5, MODULUS)]

    def test_what_the_device_does_not_take_goes_by_way_of_the_host(
        self, provider: BatchingProvider, device: HostDevice
    ) -> None:
        wide = (1 << 8192) - 1
        assert values(provider.modexp(place(device, [2, 3], 128), 3, wide)) == [8, 27]
        moduli = [ODD, MODULUS, 3]
        result = provider.modexp(place(device, [2, 2, 2], 32), [9, 10, 11], place(device, moduli, 32))
        assert values(result) == [pow(2, power, m) for power, m in zip([9, 10, 11], moduli, strict=True)]


def test_no_rows(provider: BatchingProvider, device: HostDevice) -> None:
    """CuPy's arrays without rows are at the address 0."""
    key = provider.load_key(private_key(2048))
    nothing = device.new_array(0, 32)
    for result in (provider.private_op(key, nothing), provider.modexp(nothing, 3, key.n)):
        assert isinstance(result, HostArray)
        assert result.array.shape == (0, 32)
    assert provider.modexp([], nothing, key.n) == []


class TestErrors:
    def test_the_array_and_the_reason_are_named(self, provider: BatchingProvider, device: HostDevice) -> None:
        key, other = provider.load_key(private_key(2048)), HostDevice()
        array = place(device, [1, 2], 32)
        elsewhere = place(other, [1], 32)
        cases = [
            (View(array, array.array.view(np.int64)), "type '<i8'"),
            (View(array, array.array[:, ::2]), "strides"),
            (View(array, array.array[::-1]), "strides"),
            (View(array, array.array, mask=array), "mask"),
            (View(array, array.array.reshape(2, 2, 16)), "shape"),
            (View(array, array.array[:, :0]), "shape"),
            (place(device, [1], 33), "33 limbs, and the longest modulus has 32"),
            (elsewhere, "on a GPU that this provider does not compute with"),
            (place(device, [1, key.n], 32), "the input at index 1 is not less than its key's 2048-bit modulus"),
        ]
        for operand, reason in cases:
            with pytest.raises(InputError, match=reason):
                provider.private_op(key, operand)
        for operands, reason in (
            ((elsewhere, 3, 7), "the base array is on a GPU that"),
            ((array, elsewhere, MODULUS), "the exponent array is on a GPU that"),
            ((array, 3, 0), "the modulus is 0"),
            ((array, 3, ODD), "the base has 32 limbs, and the longest modulus has 1"),
            ((array, [1, 2, 3], MODULUS), "2 bases for 3 operations"),
            ((View(array, array.array[:1]), [1, 2, 3], MODULUS), "1 base on a device for 3 operations"),
        ):
            with pytest.raises(InputError, match=reason):
                provider.modexp(*operands)  # type: ignore[call-overload]
        assert provider.stats().backend == "cuda"
        assert provider.stats().fallbacks == 0

    def test_keys(self, provider: BatchingProvider, device: HostDevice) -> None:
        key = provider.load_key(private_key(2048))
        with pytest.raises(InputError, match="2 keys for 3 rows"):
            provider.private_op([key, key], place(device, [1, 2, 3], 32))
        key.close()
        with pytest.raises(ProviderClosedError, match="closed"):
            provider.private_op(key, place(device, [1], 32))

    def test_after_close(self, provider: BatchingProvider, device: HostDevice) -> None:
        key, array = provider.load_key(private_key(2048)), place(device, [1], 32)
        provider.close()
        for call in (lambda: provider.private_op(key, array), lambda: provider.modexp(array, 3, MODULUS)):
            with pytest.raises(ProviderClosedError):
                call()

    def test_a_provider_without_gpus(self, device: HostDevice) -> None:
        with (
            BatchingProvider(ProviderConfig(backend="cpu")) as provider,
            pytest.raises(InputError, match="copy it to the host"),
        ):
            provider.modexp(place(device, [1], 32), 3, MODULUS)


class TestDeviceFails:
    """Hazard: the device fails in the middle of a call. The result is right, or the call raises an error."""

    @pytest.mark.parametrize("call", ["allocate", "allocate_pinned"])
    @pytest.mark.parametrize("error", [DeviceError("no"), DeviceMemoryError("full")])
    def test_before_anything_is_computed(
        self, provider: BatchingProvider, device: HostDevice, faults: Faults, call: str, error: BackendError
    ) -> None:
        key, array = provider.load_key(private_key(2048)), place(device, [2, 3], 32)
        faults.errors[call] = error
        with pytest.raises(OperationError):
            provider.private_op(key, array)  # the host can't read the array either
        faults.errors.clear()
        check(provider.private_op(key, array), [key] * 2, [2, 3])

    @pytest.mark.parametrize("call", ["launch", "clear", "use"])
    def test_a_call(self, provider: BatchingProvider, device: HostDevice, faults: Faults, call: str) -> None:
        key, array = provider.load_key(private_key(2048)), place(device, [2, 3], 32)
        check(provider.private_op(key, array), [key] * 2, [2, 3])
        faults.errors[call] = DeviceError("no")
        if call == "launch":  # the host can read the array, and libcrypto computes
            check(provider.private_op(key, array), [key] * 2, [2, 3])
            assert values(provider.modexp(array, 3, MODULUS)) == [8, 27]
        else:
            with pytest.raises(OperationError):
                provider.private_op(key, array)
        faults.errors.clear()
        check(provider.private_op(key, array), [key] * 2, [2, 3])

    def test_wrong_results_are_not_delivered(
        self, provider: BatchingProvider, device: HostDevice, kernels: CountingKernels
    ) -> None:
        key, array = provider.load_key(private_key(2048)), place(device, [2, 3], 32)
        kernels.wrong = True
        check(provider.private_op(key, array), [key] * 2, [2, 3])
        wrong = {"backend": "cuda", "reason": "wrong_result"}
        assert provider.registry.get_sample_value("gpu_provider_fallbacks_total", wrong) == 2
        assert values(provider.modexp(array, 3, MODULUS)) == [8, 27]
        kernels.wrong = False
        before = kernels.rows["PRIVATE"]
        check(provider.private_op(key, array), [key] * 2, [2, 3])
        assert kernels.rows["PRIVATE"] == before + 2

    def test_a_device_that_hangs(self, device: HostDevice, faults: Faults) -> None:
        config = ProviderConfig(backend_timeout=0.3)
        with BatchingProvider(config, backends=[CudaBackend(device)]) as provider:
            key, array = provider.load_key(private_key(2048)), place(device, [2, 3], 32)
            check(provider.private_op(key, array), [key] * 2, [2, 3])
            faults.hang.clear()
            try:
                with pytest.raises(OperationError, match=r"no result within 0\.3 s"):
                    provider.private_op(key, array)
                assert pow(provider.private_op(key, 5), key.e, key.n) == 5
            finally:
                faults.hang.set()

    def test_no_memory_for_the_result(self, provider: BatchingProvider, device: HostDevice, faults: Faults) -> None:
        key, array = provider.load_key(private_key(2048)), place(device, [2, 3], 32)
        faults.errors["new_array"] = DeviceMemoryError("device host: full")
        with pytest.raises(OperationError, match="device host: full"):
            provider.private_op(key, array)
        gc.collect()
        assert provider.stats().backend == "cuda"


def test_a_call_that_is_interrupted_is_not_computed_further(
    device: HostDevice, kernels: CountingKernels, faults: Faults
) -> None:
    """Ctrl-C ends the wait, and the pieces that the device has not begun are never computed."""
    array = place(device, [3] * 400, 32)
    faults.hang.clear()

    ended = threading.Event()

    def interrupt() -> None:
        faults.launching.wait(30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while not ended.wait(5):  # CPython overlooks a signal that comes just before it blocks
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    config = ProviderConfig(backend_timeout=20, max_delay=0.0001)  # many pieces
    with BatchingProvider(config, backends=[CudaBackend(device)]) as provider:
        with pytest.raises(KeyboardInterrupt):
            provider.modexp(array, (1 << 256) - 1, MODULUS)
        ended.set()
        faults.hang.set()
        for thread in threading.enumerate():
            if thread.name.endswith("-arrays"):
                thread.join(30)
    assert kernels.rows.get("MODEXP", 0) < 400


def test_so_is_one_that_is_interrupted_as_it_begins(
    device: HostDevice, kernels: CountingKernels, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard: start() waits for the new thread, which may have begun to compute when a signal comes."""

    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            faults.launching.wait(30)
            raise KeyboardInterrupt

    array = place(device, [3] * 400, 32)
    faults.hang.clear()
    config = ProviderConfig(backend_timeout=20, max_delay=0.0001)  # many pieces
    with BatchingProvider(config, backends=[CudaBackend(device)]) as provider:
        monkeypatch.setattr(device_arrays, "threading", SimpleNamespace(Thread=Interrupted))
        with pytest.raises(KeyboardInterrupt):
            provider.modexp(array, (1 << 256) - 1, MODULUS)
        faults.hang.set()
        for thread in threading.enumerate():
            if thread.name.endswith("-arrays"):
                thread.join(30)
    assert kernels.rows.get("MODEXP", 0) < 400


def test_a_key_that_is_closed_meanwhile_serves_the_call_to_its_end(
    provider: BatchingProvider, device: HostDevice, faults: Faults
) -> None:
    key, array = provider.load_key(private_key(2048)), place(device, [2, 3], 32)
    faults.hang.clear()
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(provider.private_op(key, array)))
    thread.start()
    faults.launching.wait()
    key.close()
    faults.hang.set()
    thread.join()
    check(outcome[0], [key] * 2, [2, 3])
