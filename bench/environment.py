"""What a result depends on: machine, versions, commit. Every result file has it."""

import functools
import importlib.metadata
import os
import platform
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gpu-provider", "cffi", "cryptography", "numpy", "uvloop")


def first_line(*command: str) -> str | None:
    """The first line that a program prints, or None if it is not installed, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=10)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else None


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def describe() -> dict[str, Any]:
    """Machine, versions and commit, as JSON can hold them; None for what is not installed. Found out once, because a
    program that saves results several times was started from one state."""
    # Without bench/results: what one measurement saves must not count as a change in the next.
    changed = first_line("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "cores_allowed": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "versions": {
            "python": platform.python_version(),
            "openssl_of_python": ssl.OPENSSL_VERSION,
            "openssl": first_line("openssl", "version"),
            "haproxy": first_line("haproxy", "-v"),
            "cc": first_line("cc", "--version"),
            **{name: package_version(name) for name in PACKAGES},
        },
        "commit": first_line("git", "rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else changed != "",
    }
