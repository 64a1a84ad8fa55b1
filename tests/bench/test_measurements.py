"""The bench runs to its end at tiny sizes, and what it saves says everything that a reader needs. Never how fast."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("matplotlib", reason="the bench draws with matplotlib, the [bench] extra")

from bench import (
    clusters,
    environment,
    groups,
    harness,
    modexp,
    plot,
    queue_overhead,
    report,
    scheduling,
    tokens,
    transport,
    waiting,
)
from bench.kernels import speed
from bench.servers import connections, flood, latency, module, service, throughput
from gpu_provider import kernels
from gpu_provider.native import _core

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


def measure_module(bench: harness.Bench, advance: Callable[[str, int], None]) -> report.Result:
    """With portable kernels, so that there are groups on any processor."""
    return module.measure(
        bench,
        rounds=1,
        connections={2048: 16},
        jobs=(64,),
        clients=(8,),
        settings="kernels = portable",
        advance=advance,
    )


MEASUREMENTS: dict[str, Callable[[harness.Bench, Callable[[str, int], None]], report.Result]] = {
    "connections": lambda bench, advance: connections.measure(
        bench,
        rounds=2,
        connections={2048: 3, 4096: 2},
        before=ROOT if (ROOT / ".venv").exists() else None,
        advance=advance,
    ),
    "groups": lambda bench, advance: groups.measure(
        bench,
        rounds=1,
        seconds=0.2,
        cases=[groups.Case(groups.JOBS, 8, 2048), groups.Case(groups.THREADS, 4, 2048)],
        advance=advance,
    ),
    "kernels": lambda bench, advance: speed.measure(
        bench, rounds=2, seconds=0, sizes=speed.Sizes(batch=8, keys=1, batch_sizes=(1, 8)), advance=advance
    ),
    "modexp": lambda bench, advance: modexp.measure(
        bench, rounds=1, seconds=0, sizes=(256, 1024), paillier_bits=(512,), advance=advance
    ),
    "module": measure_module,
    "service": lambda bench, advance: service.measure(
        bench,
        rounds=1,
        connections={2048: 64},
        clients=dict.fromkeys(service.CLIENTS, (64,)),
        advance=advance,
    ),
    "transport": lambda bench, advance: transport.measure(
        bench, rounds=2, requests=200, hop_depths=(64,), ways={"jobs": (1, 64), "threads": (1,)}, advance=advance
    ),
    "tokens": lambda bench, advance: tokens.measure(bench, rounds=2, tokens={2048: 20}, advance=advance),
    "clusters": lambda bench, advance: clusters.measure(bench, rounds=2, rows=1024, advance=advance),
    "queue": lambda bench, advance: queue_overhead.measure(bench, rounds=2, requests=500, advance=advance),
    "throughput": lambda bench, advance: throughput.measure(
        bench, rounds=1, size=1 << 20, connections_at_once=(1, 4), advance=advance
    ),
    "latency": lambda bench, advance: latency.measure(bench, rounds=2, connections=3, advance=advance),
    "flood": lambda bench, advance: flood.measure(
        bench, rounds=1, seconds=1.0, connections=32, bits=2048, advance=advance
    ),
    "scheduling": lambda bench, advance: scheduling.measure(
        bench,
        scenarios=scheduling.SCENARIOS[2:4],
        rates=(1000,),
        requests=50,
        cases=[case for case in waiting.CASES if case.clients == 16 or case.load == 0.5],
        connections=100,
        advance=advance,
    ),
}


@pytest.mark.parametrize("what", MEASUREMENTS)
def test_a_measurement_runs_and_its_file_is_complete(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "find_haproxy", lambda: harness.shutil.which("haproxy"))  # installs nothing
    steps: list[int] = []
    with harness.Bench() as bench:
        result = MEASUREMENTS[what](bench, lambda _name, total: steps.append(total))
    path = report.save(result, tmp_path)
    document: dict[str, Any] = json.loads(path.read_text())
    assert path.name.endswith(f"-{what}.json")
    assert len(steps) >= len(document["samples"])
    assert document["samples"]
    assert document["environment"]["machine"]["cpu"]
    for user in ("python", "gpu_provider", "cryptography"):
        assert document["environment"]["versions"][f"openssl_of_{user}"]
    assert any(row["met"] is not None for row in document["rows"])
    for row in document["rows"]:
        for spread in filter(None, (row["measured"], row["ratio"])):
            assert spread["low"] <= spread["median"] <= spread["high"]
    assert plot.draw(path).read_bytes().startswith(b"\x89PNG")


def test_the_module_is_measured_in_openssl_where_there_is_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "find_haproxy", lambda: None)
    monkeypatch.setattr(module, "APACHE_MODULES", tmp_path / "missing")
    with harness.Bench() as bench:
        result = measure_module(bench, lambda _what, _total: None)
    assert {row.case for row in result.rows} == {"openssl speed, RSA-2048, 64 jobs"}
    (grouped,) = (row.measured for row in result.rows if row.unit == "requests per group")
    assert 2 <= grouped.median <= 8  # 64 jobs are company enough
    assert plot.draw(report.save(result, tmp_path)).exists()
    for program in ("haproxy", "apache2"):
        assert sum(note.startswith(f"{program} is not installed") for note in result.notes) == 1
    assert any("no AVX-512 IFMA" in note for note in result.notes) == (kernels.isa() is not kernels.Isa.IFMA)


def test_a_program_that_does_not_reach_the_module_is_not_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "find_haproxy", lambda: None)
    monkeypatch.setattr(module, "APACHE_MODULES", tmp_path / "missing")
    monkeypatch.setattr(module, "MODULE", tmp_path / "missing.so")  # programs go on without it, and say nothing
    with harness.Bench() as bench, pytest.raises(harness.BenchError, match=r"64 jobs: nothing .* in .*missing\.so"):
        measure_module(bench, lambda _what, _total: None)


@pytest.mark.parametrize("bundled", ["a newer one", "the same"])
def test_the_kernels_are_compared_with_each_openssl_at_hand_by_its_version(
    bundled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = environment.openssl_linked()
    monkeypatch.setattr(speed, "openssl_of_cryptography", lambda: linked if bundled == "the same" else "OpenSSL 99.0.1")
    with harness.Bench() as bench:
        result = MEASUREMENTS["kernels"](bench, lambda _name, _total: None)
    expected = {linked} if bundled == "the same" else {linked, "OpenSSL 99.0.1"}
    for bits in (2048, 3072, 4096):
        rows = [row for row in result.rows if row.case == f"RSA-{bits}"]
        assert {row.baseline for row in rows if row.ratio} - {"limit"} == expected
        assert {row.subject for row in rows} - {"kernels", "limit"} == expected
    assert any("OpenSSL 99.0.1 is cryptography's" in note for note in result.notes) == (bundled == "a newer one")
    assert any(f"cryptography uses {linked} too" in note for note in result.notes) == (bundled == "the same")


def test_the_linked_openssl_is_measured_under_its_own_version() -> None:
    measured = ctypes.CDLL(_core.__file__)
    measured.OpenSSL_version.restype = ctypes.c_char_p
    assert measured.OpenSSL_version(0).decode().startswith(f"{environment.openssl_linked()} ")


def test_what_the_bench_started_has_ended_after_it() -> None:
    with harness.Bench() as bench:
        server = bench.asyncio_relay(bench.upstream(), uvloop=False)
        assert bench.load(server, 3, 2, 10).connections == 3
        directory = bench.directory
    assert server.process.returncode is not None
    assert not directory.exists()


def test_a_failed_connection_is_an_error_and_not_a_fast_one() -> None:
    with harness.Bench() as bench:
        nobody = bench.asyncio_relay(harness.free_port(), uvloop=False)
        with pytest.raises(harness.BenchError, match="3 of 3 connections to asyncio failed"):
            bench.load(nobody, 3, 1, 10)


def test_a_checkout_that_is_not_set_up_is_named_with_the_remedy(tmp_path: Path) -> None:
    with harness.Bench() as bench, pytest.raises(harness.BenchError, match=rf"make -C {tmp_path} \.venv/ready-bench"):
        bench.relays(bench.upstream(), [], before=tmp_path)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_bench_and_its_servers(how: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "bench", "throughput", "--output", str(tmp_path / "results")]
    # In the background of a shell SIGINT is ignored, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stderr is not None
        try:
            while not list(tmp_path.glob("gpu-provider-bench-*/upstream-*.log")):
                assert process.poll() is None, process.stderr.read()
            process.send_signal(how)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[how], errors
    assert b"Traceback" not in errors
    assert not list(tmp_path.glob("gpu-provider-bench-*"))


def test_servers_die_with_a_bench_that_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    code = "from bench.harness import Bench; bench = Bench().__enter__(); print(bench.upstream(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(30)
            process.kill()
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""


def test_rows_are_json_lines_in_a_pipe_and_a_table_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    spread = report.Spread.of_ratios([2.0, 3.0, 4.0], [4.0, 4.0, 4.0])
    row = report.Row("a case", "ours", "µs", report.Spread.of([2.0, 3.0, 4.0]), "theirs", spread, report.Target(0.7))
    result = report.Result("what", "Title", {}, rows=[row], notes=["haproxy is missing"])
    report.show(result, report.Console())
    first, note = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["ratio"] == {"median": 0.75, "low": 0.5, "high": 1.0}
    assert first["met"] is False
    assert note["note"] == "haproxy is missing"
    report.show(result, report.Console(force_terminal=True, width=200))
    table = capsys.readouterr().out
    assert "≤ 0.7" in table
    assert "haproxy is missing" in table


@pytest.mark.parametrize("rate", [10, 10_000, 60_000, 100_000, 500_000, 2_000_000])
@pytest.mark.parametrize("name", ["Poisson, mixed sizes, 1 GPU", "bursts, RSA-2048, 8 GPUs"])
def test_processor_and_gpu_together_are_no_worse_than_the_better_of_them(name: str, rate: int) -> None:
    """Simulated, so the same on any machine: a batch in the wrong place costs one of the two its advantage."""
    (scenario,) = (scenario for scenario in scheduling.SCENARIOS if scenario.name == name)
    latency, throughput = scheduling.ratios(scheduling.compare(scenario, rate, requests=1000, bursts=50))
    assert latency <= 1.05
    assert throughput >= 0.95


@pytest.mark.parametrize("clients", [1, 2, 64])
def test_waiting_for_company_saves_processor_time_and_costs_no_latency(clients: int) -> None:
    """Simulated too: without patience, processor time is wasted; with too much, requests wait for nobody."""
    comparison = waiting.compare(waiting.Case(waiting.Machine(2), "RSA-4096", clients), connections=5000)
    assert comparison.mean_latency() <= 1.03
    if clients == 64:
        assert comparison.waiting.operation <= 0.5 * comparison.at_once.operation
