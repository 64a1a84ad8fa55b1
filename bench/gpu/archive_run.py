"""``python3 gpu-suite/run.py``: installs the wheels beside this file, for itself alone, and runs ``bench.gpu``.

It needs pip and CuPy, no network and no compiler. It takes the arguments of ``python -m bench.gpu``, whose time starts
here.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
SITE = HERE / "site"


def main() -> NoReturn:
    started = time.monotonic()
    suite = json.loads((HERE / "suite.json").read_text())
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seconds", type=float, default=suite["seconds"])
    given, arguments = parser.parse_known_args()
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != suite["python"]:
        sys.exit(f"these wheels are for Python {suite['python']}, this is {here}: make gpu-suite PYTHON_VERSION={here}")
    os.umask(0o022)  # the kernel cache refuses what others may write to
    if not SITE.exists():
        install()
    left = given.seconds - (time.monotonic() - started)
    defaults = ["--kernel-cache", str(SITE / "cubins"), "--commit", suite["commit"] or "unknown"]
    # -P: nothing from the working directory is imported.
    command = [sys.executable, "-P", "-m", "bench.gpu", *defaults, *arguments, f"--seconds={left:.1f}"]
    os.execve(sys.executable, command, environment(suite["libraries"]))  # noqa: S606 - this program itself


def environment(libraries: list[str]) -> dict[str, str]:
    """Variables that tell Python where everything was installed, and the loader where the missing libraries are."""
    added = {"PYTHONPATH": f"{SITE}{os.pathsep}{HERE}"}
    if not all(map(is_there, libraries)):
        added["LD_LIBRARY_PATH"] = str(HERE / "lib")
    joined = {name: os.pathsep.join(filter(None, [path, os.environ.get(name)])) for name, path in added.items()}
    return {**os.environ, **joined, "PYTHONDONTWRITEBYTECODE": "1"}


def is_there(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def install() -> None:
    """Installs into a directory of its own, which appears when it is complete."""
    new = SITE.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    wheels = [
        str(wheel)
        for wheel in sorted((HERE / "wheels").glob("*.whl"))
        # The machine's CuPy was made for the NumPy that is there.
        if not (wheel.name.startswith("numpy-") and importlib.util.find_spec("numpy"))
    ]
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(new)]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=False)
    if done.returncode:
        sys.exit("the wheels can't be installed")
    (new / "cubins").mkdir(mode=0o700)
    for cubin in (HERE / "cubins").iterdir():  # copied, because the cache refuses another user's
        shutil.copyfile(cubin, new / "cubins" / cubin.name)
    new.rename(SITE)


if __name__ == "__main__":
    main()
