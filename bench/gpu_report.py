"""What a section of the GPU suite tells the suite: lines of JSON through a pipe."""

import json
from collections.abc import Callable
from typing import Any, TextIO


class Report:
    """Writes them."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe

    def progress(self, what: str, total: int) -> None:
        """One more of ``total`` steps."""
        self._write("progress", {"what": what, "total": total})

    def sample(self, **values: Any) -> None:
        self._write("sample", values)

    def note(self, text: str) -> None:
        self._write("note", text)

    def describe(self, device: dict[str, Any]) -> None:
        self._write("device", device)

    def mismatch(self, **values: Any) -> None:
        """A wrong result. Nothing secret."""
        self._write("mismatch", values)

    def _write(self, kind: str, value: Any) -> None:
        self._pipe.write(json.dumps({kind: value}) + "\n")
        self._pipe.flush()


def read_line(line: str, readers: dict[str, Callable[[Any], None]]) -> None:
    """Hands what a line holds to the reader of its kind."""
    for kind, value in json.loads(line).items():
        readers[kind](value)
