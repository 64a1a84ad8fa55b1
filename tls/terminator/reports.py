"""The metrics of several processes, as if one had counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Reports"]

_EARLIEST = ("_timestamp_seconds", "_start_time_seconds")
_LIVING = frozenset(("gauge", "info", "unknown"))
"""Types of metrics that end with their process."""


class _Sum:
    def __init__(self, family: Metric) -> None:
        self.type = family.type
        self.documentation = family.documentation
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(self, family: Metric) -> None:
        for sample in family.samples:
            key = sample.name, tuple(sample.labels.items())
            before = self.values.get(key)
            if before is None:
                self.values[key] = sample.value
            elif sample.name.endswith(_EARLIEST):
                self.values[key] = min(before, sample.value)
            else:
                self.values[key] = before + sample.value


class Reports(Collector):
    """Adds up processes' reports, which are in Prometheus' text format, and what this process itself uses. Of times,
    the earliest counts."""

    def __init__(self) -> None:
        self._own = ProcessCollector(registry=None)
        self._ended: dict[str, _Sum] = {}
        self.live: Iterable[str] = ()
        """The last report of each process."""

    def end(self, report: str) -> None:
        """A process has ended, and what it counted stays: a counter never goes down."""
        _add(self._ended, (one for one in text_string_to_metric_families(report) if one.type not in _LIVING))

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        sums: dict[str, _Sum] = {}
        _add(sums, _families(self._ended))
        _add(sums, self._own.collect())
        for report in self.live:
            _add(sums, text_string_to_metric_families(report))
        yield from _families(sums)


def _add(sums: dict[str, _Sum], families: Iterable[Metric]) -> None:
    for family in families:
        sums.setdefault(family.name, _Sum(family)).add(family)


def _families(sums: dict[str, _Sum]) -> Iterator[Metric]:
    for name, one in sums.items():
        family = Metric(name, one.documentation, one.type)
        for (sample, labels), value in one.values.items():
            family.add_sample(sample, dict(labels), value)
        yield family
