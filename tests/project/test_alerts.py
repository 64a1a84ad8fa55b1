"""The alerting rules are ones that Prometheus takes; each fires in the trouble it is for, and none without trouble."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).resolve().parents[2] / "dashboards" / "alerts.yaml"
TERMINATOR = "gpu_provider_terminator_"
GROWS, STAYS = "0+60x120", "0x120"
"""By one in a second, for two hours; not at all."""

TROUBLE = {
    f'{TERMINATOR}handshake_failures_total{{reason="no_common_cipher"}}': "GpuProviderHandshakesFail",
    f'{TERMINATOR}handshake_failures_total{{reason="client_unknown_ca"}}': "GpuProviderClientsDistrustCertificate",
    f'{TERMINATOR}handshake_seconds_bucket{{result="ok",le="2.5"}}': "GpuProviderHandshakesSlow",
    f'{TERMINATOR}accept_queue_seconds_bucket{{le="2.5"}}': "GpuProviderConnectionsAcceptedLate",
    f"{TERMINATOR}connection_limit_reached_total": "GpuProviderConnectionLimitReached",
    f"{TERMINATOR}overloads_total": "GpuProviderOverload",
    f'{TERMINATOR}sessions_total{{end="upstream_unreachable"}}': "GpuProviderUpstreamFails",
    f'{TERMINATOR}shortages_total{{reason="Too many open files"}}': "GpuProviderShortage",
    f'{TERMINATOR}reloads_total{{result="failed"}}': "GpuProviderReloadFailed",
    f"{TERMINATOR}worker_replacements_total": "GpuProviderWorkersEnd",
    f"{TERMINATOR}log_lines_dropped_total": "GpuProviderLogIncomplete",
    "gpu_provider_retries_total": "GpuProviderQueueFull",
    'gpu_provider_fallbacks_total{backend="cuda",reason="wrong_result"}': "GpuProviderWrongResults",
    'gpu_provider_keys{prepared="unlocked"}': "GpuProviderKeysNotLocked",
    'gpu_provider_service_refused_total{reason="not_allowed"}': "GpuProviderProgramsRefused",
    "gpu_provider_service_accept_failures_total": "GpuProviderProgramsNotAccepted",
    'gpu_provider_service_ended_total{program="nginx",reason="protocol_error"}': "GpuProviderProtocolBroken",
}
"""What must not grow, and the alert that says so if it does."""

BUSY = {
    f'{TERMINATOR}handshakes_total{{result="ok"}}': GROWS,
    f'{TERMINATOR}sessions_total{{end="closed"}}': GROWS,
    f'{TERMINATOR}handshake_failures_total{{reason="http_request"}}': GROWS,
    f'{TERMINATOR}handshake_seconds_bucket{{result="ok",le="0.25"}}': GROWS,
    f'{TERMINATOR}handshake_seconds_bucket{{result="ok",le="+Inf"}}': GROWS,
    f'{TERMINATOR}accept_queue_seconds_bucket{{le="0.25"}}': GROWS,
    f'{TERMINATOR}accept_queue_seconds_bucket{{le="+Inf"}}': GROWS,
    f'{TERMINATOR}certificate_expiry_timestamp_seconds{{certificate="a.pem"}}': f"{90 * 86400}x120",
    f"{TERMINATOR}client_crl_expiry_timestamp_seconds": f"{90 * 86400}x120",
    'gpu_provider_backend_in_use{backend="cuda"}': "1x120",
}
"""A terminator that has work and no trouble, and clients that are sometimes no TLS clients."""

SLOW = {
    f'{TERMINATOR}handshake_seconds_bucket{{result="ok",le="0.25"}}': STAYS,
    f'{TERMINATOR}accept_queue_seconds_bucket{{le="0.25"}}': STAYS,
    f'{TERMINATOR}certificate_expiry_timestamp_seconds{{certificate="a.pem"}}': f"{2 * 86400}x120",
    f"{TERMINATOR}client_crl_expiry_timestamp_seconds": f"{4 * 3600}x120",
    'gpu_provider_backend_in_use{backend="cuda"}': "0x120",
}

promtool = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(promtool is None, reason="promtool (Debian's prometheus) is not installed")


def run_promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def alerts() -> list[str]:
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"]]


def scenario(series: dict[str, str], firing: list[str]) -> dict[str, Any]:
    """Which alerts there are after two hours of it."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "2h",
                "exp_samples": [{"labels": json.dumps(name).join(("{alertname=", "}")), "value": 1} for name in firing],
            }
        ],
    }


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    assert f"{len(alerts())} rules found" in run_promtool("check", "rules", str(RULES))


@needs_promtool
def test_each_alert_fires_in_its_trouble_and_none_without(tmp_path: Path) -> None:
    healthy = BUSY | dict.fromkeys(TROUBLE, STAYS)
    troubled = BUSY | dict.fromkeys(TROUBLE, GROWS) | SLOW
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(RULES)],
                "evaluation_interval": "1m",
                "tests": [scenario(healthy, []), scenario(troubled, alerts())],
            }
        )
    )
    run_promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_every_alert_has_a_trouble_that_is_tried() -> None:
    by_value = {"GpuProviderCertificateExpires", "GpuProviderRevocationListExpires", "GpuProviderBackendOut"}
    assert {*TROUBLE.values(), *by_value} == set(alerts())
