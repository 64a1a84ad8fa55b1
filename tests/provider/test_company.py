"""What the engine measures for the wait for company, and an event loop's turns."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from rsa_keys import private_key

from gpu_provider import BatchingProvider
from gpu_provider.client import CLASSES, Client
from gpu_provider.costs import CostCurve
from gpu_provider.engine import processors
from gpu_provider.engine.processors import Processors
from gpu_provider.engine.workers import BackendWorkers
from gpu_provider.kinds import REQUESTS
from gpu_provider.library.keys import load
from gpu_provider.library.turns import Turn
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SECOND = 1_000_000_000


class Kernel:
    """Its files, as this process reads them."""

    def __init__(self, directory: Path) -> None:
        self.pressure = directory / "cpu.pressure"
        self.stat = directory / "stat"
        self.quota = directory / "cpu.max"
        self.usage = directory / "cpu.stat"
        self.count(stalled=0, idle=0)

    def count(self, *, stalled: float, idle: float, used: float = 0) -> None:
        """Seconds since the system was started: in which a thread was stalled, in which the first processor was idle,
        and which the container has used."""
        total = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={int(stalled * 1e6)}"
        self.pressure.write_text(f"{total}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
        ticks = int(idle * os.sysconf("SC_CLK_TCK"))
        self.stat.write_text(
            f"cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 5 5 5 {ticks} 0 5 5 5 0 0\ncpu1 5 5 5 0 0 5 5 5 0 0\nctxt 7\n"
        )
        self.usage.write_text(f"usage_usec {int(used * 1e6)}\nuser_usec 1\n")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(tmp_path)
    monkeypatch.setattr(processors, "_STALLED", [str(tmp_path / "missing"), str(kernel.pressure)])
    monkeypatch.setattr(processors, "_IDLE", str(kernel.stat))
    monkeypatch.setattr(processors, "_QUOTA", str(kernel.quota))
    monkeypatch.setattr(processors, "_USAGE", str(kernel.usage))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    return kernel


def test_shortage_is_what_the_kernel_counts(kernel: Kernel) -> None:
    measured = Processors()
    measured.look(SECOND)
    assert measured.shortage == (0, 0, 1)
    kernel.count(stalled=0.5, idle=0.25)
    measured.look(2 * SECOND)
    assert measured.shortage == pytest.approx((0.5, 0.75, 1))
    kernel.count(stalled=0.7, idle=0.25)
    measured.look(2 * SECOND + SECOND // 5)
    assert measured.shortage == pytest.approx((0.75, 0.875, 1))
    kernel.count(stalled=0.7, idle=60)
    measured.look(2 * SECOND + SECOND // 5 + 1)  # too soon to say
    assert measured.shortage == pytest.approx((0.75, 0.875, 1))
    measured.look(62 * SECOND)
    assert measured.shortage == pytest.approx((0, 0, 1), abs=0.05)


@pytest.mark.parametrize(
    ("limit", "used", "processors"), [("200000 100000", 0.5, 1), ("50000 100000", 1.0, 0.5), ("max 100000", 0.1, 1)]
)
def test_a_containers_quota_is_used_up_before_the_host_is_busy(
    kernel: Kernel, limit: str, used: float, processors: float
) -> None:
    kernel.quota.write_text(limit + "\n")
    measured = Processors()
    measured.look(SECOND)
    kernel.count(stalled=0, idle=0.9, used=1.0)
    measured.look(2 * SECOND)
    assert measured.shortage.used == pytest.approx(used)
    assert measured.shortage.processors == processors


@pytest.mark.parametrize("name", ["pressure", "stat", "quota", "usage"])
@pytest.mark.parametrize("text", ["some\n", "cpu0 1 2\n", "usage_usec many\n", "max\n", "0 0\n", "0 5\n", "1 2 3\n"])
def test_files_of_another_form_end_nothing(kernel: Kernel, name: str, text: str) -> None:
    """Hazard: an error on the batching thread would end batching for good."""
    getattr(kernel, name).write_text(text)
    measured = Processors()
    for second in range(1, 4):
        measured.look(second * SECOND)
        assert all(0 <= share <= 1 for share in measured.shortage[:2])


def test_processors_that_are_numbered_anew_count_all(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container with a /proc of its own, which knows nothing of the host's numbers."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {8, 9})
    measured = Processors()
    measured.look(SECOND)
    kernel.count(stalled=0, idle=1)  # the first of two
    measured.look(2 * SECOND)
    assert measured.shortage.used == pytest.approx(0.5)


@pytest.mark.parametrize("empty", [True, False])
def test_a_kernel_that_does_not_count_shows_no_shortage(kernel: Kernel, empty: bool) -> None:
    """Without pressure stall information (``psi=0``), in a container without cgroups, or without /proc."""
    for file in (kernel.pressure, kernel.usage):
        file.write_text("") if empty else file.unlink()
    measured = Processors()
    measured.look(SECOND)
    measured.look(2 * SECOND)
    assert measured.shortage == (0, 1, 1)


def test_the_price_of_a_row_is_that_of_a_full_group_or_more(provider: BatchingProvider) -> None:
    workers = BackendWorkers(provider._engine.backends()[0], None)
    workers.costs[REQUESTS[0]] = CostCurve([(1, 0.001), (4, 0.002), (8, 0.002)], granule=8)
    assert [workers.price(REQUESTS[0], size) for size in (1, 4, 8, 16)] == pytest.approx([4, 2, 1, 1])


@pytest.fixture
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider() as provider:
        yield provider


@pytest.fixture
def patient_client() -> Client:
    """Whose requests wait for company."""
    client = Client(16)
    rules = ffi.new("struct gp_class_rule[]", [{"least": 2, "wait_ns": SECOND}] * CLASSES)
    lib.gp_consumer_wait(client.consumer, 0, 0, rules, ffi.new("uint32_t[]", CLASSES), ffi.new("uint64_t[]", CLASSES))
    return client


def test_a_turns_requests_are_held_back_until_its_end(patient_client: Client) -> None:
    """Hazard: requests whose submitter says that more come, and then never that it is done, nobody would compute."""
    key = load(patient_client, private_key(2048))
    held = []

    async def submit() -> None:
        loop = asyncio.get_running_loop()
        for tag in range(3):
            with Turn.of(loop):
                row = (2).to_bytes(256, "little")
                assert lib.gp_client_submit(patient_client.pointer, key.handle, row, tag, False) == lib.GP_SUBMIT_OK
            held.append(lib.gp_turn_suspend())
        await asyncio.sleep(0)
        held.append(lib.gp_turn_suspend())

    asyncio.run(submit())
    assert held == [1, 2, 3, 0]


def test_many_awaited_at_once(provider: BatchingProvider) -> None:
    private = private_key(2048)
    numbers = private.private_numbers()
    key = provider.load_key(private)

    async def ask() -> list[int]:
        return await asyncio.gather(*(provider.private_op_async(key, x) for x in range(2, 42)))

    assert asyncio.run(ask()) == [pow(x, numbers.d, numbers.public_numbers.n) for x in range(2, 42)]


def test_awaited_on_a_loop_that_ends_at_once(provider: BatchingProvider) -> None:
    """What it submitted last is computed all the same, for whoever submits next."""
    private = private_key(2048)
    numbers = private.private_numbers()
    key = provider.load_key(private)

    async def leave() -> None:
        task = asyncio.ensure_future(provider.private_op_async(key, 2))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    assert provider.private_op(key, 3) == pow(3, numbers.d, numbers.public_numbers.n)
    assert provider.stats().failed == 0
