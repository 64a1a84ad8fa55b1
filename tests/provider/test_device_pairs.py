"""Hazards: a blinding pair that is used too often, or read while it is being replaced; and batches that wait for pairs.

On a device that computes nothing, but keeps account of which pairs each launch makes and uses.
"""

from __future__ import annotations

import ctypes
import random
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from batches import batch_of, results
from limb_arrays import limbs, numbers
from rsa_keys import private_key, program_key

from bench.gpu.host_device import HostDevice, HostKernels
from gpu_provider import BatchingProvider, ProviderConfig
from gpu_provider.backends.base import Batch
from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.device import DeviceError
from gpu_provider.client import Client
from gpu_provider.kernels.launch import Kernel, Operation
from gpu_provider.library import keys
from gpu_provider.native import lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gpu_provider import Key


class Event:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def record(self) -> None:
        self._stream.device.calls.append("record")

    def wait(self) -> None:
        pass


class Stream:
    """Does everything at once: work that is given behind an event is given later, too."""

    def __init__(self, device: AccountingDevice) -> None:
        self.device = device

    def upload(self, to: int, data: NDArray[np.uint8]) -> None:
        ctypes.memmove(to, data.ctypes.data, data.size)

    def download(self, to: NDArray[np.uint8], source: int) -> None:
        self.device.calls.append("download")
        ctypes.memmove(to.ctypes.data, source, to.size)

    def copy(self, to: int, source: int, size: int) -> None:
        self.device.moved(source, to)
        ctypes.memmove(to, source, size)

    def clear(self, address: int, size: int) -> None:
        self.device.calls.append("clear")
        ctypes.memset(address, 0, size)

    def launch(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        self.device.calls.append(kernel.operation.name)
        self.device.account(kernel, arguments)

    def event(self) -> Event:
        return Event(self)

    def wait(self) -> None:
        pass


class AccountingDevice(HostDevice):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.made = 0
        self.used = 0
        self.most_uses = 0
        self.made_for: dict[int, NDArray[np.int64]] = {}
        """By address of the pairs: for which record each one was made last, -1 if it never was."""
        self.uses: dict[int, NDArray[np.int64]] = {}

    def stream(self) -> Stream:  # type: ignore[override]
        return Stream(self)

    def moved(self, source: int, to: int) -> None:
        for accounts in (self.made_for, self.uses):
            if source in accounts:
                accounts[to] = accounts[source]

    def account(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        (launch,) = arguments
        count, address = int(launch["count"]), int(launch["pairs"])
        records, pairs = (_indices(int(launch[name]), count) for name in ("record_of_row", "pair_of_row"))
        if address not in self.uses:
            self.made_for[address], self.uses[address] = np.full(1 << 16, -1), np.zeros(1 << 16, np.int64)
        made_for, uses = self.made_for[address], self.uses[address]
        assert np.bincount(pairs).max() == 1
        if kernel.operation is Operation.MAKE_PAIRS:
            made_for[pairs], uses[pairs] = records, 0
            self.made += count
            return
        assert (made_for[pairs] == records).all()
        uses[pairs] += 1
        self.used += count
        self.most_uses = max(self.most_uses, int(uses[pairs].max()))
        ok = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(int(launch["ok"])))
        ok[:] = 1


def _indices(address: int, count: int) -> NDArray[np.uint32]:
    return np.ctypeslib.as_array((ctypes.c_uint32 * count).from_address(address)).copy()


@pytest.fixture
def client() -> Client:
    return Client(4)


@pytest.fixture
def device() -> AccountingDevice:
    return AccountingDevice()


@pytest.fixture
def backend(client: Client, device: AccountingDevice) -> Iterator[CudaBackend]:
    backend = CudaBackend(device, workers=1)
    backend.open(client)
    yield backend
    backend.close()


@pytest.fixture
def key(client: Client) -> Key:
    return keys.load(client, private_key(2048))


class Batches:
    """Of any number of rows, over the same arrays."""

    def __init__(self, backend: CudaBackend, device: AccountingDevice, loaded: list[Key]) -> None:
        self._backend, self._device = backend, device
        self._loaded = loaded
        self._handles = np.array([key.handle for key in loaded], np.uint64)
        self._numbers = np.zeros((2, 4096, 256), np.uint8)
        self.computed = 0
        self.waited = 0
        """That had pairs made before they were computed."""

    def run(self, rows: int, of: NDArray[np.int64] | None = None) -> None:
        self._device.calls.clear()
        handles = np.repeat(self._handles[:1], rows) if of is None else self._handles[of]
        inputs, outputs = self._numbers[:, :rows]
        batch = Batch(256, handles, inputs, outputs, np.zeros(rows, np.uint8))
        self._backend.private_op(batch)
        assert batch.ok.all()
        calls = self._device.calls
        self.computed += 1
        self.waited += "MAKE_PAIRS" in calls[: calls.index("PRIVATE")]


def test_hardly_a_batch_waits_for_pairs(backend: CudaBackend, device: AccountingDevice, key: Key) -> None:
    """Pairs that batches of many sizes have used are never due together: one by one they would hold up most batches."""
    source = random.Random(1)  # noqa: S311 (a simulation)
    batches = Batches(backend, device, [key])
    for smallest, largest in ((64, 4096), (1200, 1800), (4096, 4096)):
        batches.waited = 0
        for _ in range(1500):
            batches.run(source.randint(smallest, largest))
        assert batches.waited < 0.01 * 1500
    first = 4096
    assert device.made - first < 1.15 * device.used / lib.GP_PAIR_USES
    assert device.most_uses <= lib.GP_PAIR_USES


def test_hardly_a_batch_of_many_keys_waits_for_pairs(
    client: Client, backend: CudaBackend, device: AccountingDevice
) -> None:
    """Every key has another number of rows each time."""
    source = np.random.default_rng(1)
    batches = Batches(backend, device, [keys.load(client, private_key(2048)) for _ in range(20)])
    for _ in range(2000):
        if batches.computed == 500:  # the keys' first batches
            batches.waited = 0
        rows = int(source.integers(1, 100))
        batches.run(rows, source.integers(0, 20, rows))
    assert batches.waited < 0.01 * 1500
    assert device.most_uses <= lib.GP_PAIR_USES


def test_a_batch_waits_for_nothing_but_its_results(backend: CudaBackend, device: AccountingDevice, key: Key) -> None:
    """Wiping, and pairs for later batches, stand behind the event that the batch waits for."""
    batches = Batches(backend, device, [key])
    calls = []
    for _ in range(lib.GP_PAIR_USES):
        batches.run(3)
        calls.append(list(device.calls))
    made = [each.count("MAKE_PAIRS") for each in calls]
    assert [batch for batch, count in enumerate(made) if count] == [0, 1, 511]
    for each in calls:
        private = each.index("PRIVATE")
        assert each[private : private + 3] == ["PRIVATE", "download", "record"]
        assert "clear" not in each[:private]
        assert each.count("clear") == 2 + each.count("MAKE_PAIRS")


class SlowPairs(HostKernels):
    """Wait to be told before they make pairs for later batches, the first time."""

    def __init__(self) -> None:
        super().__init__(32)
        self.launched: list[Operation] = []
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.fail = False
        self.randoms: list[bytes] = []
        self._known: set[int] = set()

    def run(self, kernel: Kernel, arguments: NDArray[np.void]) -> None:
        self.launched.append(kernel.operation)
        if kernel.operation is Operation.MAKE_PAIRS:
            self.randoms.append(ctypes.string_at(int(arguments[0]["inputs"]), kernel.class_bytes))
            pairs = int(arguments[0]["pairs"])
            if pairs in self._known:  # those of a worker's first batch are made without delay
                if not self.reached.is_set():
                    self.reached.set()
                    assert self.go_on.wait(30)
                if self.fail:
                    raise DeviceError("device test: making pairs: made to fail")
            self._known.add(pairs)
        super().run(kernel, arguments)


@pytest.fixture
def slow() -> SlowPairs:
    return SlowPairs()


def three(backend: CudaBackend, key: Key) -> None:
    """A batch whose block of pairs, four, is larger than it: the second such batch has the fourth made."""
    batch = batch_of([(key, x) for x in (2, 3, 4)])
    backend.private_op(batch)
    assert batch.ok.all()
    assert [pow(result, key.e, key.n) for result in results(batch)] == [2, 3, 4]


def test_results_do_not_wait_for_pairs_of_later_batches(client: Client, key: Key, slow: SlowPairs) -> None:
    backend = CudaBackend(HostDevice(slow), workers=1)
    backend.open(client)
    three(backend, key)
    three(backend, key)
    assert slow.reached.wait(30)
    slow.go_on.set()
    three(backend, key)
    backend.private_op(batch := batch_of([(key, x) for x in (2, 3, 4, 5)]))
    assert batch.ok.all()
    assert slow.launched.count(Operation.MAKE_PAIRS) == 2
    backend.close()


def test_what_blinds_is_wiped(client: Client, key: Key, slow: SlowPairs) -> None:
    """The random numbers that pairs are made of, on the host and on the device."""
    device = HostDevice(slow)
    backend = CudaBackend(device, workers=1)
    backend.open(client)
    slow.go_on.set()
    three(backend, key)
    three(backend, key)
    assert not any(number in array.tobytes() for number in slow.randoms for array in device.pinned.values())
    three(backend, key)  # it comes after what the one before left to be done
    assert len(slow.randoms) == 2
    assert not any(number in array.tobytes() for number in slow.randoms for array in device.memory.values())
    backend.close()


def test_records_that_a_renewal_reads_stay_until_it_is_done(client: Client, key: Key, slow: SlowPairs) -> None:
    """The table of keys outgrows its memory while pairs are made from it."""
    device = HostDevice(slow)
    backend = CudaBackend(device, workers=2)
    backend.open(client)
    three(backend, key)
    three(backend, key)
    three(backend, key)
    assert slow.reached.wait(30)
    records = [address for address, array in device.memory.items() if holds_a_key(array)]
    many = [keys.load(client, private_key(2048)) for _ in range(20)]
    backend.private_op(batch := batch_of([(one, 2) for one in many]))
    assert batch.ok.all()
    assert len(records) == 1
    assert holds_a_key(device.memory[records[0]])
    slow.go_on.set()
    for _ in range(4):
        three(backend, key)
    assert records[0] not in device.memory
    backend.close()


def holds_a_key(memory: NDArray[np.uint8]) -> bool:
    return private_key(2048).private_numbers().p.to_bytes(128, "little") in memory.tobytes()


def test_a_renewal_fails_after_its_batch_was_delivered(slow: SlowPairs) -> None:
    """The next batch notices. Its results come from elsewhere, and the device is used again later."""
    slow.go_on.set()
    backend = CudaBackend(HostDevice(slow), workers=1)
    with BatchingProvider(ProviderConfig(backend_timeout=3600, backend_retry=0.001), backends=[backend]) as provider:
        key = provider.load_key(private_key(2048))
        x = limbs([2, 3, 4], 32)
        slow.fail = True
        for _ in range(3):
            assert [pow(y, key.e, key.n) for y in numbers(provider.private_op(key, x))] == [2, 3, 4]
        assert provider.stats().fallbacks > 0
        slow.fail = False
        while provider.stats().backend != "cuda":
            assert [pow(y, key.e, key.n) for y in numbers(provider.private_op(key, x))] == [2, 3, 4]
        assert provider.stats().failed == 0


def test_closing_waits_for_a_renewal(client: Client, key: Key, slow: SlowPairs) -> None:
    left: list[bool] = []

    class Device(HostDevice):
        def close(self) -> None:
            left.extend(bool(array.any()) for array in (*self.memory.values(), *self.pinned.values()))
            super().close()

    backend = CudaBackend(Device(slow), workers=1)
    backend.open(client)
    left.clear()
    three(backend, key)
    three(backend, key)
    assert slow.reached.wait(30)
    threading.Timer(0.05, slow.go_on.set).start()
    backend.close()
    assert slow.go_on.is_set()
    assert len(left) > 5
    assert not any(left)


def test_pairs_of_a_batch_that_the_device_could_not_take_are_not_taken_for_made(client: Client) -> None:
    """An array with a key that the kernels do not know is computed elsewhere, after its rows were given pairs."""
    device = HostDevice()
    backend = CudaBackend(device, workers=1)
    options = ["-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_keygen_primes:3"]
    with BatchingProvider(ProviderConfig(backend_timeout=3600, backend_retry=3600), backends=[backend]) as provider:
        plain, other = (provider.load_key(private_key(2048)) for _ in range(2))
        odd = provider.load_key(program_key("RSA", *options))
        for loaded in ([plain, plain], [other, other, odd], [other, other]):
            array = device.new_array(len(loaded), 32)
            array.array[:] = limbs(list(range(2, 2 + len(loaded))), 32)
            provider.private_op(loaded, array)
        assert provider.stats().fallbacks == 1  # of the odd one
