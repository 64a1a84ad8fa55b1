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

from cryptography.hazmat.backends.openssl.backend import backend

from gpu_provider.native import ffi, lib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gpu-provider", "cffi", "cryptography", "numpy", "PyJWT", "uvloop")


def first_line(*command: str) -> str | None:
    """The first line that a program prints, or None if it is not installed, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=10)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else None


def cpuinfo(name: str) -> str | None:
    """What the kernel says of the first processor; None if it says nothing by that name, as on other architectures."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def openssl_linked() -> str:
    """The OpenSSL that gpu-provider is linked to, as a rule the distribution's: "OpenSSL 3.0.22"."""
    text: Any = ffi.string(lib.OpenSSL_version(0))
    return without_date(text.decode())


def openssl_of_cryptography() -> str:
    """The OpenSSL that ``cryptography`` uses: its wheel brings a new one, a distribution's package uses the
    distribution's."""
    return without_date(backend.openssl_version_text())


def without_date(version: str) -> str:
    return " ".join(version.split()[:2])


@functools.cache
def describe() -> dict[str, Any]:
    """Machine, versions and commit, as JSON can hold them; None for what is not installed. Found out once, because a
    program that saves results several times was started from one state."""
    # Without bench/results: what one measurement saves must not count as a change in the next.
    changed = first_line("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return {
        "machine": {
            "cpu": cpuinfo("model name") or platform.machine(),
            # A virtual machine's name for it can be as short as "AMD EPYC", whatever the generation.
            "cpu_family": cpuinfo("cpu family"),
            "cpu_model": cpuinfo("model"),
            "cpu_stepping": cpuinfo("stepping"),
            "cores": os.cpu_count(),
            "cores_allowed": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "versions": {
            "python": platform.python_version(),
            "openssl_of_python": ssl.OPENSSL_VERSION,
            "openssl_of_gpu_provider": openssl_linked(),
            "openssl_of_cryptography": openssl_of_cryptography(),
            "openssl": first_line("openssl", "version"),
            "haproxy": first_line("haproxy", "-v"),
            "apache2": first_line("apache2", "-v"),
            "cc": first_line("cc", "--version"),
            **{name: package_version(name) for name in PACKAGES},
        },
        "commit": first_line("git", "rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else changed != "",
    }
