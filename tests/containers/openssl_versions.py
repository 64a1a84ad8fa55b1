"""Runs the tests of the provider and of TLS with the versions of OpenSSL that Debian 12 doesn't have: 3.5 and 4.0.

A container of Debian 13 has OpenSSL 3.5. Then 4.0 is installed from Debian's experimental suite, and what is linked to
OpenSSL is rebuilt. Needs root, and what ``buildah.py`` needs. If the machine can't fetch them, it exits with status 77
and prints one line that says why. Uses the standard library alone.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from buildah import ROOT, SKIPPED, Buildah, base_image, missing

PACKAGES = "binutils ca-certificates ccache gcc g++ libc6-dev libssl-dev openssl python3-dev python3-venv"
# The tests whose outcome can depend on OpenSSL's version.
TESTS = [
    *("openssl/test_default_operations", "openssl/test_default_parameters", "openssl/test_openssl_config"),
    *("openssl/test_openssl_program", "openssl/test_other_libcrypto", "openssl/test_rsa_decryption"),
    *("openssl/test_wrong_keys", "provider/test_provider", "tls/test_async_status", "tls/test_connection"),
    *("service/test_key_references", "tls/test_credentials", "tls/test_session_tickets", "tls/test_verification"),
]
INSTALL = "apt-get -qq update && apt-get -qq install -y --no-install-recommends"
# A mirror may be a snapshot, older than experimental's Valid-Until.
EXPERIMENTAL = """set -eu
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: trixie' | head -n 1)
echo "deb [check-valid-until=no] $archive experimental main" >/etc/apt/sources.list.d/experimental.list
"""
# With ccache, since the kernels take longest to compile and don't depend on OpenSSL.
BUILD = "PATH=/usr/lib/ccache:$PATH /venv/bin/pip install --quiet --disable-pip-version-check --editable '/src[test]'"
VERSION = """import sys
sys.path.insert(0, "/src/tests/support")
import ctypes, evp
evp._lib.OpenSSL_version.restype = ctypes.c_char_p
print(evp._lib.OpenSSL_version(0).decode())
"""


class Container:
    def __init__(self, buildah: Buildah, base: str) -> None:
        self._buildah, self._name = buildah, buildah("from", base)

    def copy(self, source: Path, target: str) -> None:
        self._buildah("copy", "--quiet", self._name, str(source), target)

    def attempt(self, command: str) -> tuple[int, str]:
        environment = ["--env", "DEBIAN_FRONTEND=noninteractive", "--env", "LANG=C.UTF-8", "--workingdir", "/src"]
        return self._buildah.attempt("run", *environment, self._name, "--", "sh", "-c", command)

    def run(self, command: str) -> str:
        status, output = self.attempt(command)
        if status:
            sys.exit(f"{output[-20000:]}\nopenssl-versions: failed with status {status}: {command}")
        return output

    def fetch(self, command: str) -> None:
        status, output = self.attempt(command)
        if status:
            reasons = [line for line in output.splitlines() if line.startswith("E: ")] or output.splitlines()
            print(f"skipped: cannot fetch what it needs from Debian: {reasons[-1]}")
            sys.exit(SKIPPED)


def copy_of_repository(directory: Path) -> Path:
    """Without what was built for this machine."""
    built = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache")
    return Path(shutil.copytree(ROOT, directory / "src", ignore=built))


def build_and_test(container: Container, wanted: str) -> None:
    start = time.monotonic()
    container.run(BUILD)
    version = container.run(f"/venv/bin/python -c '{VERSION}'")
    if not version.startswith(f"OpenSSL {wanted}."):
        sys.exit(f"openssl-versions: the tests would run with {version!r}, not {wanted}")
    built = time.monotonic() - start
    files = " ".join(f"tests/{name}.py" for name in TESTS)
    arguments = f"-n $(nproc) --dist loadfile -p no:cacheprovider {files}"
    output = container.run(f"/venv/bin/pytest {arguments}")
    print(f"openssl-versions: {version} (built in {built:.0f} s): {output.splitlines()[-1].strip('= ')}", flush=True)


def main() -> int:
    if lacking := missing():
        print(f"skipped: {lacking}")
        return SKIPPED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is below cleans up
    with tempfile.TemporaryDirectory(prefix="gpu-provider-openssl-") as scratch:
        buildah = Buildah(Path(scratch) / "containers")
        container = Container(buildah, base_image(buildah, "trixie"))
        try:
            container.copy(copy_of_repository(Path(scratch)), "/src")
            container.fetch(f"{INSTALL} {PACKAGES}")
            container.run("python3 -m venv /venv")
            build_and_test(container, "3.5")
            container.run(EXPERIMENTAL)
            container.fetch(f"{INSTALL} -t experimental libssl-dev openssl")
            build_and_test(container, "4.0")
        finally:
            buildah("rm", "--all")
    print("openssl-versions: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
