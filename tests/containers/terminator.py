"""Builds the images with buildah, starts the terminator in its own as the image's user, and talks to it as a client
would. Then likewise what ``containers/compose.yaml`` describes.

Needs root, PyYAML, and what ``buildah.py`` needs. If something is missing, it exits with status 77 and prints one line
that names it.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import compose
from buildah import ROOT, SKIPPED, Buildah, base_image, contained_process, missing, written
from clients import free_port, make_certificate, request

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "localhost/gpu-provider"


class Upstream(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello from the upstream: {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Silent."""


def wait_until_healthy(
    buildah: Buildah, container: str, healthcheck: list[str], launcher: subprocess.Popen[str]
) -> None:
    """Runs the image's own HEALTHCHECK as an engine does, until it passes."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if launcher.poll() is not None:
            sys.exit(f"container: the terminator ended with status {launcher.returncode}")
        done = subprocess.run(
            buildah.arguments("run", *ENVIRONMENT, container, "--", *healthcheck),
            env=buildah.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:
            return
        time.sleep(0.2)
    sys.exit("container: the HEALTHCHECK did not pass within 60 s")


ADMIN_PORT = free_port()
ENVIRONMENT = ["--env", f"GPU_PROVIDER_ADMIN=127.0.0.1:{ADMIN_PORT}"]


@contextmanager
def step(name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"container: {name} ({time.monotonic() - start:.0f} s)", flush=True)


def check_image(config: dict[str, object]) -> tuple[list[str], list[str]]:
    """The image's entry point and health check, in exec form, and its user."""
    user, entry, health = config["User"], config["Entrypoint"], config["Healthcheck"]
    assert isinstance(user, str)
    assert user.partition(":")[0].isdigit(), f"the user {user!r} is not a number"
    assert user.partition(":")[0] != "0", "the image runs as root"
    assert isinstance(entry, list)
    assert isinstance(health, dict)
    assert health["Test"][0] == "CMD", f"the health check {health['Test']} is not in exec form"
    return entry, health["Test"][1:]


def check_running(buildah: Buildah, container: str, directory: Path, entry: list[str], health: list[str]) -> None:
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port, root = free_port(), buildah("mount", container)
    settings = directory / "terminator.toml"
    settings.write_text(
        f'listen = "127.0.0.1:{port}"\nupstream = "127.0.0.1:{upstream.server_port}"\n'
        'cert = ["/etc/gpu-provider/chain.pem"]\nkey = ["/etc/gpu-provider/key.pem"]\n'
    )
    compilers = [name for name in ("gcc", "cc", "clang", "pip") if list(Path(root).glob(f"usr/bin/{name}*"))]
    assert not compilers, f"the runtime image carries {compilers}"
    before = time.time()
    volume = ["--volume", f"{directory}:/etc/gpu-provider:ro"]
    arguments = [*entry, "terminator", "--config", "/etc/gpu-provider/terminator.toml"]
    log = directory.parent / "terminator.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            buildah.arguments("run", *volume, *ENVIRONMENT, container, "--", *arguments),
            env=buildah.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a group of its own, to end all of it by if a check fails
        ) as launcher,
    ):
        try:
            with step("the HEALTHCHECK passes"):
                wait_until_healthy(buildah, container, health, launcher)
            process = contained_process(launcher)
            status = Path(f"/proc/{process}/status").read_text()
            assert "Uid:\t65532\t65532" in status, f"the terminator runs as another user:\n{status}"
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                answer = request(port, directory / "chain.pem", version, f"/{version.name}")
                assert f"hello from the upstream: /{version.name}".encode() in answer, answer
            with urllib.request.urlopen(f"http://127.0.0.1:{ADMIN_PORT}/metrics", timeout=5) as metrics:
                assert b"gpu_provider" in metrics.read()
            os.kill(process, signal.SIGTERM)
            assert launcher.wait(timeout=30) == 0, f"after SIGTERM: exit status {launcher.returncode}"
        except BaseException:
            print(log.read_text(), file=sys.stderr)
            raise
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
    files = written(Path(root), 65532, before)
    assert not files, f"the terminator wrote to its root file system: {files}"
    upstream.shutdown()


def main() -> int:
    if lacking := missing("openssl"):
        print(f"skipped: {lacking}")
        return SKIPPED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is below cleans up
    with tempfile.TemporaryDirectory(prefix="gpu-provider-container-") as scratch:
        buildah = Buildah(Path(scratch))
        with step("base image"):
            base = base_image(buildah, "bookworm")
        build = ["bud", "--format", "docker", "--layers=true", "--build-arg", f"BASE={base}"]
        with step("image of HAProxy with the module built"):
            buildah(*build, "--target", "haproxy", "-t", f"{IMAGE}-haproxy", str(ROOT))
        with step("image built"):
            buildah(*build, "-t", IMAGE, str(ROOT))
        config = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
        entry, health = check_image(config)
        container = buildah("from", "--pull-never", IMAGE)
        directory = Path(scratch) / "settings"
        directory.mkdir(mode=0o755)
        Path(scratch).chmod(0o711)
        make_certificate(directory)
        try:
            with step("TLS 1.2 and 1.3 handshakes, metrics, SIGTERM"):
                check_running(buildah, container, directory, entry, health)
            with step("a connection through HAProxy in one container and the service in another"):
                compose.check(buildah, Path(scratch))
        finally:
            buildah("umount", "--all")
            buildah("rm", "--all")
    print("container: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
