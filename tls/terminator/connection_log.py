"""The log's line for each connection, written when it ends.

An ordinary connection costs next to nothing unless ``access_log`` is "all": whatever the line says is read from the
connection when it is written. Failures may be many, in an attack or when the upstream is away, so only so many are
written within ten seconds, and then a line that counts those that were left out.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from gpu_provider.addresses import format_address
from gpu_provider.tls.terminator.failures import OUT_OF_MEMORY

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from gpu_provider import tls
    from gpu_provider.tls.terminator.client_facts import ClientFacts
    from gpu_provider.tls.terminator.config import AccessLog
    from gpu_provider.tls.terminator.trace import Trace

__all__ = ["KEPT_FAILURES", "ConnectionLog"]

_SECONDS = 10.0
_MOST_FAILURES = 100
"""Lines within so many seconds."""

KEPT_FAILURES = 20
"""For who asks later."""

_LEFT_IN_SILENCE = frozenset(("client_gone", "timeout"))
"""Ends of a handshake that are no failures if the client has sent nothing, as a health check's connection."""

_LEFT_WITHOUT_CLOSE_NOTIFY = frozenset(("client_eof", "client_reset", "idle_timeout"))
"""Ends that are failures if the upstream was sent something and has answered nothing."""


class ConnectionLog:
    """On the event loop's thread."""

    def __init__(self, access_log: AccessLog, loop: asyncio.AbstractEventLoop) -> None:
        self.certificate_files: dict[bytes, Path] = {}
        """By the certificates' SHA-256."""
        self.last_failures: deque[dict[str, Any]] = deque(maxlen=KEPT_FAILURES)
        """The last lines about failures, the oldest first."""
        self._failures = access_log != "off"
        self._others = access_log == "all"
        self._loop = loop
        self._log = structlog.stdlib.get_logger("gpu_provider.tls.terminator.connections")
        self._process = secrets.token_hex(4)
        self._since = -_SECONDS
        self._written = 0
        self._left_out: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def ended(self, trace: Trace, connection: tls.Connection, end: str, reason: str) -> None:
        """``end``: a label of handshake_failures_total or, after the handshake, of sessions_total. ``reason``: why, in
        words. The connection must not be closed yet."""
        failed = _has_failed(trace, connection, end)
        if not (self._failures if failed else self._others):
            return
        if end == OUT_OF_MEMORY:  # the shortage is logged, and a line would need memory
            return
        if failed and not self._others and not self._has_room():
            self._left_out[end] += 1
            return
        line = self._line(trace, connection, end, reason)
        if failed:
            self.last_failures.append({"timestamp": datetime.now(UTC).isoformat(), **line})
        (self._log.warning if failed else self._log.info)("connection", **line)

    def client_certificate(self, trace: Trace, facts: ClientFacts) -> None:
        """Says at once whose it is, whatever ``access_log`` is: the upstream is not told."""
        if facts.subject is not None:
            self._log.info(
                "client certificate",
                id=self._id(trace),
                client=format_address(trace.client),
                subject=facts.subject.text,
                resumed=facts.resumed,
            )

    def close(self) -> None:
        """No further connection ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._report()

    def _has_room(self) -> bool:
        now = self._loop.time()
        if now - self._since >= _SECONDS:
            self._since, self._written = now, 0
        if self._written < _MOST_FAILURES:
            self._written += 1
            return True
        if self._timer is None:
            self._timer = self._loop.call_at(self._since + _SECONDS, self._report)
        return False

    def _report(self) -> None:
        self._timer = None
        left_out, self._left_out = self._left_out, Counter()
        self._log.warning("connections left out of the log", connections=left_out.total(), **left_out)

    def _id(self, trace: Trace) -> str:
        return f"{self._process}-{trace.number}"

    def _line(self, trace: Trace, connection: tls.Connection, end: str, reason: str) -> dict[str, Any]:
        """Without what is not known, or never came about."""
        line: dict[str, object] = {
            "id": self._id(trace),
            "client": format_address(trace.client),
            "state": _state(trace),
            "end": end,
            "reason": reason or None,
            **self._tls(connection),
            **_times(trace),
            "upstream": None if trace.upstream is None else str(trace.upstream),
            "bytes_to_upstream": trace.to_upstream,
            "bytes_to_client": trace.to_client,
        }
        return {name: value for name, value in line.items() if value is not None}

    def _tls(self, connection: tls.Connection) -> dict[str, object]:
        alert, certificate = connection.get_alert(), connection.get_certificate_sha256()
        subject = connection.get_peer_subject()
        line: dict[str, object] = {
            "server_name": _printable(connection.get_servername()),
            "client_subject": None if subject is None else subject.text,
        }
        if alert is not None:
            line["alert_sent" if alert.sent else "alert_received"] = alert.name
        if certificate is not None:
            line["certificate"] = str(self.certificate_files.get(certificate, certificate.hex()))
        cipher = connection.get_cipher_name()
        if cipher is not None:
            line |= {
                "tls": connection.get_protocol_version_name(),
                "cipher": cipher,
                "group": connection.get_group_name(),
                "alpn": _printable(connection.get_alpn_proto_negotiated()),
                "resumed": connection.session_reused(),
                "async_status": None if connection.session_reused() else connection.get_async_status().name,
            }
        return line


def _has_failed(trace: Trace, connection: tls.Connection, end: str) -> bool:
    if end in _LEFT_IN_SILENCE:
        return connection.bytes_read() > 0
    if end in _LEFT_WITHOUT_CLOSE_NOTIFY:
        return trace.to_upstream > 0 and trace.to_client == 0
    return end != "closed"


def _state(trace: Trace) -> str:
    if not trace.handshake_done:
        return "handshake"
    return "relay" if trace.connected else "connecting"


def _times(trace: Trace) -> dict[str, object]:
    times = {"accept_queue_seconds": trace.accepted_after, "rsa_seconds": trace.rsa_seconds, "seconds": trace.seconds}
    if trace.handshake_done:
        times["handshake_seconds"] = trace.handshake_done - trace.began
    if trace.connected:
        times["connect_seconds"] = trace.connected - trace.handshake_done
    return {name: round(seconds, 6) for name, seconds in times.items()}


def _printable(text: bytes | None) -> str | None:
    """What a client has sent may be anything, and a terminal would obey some of it."""
    if not text:
        return None
    return "".join(chr(byte) if 0x20 < byte < 0x7F else f"\\x{byte:02x}" for byte in text)
