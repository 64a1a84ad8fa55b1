"""The figures of GPUs in the metrics, with a stand-in for NVIDIA's module, as there is no GPU here."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest
from rsa_keys import private_key

from bench.gpu.host_device import HostDevice
from gpu_provider import BatchingProvider, ProviderConfig
from gpu_provider.backends.cuda.backend import CudaBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BUS_ID = "0000:3b:00.0"


class NVMLError(Exception):
    pass


class Pynvml(ModuleType):
    """The functions of ``pynvml`` that are used, with NVML's units. ``fail`` names those that raise."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.fail: set[str] = set()
        self.calls = 0
        self.answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetHandleByPciBusId": lambda bus_id: {BUS_ID: 7}[bus_id],
            "nvmlDeviceGetPowerUsage": lambda _gpu: 345_600,
            "nvmlDeviceGetClockInfo": lambda _gpu, clock: {1: 1755, 2: 2619}[clock],
            "nvmlDeviceGetUtilizationRates": lambda _gpu: SimpleNamespace(gpu=87, memory=3),
            "nvmlDeviceGetMemoryInfo": lambda _gpu: SimpleNamespace(used=2 << 30, total=80 << 30),
            "nvmlDeviceGetTemperature": lambda _gpu, _sensor: 61,
        }

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self.answers:
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.calls += 1
            if name in self.fail:
                raise NVMLError(name)
            return self.answers[name](*arguments)

        return call


class Gpu(HostDevice):
    """The host device in place of a GPU."""

    pci_bus_id = BUS_ID


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Pynvml:
    module = Pynvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


@pytest.fixture
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider(ProviderConfig(queue_depth=16), backends=[CudaBackend(Gpu())]) as provider:
        yield provider


def scrape(provider: BatchingProvider) -> dict[str, float]:
    lines = generate_latest(provider.registry).decode().splitlines()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("gpu_provider_gpu_")
    }  # fmt: skip


def test_the_figures_of_the_gpu_in_use(nvml: Pynvml, provider: BatchingProvider) -> None:
    assert scrape(provider) == {
        'gpu_provider_gpu_power_watts{backend="cuda"}': pytest.approx(345.6),
        'gpu_provider_gpu_clock_hertz{backend="cuda",clock="sm"}': 1755e6,
        'gpu_provider_gpu_clock_hertz{backend="cuda",clock="memory"}': 2619e6,
        'gpu_provider_gpu_utilization_ratio{backend="cuda"}': 0.87,
        'gpu_provider_gpu_memory_bytes{backend="cuda",memory="used"}': 2 << 30,
        'gpu_provider_gpu_memory_bytes{backend="cuda",memory="total"}': 80 << 30,
        'gpu_provider_gpu_temperature_celsius{backend="cuda"}': 61,
    }


def test_a_figure_that_the_gpu_does_not_have_is_left_out(nvml: Pynvml, provider: BatchingProvider) -> None:
    nvml.fail = {"nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates"}
    figures = scrape(provider)
    assert len(figures) == 5
    assert not any("power" in name or "utilization" in name for name in figures)


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByPciBusId"])
def test_a_driver_that_fails_costs_the_figures_alone_and_one_log_line(
    nvml: Pynvml, provider: BatchingProvider, caplog: pytest.LogCaptureFixture, function: str
) -> None:
    nvml.fail = {function}
    caplog.set_level(logging.INFO)
    assert scrape(provider) == scrape(provider) == {}
    assert [record.name for record in caplog.records].count("gpu_provider.observe.nvml") == 1
    key = provider.load_key(private_key(2048))
    assert pow(provider.private_op(key, 2), key.e, key.n) == 2
    assert b'gpu_provider_requests_total{result="ok",size="2048"} 1.0' in generate_latest(provider.registry)
    nvml.fail = set()
    assert scrape(provider)  # it tries again


def test_without_nvidia_ml_py_the_scrape_works(monkeypatch: pytest.MonkeyPatch, provider: BatchingProvider) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert scrape(provider) == {}
    assert b"gpu_provider_queue_depth 16.0" in generate_latest(provider.registry)


def test_without_a_gpu_in_use_nvml_is_not_touched(nvml: Pynvml) -> None:
    with BatchingProvider(ProviderConfig(backend="cpu")) as provider:
        assert scrape(provider) == {}
    with BatchingProvider(ProviderConfig(queue_depth=16), backends=[CudaBackend(HostDevice())]) as provider:
        assert scrape(provider) == {}
    assert nvml.calls == 0
