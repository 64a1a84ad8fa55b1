"""The CUDA backend on the host device: correctness, keys that come and go, growth, and what is left in memory."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import random
import signal
import threading
from typing import TYPE_CHECKING

import evp
import numpy as np
import pytest
from batches import PATIENT, batch_of, results
from rsa_keys import private_der, private_key, program_key
from tls_peers import converse, finish, pause, server_context

from bench.gpu.host_device import HostDevice, HostKernels
from gpu_provider import BackendError, BatchingProvider, Key, ProviderConfig, tls
from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.kernels import KernelChoice
from gpu_provider.client import Client
from gpu_provider.kernels.launch import Kernel, Operation
from gpu_provider.library import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Batch


class PairKernels(HostKernels):
    """In radix 2^32. Tell where the blinding pairs are."""

    def __init__(self) -> None:
        super().__init__(32)
        self.made: list[tuple[int, int]] = []
        """Bytes of a number, and the address of the pairs of that size: each time that some are made."""

    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        super().run(kernel, arguments)
        if kernel.operation is Operation.MAKE_PAIRS:
            self.made.append((kernel.class_bytes, int(arguments[0]["pairs"])))

    def pairs(self, class_bytes: int) -> set[int]:
        return {pairs for size, pairs in self.made if size == class_bytes}


class SpyingDevice(HostDevice):
    """Remembers what was freed with something in it."""

    def __init__(self) -> None:
        self.kernels = PairKernels()
        super().__init__(self.kernels)  # in radix 2^52 a record is not the bytes of the number
        self.freed_dirty = 0
        self.freed = 0

    def free(self, address: int) -> None:
        self.freed += 1
        self.freed_dirty += bool(self.memory[address].any())
        super().free(address)

    def holds_pairs(self, pairs: int) -> bool:
        """Whether anything is in these pairs, by their address."""
        return pairs in self.memory and bool(self.memory[pairs].any())

    def holds(self, number: int) -> bool:
        """Whether a number is anywhere in its memory, or in pinned memory."""
        return self.pins(number) or _found(number, self.memory)

    def pins(self, number: int) -> bool:
        return _found(number, self.pinned)


def _found(number: int, arrays: dict[int, NDArray[np.uint8]]) -> bool:
    needle = number.to_bytes((number.bit_length() + 7) // 8, "little")
    return any(needle in array.tobytes() for array in arrays.values())


@pytest.fixture
def client() -> Client:
    return Client(4)


@pytest.fixture
def device() -> SpyingDevice:
    return SpyingDevice()


@pytest.fixture
def backend(client: Client, device: SpyingDevice) -> Iterator[CudaBackend]:
    backend = CudaBackend(device)
    backend.open(client)
    yield backend
    backend.close()


def check(backend: CudaBackend, requests: list[tuple[Key, int]], class_bytes: int = 256) -> Batch:
    batch = batch_of(requests, class_bytes)
    backend.private_op(batch)
    assert batch.ok.all()
    got = results(batch)
    assert [pow(result, key.e, key.n) for (key, _), result in zip(requests, got, strict=True)] == [
        x for _, x in requests
    ]
    return batch


def secrets_of(bits: int) -> list[int]:
    numbers = private_key(bits).private_numbers()
    return [numbers.p, numbers.q, numbers.dmp1, numbers.dmq1]


@pytest.mark.parametrize("bits", [2048, 2056, 2560, 3072, 3584, 4096])
def test_each_size_class_agrees_with_pow(client: Client, backend: CudaBackend, bits: int) -> None:
    key = keys.load(client, private_key(bits))
    source = random.Random(bits)  # noqa: S311 (test data)
    x = source.randrange(key.n)
    batch = check(backend, [(key, x), (key, 0), (key, key.n - 1)], (bits + 511) // 512 * 64)
    assert results(batch)[0] == pow(x, private_key(bits).private_numbers().d, key.n)


def test_keys_are_mixed_in_a_batch(client: Client, backend: CudaBackend) -> None:
    mixed = [keys.load(client, private_key(bits, e)) for bits in (2056, 2560) for e in (65537, 3)]
    check(backend, [(key, x) for x in range(2, 5) for key in mixed], 320)


def test_keys_that_the_kernels_do_not_take_are_left_to_openssl(client: Client, backend: CudaBackend) -> None:
    options = ["-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_keygen_primes:3"]
    odd, plain = keys.load(client, program_key("RSA", *options)), keys.load(client, private_key(2048))
    for _ in range(2):
        batch = batch_of([(odd, 3), (plain, 4), (odd, 5), (plain, 6)])
        backend.private_op(batch)
        assert batch.ok.tolist() == [0, 1, 0, 1]
        assert [pow(result, plain.e, plain.n) for result in results(batch)[1::2]] == [4, 6]


def test_a_handle_without_a_key_fails_its_row_alone(client: Client, backend: CudaBackend) -> None:
    key = keys.load(client, private_key(2048))
    batch = batch_of([(key, 3), (key, 4)])
    batch.keys[0] = 12345678
    backend.private_op(batch)
    assert batch.ok.tolist() == [0, 1]


def test_tables_and_pools_grow_and_leave_nothing_behind(
    client: Client, backend: CudaBackend, device: SpyingDevice
) -> None:
    """More keys than a table has room for, more rows of a key than it has blinding pairs."""
    loaded = [keys.load(client, private_key(2048)) for _ in range(17)]
    check(backend, [(key, 2) for key in loaded[:10]])
    check(backend, [(key, 2) for key in loaded])
    check(backend, [(loaded[7], x) for x in range(2, 20)])
    check(backend, [(key, 3) for key in loaded])
    assert device.freed > 0
    assert device.freed_dirty == 0


def test_a_removed_key_is_wiped_from_the_device(device: SpyingDevice) -> None:
    with BatchingProvider(PATIENT, backends=[CudaBackend(device)]) as provider:
        gone, stays = (provider.load_key(private_key(bits)) for bits in (2048, 2056))
        for key in (gone, stays):
            assert pow(provider.private_op(key, 2), key.e, key.n) == 2
        assert all(device.holds(secret) for secret in secrets_of(2048))
        gone.close()
        wait_until(lambda: not any(device.holds(secret) for secret in secrets_of(2048)))
        assert all(device.holds(secret) for secret in secrets_of(2056))
        assert pow(provider.private_op(stays, 3), stays.e, stays.n) == 3


def test_the_blinding_pairs_of_a_removed_key_are_wiped_in_every_worker(device: SpyingDevice) -> None:
    """With them, whoever reads the device's memory later undoes the blinding of what he recorded."""
    pairs = device.kernels.pairs
    with BatchingProvider(PATIENT, backends=[CudaBackend(device)]) as provider:
        gone, stays = (provider.load_key(private_key(bits)) for bits in (2048, 3072))
        for rows in (1, 5, 17):  # the block grows and leaves smaller ones behind
            array = device.new_array(rows, 32)
            array.array[:, 0] = 2
            provider.private_op(gone, array)
        for future in [provider.submit(key, x) for x in range(2, 22) for key in (gone, stays)]:
            future.result(timeout=30)
        assert len(pairs(256)) > 1
        assert all(map(device.holds_pairs, pairs(256)))
        gone.close()
        wait_until(lambda: not any(map(device.holds_pairs, pairs(256))))
        assert all(map(device.holds_pairs, pairs(384)))
        made = len(device.kernels.made)
        assert pow(provider.private_op(stays, 3), stays.e, stays.n) == 3
        assert len(device.kernels.made) == made


