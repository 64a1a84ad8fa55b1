"""What a request to ``gpu-provider service`` costs without its computation: ``transport.c``, over the real queue and
service. Each hop alone, and a program and a service together."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence

from .environment import ROOT
from .harness import DIES_WITH_US, LOAD_TIMEOUT, RSA_BITS, Bench, BenchError
from .report import Result, Target

NATIVE = ROOT / "gpu_provider" / "native"
HOP_DEPTHS = (64, 1024)
WAYS = {"jobs": (1, 64, 256, 1024), "threads": (1, 8)}
PROGRAM, SERVICE, BOTH = "program", "service", "program and service"
HOPS = {
    "submit": (PROGRAM, "submit: a slot, and the request into it"),
    "doorbell": (PROGRAM, "doorbell, one for a batch, nobody asleep"),
    "take": (SERVICE, "take: out of the program's queue into a batch"),
    "complete": (SERVICE, "complete: the result into the slot"),
    "wake_job": (SERVICE, "wake a paused job by its descriptor"),
    "wake_thread": (SERVICE, "wake a thread, nobody asleep"),
    "drain": (PROGRAM, "read the descriptor"),
    "collect": (PROGRAM, "collect: the result out of the slot"),
}
LIMIT, LIMIT_OF_ONE = 8.0, 40.0  # µs


def measure(
    bench: Bench,
    *,
    rounds: int,
    requests: int,
    hop_depths: Sequence[int] = HOP_DEPTHS,
    ways: Mapping[str, Sequence[int]] = WAYS,
    advance: Callable[[str, int], None],
) -> Result:
    """``requests``: of each run; one at a time, a tenth of them."""
    result = Result(
        "transport",
        "A request to the service without its computation: µs of CPU by hop, and of both processes together",
        {"rounds": rounds, "requests": requests, "hop_depths": hop_depths, "ways": ways, "rsa_bits": RSA_BITS},
    )
    sources = sorted(str(path) for path in NATIVE.rglob("*.c") if path.name != "module.c")
    program = str(bench.compile("transport", *sources, f"-I{NATIVE}", f"-I{ROOT / 'kernels'}", "-pthread", "-lcrypto"))
    runs = [("hops", depth) for depth in hop_depths] + [(way, depth) for way in ways for depth in ways[way]]
    for turn in range(rounds):
        for what, depth in runs:
            advance(f"{what}, {depth} at a time", rounds * len(runs))
            if what == "hops":
                measured = run(program, "hops", depth, max(1, requests // depth))
            else:
                count = requests if depth > 1 else -(-requests // 10)
                measured = run(program, "requests", bench.directory / "transport-socket", what, depth, count)
                measured[BOTH] = sum(measured.values())
            result.samples.append({"round": turn, "what": what, "depth": depth, **measured})
    for depth in hop_depths:
        for hop, (where, name) in HOPS.items():
            values = result.values(hop, what="hops", depth=depth)
            result.add_row(f"{depth} at a time", f"{where}: {name}", "µs of CPU for each hop", values)
    for what, depth in runs[len(hop_depths) :]:
        limit = LIMIT_OF_ONE if depth == 1 else LIMIT if depth >= 64 else None
        for where in (PROGRAM, SERVICE, BOTH):
            values = result.values(where, what=what, depth=depth)
            target = Target(limit) if limit and where == BOTH else None
            case = f"{depth} {what if depth > 1 else what[:-1]} at a time"
            result.add_row(case, where, "µs of CPU for each request", values, target=target)
    return result


def run(program: str, *arguments: object) -> dict[str, float]:
    command = [*DIES_WITH_US, program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LOAD_TIMEOUT)
    if done.returncode:
        raise BenchError(f"transport ended with {done.returncode}: {done.stderr.strip()}")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured
