"""What the terminator has run out of, such as descriptors or memory, for the log, /readyz and the metrics."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    import asyncio
    from collections import Counter

__all__ = ["OUT_OF_MEMORY", "SHORTAGES", "SHORTAGE_REASONS", "Shortage"]

SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""The errors of a socket call that lacks resources."""

OUT_OF_MEMORY = "out of memory"
SHORTAGE_REASONS = (OUT_OF_MEMORY, *map(os.strerror, sorted(SHORTAGES)))
"""Those that the metrics have from the start."""

_PRESENT_SECONDS = 1.0
_LASTING_SECONDS = 10.0
_LOG_SECONDS = 10.0


class Shortage:
    """A shortage is noticed over and over while it lasts, maybe thousands of times a second; it is logged every ten
    seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: Counter[str]) -> None:
        """``counts``, for the metrics, has how often each reason was noticed."""
        self._loop = loop
        self._counts = counts
        self._log = structlog.stdlib.get_logger(__name__)
        self._reason = ""
        self._since = self._last = self._logged = -float("inf")
        self._unlogged = 0

    def notice(self, reason: str, open_connections: int) -> None:
        """Call it when a connection could not be accepted or served because of ``reason``."""
        now = self._loop.time()
        self._counts[reason] += 1
        if now - self._last > _PRESENT_SECONDS:
            self._since = now
        self._reason, self._last = reason, now
        self._unlogged += 1
        if now - self._logged >= _LOG_SECONDS:
            self._log.warning(
                "can't serve further connections now",
                reason=reason,
                times=self._unlogged,
                open_connections=open_connections,
            )
            self._logged, self._unlogged = now, 0

    @property
    def present(self) -> str | None:
        """The reason, if there was a shortage within the last second."""
        return self._reason if self._loop.time() - self._last <= _PRESENT_SECONDS else None

    @property
    def hopeless(self) -> bool:
        """Whether memory has been short for so long that this will not pass by itself. A lack of descriptors passes:
        the connections that have them go on, and free them when they end."""
        return self.present == OUT_OF_MEMORY and self._last - self._since >= _LASTING_SECONDS
