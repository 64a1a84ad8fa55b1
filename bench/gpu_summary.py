"""What follows from the GPU suite's samples: rates against the targets, and what the backend's defaults should be."""

from collections.abc import Iterable, Mapping
from typing import Any

from .gpu_pipes import multiply_adds
from .report import Result, Row, Spread, Target

LATENCY = 0.003
# Private operations per second of one H100, of the issue that these kernels were made for: the first, then the goal.
TARGETS = {2048: (0.8e6, 1.6e6), 3072: (None, 0.45e6), 4096: (None, 0.19e6)}
UNIT = "private ops/s"


def summarise(result: Result, device: Mapping[str, Any]) -> None:
    """Adds rows to the result."""
    by_section: dict[str, list[dict[str, Any]]] = {}
    for sample in result.samples:
        by_section.setdefault(sample["section"], []).append(sample)
    result.rows += correctness(by_section.get("correctness", []))
    result.rows += pipes(by_section.get("pipes", []), device)
    result.rows += rates(by_section.get("sweep", []))
    result.rows += recommendations(by_section.get("sweep", []), device)
    result.rows += through_backend(by_section.get("backend", []))
    result.rows += end_to_end(by_section.get("end-to-end", []))


def correctness(samples: list[dict[str, Any]]) -> Iterable[Row]:
    if samples:
        checked = sum(sample["rows"] for sample in samples)
        wrong = Spread.of([sum(sample["wrong"] for sample in samples)])
        yield Row("correctness", f"{len(samples)} kernels", f"wrong rows of {checked:,}", wrong, target=Target(0))


def pipes(samples: list[dict[str, Any]], device: Mapping[str, Any]) -> Iterable[Row]:
    for sample in samples:
        yield Row("pipe", sample["pipe"], "per SM and clock", Spread.of([sample["per_clock"]]))
    by_pipe = {sample["pipe"]: sample for sample in samples}
    for arithmetic, pipe in (("int32", "IMAD.WIDE with carry"), ("fp64", "DFMA")):
        if pipe in by_pipe:
            each = by_pipe[pipe]["per_clock"] * by_pipe[pipe]["clock_hz"] * device["multiprocessors"]
            limit = each / multiply_adds(arithmetic, 2048, 5)
            yield Row("RSA-2048, what the pipe allows", f"{arithmetic}: {pipe}", UNIT, Spread.of([limit]))


def rate(sample: dict[str, Any]) -> Spread:
    return Spread.of([sample["rows"] / seconds for seconds in sample["kernel_seconds"]])


def latency(sample: dict[str, Any]) -> Spread:
    return Spread.of([1e3 * seconds for seconds in sample["latency_seconds"]])


def rates(samples: list[dict[str, Any]]) -> Iterable[Row]:
    """The best of each key size, and of those within the latency."""
    for bits, (first, goal) in TARGETS.items():
        mine = [sample for sample in samples if sample["bits"] == bits and sample["ok"]]
        quick = [sample for sample in mine if latency(sample).median <= 1e3 * LATENCY]
        for what, among, limit, is_goal in (
            (f"at most {1e3 * LATENCY:g} ms", quick, first, False),
            ("any batch", mine, goal, True),
        ):
            if among:
                best = max(among, key=lambda sample: rate(sample).median)
                target = None if limit is None else Target(limit, at_most=False, goal=is_goal)
                subject = f"{best['variant']}, batches of {best['rows']}"
                yield Row(f"RSA-{bits}, {what}", subject, UNIT, rate(best), target=target)
                yield Row(f"RSA-{bits}, {what}", subject, "ms, a batch with its copies", latency(best))


def recommendations(samples: list[dict[str, Any]], device: Mapping[str, Any]) -> Iterable[Row]:
    """The fastest kernel for each key size and batch, next to the one that the backend takes."""
    defaults = device.get("defaults", {})
    cases = sorted({(sample["bits"], sample["rows"]) for sample in samples if sample["ok"]})
    for bits, rows in cases:
        mine = {
            sample["variant"]: rate(sample)
            for sample in samples
            if (sample["bits"], sample["rows"]) == (bits, rows) and sample["ok"]
        }
        best = max(mine, key=lambda variant: mine[variant].median)
        default = defaults.get(f"{bits}/{rows}")
        ratio = Spread.of([mine[best].median / mine[default].median]) if default in mine else None
        baseline = None if default is None else f"default {default}"
        yield Row(f"fastest, RSA-{bits}, batches of {rows}", best, UNIT, mine[best], baseline, ratio)


def through_backend(samples: list[dict[str, Any]]) -> Iterable[Row]:
    for sample in samples:
        case, subject = f"CUDA backend, RSA-{sample['bits']}", f"batches of {sample['rows']}"
        yield Row(case, subject, UNIT, Spread.of([sample["rate"]]))
        yield Row(case, subject, "ms, a batch", latency(sample))


def end_to_end(samples: list[dict[str, Any]]) -> Iterable[Row]:
    for sample in samples:
        case, subject = "batching provider, RSA-2048", f"{sample['in_flight']} in flight by {sample['by']}"
        yield Row(case, subject, "requests/s", Spread.of([sample["rate"]]))
        for name in ("p50", "p99", "mean_seconds"):
            if name in sample:
                unit = f"ms, {name.removesuffix('_seconds')}"
                yield Row(case, subject, unit, Spread.of([1e3 * sample[name]]))