def wait_until(condition: object) -> None:
    assert callable(condition)
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it did not come to that within 30 seconds")


def test_keys_come_and_go_while_batches_run(device: SpyingDevice) -> None:
    """A record that a new key takes over must not meet the blinding pairs of the one before."""
    with BatchingProvider(PATIENT, backends=[CudaBackend(device)]) as provider:
        stays = provider.load_key(private_key(2048))
        for turn in range(6):
            key = provider.load_key(private_key(2048, 3 if turn % 2 else 65537))
            futures = [(one, x, provider.submit(one, x)) for x in range(2, 8) for one in (key, stays)]
            key.close()
            for one, x, future in futures:
                result = future.result(timeout=30)
                assert isinstance(result, int)
                assert pow(result, one.e, one.n) == x
        stats = provider.stats()
        assert (stats.fallbacks, stats.failed, stats.backend) == (0, 0, "cuda")


def test_nothing_secret_is_left_in_staging(client: Client, backend: CudaBackend, device: SpyingDevice) -> None:
    key = keys.load(client, private_key(2048))
    x = 0x1234567890ABCDEF << 1900
    result = results(check(backend, [(key, x)]))[0]
    assert not any(map(device.pins, (x, result, *secrets_of(2048))))
    wait_until(lambda: not device.holds(x) and not device.holds(result))  # the batch did not wait for that


