"""How the GPU suite runs kernels: what is wrong is found, whatever launches them. Never how fast."""

from __future__ import annotations

import ctypes
import io
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench/ is no installed package: it is run from the repository's root

from bench.gpu import (  # noqa: E402
    batches,
    correctness,
    device,
    in_flight,
    pipes,
    report,
    smoke,
    sweep,
)
from bench.gpu.report import Report  # noqa: E402
from bench.queue_overhead import NothingDevice  # noqa: E402
from gpu_provider.kernels import cubins, nvrtc, warp  # noqa: E402
from gpu_provider.kernels.cubin_cache import CubinCache  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gpu_provider import Key
    from gpu_provider.backends.base import Batch
    from gpu_provider.backends.cuda.backend import CudaBackend

VARIANT = device.Variant(cubins.Arithmetic.INT32, 256, 8, 4)


class FlippingDevice(device.HostDevice):
    """Flips one bit of one row as it comes back."""

    row = 2

    def download(self, array: NDArray[Any], source: int) -> None:
        super().download(array, source)
        if array.ndim == 2:
            array[self.row, 7] ^= 16


@pytest.mark.parametrize("operation", ["private", "modexp"])
def test_one_wrong_bit_is_found_and_reported_without_a_secret(operation: str) -> None:
    pipe = io.StringIO()
    if operation == "private":
        wrong = correctness.check_private(FlippingDevice(), VARIANT, 5, Report(pipe), rounds=1)
    else:
        wrong = correctness.check_modexp(FlippingDevice(), VARIANT, 5, 64, Report(pipe))
    assert wrong == 1
    (mismatch,) = (json.loads(line)["mismatch"] for line in pipe.getvalue().splitlines())
    assert mismatch["kernel"] == f"{VARIANT} {operation}"
    assert mismatch["row"] == FlippingDevice.row
    for key in batches.private_keys(2048):
        for secret in (key.p, key.q, key.d, key.dmp1, key.dmq1):
            assert f"{secret:x}" not in pipe.getvalue()


def test_a_verdict_that_should_not_be_there_is_found() -> None:
    class Trusting(device.HostDevice):
        def download(self, array: NDArray[Any], source: int) -> None:
            super().download(array, source)
            if array.ndim == 1:
                array[:] = 1

    wrong = correctness.check_private(Trusting(), VARIANT, 5, Report(io.StringIO()), rounds=1)
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


class Cupy:
    """The part of CuPy that the suite uses, on the processor: a cubin is its unit's name, and launches are computed by
    the host build's kernels of that arithmetic and size."""

    __version__ = "0"
    multiprocessors = 2

    def __init__(self) -> None:
        self.cuda = self.runtime = self.driver = self.function = self
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.shared: dict[int, int] = {}
        self.functions: list[tuple[str, str]] = []
        self.CUDADriverError = RuntimeError
        self.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
        self.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9
        self.CU_FUNC_ATTRIBUTE_NUM_REGS = 4
        self.memcpyHostToDevice, self.memcpyDeviceToHost = 1, 2
        self.clock = 0.0
        cupy = self

        class Module:
            def load(self, cubin: bytes) -> None:
                self.unit = cubin.decode()

            def get_function(self, entry: str) -> Function:
                cupy.functions.append((self.unit, entry))
                return Function(len(cupy.functions) - 1)

        class Function:
            def __init__(self, ptr: int) -> None:
                self.ptr = ptr

            def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any], shared: int, _: Any) -> None:
                unit, entry = cupy.functions[self.ptr]
                assert shared == cupy.shared[self.ptr]
                launch = arguments[0]
                assert launch.size == 1  # CuPy passes such an array by value
                arithmetic, bits = unit.split("-")[:2]
                kernel = next(
                    kernel
                    for kernel in warp.host_kernels()
                    if (device.ARITHMETIC[kernel.radix_bits], 8 * kernel.class_bytes) == (arithmetic, int(bits))
                    and device.ENTRIES[kernel.operation] == entry
                )
                threads = int(unit.split("-t")[1].split("-")[0])
                assert grid[0] * block[0] >= int(launch["count"][0]) * threads
                warp.launch(kernel, launch.ctypes.data)

        class Event:
            def record(self, _stream: Any) -> None:
                cupy.clock += 1.0
                self.at = cupy.clock

            def synchronize(self) -> None:
                pass

        self.Module, self.Event = Module, Event

    def setDevice(self, index: int) -> None:  # noqa: N802
        assert index == 0

    def getDeviceProperties(self, _index: int) -> dict[str, Any]:  # noqa: N802
        names = {"multiProcessorCount": self.multiprocessors, "totalGlobalMem": 1, "sharedMemPerMultiprocessor": 1}
        return {"name": b"Test GPU", "major": 9, "minor": 0, **names}

    def Stream(self, non_blocking: bool) -> SimpleNamespace:  # noqa: N802
        assert non_blocking
        return SimpleNamespace(ptr=5, synchronize=lambda: None)

    def Memory(self, size: int) -> SimpleNamespace:  # noqa: N802
        memory = np.zeros(size + 16, np.uint8)
        return SimpleNamespace(ptr=memory.ctypes.data + -memory.ctypes.data % 16, memory=memory)

    def alloc_pinned_memory(self, size: int) -> bytearray:
        return bytearray(size + 3)  # CuPy's are larger than asked for

    def memcpyAsync(self, to: int, source: int, size: int, _kind: int, _stream: int) -> None:  # noqa: N802
        ctypes.memmove(to, source, size)

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:  # noqa: N802
        if value > 64 << 10:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE")
        if attribute == self.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
            self.shared[function] = value

    def funcGetAttribute(self, attribute: int, _function: int) -> int:  # noqa: N802
        assert attribute == self.CU_FUNC_ATTRIBUTE_NUM_REGS
        return 96

    def occupancyMaxActiveBlocksPerMultiprocessor(self, _function: int, threads: int, _shared: int) -> int:  # noqa: N802
        assert threads == 32
        return 1

    def deviceGetPCIBusId(self, _index: int) -> str:  # noqa: N802
        return "0000:3b:00.0"

    def driverGetVersion(self) -> int:  # noqa: N802
        return 13000

    runtimeGetVersion = driverGetVersion  # noqa: N815

    def get_elapsed_time(self, first: Any, second: Any) -> float:
        elapsed: float = second.at - first.at
        return elapsed


