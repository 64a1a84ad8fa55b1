"""Sessions begun and resumed in memory, between a server of ours and a client of Python's ``ssl``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tls_peers import Peer, accept, finish, server_context

if TYPE_CHECKING:
    import ssl

    from gpu_provider import BatchingProvider, tls


def context_with(keys: tls.TicketKeys, provider: BatchingProvider | None = None, **more: str) -> tls.Context:
    context = server_context(provider, **more)  # type: ignore[arg-type]
    context.set_ticket_keys(keys)
    return context


def connect(
    context: tls.Context, client: ssl.SSLContext, session: ssl.SSLSession | None = None, name: str = "localhost"
) -> tuple[bool, ssl.SSLSession | None]:
    """Returns whether the session was resumed, and the one to resume next."""
    connection = accept(context)
    peer = Peer(connection, client, name=name, session=session)
    finish(connection, peer)
    connection.send(b"x")
    assert peer.read(1) == b"x"  # the tickets come before it
    return bool(peer.ssl.session_reused), peer.ssl.session
