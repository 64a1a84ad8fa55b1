"""What the upstream and the log may learn of a client's TLS connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gpu_provider import tls

__all__ = ["ClientFacts", "client_facts"]


class ClientFacts(NamedTuple):
    version: str
    """Such as ``TLSv1.3``."""
    cipher: str
    resumed: bool
    subject: tls.Subject | None
    """Of the client's certificate, which it has shown in this connection or, if that is resumed, in the session's
    first."""
    verify_result: int
    """OpenSSL's code for that certificate; 0: it was verified."""


def client_facts(connection: tls.Connection) -> ClientFacts:
    """After the handshake."""
    return ClientFacts(
        connection.get_protocol_version_name(),
        connection.get_cipher_name() or "",
        connection.session_reused(),
        connection.get_peer_subject(),
        connection.get_verify_result(),
    )
