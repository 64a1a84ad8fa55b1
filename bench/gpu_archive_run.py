"""``python3 gpu-suite/run.py``: installs the wheels beside this file, for itself alone, and runs ``bench.gpu``.

Needs pip and CuPy; no network, no compiler. The arguments are those of ``python -m bench.gpu``; its time begins now.
"""

import argparse
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
    os.umask(0o022)  # the kernel cache takes nothing that others may write to
    if not SITE.exists():
        install()
    left = given.seconds - (time.monotonic() - started)
    defaults = ["--kernel-cache", str(SITE / "cubins"), "--commit", suite["commit"] or "unknown"]
    paths = [str(SITE), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: whatever lies in the working directory stays out.
    command = [sys.executable, "-P", "-m", "bench.gpu", *defaults, *arguments, f"--seconds={left:.1f}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(sys.executable, command, environment)  # noqa: S606 - this program itself


def install() -> None:
    """Into a directory of its own, which appears when all is there."""
    new = SITE.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    wheels = [
        str(wheel)
        for wheel in sorted((HERE / "wheels").glob("*.whl"))
        # CuPy goes with the NumPy that is there.
        if not (wheel.name.startswith("numpy-") and importlib.util.find_spec("numpy"))
    ]
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(new)]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=False)
    if done.returncode:
        sys.exit("the wheels can't be installed")
    (new / "cubins").mkdir(mode=0o700)
    for cubin in (HERE / "cubins").iterdir():  # copied, because the cache takes no other user's
        shutil.copyfile(cubin, new / "cubins" / cubin.name)
    new.rename(SITE)


if __name__ == "__main__":
    main()
