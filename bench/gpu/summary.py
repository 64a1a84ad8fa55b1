"""What follows from the GPU suite's samples: rates beside the goals, the cost of each choice, and what the backend's
defaults should be."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..report import Curve, Result, Row, Spread, Target
from .goals import GOALS, ISSUE_CYCLES, ISSUE_SHARE, LATENCY, PEER, PEER_RATES, Goal
from .pipes import multiply_adds
from .report import (
    AnySample,
    Compiled,
    Correctness,
    Device,
    EndToEnd,
    InFlight,
    Opened,
    Pairs,
    Pipe,
    Profiled,
    Smoke,
    Sustained,
    Sweep,
)

UNIT = "private ops/s"
T = TypeVar("T")


def summarise(result: Result, samples: Sequence[AnySample], device: Device, clocks: Mapping[str, float]) -> None:
    """Adds rows and curves to the result. ``clocks``: the median SM clock in Hz while a section ran."""

    def of(kind: type[T]) -> list[T]:
        return [sample for sample in samples if isinstance(sample, kind)]

    kernels, batches = of(Sweep), of(InFlight)
    result.rows += correctness(of(Correctness))
    result.rows += rates(kernels, batches, device, clocks)
    result.rows += start(of(Compiled), of(Opened), of(Smoke))
    result.rows += in_flight(batches)
    result.rows += wiping(batches)
    result.rows += pairs(of(Pairs))
    result.rows += sustained(of(Sustained))
    result.rows += pipes(of(Pipe), device)
    result.rows += profile(of(Profiled))
    result.rows += recommendations(kernels, device)
    result.rows += end_to_end(of(EndToEnd))
    result.curves += curves(kernels, device)


def correctness(samples: list[Correctness]) -> Iterable[Row]:
    if samples:
        checked = sum(sample.rows for sample in samples)
        wrong = Spread.of([sum(sample.wrong for sample in samples)])
        yield Row("correctness", f"{len(samples)} kernels", f"wrong rows of {checked:,}", wrong, target=Target(0))


@dataclass(frozen=True)
class _Rate:
    """Something that computes private operations."""

    subject: str
    bits: int
    per_second: Spread
    milliseconds: Spread
    """The time of a batch with its copies."""
    section: str


def _milliseconds(seconds: Sequence[float]) -> Spread:
    return Spread.of([1e3 * each for each in seconds])


def _kernel_rate(sample: Sweep) -> Spread:
    return Spread.of([sample.rows / seconds for seconds in sample.kernel_seconds])


def rates(kernels: list[Sweep], batches: list[InFlight], device: Device, clocks: Mapping[str, float]) -> Iterator[Row]:
    """The best rate of each key size, and the best within the latency: of kernels alone, and through the backend."""
    alone = [
        _Rate(
            f"kernel {sample.variant} alone, batches of {sample.rows}", sample.bits,
            _kernel_rate(sample), _milliseconds(sample.latency_seconds), "sweep",
        )
        for sample in kernels
        if sample.ok
    ]  # fmt: skip
    through = [
        _Rate(
            f"CUDA backend, {_in_flight(sample)}", sample.bits,
            Spread.of([sample.rate]), _milliseconds(sample.latency_seconds), "in-flight",
        )
        for sample in batches
        if sample.wiped
    ]  # fmt: skip
    goals = GOALS.get(device.architecture or "", {})
    for bits in sorted({rate.bits for rate in [*alone, *through]}):
        goal = goals.get(bits, Goal())
        for source in (alone, through):
            mine = [rate for rate in source if rate.bits == bits]
            quick = [rate for rate in mine if rate.milliseconds.median <= 1e3 * LATENCY]
            yield from _best(f"RSA-{bits}, at most {1e3 * LATENCY:g} ms", quick, goal.quick, False)
            yield from _best(f"RSA-{bits}, any batch", mine, goal.best, True)
        fastest = max((rate for rate in through or alone if rate.bits == bits), key=_median, default=None)
        if fastest is not None:
            yield from _compared(fastest, device, clocks)


def _median(rate: _Rate) -> float:
    return rate.per_second.median


def _best(case: str, among: Sequence[_Rate], limit: float | None, is_goal: bool) -> Iterator[Row]:
    if among:
        best = max(among, key=_median)
        target = None if limit is None else Target(limit, at_most=False, goal=is_goal)
        yield Row(case, best.subject, UNIT, best.per_second, target=target)
        yield Row(case, best.subject, "ms, a batch with its copies", best.milliseconds)


def _compared(rate: _Rate, device: Device, clocks: Mapping[str, float]) -> Iterator[Row]:
    """The rate compared with the nearest peer's, and with what the GPU could do."""
    if rate.bits in PEER_RATES:
        ratio = Spread.of([rate.per_second.median / PEER_RATES[rate.bits]])
        yield Row(f"RSA-{rate.bits}, peer", rate.subject, UNIT, rate.per_second, PEER, ratio)
    cycles, clock = ISSUE_CYCLES.get(device.architecture or ""), clocks.get(rate.section)
    if rate.bits == 2048 and cycles and clock and device.multiprocessors:
        most = clock * device.multiprocessors / cycles
        yield Row(
            "RSA-2048, share of what issue allows", rate.subject, UNIT, rate.per_second,
            f"{most:,.0f}/s at {clock / 1e6:,.0f} MHz", Spread.of([rate.per_second.median / most]),
            Target(ISSUE_SHARE, at_most=False, goal=True),
        )  # fmt: skip


