"""The compiler flags that the repository's flags.mk names."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_FLAGS = dict(re.findall(r"^(\w+) = (.*)$", (Path(__file__).resolve().parents[2] / "flags.mk").read_text(), re.M))


def flags(*names: str) -> list[str]:
    """Those of these names, each with what it adds on this machine."""
    return [
        flag for name in names for key in (name, f"{name}_{platform.machine()}") for flag in _FLAGS.get(key, "").split()
    ]
