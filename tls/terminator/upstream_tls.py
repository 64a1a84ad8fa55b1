"""TLS to the upstream: whose certificates are trusted, and the socket that encrypts.

The server's name, which its certificate must have and which is sent to it (SNI), is ``upstream_name`` or, without that,
the host in the setting of the upstream. If the client has agreed on a protocol by ALPN, that one is offered, since the
bytes that follow are its. A PROXY header goes before the handshake, in the clear, as HAProxy sends and expects it.

An :class:`EncryptedSocket` has those methods of a socket that relay.py calls, and tells the end of the stream from a
truncation: only close_notify ends it.
"""

from __future__ import annotations

import errno
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_provider import tls
from gpu_provider.addresses import Address
from gpu_provider.errors import ConfigError
from gpu_provider.tls import constants
from gpu_provider.tls.info import a_labels, ip_address
from gpu_provider.tls.terminator.certificate_checks import authority_warnings
from gpu_provider.tls.terminator.pem_files import check_file, read_file

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from gpu_provider.tls.terminator.config import TerminatorConfig

__all__ = ["EncryptedSocket", "UpstreamTLS", "load_upstream_tls"]

_READ_BUFFER = 65536  # four records of the largest size
_LONGEST_NAME = 253
_UNVERIFIED = (
    "upstream_tls = 'unverified': whoever gets between this process and the upstream can pose as it, read and change "
    "everything; say --upstream-tls on, with --upstream-ca FILE if its authority is your own"
)


@dataclass(frozen=True, slots=True)
class UpstreamTLS:
    """How the connections to the upstream are encrypted."""

    context: tls.Context
    name: str | None
    """The server's in place of the host."""
    warnings: tuple[str, ...]

    def encrypt(self, sock: socket.socket, host: str, alpn: bytes) -> EncryptedSocket:
        """Takes the connected socket over, whose handshake is still to come. ``alpn``: the protocol to agree on; empty:
        none. Raises tls.Error if libssl has no memory for it."""
        return EncryptedSocket(tls.Connection(self.context, sock), sock, self.name or host, alpn)


class EncryptedSocket:
    """A non-blocking socket that encrypts what is sent and decrypts what is received.

    Unlike with a plain socket, a ``recv_into`` that does not fill the buffer may leave more to be read: only
    BlockingIOError says that there is nothing. Its errors are OSErrors, as a socket's.
    """

    __slots__ = ("_alpn", "_connection", "_socket", "close", "fileno", "setsockopt")

    def __init__(self, connection: tls.Connection, sock: socket.socket, name: str, alpn: bytes) -> None:
        connection.set_connect_state()
        connection.set_verify_host(name)
        if ip_address(name) is None:  # RFC 6066, 3: no addresses
            connection.set_tlsext_host_name(a_labels(name))
        if alpn:
            connection.set_alpn_protos([alpn])
        self._connection = connection
        self._socket = sock
        self._alpn = alpn
        self.fileno = sock.fileno
        self.setsockopt = sock.setsockopt
        self.close = connection.close  # and with it the socket

    def handshake(self) -> bool:
        """Goes on; returns whether it is done. Raises tls.Error."""
        try:
            self._connection.do_handshake()
        except (tls.WantReadError, tls.WantWriteError):
            return False
        if self._alpn == b"h2" != self._connection.get_alpn_proto_negotiated():  # RFC 9113, 3.2
            raise tls.Error("the client speaks h2, on which the upstream has not agreed")
        return True

    def send(self, data: memoryview) -> int:
        """How many bytes are dealt with. BrokenPipeError, whatever the reason: reading tells whether the upstream's
        stream is whole."""
        connection = self._connection
        try:
            sent = connection.send(data)
        except tls.WantWriteError:
            raise BlockingIOError from None
        except tls.Error as error:
            raise _broken_pipe(error) from None
        if connection.failure is not None:  # no event will tell of it
            raise _broken_pipe(connection.failure)
        return sent

    def recv_into(self, buffer: memoryview) -> int:
        """0 after close_notify. WantWriteError: try again when the socket has room for the answer to a key update."""
        try:
            return self._connection.recv_into(buffer)
        except tls.ZeroReturnError:
            return 0
        except tls.WantReadError:
            raise BlockingIOError from None
        except tls.WantWriteError:
            raise
        except tls.Error as error:
            eof = isinstance(error, tls.SysCallError) and error.args[0] == -1
            raise ConnectionResetError("the upstream ended without close_notify" if eof else str(error)) from None

    def shutdown(self, how: int) -> None:
        """Ends this direction by close_notify, and then TCP's. BlockingIOError: call it again when there is room."""
        try:
            self._connection.shutdown()
        except tls.WantWriteError:
            raise BlockingIOError from None
        except tls.Error as error:
            raise _broken_pipe(error) from None
        self._socket.shutdown(how)


