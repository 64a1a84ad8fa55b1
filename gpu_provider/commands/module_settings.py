"""The settings in the module's section of openssl.cnf. The module (``native/provider/provider.c``) takes something else
for a mistake and can tell nobody, since OpenSSL would only go on without it."""

from __future__ import annotations

import difflib
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CHOICES", "COUNTS_DIRECTORY", "NUMBERS", "SERVICE", "mistakes"]

CHOICES = {"kernels": (("auto", "portable", "off"), "auto"), "implicit-rejection": (("0", "1"), "1")}
"""The values of each, and what any other one is taken for."""

NUMBERS = {
    "max_group": (2, 8, 8),
    "max_wait": (0, 1_000_000, 20_000),
    "service_timeout": (1, 60_000, 200),
    "service_key_timeout": (1, 600_000, 5_000),
}
"""The least and the largest of each, and the default, which any other value is taken for."""

COUNTS_DIRECTORY = "counts_directory"
SERVICE = "service"

_OPENSSLS = {"identity", "module", "soft_load", "activate"}
_OURS = {*CHOICES, *NUMBERS, COUNTS_DIRECTORY, SERVICE}
_LONGEST_PATH = 107
"""Of a Unix socket."""
_PROBE_SECONDS = 1.0


def mistakes(section: Mapping[str, str]) -> list[str]:
    """A sentence, without its full stop, for each setting that has no effect or another than it seems to have."""
    found = ((f"{name} = {value}", _mistake(name, value)) for name, value in section.items())
    return [f"'{setting}' {mistake}" for setting, mistake in found if mistake]


def _mistake(name: str, value: str) -> str | None:
    if name in CHOICES:
        values, instead = CHOICES[name]
        return None if value in values else f"is taken as {instead}; write {', '.join(values[:-1])} or {values[-1]}"
    if name in NUMBERS:
        least, largest, default = NUMBERS[name]
        is_right = re.fullmatch("0*[0-9]{1,9}", value) and least <= int(value.lstrip("0") or 0) <= largest
        return None if is_right else f"is taken as {default}; write a whole number from {least} to {largest}"
    if name == COUNTS_DIRECTORY:
        return _directory_mistake(value)
    if name == SERVICE:
        return _service_mistake(value)
    if name in _OPENSSLS:
        return None
    near = difflib.get_close_matches(name.lower(), _OURS, n=1)
    return f"has no effect; {f'is {near[0]} meant?' if near else 'the settings are ' + ', '.join(sorted(_OURS))}"


def _service_mistake(value: str) -> str | None:
    path = Path(value)
    if not path.is_absolute():
        return "is looked for wherever a program is started; write a path that begins with /"
    if len(value.encode()) > _LONGEST_PATH:
        return f"is too long for a socket; {_LONGEST_PATH} bytes are possible"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(value)
        except OSError as error:
            reason = error.strerror or error
            return f"is not reached by user {os.geteuid()}: {reason}; until it is, programs compute by themselves"
    return None


def _directory_mistake(value: str) -> str | None:
    path = Path(value)
    if not path.is_absolute():
        return "is looked for wherever a program is started; write a path that begins with /"
    if not path.is_dir():
        return "is no directory; make it, or programs run without these files"
    if not os.access(path, os.W_OK | os.X_OK):
        return f"can't be written to by user {os.geteuid()}; let the programs' users write there"
    return None
