"""The GPU suite on the host device: it runs to its end, says what it did, and finds what is wrong. Never how fast."""

from __future__ import annotations

import ctypes
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bench/ is no installed package: it is run from the repository's root

from bench import gpu, gpu_batches, gpu_correctness, gpu_device, gpu_pipes, gpu_summary, gpu_sweep, report  # noqa: E402
from bench.gpu_report import Report  # noqa: E402
from gpu_provider.kernels import cubins, nvrtc, warp  # noqa: E402
from gpu_provider.kernels.cubin_cache import CubinCache  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

VARIANT = gpu_device.Variant(cubins.Arithmetic.INT32, 256, 8, 4)


def document(output: Path) -> dict[str, Any]:
    (path,) = output.glob("*.json")
    saved: dict[str, Any] = json.loads(path.read_text())
    return saved


def test_the_suite_runs_on_the_host_device_and_its_file_is_complete(tmp_path: Path) -> None:
    assert gpu.main(["--device", "host", "--tiny", "--output", str(tmp_path), "--commit", "0123abc"]) == 0
    saved = document(tmp_path)
    parameters = saved["parameters"]
    assert parameters["device"]["name"] == "host"
    assert parameters["device"]["defaults"]["2048/1"].startswith("fp64-2048-")
    assert parameters["commit"] == "0123abc"
    assert saved["environment"]["versions"]["numpy"]
    assert set(gpu.SECTIONS) <= set(parameters["sections"])
    for name in gpu.SECTIONS:
        assert parameters["sections"][name]["status"] == "done", parameters["sections"][name]
    for tool in gpu.SANITIZERS:
        assert parameters["sections"][f"sanitizer {tool}"]["status"] == "not run"
        assert any(f"sanitizer {tool}" in note for note in saved["notes"])
    assert {sample["section"] for sample in saved["samples"]} == {"correctness", "sweep", "backend", "end-to-end"}
    assert {sample["variant"] for sample in saved["samples"] if "variant" in sample} >= {str(VARIANT)}
    cases = {row["case"]: row for row in saved["rows"]}
    assert cases["correctness"]["met"]
    assert cases["RSA-2048, any batch"]
    assert cases["fastest, RSA-2048, batches of 1"]["baseline"].startswith("default fp64")


class FlippingDevice(gpu_device.HostDevice):
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
        wrong = gpu_correctness.check_private(FlippingDevice(), VARIANT, 5, Report(pipe), rounds=1)
    else:
        wrong = gpu_correctness.check_modexp(FlippingDevice(), VARIANT, 5, 64, Report(pipe))
    assert wrong == 1
    (mismatch,) = (json.loads(line)["mismatch"] for line in pipe.getvalue().splitlines())
    assert mismatch["kernel"] == f"{VARIANT} {operation}"
    assert mismatch["row"] == FlippingDevice.row
    for key in gpu_batches.private_keys(2048):
        for secret in (key.p, key.q, key.d, key.dmp1, key.dmq1):
            assert f"{secret:x}" not in pipe.getvalue()


def test_a_verdict_that_should_not_be_there_is_found() -> None:
    class Trusting(gpu_device.HostDevice):
        def download(self, array: NDArray[Any], source: int) -> None:
            super().download(array, source)
            if array.ndim == 1:
                array[:] = 1

    wrong = gpu_correctness.check_private(Trusting(), VARIANT, 5, Report(io.StringIO()), rounds=1)
    assert wrong == 2  # the modulus itself, and the largest number that a row can hold