def test_closing_wipes_the_device(client: Client, device: SpyingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CudaBackend(device)
    backend.open(client)
    key = keys.load(client, private_key(2048))
    check(backend, [(key, 2), (key, 3)])
    left: list[bool] = []
    close = device.close
    monkeypatch.setattr(device, "close", lambda: (left.extend(array.any() for array in arrays(device)), close()))
    backend.close()
    assert len(left) > 5
    assert not any(left)


def arrays(device: HostDevice) -> list[NDArray[np.uint8]]:
    return [*device.memory.values(), *device.pinned.values()]


def test_a_batch_for_which_the_device_has_no_memory_is_left_to_openssl(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """More keys than the table can hold: the others go on."""
    device = SpyingDevice()
    backend = CudaBackend(device, workers=1)
    backend.open(client)
    loaded = [keys.load(client, private_key(2048)) for _ in range(17)]
    check(backend, [(key, 2) for key in loaded[:10]])
    device.limit = sum(len(array) for array in device.memory.values())
    batch = batch_of([(key, 2) for key in loaded])
    backend.private_op(batch)
    assert not batch.ok.any()
    assert "no memory" in caplog.text
    check(backend, [(key, 3) for key in loaded[:10]])
    device.limit = 1 << 30
    check(backend, [(key, 4) for key in loaded])
    backend.close()


def rows_of(numbers: list[int], width: int) -> NDArray[np.uint8]:
    return np.array([list(number.to_bytes(width, "little")) for number in numbers], np.uint8)


@pytest.mark.parametrize(
    ("bits", "exponent_bytes", "moduli"),
    [(2048, 32, 1), (2000, 29, 1), (3072, 17, 2), (512, 64, 1), (8192, 17, 1), (2048, 16, 20)],
    ids=["one group", "odd sizes", "two groups", "small", "too wide", "too many moduli"],
)
def test_exponentiations_agree_with_pow(backend: CudaBackend, bits: int, exponent_bytes: int, moduli: int) -> None:
    source = random.Random(bits)  # noqa: S311 (test data)
    some = [source.getrandbits(bits) | 1 << (bits - 1) | 1 for _ in range(moduli)]
    each = [some[i % moduli] for i in range(20)]
    bases = [source.randrange(modulus) for modulus in each]
    exponents = [source.getrandbits(8 * exponent_bytes) for _ in each]
    width = (bits + 63) // 64 * 8
    outputs = np.zeros((20, width), np.uint8)
    backend.modexp(rows_of(bases, width), rows_of(exponents, exponent_bytes), rows_of(each, width), outputs)
    assert [int.from_bytes(row.tobytes(), "little") for row in outputs] == list(map(pow, bases, exponents, each))


def test_exponentiations_leave_nothing_secret_behind(backend: CudaBackend, device: SpyingDevice) -> None:
    modulus, base, exponent = (1 << 2047) | 1, 0x1234567890ABCDEF << 1900, 0xFEDCBA0987654321 << 64
    outputs = np.zeros((1, 256), np.uint8)
    backend.modexp(rows_of([base], 256), rows_of([exponent], 16), rows_of([modulus], 256), outputs)
    result = int.from_bytes(outputs[0].tobytes(), "little")
    assert result == pow(base, exponent, modulus)
    assert device.holds(modulus)
    assert not any(map(device.pins, (base, exponent, result)))
    wait_until(lambda: not any(map(device.holds, (base, exponent, result))))


class WrongModexp(HostKernels):
    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        super().run(kernel, arguments)
        if kernel.operation is Operation.MODEXP:
            for row in range(int(arguments[0]["count"])):
                ctypes.memset(int(arguments[0]["outputs"]) + row * kernel.class_bytes, 1, 1)


def test_a_device_that_computes_wrong_exponentiations_is_found_out() -> None:
    backend = CudaBackend(HostDevice(WrongModexp()), workers=1)
    with BatchingProvider(ProviderConfig(backend_timeout=3600, backend_retry=3600), backends=[backend]) as provider:
        modulus = (1 << 2047) | 1
        assert provider.modexp([2] * 8, 4096, modulus) == [pow(2, 4096, modulus)] * 8
        assert provider.stats().backend == "libcrypto"


@pytest.fixture
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider(PATIENT, backends=[CudaBackend(HostDevice())]) as provider:
        yield provider


@pytest.mark.parametrize("version", [tls.TLS1_2_VERSION, tls.TLS1_3_VERSION])
def test_tls_handshakes_that_wait_for_it(provider: BatchingProvider, version: int) -> None:
    context = server_context(provider, version=version)
    paused = [pause(context) for _ in range(3)]
    for connection, peer in paused:
        finish(connection, peer)
        converse(connection, peer)
    stats = provider.stats()
    assert (stats.fallbacks, stats.direct) == (0, 0)
    assert stats.by_backend["cuda"] >= 3


def test_a_child_that_is_forked_computes_at_once(provider: BatchingProvider) -> None:
    """It has neither the device's threads nor, on a GPU, the device."""
    key = evp.Key.load(provider.library_context.pointer, private_der(private_key(2048)))
    expected = key.digest_sign("SHA256", b"message", {})
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os.write(writing, key.digest_sign("SHA256", b"message", {}))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == expected
    assert os.waitpid(child, 0)[1] == 0
    assert key.digest_sign("SHA256", b"message", {}) == expected


def test_nothing_is_opened_before_the_provider_is_started() -> None:
    opened: list[str] = []
    provider = BatchingProvider(ProviderConfig(), backends=[CudaBackend(HostDevice(before=opened.append))])
    assert not opened
    with provider:
        assert "open" in opened


class IdleKernels(HostKernels):
    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        pass


def test_results_that_take_more_room_than_the_operands_have_it(client: Client) -> None:
    """With one exponent and one modulus for all rows, the operands of 1,027 rows fit where 1,024 results do."""
    backend = CudaBackend(HostDevice(IdleKernels()), workers=1)
    backend.open(client)
    bases, outputs = np.ones((1027, 512), np.uint8), np.ones((1027, 512), np.uint8)
    with backend._worker() as worker:
        assert worker.modexp(bases, bases[:1, :8], bases[:1], outputs)
    assert not outputs.any()
    backend.close()


class SeeingKernels(HostKernels):
    """Note how many bytes of each operand are not zero, and compute pairs alone."""

    def __init__(self) -> None:
        super().__init__(32)
        self.seen: list[tuple[float, float]] = []
        self.computed: set[tuple[Kernel, int]] = set()
        """And of how many rows."""

    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        (launch,) = arguments
        if kernel.operation is Operation.PRIVATE:
            sizes = {"inputs": int(launch["count"]) * kernel.class_bytes, "pairs": kernel.pair_bytes}
            inputs, pairs = (
                np.count_nonzero(np.frombuffer(ctypes.string_at(int(launch[name]), size), np.uint8)) / size
                for name, size in sizes.items()
            )
            self.seen.append((inputs, pairs))
            self.computed.add((kernel, int(launch["count"])))
        else:
            super().run(kernel, arguments)


def test_measuring_takes_random_operands_and_leaves_nothing_behind(client: Client) -> None:
    """With zeros a GPU draws less power, and has another clock than under load."""
    kernels, left = SeeingKernels(), []
    for measured in (0, 4):
        device = HostDevice(kernels)
        backend = CudaBackend(device, workers=1, measured=measured)
        backend.open(client)
        left.append((len(device.memory), len(device.pinned)))
        backend.close()
    private = [kernel for kernel in kernels.kernels if kernel.operation is Operation.PRIVATE]
    assert kernels.computed == set(itertools.product(private, (1, 2, 4)))
    assert all(inputs > 0.8 and pairs > 0.8 for inputs, pairs in kernels.seen)
    assert left[0] == left[1]


class TimedKernels(HostKernels):
    """The kernel with the most threads is fast for less than three rows, the one with the fewest for more: by a clock
    of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[tuple[int, int]] = []
        self.now = 0.0

    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        few = kernel.threads == 4
        self.now += 0.2 if few == (int(arguments[0]["count"]) < 3) else 0.01
        self.ran.append((int(arguments[0]["count"]), kernel.threads))


def test_the_kernel_that_was_measured_the_fastest_computes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = TimedKernels()
    timed = functools.partialmethod(KernelChoice.measure, clock=lambda: kernels.now)
    monkeypatch.setattr(KernelChoice, "measure", timed)
    backend = CudaBackend(HostDevice(kernels), workers=1, measured=4)
    backend.open(client)
    costs = backend.cost_curves().private[0]
    assert costs.seconds(4) < 0.2
    key = keys.load(client, private_key(2048))
    for rows, threads in ((1, 8), (2, 8), (4, 4)):
        kernels.ran.clear()
        with pytest.raises(BackendError, match="results are wrong"):  # it computes none
            backend.private_op(batch_of([(key, 2)] * rows))
        assert kernels.ran[-1] == (rows, threads)
    backend.close()
