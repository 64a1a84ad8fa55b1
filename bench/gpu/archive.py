"""``python -m bench.gpu.archive``: the GPU suite in one tar, for a machine with a GPU and CuPy but no network.

The archive holds this project's wheel and those that it requires, for that machine's Python; the kernels, compiled for
its GPU; libcrypto; what ``bench`` would compile there; and ``run.py``, which installs all this and runs the suite.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_provider.errors import BackendError
from gpu_provider.kernels import cubins, nvrtc
from gpu_provider.kernels.cubin_cache import CubinCache

from ..environment import ROOT, first_line
from ..harness import Bench, BenchError
from ..kernels.check_cubins import CACHE
from ..queue_overhead import compile_feeder
from .plan import DEFAULT_SECONDS

NAME = "gpu-suite"
OTHERS = ("nvidia-ml-py>=12.560,<14",)
"""The suite uses these, but the wheel does not require them."""
# Wheels for glibc 2.28 (from 2018) or older. pip accepts an older platform's only if it is named.
PLATFORMS = [*(f"manylinux_2_{minor}" for minor in range(28, 16, -1)), "manylinux2014", "linux"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.archive", description=__doc__)
    parser.add_argument("archive", type=Path, help="the tar to write")
    parser.add_argument("--wheel", type=Path, required=True, help="this project's")
    parser.add_argument("--python", required=True, metavar="X.Y", help="the version of Python there")
    parser.add_argument("--arch", nargs="*", default=[], metavar="SM", help="compile the kernels for these")
    given = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-suite-") as directory:
            root = Path(directory) / NAME
            lay_out(root)
            libraries = copy_libraries(root / "lib")
            download(given.wheel, given.python, root / "wheels")
            compile_kernels(given.arch, root / "cubins")
            suite = {
                "python": given.python,
                "commit": first_line("git", "rev-parse", "HEAD"),
                "seconds": DEFAULT_SECONDS,
                "libraries": libraries,
            }
            (root / "suite.json").write_text(json.dumps(suite) + "\n")
            pack(root, given.archive)
    except (BackendError, BenchError) as error:
        print(error, file=sys.stderr)
        return 1
    kernels = f"kernels of NVRTC {nvrtc.version()} for {' '.join(given.arch)}" if given.arch else "no kernels"
    print(f"{given.archive}: {given.archive.stat().st_size / 2**20:.0f} MiB, Python {given.python}, {kernels}")
    return 0


def lay_out(root: Path) -> None:
    """Writes everything but wheels, kernels and libraries. Raises BenchError if the feeder can't be compiled."""
    for path in sorted(path for path in (ROOT / "bench").rglob("*") if path.suffix in {".py", ".so"}):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    shutil.copyfile(ROOT / "bench" / "gpu" / "archive_run.py", root / "run.py")
    prebuilt = root / "bench" / "prebuilt"
    prebuilt.mkdir()
    with Bench() as compiler:
        feeder = compile_feeder(compiler)
        shutil.copyfile(feeder, prebuilt / feeder.name)


def copy_libraries(target: Path) -> list[str]:
    """Copies the libcrypto that this process uses, for machines without that version. Returns its file name."""
    target.mkdir()
    loaded = {Path(path) for path in re.findall(r"/\S*/libcrypto\.so\.\d+", Path("/proc/self/maps").read_text())}
    for path in loaded:
        shutil.copyfile(path, target / path.name)
    return sorted(path.name for path in loaded)


def download(wheel: Path, python: str, target: Path) -> None:
    """Fetches the wheels of everything that the wheel requires, and copies it there. Raises BenchError."""
    platforms = [part for name in PLATFORMS for part in ("--platform", f"{name}_{platform.machine()}")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(target), "--only-binary", ":all:",
         "--implementation", "cp", "--python-version", python, *platforms, str(wheel), *OTHERS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"the wheels for Python {python} can't be fetched:\n{done.stderr.strip()}")


class _Copied(CubinCache):
    """Copies everything that is read from another cache, or written to it."""

    def __init__(self, directory: Path, other: CubinCache) -> None:
        super().__init__(directory)
        self._other = other

    def read(self, name: str) -> bytes | None:
        cubin = self._other.read(name)
        if cubin is not None:
            super().write(name, cubin)
        return cubin

    def write(self, name: str, cubin: bytes) -> None:
        self._other.write(name, cubin)
        super().write(name, cubin)


def compile_kernels(architectures: Sequence[str], target: Path) -> None:
    """Compiles the kernels that the backend uses. Only the same version of NVRTC will use them. Raises BackendError."""
    target.mkdir()
    cache = _Copied(target, CubinCache(CACHE))
    for architecture in architectures:
        cubins.load_cubins(cubins.units(cubins.arithmetics(architecture)), architecture, cache)


def pack(root: Path, archive: Path) -> None:
    """Writes the tar. Root owns everything in it and nobody else may write, because root unpacks it with these owners
    and modes, and the kernel cache accepts no others."""

    def made_safe(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        tar.add(root, NAME, filter=made_safe)


if __name__ == "__main__":
    sys.exit(main())
