"""Starts what ``containers/compose.yaml`` describes, with buildah in place of Docker, and opens TLS connections through
HAProxy in one container whose signatures the service in the other one computes.

What chroot isolation can't do is left out: networks (both have the host's), and read-only roots, in which nothing may
be written all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from buildah import ROOT, contained_process, written
from clients import free_port, make_certificate, request

if TYPE_CHECKING:
    from buildah import Buildah

COMPOSE = ROOT / "containers" / "compose.yaml"
TIMEOUT = 60
GREETING = b"hello\n"


def allowed(name: str, most: int) -> str:
    """A limit of the Compose file, -1 for none, or what this machine allows of it."""
    _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
    number = min(most % (1 << 63), hard % (1 << 63))
    return f"{number}:{number}"


class Container:
    """One service of the Compose file, in a container of the image that was built for it."""

    def __init__(self, buildah: Buildah, scratch: Path, name: str, described: dict[str, Any]) -> None:
        self._buildah, self._log, self._described = buildah, scratch / f"{name}.log", described
        limits = [f"--ulimit={name}={allowed(name, most)}" for name, most in described["ulimits"].items()]
        self._name = buildah("from", "--pull-never", *limits, f"localhost/{described['image']}")
        self._config = json.loads(buildah("inspect", "--type", "image", f"localhost/{described['image']}"))["Docker"][
            "config"
        ]
        self.root = Path(buildah("mount", self._name))
        self._launcher: subprocess.Popen[bytes] | None = None

    def start(self, mounted: dict[str, Path], environment: dict[str, str]) -> None:
        """``mounted``: what is mounted for the sources of its volumes. ``environment``: what differs here."""
        options = ["--user", self._described["user"]]
        for volume in self._described["volumes"]:
            source, _, rest = volume.partition(":")
            options += ["--volume", f"{mounted[source]}:{rest}"]
        for variable, value in {**self._described.get("environment", {}), **environment}.items():
            options += ["--env", f"{variable}={value}"]
        command = [*self._config["Entrypoint"], *self._described.get("command", [])]
        with self._log.open("w") as output:
            self._launcher = subprocess.Popen(
                self._buildah.arguments("run", *options, self._name, "--", *command),
                env=self._buildah.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, to end all of it by
            )
        self._started = time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception: object, *_: object) -> None:
        if self._launcher is not None and self._launcher.poll() is None:
            os.killpg(self._launcher.pid, signal.SIGKILL)
            self._launcher.wait()
        if exception is not None and self._log.exists():
            print(self._log.read_text(), file=sys.stderr)

    @property
    def user(self) -> int:
        return int(self._described["user"].partition(":")[0])

    def check_runs_as_user(self) -> None:
        assert self._launcher is not None
        status = Path(f"/proc/{contained_process(self._launcher)}/status").read_text()
        assert f"Uid:\t{self.user}\t{self.user}" in status, f"it runs as another user:\n{status}"

    def stop(self) -> None:
        """As ``docker compose stop`` does."""
        assert self._launcher is not None
        number = getattr(signal, self._config.get("StopSignal") or "SIGTERM")
        os.kill(contained_process(self._launcher), number)
        assert self._launcher.wait(TIMEOUT) == 0, f"exit status {self._launcher.returncode}"
        files = written(self.root, self.user, self._started)
        assert not files, f"it wrote to its root file system: {files}"


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return
        assert time.monotonic() < deadline, "the service does not become ready"
        time.sleep(0.1)


def served(port: int) -> int:
    """Requests that the service has taken."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    values = re.findall(r"^gpu_provider_service_requests_total\{.*\} (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, values)))


def wait_until_greeted(port: int, authority: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return greet(port, authority, ssl.TLSVersion.TLSv1_3)
        assert time.monotonic() < deadline, "HAProxy does not listen"
        time.sleep(0.1)


def greet(port: int, authority: Path, version: ssl.TLSVersion) -> None:
    answer = request(port, authority, version, "/")
    assert answer.endswith(GREETING), answer


def volume(scratch: Path, container: Container, path: str) -> Path:
    """A new volume, as Docker makes it: with the owner that the directory has in the image."""
    directory = scratch / "volume"
    directory.mkdir()
    status = (container.root / path.lstrip("/")).stat()
    os.chown(directory, status.st_uid, status.st_gid)
    directory.chmod(status.st_mode & 0o7777)
    return directory


def check(buildah: Buildah, scratch: Path) -> None:
    described = yaml.safe_load(COMPOSE.read_text())["services"]
    port, admin_port = free_port(), free_port()
    certificates = scratch / "certificates"
    certificates.mkdir()
    make_certificate(certificates)
    (certificates / "site.pem").write_bytes(b"".join((certificates / n).read_bytes() for n in ("chain.pem", "key.pem")))
    authority = scratch / "authority.pem"
    (certificates / "chain.pem").rename(authority)
    (certificates / "key.pem").unlink()
    configuration = scratch / "haproxy.cfg"
    text = (COMPOSE.parent / "haproxy.cfg").read_text().replace(":8443", f"127.0.0.1:{port}")
    # This machine may allow too few descriptors for as many connections as there.
    configuration.write_text(re.sub(r"maxconn \d+", "maxconn 500", text))
    service = Container(buildah, scratch, "service", described["service"])
    haproxy = Container(buildah, scratch, "haproxy", described["haproxy"])
    assert not list(haproxy.root.glob("usr/bin/python3*")), "HAProxy's image carries Python"
    shutil.chown(certificates / "site.pem", haproxy.user)
    mounted = {
        "socket": volume(scratch, service, "/run/gpu-provider"),
        "./haproxy.cfg": configuration,
        "./certificates": certificates,
    }
    with service, haproxy:
        service.start(mounted, {"GPU_PROVIDER_ADMIN": f"127.0.0.1:{admin_port}"})
        wait_until_ready(admin_port)
        haproxy.start(mounted, {})
        wait_until_greeted(port, authority)
        service.check_runs_as_user()
        haproxy.check_runs_as_user()
        before = served(admin_port)
        for version in [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3] * 50:
            greet(port, authority, version)
        assert served(admin_port) - before >= 90, "HAProxy's signatures do not come from the service"
        service.stop()
        greet(port, authority, ssl.TLSVersion.TLSv1_3)
        haproxy.stop()
