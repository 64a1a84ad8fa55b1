"""Whether a backend is in use: out after a failure, on trial after a pause, back after a success. Reads no clock."""

from __future__ import annotations

import enum
import logging

__all__ = ["BackendState", "Health"]

_log = logging.getLogger(__name__)
_LONGEST_PAUSE = 64


class BackendState(enum.Enum):
    IN_USE = "in use"
    OUT = "out of use"
    TRIAL = "on trial"


class Health:
    """The state of one backend. The batching thread changes it; any thread may read ``state``."""

    def __init__(self, name: str, first_pause: float, stand_in: str) -> None:
        """``first_pause``: seconds out of use after a first failure; each further one doubles it, up to 64 times.
        ``stand_in``: what computes meanwhile, for the log."""
        self.state = BackendState.IN_USE
        self._name = name
        self._stand_in = stand_in
        self._first_pause = self._pause = first_pause
        self._retry_at = 0.0

    def end_pause(self, now: float, hung: int) -> None:
        """Puts the backend on trial if its pause is over. While a call of it still hangs it stays out."""
        if self.state is BackendState.OUT and now >= self._retry_at and not hung:
            self.state = BackendState.TRIAL

    def usable_workers(self, workers: int) -> int:
        """How many of its workers may work: all, none, or one on trial."""
        if self.state is BackendState.IN_USE:
            return workers
        return 1 if self.state is BackendState.TRIAL else 0

    def failed(self, reason: str, now: float) -> None:
        """Takes the backend out of use. Jobs that fail while it is out were launched before, and change nothing."""
        if self.state is BackendState.OUT:
            return
        if self.state is BackendState.IN_USE:
            _log.warning("backend %s is out of use (%s); %s computes in its place", self._name, reason, self._stand_in)
        self.state = BackendState.OUT
        self._retry_at = now + self._pause
        self._pause = min(self._pause * 2, self._first_pause * _LONGEST_PAUSE)

    def succeeded(self) -> None:
        """Puts a backend on trial back in use."""
        if self.state is BackendState.TRIAL:
            _log.warning("backend %s works again and is back in use", self._name)
            self.state = BackendState.IN_USE
            self._pause = self._first_pause
