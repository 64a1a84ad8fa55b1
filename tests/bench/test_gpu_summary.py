"""What the GPU suite concludes from its samples, whichever of them there are."""

from __future__ import annotations

from typing import Any

import pytest

from bench import report
from bench.gpu import report as gpu_report
from bench.gpu import summary


def sweep_sample(variant: str, rows: int, kernel: float) -> gpu_report.Sweep:
    bits = int(variant.split("-")[1])
    return gpu_report.Sweep(
        variant=variant, bits=bits, rows=rows, kernel_seconds=[kernel], latency_seconds=[kernel + 1e-4], ok=True
    )


def in_flight_sample(rate: float, **values: Any) -> gpu_report.InFlight:
    given = {"bits": 2048, "rows": 2048, "in_flight": 3, "wiped": True, "latency_seconds": [0.002], **values}
    return gpu_report.InFlight(rate=rate, **given)


def summarised(samples: list[gpu_report.AnySample], **device: Any) -> list[report.Row]:
    result = report.Result("gpu", "", {})
    summary.summarise(result, samples, gpu_report.Device(**device), {"in-flight": 1.755e9})
    return result.rows


def test_rates_are_held_against_the_goals_and_the_defaults() -> None:
    samples = [
        sweep_sample("fp64-2048-t4-w4", 1024, 0.002),
        sweep_sample("fp64-2048-t8-w5", 1024, 0.001),
        sweep_sample("fp64-2048-t4-w4", 8192, 0.004),
    ]
    made = summarised([*samples], architecture="sm_90", defaults={"2048/1024": "fp64-2048-t4-w4"})
    rows = {(row.case, row.unit): row for row in made}
    quick = rows["RSA-2048, at most 3 ms", summary.UNIT]
    assert quick.measured.median == pytest.approx(1024e3)
    assert quick.met
    goal = rows["RSA-2048, any batch", summary.UNIT]
    assert goal.measured.median == pytest.approx(2048e3)
    assert (str(goal.target), goal.met) == ("goal ≥ 2e+06", True)
    fastest = rows["fastest, RSA-2048, batches of 1024", summary.UNIT]
    assert (fastest.subject, fastest.baseline) == ("fp64-2048-t8-w5", "default fp64-2048-t4-w4")
    assert fastest.ratio is not None
    assert fastest.ratio.median == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("architecture", "bits", "goal"),
    [("sm_90", 2048, 2.0e6), ("sm_90", 3072, 0.5e6), ("sm_90", 4096, 0.25e6), ("sm_89", 2048, 0.78e6),
     ("sm_120", 2048, 0.78e6), ("sm_89", 4096, 98e3), ("sm_80", 2048, None)],
)  # fmt: skip
def test_each_architecture_has_its_own_goal(architecture: str, bits: int, goal: float | None) -> None:
    rows = summarised([in_flight_sample(1e5, bits=bits)], architecture=architecture)
    row = next(row for row in rows if row.case == f"RSA-{bits}, any batch" and row.unit == summary.UNIT)
    assert (row.target and row.target.limit) == goal


def test_a_rate_is_compared_with_the_peer_and_with_what_the_gpu_can_issue() -> None:
    rows = summarised([in_flight_sample(1.59e6)], architecture="sm_90", multiprocessors=132)
    by_case = {row.case: row for row in rows if row.ratio}
    assert by_case["RSA-2048, peer"].ratio.median == pytest.approx(1.59e6 / 0.39e6)  # type: ignore[union-attr]
    share = by_case["RSA-2048, share of what issue allows"]
    assert share.ratio is not None
    assert share.ratio.median == pytest.approx(0.75)
    assert share.met is False


def test_what_wiping_costs_is_a_ratio() -> None:
    rows = summarised([in_flight_sample(1e6), in_flight_sample(1.1e6, wiped=False)])
    (row,) = (row for row in rows if "without wiping" in row.case)
    assert row.ratio is not None
    assert row.ratio.median == pytest.approx(1.1)
    assert not any(row.measured.median == 1.1e6 for row in rows if "any batch" in row.case)


ONE_OF_EACH: list[gpu_report.AnySample] = [
    gpu_report.Compiled(nvrtc="13.0", units=6, cached=2, seconds=9.0),
    gpu_report.Smoke(bits=2048, rows=9, first_seconds=0.1, again_seconds=0.01),
    gpu_report.Opened(seconds=1.0, curves={}),
    in_flight_sample(1.0),
    in_flight_sample(1.0, wiped=False),
    gpu_report.Pairs(sizes="varied sizes", rate=1.0, latency_seconds=[1.0]),
    gpu_report.Sustained(at_seconds=1.0, rate=0.0),
    gpu_report.Sustained(at_seconds=1.0, rate=1.0, power_watts=1.0, sm_clock_hertz=1.0, temperature_celsius=1.0),
    gpu_report.Correctness(variant="x", operation="private", rows=1, wrong=0),
    gpu_report.Pipe(pipe="DFMA", per_clock=64.0, clock_hz=1e9),
    sweep_sample("fp64-2048-t4-w4", 1, 1.0),
    gpu_report.EndToEnd(by="futures", in_flight=1, rate=1.0),
    gpu_report.Profiled(metric="Duration", unit="ms", value=1.0),
]


@pytest.mark.parametrize("sample", ONE_OF_EACH, ids=lambda sample: type(sample).__name__)
def test_any_sample_is_summarised_without_the_others(sample: gpu_report.AnySample) -> None:
    assert summarised([sample])
