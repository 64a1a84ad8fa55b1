"""What a connection has done so far: for the metrics of times, and for its line in the log."""

from __future__ import annotations

from time import monotonic  # uvloop's own clock counts whole milliseconds
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_provider.addresses import Resolved

__all__ = ["Trace"]


class Trace:
    """Every connection has one, so it only keeps what is not known elsewhere when the connection ends. Times are those
    of the monotonic clock; 0.0: not yet."""

    __slots__ = (
        "accepted", "accepted_after", "client", "connected", "first_byte", "handshake_done", "number", "paused",
        "rsa_seconds", "to_client", "to_upstream", "upstream",
    )  # fmt: skip

    def __init__(self, number: int, client: tuple[str, int] | tuple[str, int, int, int], accepted_after: float) -> None:
        """The connection was accepted now: the ``number``-th of this process, from this address. ``accepted_after``:
        for how many seconds its first bytes, or the silent client, had waited."""
        self.number = number
        self.client = client
        self.accepted_after = accepted_after
        self.accepted = now = monotonic()
        self.first_byte = now - accepted_after  # unless heard_nothing() is called
        self.paused = 0.0  # since when the handshake has waited for its RSA operation
        self.rsa_seconds = 0.0  # for how long it did before
        self.handshake_done = 0.0
        self.upstream: Resolved | None = None  # the address that was connected to, or was tried last
        self.connected = 0.0
        self.to_upstream = 0  # decrypted bytes
        self.to_client = 0

    def heard_nothing(self) -> None:
        """The client has sent nothing yet."""
        self.first_byte = 0.0

    def hears(self) -> None:
        """Bytes have come."""
        if not self.first_byte:
            self.first_byte = monotonic()

    def pause(self) -> None:
        self.paused = monotonic()

    def resume(self) -> None:
        if self.paused:
            self.rsa_seconds += monotonic() - self.paused
            self.paused = 0.0

    def finish_handshake(self) -> float:
        """The handshake has succeeded. Returns for how many seconds it took from the client's first byte on."""
        self.handshake_done = now = monotonic()
        return now - self.first_byte

    def connect(self, upstream: Resolved) -> None:
        """The upstream has accepted the connection."""
        self.upstream = upstream
        self.connected = monotonic()

    @property
    def seconds(self) -> float:
        """Since the client's first byte or, without one, since the connection was accepted."""
        return monotonic() - (self.first_byte or self.accepted)
