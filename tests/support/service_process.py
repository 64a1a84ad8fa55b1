"""``gpu-provider service`` as a process."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import threading
from typing import TYPE_CHECKING, Any, Self

from admin_port import AdminPort
from terminator_process import COMMAND, TIMEOUT, environment, parse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["HELLO", "Service"]

HELLO = struct.pack("=IIQQ", 1, 2, 0, 0)
"""A program's first message, as in native/service/messages.h."""


class Service(AdminPort):
    """Ready when the ``with`` block begins, and ended after it, if it is not by then."""

    def __init__(
        self, socket: Path, *flags: str, mode: str = "0666", settings: Mapping[str, str] | None = None
    ) -> None:
        """``settings``: more environment variables."""
        admin = () if "--admin" in flags else ("--admin", "127.0.0.1:0")
        self._command = [*COMMAND, "service", "--socket", str(socket), "--socket-mode", mode, *admin, *flags]
        self._settings = dict(settings or {})
        self._changed = threading.Condition()
        self._ended = False
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._start()
        try:
            ready = self.wait_for("ready")
        except BaseException:
            self._end()
            raise
        if ready["admin"]:
            self.admin_address = parse(ready["admin"][0])
        return self

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self._command, env=environment(**self._settings), stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()

    def __exit__(self, *_: object) -> None:
        self._end()
        assert not [event for event in self.events if "exception" in event], self.events

    def _end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()

    def stop(self) -> None:
        """Ends it in order; what it has counted is in the log then."""
        self.process.terminate()
        assert self.process.wait(TIMEOUT) == 0
        self._reader.join()

    @property
    def requests(self) -> int:
        """Of all programs that have gone."""
        return sum(event["requests"] for event in self.events if event["event"] == "program disconnected")

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """The ``count``-th log line of this event."""

        def found() -> list[dict[str, Any]]:
            return [entry for entry in self.events if entry["event"] == event]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count or self._ended, TIMEOUT)
            assert len(found()) >= count, (event, self.events)
            return found()[count - 1]

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                with self._changed:
                    self.events.append(json.loads(line) if line.startswith("{") else {"event": line, "exception": line})
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
