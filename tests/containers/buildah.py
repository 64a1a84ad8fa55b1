"""Containers without a container engine: buildah with chroot isolation, as root, on a base image made by debootstrap.

The base's files are kept in ``build/container`` for the next run. ``BASE=`` names another base image instead. Uses the
standard library alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "container"
SKIPPED = 77
LOCAL_AUTHORITIES = Path("/usr/local/share/ca-certificates")


class Buildah:
    """buildah with its own storage, which the caller removes."""

    def __init__(self, storage: Path) -> None:
        self._command = ["buildah", "--storage-driver", "vfs", "--root", str(storage / "root")]
        self._command += ["--runroot", str(storage / "run")]
        self.environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}

    def arguments(self, *arguments: str) -> list[str]:
        return [*self._command, *arguments]

    def attempt(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output."""
        done = subprocess.run(
            self.arguments(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=900,
        )
        return done.returncode, done.stdout.strip()

    def __call__(self, *arguments: str) -> str:
        status, output = self.attempt(*arguments)
        if status:
            sys.exit(f"buildah {arguments[0]} failed with status {status}:\n{output[-8000:]}")
        return output


def missing(*more: str) -> str | None:
    """What this machine lacks of what a container needs and of the ``more`` programs, if anything."""
    if os.geteuid() != 0:
        return "not root"
    tools = ["buildah", *more, *([] if os.environ.get("BASE") else ["debootstrap"])]
    return next((f"{tool} is not installed" for tool in tools if shutil.which(tool) is None), None)


def base_image(buildah: Buildah, suite: str) -> str:
    """The image to build on: ``BASE``, or a minimal Debian of this suite that trusts the CAs that this machine does."""
    if image := os.environ.get("BASE"):
        return image
    tree, incomplete = CACHE / suite, CACHE / f"{suite}.incomplete"
    if not tree.exists():
        shutil.rmtree(incomplete, ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        log = CACHE / f"debootstrap-{suite}.log"
        with log.open("w") as output:
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", suite, str(incomplete)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            print(f"skipped: debootstrap cannot fetch Debian: {log.read_text().strip().splitlines()[-1]}")
            sys.exit(SKIPPED)
        if LOCAL_AUTHORITIES.is_dir():
            shutil.copytree(LOCAL_AUTHORITIES, incomplete / LOCAL_AUTHORITIES.relative_to("/"), dirs_exist_ok=True)
        incomplete.rename(tree)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(tree), "/")
    image = f"localhost/gpu-provider-{suite}"
    buildah("commit", "--quiet", "--rm", container, image)
    return image


def contained_process(launcher: subprocess.Popen[str]) -> int:
    """The last in the chain of processes that buildah started, which a container engine would signal."""
    process = launcher.pid
    while children := [
        int(child) for tasks in Path(f"/proc/{process}/task").glob("*/children") for child in tasks.read_text().split()
    ]:
        (process,) = children
    return process


def written(root: Path, user: int, since: float) -> list[str]:
    """Files of this user that have been written since then."""
    files = (path for path in root.rglob("*") if not path.is_symlink() and path.exists())
    return [str(path) for path in files if path.stat().st_uid == user and path.stat().st_mtime > since]
