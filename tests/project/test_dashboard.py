"""Every metric and label that the Grafana dashboard or an alerting rule asks for is one that services and terminators
expose."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from groups import TIMEOUT, find_program, public_directory
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from service_process import Service
from terminator_process import echo_terminator

from gpu_provider.client import Client
from gpu_provider.observe.metrics import ProviderCollector
from gpu_provider.observe.nvml import GpuFigures, Nvml
from gpu_provider.observe.stats import Statistics

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = Path(__file__).resolve().parents[2] / "dashboards"
DASHBOARD: dict[str, Any] = json.loads((DIRECTORY / "gpu-provider.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((DIRECTORY / "alerts.yaml").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_PROMETHEUS = {"instance", "job"}
"""Labels that it adds itself."""
TOKEN = re.compile(r'"[^"]*"|\[[^\]]*\]|[A-Za-z_:][\w:]*|=~|!~|!=|[\d.]+|[^\s\w]')
NAME = re.compile(r"[A-Za-z_:]")
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}


@dataclass(frozen=True)
class Query:
    """What a PromQL expression asks for."""

    metrics: dict[str, set[str]]
    """With the labels by which each is selected."""
    groupings: list[set[str]]


def parse(expression: str) -> Query:
    tokens = TOKEN.findall(expression)
    assert "".join(tokens) == re.sub(r"\s", "", expression)
    metrics: defaultdict[str, set[str]] = defaultdict(set)
    groupings: list[set[str]] = []
    place = 0

    def names_until(closing: str) -> set[str]:
        nonlocal place
        found = set()
        while tokens[place] != closing:
            if NAME.match(tokens[place]):
                found.add(tokens[place])
            place += 1
        return found

    while place < len(tokens):
        token, following = tokens[place], tokens[place + 1] if place + 1 < len(tokens) else ""
        place += 1
        if token in GROUPING:
            groupings.append(names_until(")"))
        elif NAME.match(token) and following == "{":
            metrics[token] |= names_until("}")
        elif NAME.match(token) and following not in {"(", *GROUPING}:
            metrics.setdefault(token, set())
    return Query(dict(metrics), groupings)


def labels(text: str) -> Iterator[tuple[str, set[str]]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, set(sample.labels)


def text_with_a_gpu() -> str:
    registry, client = CollectorRegistry(), Client(1)
    registry.register(ProviderCollector(client, Statistics(client, "cpu"), 1, lambda: {"cuda": "0000:3b:00.0"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Nvml, "read", lambda _self, _bus_id: GpuFigures(1, 1, 1, 1, 1, 1, 1))
        return generate_latest(registry).decode()


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of each metric, of a service and a terminator that have had something to do."""
    speed = [find_program("openssl"), "speed", "-seconds", "1", "-async_jobs", "8", "rsa2048"]
    with public_directory("service = {path}/socket") as directory, Service(directory.path / "socket") as service:
        subprocess.run(speed, env=directory.environment, capture_output=True, timeout=TIMEOUT, check=True)
        assert service.metric("gpu_provider_service_requests_total") > 0
        texts = [service.admin("/metrics")[1]]
    for flags in ((), ("--workers", "2")):
        with echo_terminator(tmp_path_factory.mktemp("credentials"), *flags) as terminator:
            terminator.echo()
            texts.append(terminator.admin("/metrics")[1])
    found: defaultdict[str, set[str]] = defaultdict(set)
    for text in (*texts, text_with_a_gpu()):
        for name, its_labels in labels(text):
            found[name] |= its_labels
    return found


def test_each_query_asks_for_what_is_exposed(exposed: dict[str, set[str]]) -> None:
    for target in (target for panel in PANELS for target in panel["targets"]):
        query = parse(target["expr"])
        assert query.metrics
        for metric, selected in query.metrics.items():
            assert metric in exposed
            for names in (selected, *query.groupings):
                assert names <= exposed[metric] | OF_PROMETHEUS, target["expr"]
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert shown <= set().union(*query.groupings), target["expr"]


def test_each_alert_asks_for_what_is_exposed(exposed: dict[str, set[str]]) -> None:
    for rule in (rule for group in ALERTS["groups"] for rule in group["rules"]):
        query = parse(rule["expr"])
        assert query.metrics
        for metric, selected in query.metrics.items():
            assert metric in exposed, rule["alert"]
            for names in (selected, *query.groupings):
                assert names <= exposed[metric] | OF_PROMETHEUS, rule["alert"]
        shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert shown <= set().union(*query.groupings), rule["alert"]


def test_what_the_instances_are_found_by_is_exposed(exposed: dict[str, set[str]]) -> None:
    (query,) = [
        variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"
    ]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()  # type: ignore[union-attr]
    assert metric in exposed
    assert label in OF_PROMETHEUS


def test_panels_are_beside_each_other_and_have_one_id_each() -> None:
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in every):
        columns, rows = (range(place[start], place[start] + place[size]) for start, size in ("xw", "yh"))
        cells = set(itertools.product(columns, rows))
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_an_expression_is_taken_apart() -> None:
    query = parse('sum by (le, a) (rate(x_bucket{b=~"c{d}", e!="f"}[$__rate_interval])) / on (g) h - time()')
    assert query == Query({"x_bucket": {"b", "e"}, "h": set()}, [{"le", "a"}, {"g"}])
