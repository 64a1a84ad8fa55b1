"""What a section of the GPU suite tells the suite: lines of JSON through a pipe, checked at both ends."""

from typing import Annotated, Any, TextIO

import msgspec
from msgspec import Meta, Struct

Count = Annotated[int, Meta(gt=0)]
Positive = Annotated[float, Meta(gt=0)]
Times = Annotated[list[Positive], Meta(min_length=1)]


class Sample(Struct, kw_only=True, tag_field="section", forbid_unknown_fields=True):
    """One measurement. Its tag names its kind and the section that took it."""


class Compiled(Sample, tag="compile"):
    nvrtc: str
    units: int
    cached: int
    seconds: Annotated[float, Meta(ge=0)]


class Smoke(Sample, tag="smoke"):
    """A batch computed twice: the first time uploads its key and makes its blinding pairs."""

    bits: Count
    rows: Count
    first_seconds: Positive
    again_seconds: Positive


class Opened(Sample, tag="opened"):
    """The backend's start, which measures the kernels."""

    seconds: Positive
    curves: dict[str, list[tuple[Count, Positive]]]
    """Maps bits of a key to batches: how many rows, and how many seconds."""


class InFlight(Sample, tag="in-flight"):
    """Batches through the CUDA backend, without the queue: staging, copies and kernels."""

    bits: Count
    rows: Count
    in_flight: Count
    wiped: bool
    """Whether the device's memory was wiped behind each batch, as it always is outside this measurement."""
    rate: Positive
    latency_seconds: Times


class Pairs(Sample, tag="pairs"):
    """Batches one after the other, for long enough that blinding pairs are renewed."""

    sizes: str
    """The sizes of the batches, and of those before. With one size all pairs are due at once. With varied sizes the
    pairs' ages come to differ, and most batches have a few that are due."""
    rate: Positive
    latency_seconds: Times


class Sustained(Sample, tag="sustained"):
    """One moment of a long load."""

    at_seconds: Positive
    rate: Annotated[float, Meta(ge=0)]
    """Operations per second since the moment before."""
    power_watts: float | None = None
    sm_clock_hertz: float | None = None
    temperature_celsius: float | None = None


class Correctness(Sample, tag="correctness"):
    variant: str
    operation: str
    rows: Count
    wrong: Annotated[int, Meta(ge=0)]


class Pipe(Sample, tag="pipes"):
    pipe: str
    per_clock: Positive
    clock_hz: Positive


class Sweep(Sample, tag="sweep"):
    """One kernel alone at one batch size."""

    variant: str
    bits: Count
    rows: Count
    kernel_seconds: Times
    latency_seconds: Times
    """The copies in both directions are included."""
    ok: bool


class EndToEnd(Sample, tag="end-to-end"):
    """Requests through the batching provider."""

    by: str
    in_flight: Count
    rate: Positive
    p50: Positive | None = None
    p99: Positive | None = None
    mean_seconds: Positive | None = None
    mean_batch: Positive | None = None


class Profiled(Sample, tag="ncu"):
    """A figure that Nsight Compute printed."""

    metric: str
    unit: str
    value: float


AnySample = (
    Compiled | Smoke | Opened | InFlight | Pairs | Sustained | Correctness | Pipe | Sweep | EndToEnd | Profiled
)  # fmt: skip


class Progress(Struct, frozen=True, forbid_unknown_fields=True):
    what: str
    total: Count


class Line(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One line, which has one of these."""

    progress: Progress | None = None
    sample: AnySample | None = None
    note: str | None = None
    device: dict[str, Any] | None = None
    mismatch: dict[str, Any] | None = None


class Device(Struct, frozen=True):
    """What the suite itself uses of all that sections tell about the device."""

    name: str | None = None
    architecture: str | None = None
    multiprocessors: Count | None = None
    pci_bus_id: str | None = None
    defaults: dict[str, str] = {}
    """The kernel that the backend chooses, by "BITS/ROWS"."""


class Report:
    """Writes the lines."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe

    def progress(self, what: str, total: int) -> None:
        """Another of ``total`` steps begins."""
        self._write(Line(progress=Progress(what, total)))

    def sample(self, sample: AnySample) -> None:
        self._write(Line(sample=sample))

    def note(self, text: str) -> None:
        self._write(Line(note=text))

    def describe(self, device: dict[str, Any]) -> None:
        self._write(Line(device=device))

    def mismatch(self, **values: Any) -> None:
        """Reports a wrong result, and nothing secret."""
        self._write(Line(mismatch=values))

    def _write(self, line: Line) -> None:
        self._pipe.write(msgspec.json.encode(line).decode() + "\n")
        self._pipe.flush()


_DECODER = msgspec.json.Decoder(Line)


def read_line(text: bytes) -> Line | None:
    """None for what a working section would not print."""
    try:
        line = _DECODER.decode(text)
        if line.device is not None:
            msgspec.convert(line.device, Device)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if line == Line() else line