def test_a_gpu_is_measured_through_cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = Cupy()
    monkeypatch.setattr(nvrtc, "import_cupy", lambda: cupy)
    monkeypatch.setattr(cubins, "architecture_for", lambda major, minor: f"sm_{major}{minor}")
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    units = [unit for unit in device.all_units() if unit.bytes == 256]
    names = {unit: str(unit).encode() for unit in units if str(unit) != "int32-2048-t8-w3"}
    monkeypatch.setattr(cubins, "cached_cubins", lambda *_: names)
    gpu = device.CudaDevice(0, CubinCache(tmp_path), units)
    assert gpu.missing()["int32-2048-t8-w3"] == "not compiled"
    assert "shared memory" in gpu.missing()["fp64-2048-t4-w5"]  # 80 KiB are more than this GPU has
    described = json.loads(json.dumps({**gpu.describe(), **gpu.describe_kernels()}))
    assert described["pci_bus_id"] == "0000:3b:00.0"
    assert described["full_rows"]["fp64-2048-t8-w5"] == 8
    pipe = io.StringIO()
    variants = sorted(set(gpu.variants()) & set(device.HostDevice().variants()))
    correctness.check(gpu, variants, 5, True, Report(pipe))
    sweep.measure(gpu, variants, True, Report(pipe))
    lines = [json.loads(line) for line in pipe.getvalue().splitlines()]
    assert not any("mismatch" in line for line in lines)
    samples = [line["sample"] for line in lines if "sample" in line]
    assert {sample["variant"] for sample in samples} == {str(variant) for variant in variants}
    cupy.functions.clear()
    (one,) = (unit for unit in units if str(unit) == "int32-2048-t8-w4")
    assert device.CudaDevice(0, CubinCache(tmp_path), [one]).variants() == [VARIANT]
    assert {unit for unit, _ in cupy.functions} == {"int32-2048-t8-w4"}  # nothing else was loaded
    assert all(
        sample["ok"] and sample["kernel_seconds"] == [1e-3] for sample in samples if sample["section"] == "sweep"
    )


def test_rows_and_numbers_are_each_others_inverse() -> None:
    numbers = [0, 1, 2**2048 - 1, 0x0102]
    rows = batches.to_rows(numbers, 256)
    assert rows.dtype == np.uint8
    assert rows[3, :2].tolist() == [2, 1]
    assert batches.to_numbers(rows) == numbers