def _broken_pipe(error: tls.Error) -> BrokenPipeError:
    return BrokenPipeError(errno.EPIPE, str(error))


def load_upstream_tls(config: TerminatorConfig) -> UpstreamTLS | None:
    """None: connections to the upstream are not encrypted. Raises ConfigError."""
    if config.upstream_tls == "off":
        return None
    _check_names(config)
    context = tls.Context(constants.TLS_CLIENT_METHOD)
    context.set_session_cache_mode(constants.SESS_CACHE_OFF)
    context.set_read_ahead(_READ_BUFFER)
    # The same with every version of Python. Each certificate in the file is trusted, not roots alone.
    context.clear_verify_flags(ssl.VERIFY_X509_STRICT)
    context.set_verify_flags(ssl.VERIFY_X509_PARTIAL_CHAIN)
    warnings = []
    if config.upstream_tls == "unverified":
        context.set_verify(constants.VERIFY_NONE)
        warnings.append(_UNVERIFIED)
    elif config.upstream_ca is not None:
        warnings += authority_warnings("upstream_ca", config.upstream_ca, read_file("upstream_ca", config.upstream_ca))
        try:
            context.load_verify_locations(config.upstream_ca)
        except tls.Error as error:
            raise ConfigError(
                f"upstream_ca = {str(config.upstream_ca)!r}: {error}; give a PEM file of certificates"
            ) from None
    else:
        context.set_default_verify_paths()  # now: reading the system's authorities takes long
    if config.upstream_cert is not None:
        _use_certificate(context, config.upstream_cert, config.upstream_key or config.upstream_cert)
    return UpstreamTLS(context, config.upstream_name, tuple(warnings))


def _use_certificate(context: tls.Context, cert: Path, key: Path) -> None:
    check_file(cert)
    check_file(key)
    try:
        context.use_certificate_chain_file(cert)
        context.use_privatekey_file(key)
        context.check_privatekey()
    except (tls.CertificateError, tls.PrivateKeyError) as error:
        raise ConfigError(f"{error}; given as --upstream-cert {cert} --upstream-key {key}") from None


def _check_names(config: TerminatorConfig) -> None:
    if config.upstream_name is not None:
        _check_name(f"upstream_name = {config.upstream_name!r}", config.upstream_name)
        return
    for text, address in zip(config.upstream, config.upstream_addresses, strict=True):
        if not isinstance(address, Address):
            raise ConfigError(
                f"upstream = {text!r} is a Unix socket, which says nothing of the name in its server's certificate; "
                "add --upstream-name NAME"
            )
        _check_name(f"upstream = {text!r}", address.host)


def _check_name(setting: str, name: str) -> None:
    try:
        valid = ip_address(name) is not None or a_labels(name).translate(None, b"-._").isalnum()
    except ValueError:
        valid = False
    if not valid or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"{setting}: {name!r} is no host name, so no certificate can be for it; give one such as app.example"
        )