def run_with(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *sections: str) -> tuple[int, Any]:
    """The suite with a shell script as the interpreter of its sections: $3 is the section's name."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    status = gpu.main([*sections, "--device", "host", "--tiny", "--output", str(tmp_path)])
    return status, document(tmp_path)


def test_a_wrong_result_is_the_suites_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mismatch = {"kernel": "fp64-2048-t4-w5 private", "row": 3, "got": "0x1"}
    status, saved = run_with(f"echo '{json.dumps({'mismatch': mismatch})}'", tmp_path, monkeypatch, "correctness")
    assert status == 1
    assert saved["parameters"]["mismatches"] == [mismatch]
    assert any("fp64-2048-t4-w5 private" in note for note in saved["notes"])


def test_a_section_that_fails_or_hangs_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SECTIONS, "sweep", 1.0)
    sample = json.dumps({"sample": {"section": "pipes", "pipe": "DFMA", "per_clock": 64.0, "clock_hz": 1e9}})
    program = f"""case $3 in
        device) echo '{{"device": {{"multiprocessors": 132}}}}' ;;
        correctness) echo 'illegal address' >&2; exit 3 ;;
        sweep) echo '{sample}'; exec sleep 60 ;;
    esac"""
    status, saved = run_with(program, tmp_path, monkeypatch)
    sections = saved["parameters"]["sections"]
    assert status == 1
    assert (sections["correctness"]["status"], sections["correctness"]["reason"]) == ("failed", "illegal address")
    assert sections["sweep"]["status"] == "out of time"
    assert sections["end-to-end"]["status"] == "done"
    (limit,) = (row for row in saved["rows"] if row["case"] == "RSA-2048, what the pipe allows")
    assert limit["measured"]["median"] == pytest.approx(64e9 * 132 / gpu_pipes.multiply_adds("fp64", 2048, 5))


def sweep_sample(variant: str, rows: int, kernel: float) -> dict[str, Any]:
    bits = int(variant.split("-")[1])
    times = {"kernel_seconds": [kernel], "latency_seconds": [kernel + 1e-4]}
    return {"section": "sweep", "variant": variant, "bits": bits, "rows": rows, "ok": True, **times}


def test_rates_are_held_against_the_targets_and_the_defaults() -> None:
    result = report.Result("gpu", "", {})
    result.samples += [
        sweep_sample("fp64-2048-t4-w4", 1024, 0.002),
        sweep_sample("fp64-2048-t8-w5", 1024, 0.001),
        sweep_sample("fp64-2048-t4-w4", 8192, 0.004),
    ]
    gpu_summary.summarise(result, {"defaults": {"2048/1024": "fp64-2048-t4-w4"}})
    rows = {(row.case, row.unit): row for row in result.rows}
    quick = rows["RSA-2048, at most 3 ms", gpu_summary.UNIT]
    assert quick.measured.median == pytest.approx(1024e3)
    assert quick.met
    goal = rows["RSA-2048, any batch", gpu_summary.UNIT]
    assert goal.measured.median == pytest.approx(2048e3)
    fastest = rows["fastest, RSA-2048, batches of 1024", gpu_summary.UNIT]
    assert (fastest.subject, fastest.baseline) == ("fp64-2048-t8-w5", "default fp64-2048-t4-w4")
    assert fastest.ratio is not None
    assert fastest.ratio.median == pytest.approx(2.0)


def test_without_a_gpu_the_suite_says_why_and_saves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it is that this machine lacks: CuPy, a driver, a GPU."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is a GPU here")
    assert gpu.main(["--output", str(tmp_path), "--kernel-cache", str(tmp_path)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert any(what in said for what in ("CuPy", "driver", "device"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", gpu_pipes.PIPES)
def test_the_microbenchmarks_compile(name: str) -> None:
    try:
        nvrtc.version()
    except nvrtc.CompilerMissingError as error:
        pytest.skip(str(error))
    assert nvrtc.compile_cubin({"pipe.cu": gpu_pipes.source(name)}, ("--std=c++17",), "sm_90")


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
                    if (gpu_device.ARITHMETIC[kernel.radix_bits], 8 * kernel.class_bytes) == (arithmetic, int(bits))
                    and gpu_device.ENTRIES[kernel.operation] == entry
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
    units = [unit for unit in gpu_device.all_units() if unit.bytes == 256]
    names = {unit: str(unit).encode() for unit in units if str(unit) != "int32-2048-t8-w3"}
    monkeypatch.setattr(cubins, "cached_cubins", lambda *_: names)
    device = gpu_device.CudaDevice(0, CubinCache(tmp_path))
    assert device.missing()["int32-2048-t8-w3"] == "not compiled in time"
    assert "shared memory" in device.missing()["fp64-2048-t4-w5"]  # 80 KiB are more than this GPU has
    described = json.loads(json.dumps(device.describe()))
    assert described["pci_bus_id"] == "0000:3b:00.0"
    assert described["full_rows"]["fp64-2048-t8-w5"] == 8
    pipe = io.StringIO()
    variants = sorted(set(device.variants()) & set(gpu_device.HostDevice().variants()))
    gpu_correctness.check(device, variants, 5, True, Report(pipe))
    gpu_sweep.measure(device, variants, True, Report(pipe))
    lines = [json.loads(line) for line in pipe.getvalue().splitlines()]
    assert not any("mismatch" in line for line in lines)
    samples = [line["sample"] for line in lines if "sample" in line]
    assert {sample["variant"] for sample in samples} == {str(variant) for variant in variants}
    assert all(
        sample["ok"] and sample["kernel_seconds"] == [1e-3] for sample in samples if sample["section"] == "sweep"
    )


def test_the_files_need_nothing_that_a_cuda_image_lacks() -> None:
    """No matplotlib, and no test's package."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'trustme', 'uvloop', 'cupy']))"
    code = f"{blocked}; from bench import gpu, gpu_section; sys.exit(gpu.main(['--help']))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_rows_and_numbers_are_each_others_inverse() -> None:
    numbers = [0, 1, 2**2048 - 1, 0x0102]
    rows = gpu_batches.to_rows(numbers, 256)
    assert rows.dtype == np.uint8
    assert rows[3, :2].tolist() == [2, 1]
    assert gpu_batches.to_numbers(rows) == numbers
