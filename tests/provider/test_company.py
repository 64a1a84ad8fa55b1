"""What the engine measures for the wait for company, and an event loop's turns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from rsa_keys import private_key

from gpu_provider import BatchingProvider
from gpu_provider.client import CLASSES, Client
from gpu_provider.costs import CostCurve
from gpu_provider.engine import pressure
from gpu_provider.engine.pressure import ProcessorPressure
from gpu_provider.engine.workers import BackendWorkers
from gpu_provider.kinds import REQUESTS
from gpu_provider.library.keys import load
from gpu_provider.library.turns import Turn
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SECOND = 1_000_000_000


@pytest.fixture
def psi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's file."""
    file = tmp_path / "cpu.pressure"
    monkeypatch.setattr(pressure, "_FILES", [str(tmp_path / "missing"), str(file)])
    stall(file, 0)
    return file


def stall(file: Path, total_us: int) -> None:
    total = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}"
    file.write_text(f"{total}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")


def test_pressure_is_the_share_of_the_time_that_the_kernel_counts(psi: Path) -> None:
    measured = ProcessorPressure()
    measured.look(SECOND)
    assert measured.share == 0
    stall(psi, 500_000)
    measured.look(2 * SECOND)
    assert measured.share == pytest.approx(0.5)
    stall(psi, 600_000)
    measured.look(2 * SECOND + 100_000_000)
    assert measured.share == pytest.approx(0.75)
    measured.look(2 * SECOND + 100_000_001)  # too soon to say
    assert measured.share == pytest.approx(0.75)
    measured.look(60 * SECOND)
    assert measured.share == 0
    measured.close()
    measured.close()


@pytest.mark.parametrize("text", ["", "nothing of the kind\n"])
def test_a_kernel_that_does_not_count_pressure_has_none(psi: Path, text: str) -> None:
    psi.write_text(text)
    measured = ProcessorPressure()
    measured.look(SECOND)
    measured.look(2 * SECOND)
    assert measured.share == 0
    measured.close()


def test_a_system_without_pressure_has_none(psi: Path) -> None:
    psi.unlink()
    measured = ProcessorPressure()
    measured.look(SECOND)
    measured.look(2 * SECOND)
    assert measured.share == 0


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
    key = provider.load_key(private_key(2048))

    async def leave() -> None:
        task = asyncio.ensure_future(provider.private_op_async(key, 2))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    assert provider.private_op(key, 3) == provider.private_op(key, 3)
    assert provider.stats().failed == 0
