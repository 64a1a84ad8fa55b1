"""How the GPU suite runs kernels: what is wrong is found, whatever launches them. Never how fast."""

from __future__ import annotations

import io
import json
import time
from typing import TYPE_CHECKING, Any

import fake_cuda
import numpy as np
import pytest
from fake_cuda import GPU

from bench.gpu import (
    batches,
    correctness,
    in_flight,
    pipes,
    report,
    smoke,
    sweep,
)
from bench.gpu.launcher import GpuLauncher, HostLauncher
from bench.gpu.report import Report
from bench.kernels.units import all_units
from bench.queue_overhead import NothingDevice
from gpu_provider.kernels import cubins, nvrtc
from gpu_provider.kernels.cubin_cache import CubinCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from gpu_provider import Key
    from gpu_provider.backends.base import Batch
    from gpu_provider.backends.cuda.backend import CudaBackend

UNIT = next(unit for unit in all_units() if str(unit) == "int32-2048-t8-w4")


class FlippingLauncher(HostLauncher):
    """Flips one bit of one row as it comes back."""

    row = 2

    def download(self, array: NDArray[Any], source: int) -> None:
        super().download(array, source)
        self.wait()
        if array.ndim == 2:
            array[self.row, 7] ^= 16


@pytest.mark.parametrize("operation", ["private", "modexp"])
def test_one_wrong_bit_is_found_and_reported_without_a_secret(operation: str) -> None:
    pipe = io.StringIO()
    if operation == "private":
        wrong = correctness.check_private(FlippingLauncher(), UNIT, 5, Report(pipe), rounds=1)
    else:
        wrong = correctness.check_modexp(FlippingLauncher(), UNIT, 5, 64, Report(pipe))
    assert wrong == 1
    (mismatch,) = (json.loads(line)["mismatch"] for line in pipe.getvalue().splitlines())
    assert mismatch["kernel"] == f"{UNIT} {operation}"
    assert mismatch["row"] == FlippingLauncher.row
    for key in batches.private_keys(2048):
        for secret in (key.p, key.q, key.d, key.dmp1, key.dmq1):
            assert f"{secret:x}" not in pipe.getvalue()


def test_a_verdict_that_should_not_be_there_is_found() -> None:
    class Trusting(HostLauncher):
        def download(self, array: NDArray[Any], source: int) -> None:
            super().download(array, source)
            self.wait()
            if array.ndim == 1:
                array[:] = 1

    wrong = correctness.check_private(Trusting(), UNIT, 5, Report(io.StringIO()), rounds=1)
    assert wrong == 2  # the modulus itself, and the largest number that a row can hold


@pytest.mark.parametrize(
    ("measure", "samples"),
    [(smoke.check, 13), (in_flight.measure_in_flight, 29), (in_flight.measure_pairs, 3),
     (in_flight.measure_sustained, 1)],
)  # fmt: skip
def test_the_sizes_for_a_gpu_run_on_a_device_that_does_nothing(
    measure: Callable[[Any, bool, Report], None], samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or they would run for the first time where time is short."""

    def compute(backend: CudaBackend, _key: Key, batch: Batch) -> float:
        started = time.perf_counter()
        backend.private_op(batch)
        return time.perf_counter() - started

    for module in (smoke, in_flight):
        monkeypatch.setattr(module, "compute_checked", compute)  # nothing computes nothing that is right
    for name in ("SECONDS", "WARM_UP_SECONDS", "PAIRS_SECONDS", "SUSTAINED_SECONDS"):
        monkeypatch.setattr(in_flight, name, 0.0)
    monkeypatch.setattr(in_flight, "WATCH_SECONDS", 60.0)  # one sample, however slow the load is
    pipe = io.StringIO()
    measure(NothingDevice(), False, Report(pipe))
    lines = [report.read_line(line.encode()) for line in pipe.getvalue().splitlines()]
    assert None not in lines
    assert len([line for line in lines if line is not None and line.sample is not None]) == samples


@pytest.mark.parametrize("name", pipes.PIPES)
def test_the_microbenchmarks_compile(name: str) -> None:
    try:
        nvrtc.version()
    except nvrtc.CompilerMissingError as error:
        pytest.skip(str(error))
    assert nvrtc.compile_cubin({"pipe.cu": pipes.source(name)}, ("--std=c++17",), "sm_90")


def test_a_gpu_is_measured_through_cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda.install(monkeypatch)
    cuda.most_shared = 64 << 10
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    units = [unit for unit in all_units() if unit.bytes == 256]
    names = {unit: str(unit).encode() for unit in units if str(unit) != "int32-2048-t8-w3"}
    monkeypatch.setattr(cubins, "cached_cubins", lambda *_: names)
    gpu = GpuLauncher(GPU, CubinCache(tmp_path), units)
    assert gpu.missing["int32-2048-t8-w3"] == "not compiled"
    assert "shared memory" in gpu.missing["fp64-2048-t4-w5"]  # 80 KiB are more than this GPU has
    described = json.loads(json.dumps({**gpu.describe(), **gpu.describe_kernels()}))
    assert described["pci_bus_id"] == "0000:3b:00.0"
    assert described["full_rows"]["fp64-2048-t8-w5"] == 16
    pipe = io.StringIO()
    variants = sorted(set(gpu.units()) & set(HostLauncher().units()))
    correctness.check(gpu, variants, 5, True, Report(pipe))
    sweep.measure(gpu, variants, True, Report(pipe))
    lines = [json.loads(line) for line in pipe.getvalue().splitlines()]
    assert not any("mismatch" in line for line in lines)
    samples = [line["sample"] for line in lines if "sample" in line]
    assert {sample["variant"] for sample in samples} == {str(variant) for variant in variants}
    cuda.functions.clear()
    (one,) = (unit for unit in units if str(unit) == "int32-2048-t8-w4")
    assert GpuLauncher(GPU, CubinCache(tmp_path), [one]).units() == [UNIT]
    assert {unit for unit, _ in cuda.functions} == {"int32-2048-t8-w4"}  # nothing else was loaded
    assert all(
        sample["ok"] and sample["kernel_seconds"] == [1e-3] for sample in samples if sample["section"] == "sweep"
    )


def test_rows_and_numbers_are_each_others_inverse() -> None:
    numbers = [0, 1, 2**2048 - 1, 0x0102]
    rows = batches.to_rows(numbers, 256)
    assert rows.dtype == np.uint8
    assert rows[3, :2].tolist() == [2, 1]
    assert batches.to_numbers(rows) == numbers
