"""The files that a run of the GPU suite leaves behind: at most five, in one directory."""

import contextlib
import datetime
import tempfile
from pathlib import Path

SUFFIXES = (".json", ".log", ".png", "-ncu.txt", "-sanitizer.txt")
LOG_BYTES = 1 << 20
"""How much of one section's output is kept: one that prints without end must not fill the disk."""


class Files:
    """``DATE-WHAT.json`` and its companions. Lines that are logged before the name is known are kept until then."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError if nothing can be written there."""
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        self._directory = directory
        self._stem: str | None = None
        self._early: list[str] = []
        self._logged = 0

    def name(self, what: str) -> None:
        """Only the first name counts. Before, there are no paths."""
        if self._stem is None:
            self._stem = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{what}"
            for suffix in SUFFIXES:  # of an earlier run
                with contextlib.suppress(OSError):
                    self.path(suffix).unlink(missing_ok=True)
            for line in self._early:
                self.write(line)

    def begin_section(self, title: str) -> None:
        self._logged = 0
        self.write(f"=== {title}")

    def log(self, line: str) -> bool:
        """Writes what a section prints. False if the section has printed too much for this line to be kept."""
        before, self._logged = self._logged, self._logged + len(line) + 1
        if self._logged <= LOG_BYTES:
            self.write(line)
        elif before <= LOG_BYTES:
            self.write("what this section printed after this is left out")
        return self._logged <= LOG_BYTES

    def path(self, suffix: str) -> Path:
        return self._directory / f"{self._stem}{suffix}"

    def write(self, line: str) -> None:
        """Appends to the log."""
        if self._stem is None:
            self._early.append(line)
            return
        # The results tell of a full disk; a log that is lost must not cost them.
        with contextlib.suppress(OSError), self.path(".log").open("a") as file:
            file.write(line + "\n")
