"""What a connection has done so far: for the metrics of times, and for its line in the log."""

from __future__ import annotations

from time import monotonic  # uvloop's own clock counts whole milliseconds
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_provider.addresses import Resolved, SocketAddress

__all__ = ["Trace"]


class Trace:
    """Every connection has one, so it only keeps what is not known elsewhere when the connection ends. Times are those
    of the monotonic clock; 0.0: not yet."""

    __slots__ = (
        "_silent", "accepted_after", "began", "client", "connected", "handshake_done", "number", "paused",
        "rsa_seconds", "to_client", "to_upstream", "upstream", "waited_with",
    )  # fmt: skip

    def __init__(self, number: int, client: SocketAddress, accepted_after: float) -> None:
        """The connection was accepted now: the ``number``-th of this process, from this address. ``accepted_after``:
        for how many seconds its first bytes, or the silent client, had waited."""
        self.number = number
        self.client = client
        self.accepted_after = accepted_after
        self.began = monotonic() - accepted_after  # the client's first byte or, until that comes, the acceptance
        self._silent = False
        self.paused = 0.0  # since when the handshake has waited for its RSA operation
        self.rsa_seconds = 0.0  # for how long it did before
        self.waited_with = 0  # how many operations were waiting when it began to
        self.handshake_done = 0.0
        self.upstream: Resolved | None = None  # the address that was connected to, or was tried last
        self.connected = 0.0
        self.to_upstream = 0  # decrypted bytes
        self.to_client = 0

    def heard_nothing(self) -> None:
        """The client has sent nothing yet."""
        self._silent = True
        self.began += self.accepted_after

    def hears(self) -> None:
        """Bytes have come."""
        if self._silent:
            self._silent = False
            self.began = monotonic()

    def pause(self, waiting: int) -> None:
        """The handshake waits for its private operation, as ``waiting`` do with it. It may be woken early, and then
        pauses again."""
        self.paused = monotonic()
        self.waited_with = self.waited_with or waiting

    def resume(self) -> None:
        if self.paused:
            self.rsa_seconds += monotonic() - self.paused
            self.paused = 0.0

    def finish_handshake(self) -> float:
        """The handshake has succeeded. Returns for how many seconds it took from the client's first byte on."""
        self.handshake_done = now = monotonic()
        return now - self.began

    def connect(self, upstream: Resolved) -> None:
        """The upstream has accepted the connection."""
        self.upstream = upstream
        self.connected = monotonic()

    @property
    def seconds(self) -> float:
        """Since the client's first byte or, without one, since the connection was accepted."""
        return monotonic() - self.began
