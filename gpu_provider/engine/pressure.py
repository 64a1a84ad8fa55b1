"""How much of the time somebody waits for a processor, as the kernel counts it (Pressure Stall Information)."""

from __future__ import annotations

import contextlib
import os

__all__ = ["ProcessorPressure"]

_FILES = ("/sys/fs/cgroup/cpu.pressure", "/proc/pressure/cpu")
"""The container's own, which counts a used-up quota too, and the host's. Documentation/accounting/psi.rst in Linux."""
_INTERVAL_NS = 100_000_000


class ProcessorPressure:
    """The batching thread only."""

    def __init__(self) -> None:
        self.share = 0.0
        """Of the time, from 0 to 1, smoothed; 0 where the kernel does not count it."""
        self._file: int | None = None
        self._stalled_us = 0
        self._read_ns = 0

    def look(self, now_ns: int) -> None:
        """Brings ``share`` up to date, if it is time."""
        elapsed_ns = now_ns - self._read_ns
        if elapsed_ns < _INTERVAL_NS:
            return
        if self._file is None:
            self._file = _open()
        stalled_us = self._stalled()
        if self._read_ns:
            share = min(1.0, (stalled_us - self._stalled_us) * 1000 / elapsed_ns)
            # A long pause says all there is to say; of two short ones, each says half.
            weight = 0.5 if elapsed_ns < 2 * _INTERVAL_NS else 1.0
            self.share += (share - self.share) * weight
        self._stalled_us, self._read_ns = stalled_us, now_ns

    def close(self) -> None:
        if self._file is not None and self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _stalled(self) -> int:
        """Microseconds since the system was started."""
        if self._file is None or self._file < 0:
            return 0
        # some avg10=0.00 avg60=0.00 avg300=0.00 total=84456
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(os.pread(self._file, 256, 0).splitlines()[0].rpartition(b"total=")[2])
        return self._stalled_us


def _open() -> int:
    """A descriptor, or -1."""
    for name in _FILES:
        with contextlib.suppress(OSError):
            file = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.pread(file, 1, 0)  # fails where the kernel was started with psi=0
            except OSError:
                os.close(file)
                raise
            return file
    return -1