def start(compiled: list[Compiled], opened: list[Opened], smoke: list[Smoke]) -> Iterator[Row]:
    for sample in compiled:
        new = sample.units - sample.cached
        subject = f"NVRTC {sample.nvrtc}, {new} of {sample.units} units"
        yield Row("compiling", subject, "s", Spread.of([sample.seconds]))
    for each in opened:
        yield Row("opening the backend", "measures its kernels", "s", Spread.of([each.seconds]))
    for one in smoke:
        subject = f"RSA-{one.bits}, {one.rows} rows, the second time"
        yield Row("smoke", subject, "ms, a batch", _milliseconds([one.again_seconds]))


def _in_flight(sample: InFlight) -> str:
    return f"{sample.in_flight} in flight of {sample.rows} rows"


def in_flight(samples: list[InFlight]) -> Iterator[Row]:
    for sample in samples:
        if sample.wiped:
            case = f"CUDA backend, RSA-{sample.bits}"
            yield Row(case, _in_flight(sample), UNIT, Spread.of([sample.rate]))
            yield Row(case, _in_flight(sample), "ms, a batch", _milliseconds(sample.latency_seconds))


def wiping(samples: list[InFlight]) -> Iterator[Row]:
    wiped = {(sample.bits, sample.rows, sample.in_flight): sample.rate for sample in samples if sample.wiped}
    for sample in samples:
        if not sample.wiped:
            rate = wiped.get((sample.bits, sample.rows, sample.in_flight))
            ratio = None if rate is None else Spread.of([sample.rate / rate])
            case = f"RSA-{sample.bits}, without wiping"
            yield Row(case, _in_flight(sample), UNIT, Spread.of([sample.rate]), "with wiping", ratio)


def pairs(samples: list[Pairs]) -> Iterator[Row]:
    for sample in samples:
        case, subject = "RSA-2048, renewed blinding pairs", f"batches of {sample.sizes}, one at a time"
        yield Row(case, subject, UNIT, Spread.of([sample.rate]))
        yield Row(case, subject, "ms, a batch", _milliseconds(sample.latency_seconds))


def sustained(samples: list[Sustained]) -> Iterator[Row]:
    if not samples:
        return
    case, subject = "RSA-2048, sustained", f"{samples[-1].at_seconds:.0f} s"
    yield Row(case, subject, UNIT, Spread.of([sample.rate for sample in samples]))
    for unit, factor, values in (
        ("W", 1.0, [sample.power_watts for sample in samples]),
        ("MHz", 1e-6, [sample.sm_clock_hertz for sample in samples]),
        ("°C", 1.0, [sample.temperature_celsius for sample in samples]),
    ):
        if known := [factor * value for value in values if value is not None]:
            yield Row(case, subject, unit, Spread.of(known))


def pipes(samples: list[Pipe], device: Device) -> Iterator[Row]:
    for sample in samples:
        yield Row("pipe", sample.pipe, "per SM and clock", Spread.of([sample.per_clock]))
    by_pipe = {sample.pipe: sample for sample in samples}
    for arithmetic, pipe in (("int32", "IMAD.WIDE with carry"), ("fp64", "DFMA")):
        if pipe in by_pipe and device.multiprocessors:
            each = by_pipe[pipe].per_clock * by_pipe[pipe].clock_hz * device.multiprocessors
            limit = each / multiply_adds(arithmetic, 2048, 5)
            yield Row("RSA-2048, what the pipe allows", f"{arithmetic}: {pipe}", UNIT, Spread.of([limit]))


def profile(samples: list[Profiled]) -> Iterator[Row]:
    for sample in samples:
        yield Row("Nsight Compute", sample.metric, sample.unit, Spread.of([sample.value]))


def recommendations(samples: list[Sweep], device: Device) -> Iterator[Row]:
    """The fastest kernel for each key size and batch, next to the one that the backend chooses."""
    right = [sample for sample in samples if sample.ok]
    for bits, rows in sorted({(sample.bits, sample.rows) for sample in right}):
        mine = {sample.variant: _kernel_rate(sample) for sample in right if (sample.bits, sample.rows) == (bits, rows)}
        best = max(mine, key=lambda variant: mine[variant].median)
        default = device.defaults.get(f"{bits}/{rows}")
        ratio = Spread.of([mine[best].median / mine[default].median]) if default in mine else None
        baseline = None if default is None else f"default {default}"
        yield Row(f"fastest, RSA-{bits}, batches of {rows}", best, UNIT, mine[best], baseline, ratio)


def end_to_end(samples: list[EndToEnd]) -> Iterator[Row]:
    for sample in samples:
        case, subject = "batching provider, RSA-2048", f"{sample.in_flight} in flight by {sample.by}"
        yield Row(case, subject, "requests/s", Spread.of([sample.rate]))
        for unit, seconds in (("p50", sample.p50), ("p99", sample.p99), ("mean", sample.mean_seconds)):
            if seconds is not None:
                yield Row(case, subject, f"ms, {unit}", Spread.of([1e3 * seconds]))


def curves(samples: list[Sweep], device: Device) -> Iterator[Curve]:
    """The kernels that the backend chooses for some size of batch."""
    for variant in sorted(set(device.defaults.values())):
        if mine := [sample for sample in samples if sample.ok and sample.variant == variant]:
            points = [(float(sample.rows), _kernel_rate(sample)) for sample in mine]
            yield Curve(variant, "rows of a batch", UNIT, points, logarithmic=True)
            times = [(float(sample.rows), _milliseconds(sample.latency_seconds)) for sample in mine]
            yield Curve(variant, "rows of a batch", "ms, a batch with its copies", times, logarithmic=True)
