"""A handshake in memory that finds out, before a client does, whether a certificate can be served at all.

OpenSSL accepts a certificate that no handshake can use: with a curve that TLS does not have, a signature that the
security level refuses, or ciphers that need another key. It says so only when a client comes.
"""

from __future__ import annotations

from gpu_provider import tls
from gpu_provider.tls import constants

__all__ = ["handshake_problem"]

_EVERY_CIPHER = "ALL:@SECLEVEL=0"
_EVERY_CIPHERSUITE = (
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_CCM_SHA256:"
    "TLS_AES_128_CCM_8_SHA256"
)
_MOST_ROUNDS = 10


def handshake_problem(context: tls.Context, version: int) -> str | None:
    """Why a client that accepts anything can't complete a handshake of this TLS version; None if it can."""
    client_context = tls.Context(constants.TLS_CLIENT_METHOD)
    client_context.set_verify(constants.VERIFY_NONE)
    client_context.set_cipher_list(_EVERY_CIPHER)
    client_context.set_ciphersuites(_EVERY_CIPHERSUITE)
    client_context.set_min_proto_version(version)
    client_context.set_max_proto_version(version)
    server, client = tls.Connection(context), tls.Connection(client_context)
    server.set_accept_state()
    server.clear_mode(constants.SSL_MODE_ASYNC)
    client.set_connect_state()
    try:
        for _ in range(_MOST_ROUNDS):
            client_done, server_done = _advance(client, server), _advance(server, client)
            if client_done and server_done:
                return None
    except tls.Error as error:
        return str(error)
    finally:
        client.close()
        server.close()
    return "the handshake does not come to an end"


def _advance(one: tls.Connection, other: tls.Connection) -> bool:
    done = True
    try:
        one.do_handshake()
    except tls.WantReadError:
        done = False
    while one.bio_pending():
        other.bio_write(one.bio_read(65536))
    return done
