"""What an admin port says at a time, and what has changed between two times."""

from __future__ import annotations

import http.client
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from gpu_provider.errors import GpuProviderError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gpu_provider.addresses import Address

__all__ = ["Buckets", "Change", "Scrape", "UnreachableError", "scrape"]

_TIMEOUT_SECONDS = 5.0
_MOST_BYTES = 1 << 24
_BUILD = "gpu_provider_build_info"

Labels = frozenset[tuple[str, str]]
Series = dict[str, dict[Labels, float]]


class UnreachableError(GpuProviderError):
    """Nothing answers, or not as a service or a terminator does."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """The values of all series, by name and labels."""

    seconds: float
    """Of a clock that only moves on."""
    series: Series

    def sum(self, name: str, **labels: str) -> float:
        return sum(self.by(name, **labels).values())

    def by(self, name: str, *names: str, **labels: str) -> dict[tuple[str, ...], float]:
        """Sums of the series that have these labels, by the values of the labels with these names."""
        return _by(self.series, name, names, labels)

    def label(self, name: str, label: str) -> str:
        """Of the first series with this name; empty if there is none."""
        return next((value for labels in self.series.get(name, {}) for key, value in labels if key == label), "")


def scrape(address: Address) -> Scrape:
    """Raises UnreachableError."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        text = response.read(_MOST_BYTES).decode()
        if response.length:
            raise ConnectionError("the answer broke off")
        found: Series = defaultdict(dict)
        for family in text_string_to_metric_families(text) if response.status == http.HTTPStatus.OK else ():
            for sample in family.samples:
                found[sample.name][frozenset(sample.labels.items())] = sample.value
    except OSError as error:
        raise UnreachableError(f"{address}: {error.strerror or error}") from None
    except (http.client.HTTPException, ValueError):
        found = {}
    finally:
        connection.close()
    if _BUILD not in found:
        raise UnreachableError(f"{address}: what answers there is no admin port of gpu-provider")
    return Scrape(time.monotonic(), dict(found))


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram: how many observations are in each bucket, by its upper bound."""

    counts: dict[float, float]

    @property
    def total(self) -> float:
        return sum(self.counts.values())

    def quantile(self, share: float) -> float | None:
        """Interpolated within its bucket. Above the last finite bound, that bound; None: there is no observation."""
        rank, below = share * self.total, 0.0
        for lower, upper in pairwise((0.0, *sorted(self.counts))):
            count = self.counts[upper]
            if count > 0 and below + count >= rank:
                return lower if math.isinf(upper) else lower + (upper - lower) * (rank - below) / count
            below += count
        return None


class Change:
    """By how much counters have grown between two scrapes."""

    def __init__(self, old: Scrape, new: Scrape) -> None:
        self.seconds = new.seconds - old.seconds
        self._grown = {
            name: {labels: _grown(old.series.get(name, {}).get(labels, 0.0), value) for labels, value in series.items()}
            for name, series in new.series.items()
        }

    def sum(self, name: str, **labels: str) -> float:
        return sum(self.by(name, **labels).values())

    def by(self, name: str, *names: str, **labels: str) -> dict[tuple[str, ...], float]:
        """As of a :class:`Scrape`."""
        return _by(self._grown, name, names, labels)

    def rate(self, name: str, **labels: str) -> float:
        """Per second."""
        return self.sum(name, **labels) / self.seconds

    def rates(self, name: str, *names: str) -> dict[tuple[str, ...], float]:
        return {values: grown / self.seconds for values, grown in self.by(name, *names).items()}

    def buckets(self, name: str, **labels: str) -> Buckets:
        """Of a histogram, all its series with these labels together."""
        return Buckets(dict(_buckets(self.by(f"{name}_bucket", "le", **labels))))


def _grown(old: float, new: float) -> float:
    """What is smaller than before counts anew: the process was started again."""
    return new if new < old else new - old


def _buckets(cumulative: Mapping[tuple[str, ...], float]) -> Iterator[tuple[float, float]]:
    below = 0.0
    for bound, count in sorted((float(le), count) for (le,), count in cumulative.items()):
        yield bound, count - below
        below = count


def _by(series: Series, name: str, names: tuple[str, ...], wanted: dict[str, str]) -> dict[tuple[str, ...], float]:
    sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for labels, value in series.get(name, {}).items():
        values = dict(labels)
        if wanted.items() <= values.items():
            sums[tuple(values.get(key, "") for key in names)] += value
    return dict(sums)
