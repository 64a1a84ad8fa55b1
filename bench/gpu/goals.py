"""What the kernels should reach on each architecture: private operations per second, blinded and verified."""

from dataclasses import dataclass

LATENCY = 0.003
"""Seconds that a batch may take where a goal says "quick"."""


@dataclass(frozen=True)
class Goal:
    """The rates to reach with one key size."""

    quick: float | None = None
    """Required, with batches that take at most LATENCY."""
    best: float | None = None
    """Wanted next, with any batch."""


# For an H100 or H200, with 132 multiprocessors, and for a GPU as large as an L40S or an RTX 5090.
GOALS: dict[str, dict[int, Goal]] = {
    "sm_90": {2048: Goal(quick=0.8e6, best=2.0e6), 3072: Goal(best=0.5e6), 4096: Goal(best=0.25e6)},
    "sm_89": {2048: Goal(best=0.78e6), 4096: Goal(best=98e3)},
    "sm_120": {2048: Goal(best=0.78e6), 4096: Goal(best=98e3)},
}

PEER = "the nearest peer, on an L40S"
PEER_RATES = {2048: 0.39e6, 4096: 49e3}


ISSUE_CYCLES = {"sm_90": 1.755e9 * 132 / 2.12e6}
"""Clock cycles in which a multiprocessor's schedulers issue the instructions of one RSA-2048 operation. (An H100, with
1.755 GHz and 132 of them, could issue 2.12 million operations per second.)"""
ISSUE_SHARE = 0.83
"""How much of that rate the kernel should reach."""
