"""The programs' logging: structlog over the standard library's logging, so that the library's lines are included.

Nothing waits for the log. Its reader may stop reading (a full pipe, a stopped terminal) or go away (a full disk, a
closed pipe), so a separate thread writes it; lines that it can't write in time are dropped and counted.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import select
import sys
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

import structlog

from gpu_provider.errors import MORE_THREADS, BackendError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["BackgroundWriter", "configure_logging"]

_STDERR = 2
_MOST_WAITING = 1024
"""Lines. A reader that keeps up leaves few waiting; one that has stopped would only get old lines later."""
_MOST_AT_ONCE = 65536
_EXIT_SECONDS = 1.0
"""How long the ending process may wait for the last lines."""

_log = structlog.stdlib.get_logger(__name__)


class BackgroundWriter(io.RawIOBase):
    """A stream whose :meth:`write` never waits: its own thread writes to stderr.

    It does not change the descriptor's flags, because other programs may share them.
    """

    def __init__(self) -> None:
        """Raises RuntimeError if no thread can be started."""
        super().__init__()
        self.dropped = 0
        self._reported = 0
        self._line_cut = False
        # A destructor may log while its thread is in here: SimpleQueue and RLock can bear that, Queue and Lock can't.
        self._waiting: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._lock = threading.RLock()
        threading.Thread(target=self._run, name="gpu-provider-log", daemon=True).start()

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        line = bytes(data)
        with self._lock:
            if self._waiting.qsize() < _MOST_WAITING:
                self._waiting.put(line)
            else:
                self.dropped += 1
        return len(line)

    def wait_written(self, seconds: float) -> bool:
        """Waits until everything so far was written or dropped; returns False if that takes longer."""
        written = threading.Event()
        self._waiting.put(written)
        return written.wait(seconds)

    def _run(self) -> None:
        while True:
            lines: list[bytes] = []
            written: threading.Event | None = None
            try:
                written = self._take(lines)
                self._write(b"".join(lines))
                self._report()
            except (OSError, MemoryError):
                with self._lock:
                    self.dropped += len(lines)
            if written is not None:
                written.set()

    def _take(self, lines: list[bytes]) -> threading.Event | None:
        """Waits for a line and takes all that are there by then, up to the event of someone who waits for them. Many
        lines go into one write, because after each write this thread waits for its turn beside a busy event loop."""
        size = 0
        while not lines or (size < _MOST_AT_ONCE and not self._waiting.empty()):
            item = self._waiting.get()
            if isinstance(item, threading.Event):
                return item
            lines.append(item)
            size += len(item)
        return None

    def _write(self, data: bytes) -> None:
        if self._line_cut and data:
            data = b"\n" + data
        written = 0
        while written < len(data):
            try:
                written += os.write(_STDERR, data[written:])
            except BlockingIOError:  # another program has made the description that it shares with us non-blocking
                select.select([], [_STDERR], [])
            except OSError:
                self._line_cut = self._line_cut or written > 0
                raise
            else:
                self._line_cut = False

    def _report(self) -> None:
        dropped = self.dropped
        if dropped != self._reported and self._waiting.empty():
            missing, self._reported = dropped - self._reported, dropped
            _log.warning("log lines were dropped, because nobody read them or they could not be written", lines=missing)


def configure_logging(level_name: str, **of_each_line: object) -> BackgroundWriter:
    """Logs to stderr: readable lines on a terminal, otherwise one JSON object per line. ``level_name``: such as "info".
    ``of_each_line``: what each line also has.

    From now on whatever else this program writes to ``sys.stderr``, such as tracebacks and warnings, goes the same way.
    Raises BackendError if no thread can be started.
    """
    level = logging.getLevelNamesMapping()[level_name.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        lambda _logger, _method, event: {**event, **of_each_line},
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if os.isatty(_STDERR) else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Lines below the level must cost next to nothing: every session has one at debug.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    try:
        writer = BackgroundWriter()
    except RuntimeError as error:
        raise BackendError(f"the log's thread can't be started: {error}; {MORE_THREADS}") from None
    atexit.register(writer.wait_written, _EXIT_SECONDS)
    sys.stderr = io.TextIOWrapper(writer, encoding="utf-8", errors="backslashreplace", write_through=True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))
    return writer
