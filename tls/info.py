"""What can be set and read on an SSL without running an operation on it."""

import ipaddress
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from cryptography import x509

from gpu_provider.status import AsyncStatus
from gpu_provider.tls import constants
from gpu_provider.tls._ssl import ffi, lib
from gpu_provider.tls.errors import Error, check
from gpu_provider.tls.subject import Subject, read_subject
from gpu_provider.tls.text import alpn_wire, c_string

_NULL = ffi.NULL
_buffer = ffi.buffer


class Session:
    """A TLS session to resume, from :meth:`Connection.get_session`. ``verified`` says whether the server's certificate
    was verified, and for which name: a connection that resumes the session sees no certificate."""

    __slots__ = ("pointer", "verified")

    def __init__(self, pointer: Any, verified: tuple[bool, str | None]) -> None:
        self.pointer = ffi.gc(pointer, lib.SSL_SESSION_free)
        self.verified = verified

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Session can't be pickled or copied: it can be resumed in its own process alone")


class Alert(NamedTuple):
    """A TLS alert."""

    name: str
    """In OpenSSL's words, such as ``"unknown CA"``."""
    sent: bool
    """By this end; otherwise it came from the peer."""


class ConnectionInfo:
    """The part of Connection that reads and sets libssl's state."""

    __slots__ = ("_resumes", "_ssl", "_verify_chosen", "_verify_host")

    _ssl: Any
    _verify_chosen: bool
    _verify_host: str | None
    _resumes: Session | None

    def _pointer(self) -> Any:
        if self._ssl is None:
            raise Error("the connection is closed")
        return self._ssl

    # ---- settings ----

    def set_accept_state(self) -> None:
        """Makes this end the server."""
        lib.SSL_set_accept_state(self._pointer())

    def set_connect_state(self) -> None:
        """Makes this end the client."""
        lib.SSL_set_connect_state(self._pointer())

    def set_verify(self, mode: int) -> None:
        """Does what :meth:`Context.set_verify` does, for this connection."""
        lib.SSL_set_verify(self._pointer(), mode, _NULL)
        self._verify_chosen = True

    def set_tlsext_host_name(self, name: str | bytes) -> None:
        """The server name that a client sends (SNI), as A-labels without a final dot."""
        sent = c_string(name, "server name")
        if not sent:
            raise ValueError("a server name must not be empty")
        lib.ERR_clear_error()
        check(lib.SSL_set_tlsext_host_name(self._pointer(), sent), f"server name {name!r}")

    def set_alpn_protos(self, protocols: Sequence[str | bytes]) -> None:
        """Does what :meth:`Context.set_alpn_protos` does, for this connection."""
        wire = alpn_wire(protocols)
        if lib.SSL_set_alpn_protos(self._pointer(), wire, len(wire)) != 0:  # 0 is success here
            raise MemoryError("ALPN protocols")

    def set_verify_host(self, host: str) -> None:
        """Requires, with ``VERIFY_PEER``, that the peer's certificate is for this host name or IP address. Raises
        ValueError for anything else."""
        ssl = self._pointer()
        parameters = lib.SSL_get0_param(ssl)
        lib.ERR_clear_error()
        if (address := ip_address(host)) is not None:
            check(lib.X509_VERIFY_PARAM_set1_ip_asc(parameters, address.encode()), f"address {host!r}")
        else:
            lib.X509_VERIFY_PARAM_set_hostflags(parameters, lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS)
            check(lib.X509_VERIFY_PARAM_set1_host(parameters, a_labels(host), 0), f"host name {host!r}")
        self._verify_host = host.removesuffix(".").lower()

    def set_session(self, session: Session) -> None:
        """The session that a client asks to resume. If the client verifies its server, the session must come from a
        connection that did so for the same name."""
        check(lib.SSL_set_session(self._pointer(), session.pointer), "session")
        self._resumes = session

    # ---- what was agreed ----

    def is_server(self) -> bool:
        """Whether this end is the server."""
        return bool(lib.SSL_is_server(self._pointer()) == 1)

    def get_verify_mode(self) -> int:
        """``VERIFY_*`` bits."""
        return int(lib.SSL_get_verify_mode(self._pointer()))

    def get_session(self) -> Session | None:
        """The session, to resume it later. With TLS 1.3 call it after the first recv, which reads the server's tickets.
        OpenSSL does not resume a session whose connection was closed without :meth:`Connection.shutdown`."""
        session = lib.SSL_get1_session(self._pointer())
        return None if session == _NULL else Session(session, self._verified())

    def _verified(self) -> tuple[bool, str | None]:
        return bool(self.get_verify_mode() & constants.VERIFY_PEER), self._verify_host

    def session_reused(self) -> bool:
        return bool(lib.SSL_session_reused(self._pointer()) == 1)

    def get_alpn_proto_negotiated(self) -> bytes:
        """The ALPN protocol; ``b""`` if none was agreed."""
        name, size = ffi.new("unsigned char **"), ffi.new("unsigned int *")
        lib.SSL_get0_alpn_selected(self._pointer(), name, size)
        return bytes(_buffer(name[0], size[0])) if size[0] else b""

    def get_servername(self) -> bytes | None:
        """The server name that the client sent."""
        name = lib.SSL_get_servername(self._pointer(), 0)
        return None if name == _NULL else bytes(ffi.string(name))

    def get_cipher_name(self) -> str | None:
        cipher = lib.SSL_get_current_cipher(self._pointer())
        return None if cipher == _NULL else str(ffi.string(lib.SSL_CIPHER_get_name(cipher)).decode())

    def get_cipher_version(self) -> str | None:
        """The protocol version that defined the cipher."""
        cipher = lib.SSL_get_current_cipher(self._pointer())
        return None if cipher == _NULL else str(ffi.string(lib.SSL_CIPHER_get_version(cipher)).decode())

    def get_cipher_bits(self) -> int | None:
        cipher = lib.SSL_get_current_cipher(self._pointer())
        return None if cipher == _NULL else int(lib.SSL_CIPHER_get_bits(cipher, _NULL))

    def get_protocol_version_name(self) -> str:
        """``"TLSv1.2"`` or ``"TLSv1.3"``."""
        return str(ffi.string(lib.SSL_get_version(self._pointer())).decode())

    def get_group_name(self) -> str | None:
        """The group of the key exchange, such as ``"x25519"``; None if there was none."""
        ssl = self._pointer()
        if lib.SSL_get_current_cipher(ssl) == _NULL:  # OpenSSL 3.0 would look into a session that is not there yet
            return None
        group = lib.SSL_get_negotiated_group(ssl)
        name = lib.SSL_group_to_name(ssl, group) if group else _NULL
        return None if name == _NULL else str(ffi.string(name).decode())

    def get_alert(self) -> Alert | None:
        """The last TLS alert, sent or received, that was not close_notify."""
        alert = lib.gp_alerts_last(self._pointer())
        if alert == 0:
            return None
        name = ffi.string(lib.SSL_alert_desc_string_long(alert)).decode()
        return Alert(name, sent=alert >= lib.GP_ALERT_SENT)

    def get_state_string(self) -> str:
        """The state of the handshake, in OpenSSL's words."""
        return str(ffi.string(lib.SSL_state_string_long(self._pointer())).decode())

    def is_init_finished(self) -> bool:
        """Whether the handshake is done."""
        return bool(lib.SSL_is_init_finished(self._pointer()) == 1)

    def get_shutdown(self) -> int:
        """``SENT_SHUTDOWN`` | ``RECEIVED_SHUTDOWN``."""
        return int(lib.SSL_get_shutdown(self._pointer()))

    def pending(self) -> int:
        """Decrypted bytes that the next recv returns without reading from the transport."""
        return int(lib.SSL_pending(self._pointer()))

    def has_pending(self) -> bool:
        """Whether bytes wait inside, decrypted or not."""
        return bool(lib.SSL_has_pending(self._pointer()) == 1)

    def get_verify_result(self) -> int:
        """OpenSSL's ``X509_V_`` code for the peer's certificate; 0: it was verified, or there is none. If a session was
        resumed, the code of its first connection."""
        return int(lib.SSL_get_verify_result(self._pointer()))

    def get_peer_subject(self) -> Subject | None:
        """Whom the peer's certificate names; None if it has shown none. A server knows it of a resumed session too."""
        certificate = lib.SSL_get0_peer_certificate(self._pointer())
        return None if certificate == _NULL else read_subject(certificate)

    def bytes_read(self) -> int:
        """How many bytes have come from the transport."""
        return int(lib.BIO_number_read(lib.SSL_get_rbio(self._pointer())))

    def get_certificate_sha256(self) -> bytes | None:
        """Of the certificate that this end has signed the handshake for. None: it has not, as in a resumed session."""
        ssl = self._pointer()
        digest = ffi.new("unsigned char[32]")
        if lib.SSL_get_signature_type_nid(ssl, ffi.new("int *")) != 1:
            return None
        certificate = lib.SSL_get_certificate(ssl)
        if certificate == _NULL or not lib.gp_leaf_fingerprint(certificate, digest):
            return None
        return bytes(_buffer(digest))

    def get_peer_certificate(self) -> x509.Certificate | None:
        der = self.get_peer_certificate_der()
        return None if der is None else x509.load_der_x509_certificate(der)

    def get_peer_certificate_der(self) -> bytes | None:
        certificate = lib.SSL_get1_peer_certificate(self._pointer())
        if certificate == _NULL:
            return None
        try:
            out = ffi.new("unsigned char **")
            der = ffi.new("unsigned char[]", lib.i2d_X509(certificate, _NULL))
            out[0] = der
            return bytes(_buffer(der, lib.i2d_X509(certificate, out)))
        finally:
            lib.X509_free(certificate)

    # ---- asynchronous operation ----

    def get_async_status(self) -> AsyncStatus:
        """SSL_get_async_status: how the provider handled the last asynchronous operation. UNSUPPORTED if there was
        none, or if it was not asynchronous at all."""
        status = ffi.new("int *")
        if lib.SSL_get_async_status(self._pointer(), status) != 1:
            return AsyncStatus.UNSUPPORTED
        return AsyncStatus(status[0])

    def waiting_for_async(self) -> bool:
        """Whether an operation is paused."""
        return bool(lib.SSL_waiting_for_async(self._pointer()) == 1)

    def get_all_async_fds(self) -> list[int]:
        """The wait descriptors, which become readable when the operation can be resumed. Empty if there is a callback.
        They belong to OpenSSL."""
        return descriptors_of(self._pointer())

    def get_changed_async_fds(self) -> tuple[list[int], list[int]]:
        """The wait descriptors added and removed by the last operation."""
        ssl = self._pointer()
        added, removed = ffi.new("size_t *"), ffi.new("size_t *")
        if lib.SSL_get_changed_async_fds(ssl, _NULL, added, _NULL, removed) != 1:
            return [], []
        new, old = ffi.new("int[]", added[0] or 1), ffi.new("int[]", removed[0] or 1)
        check(lib.SSL_get_changed_async_fds(ssl, new, added, old, removed), "changed wait descriptors")
        return list(new[0 : added[0]]), list(old[0 : removed[0]])


def ip_address(host: str) -> str | None:
    """An IP address in its usual form, without a zone; None for anything else."""
    if not isinstance(host, str):  # the ipaddress module reads numbers and bytes as addresses
        raise TypeError(f"a host name must be a str, not {type(host).__name__}")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return str(address).partition("%")[0]


def a_labels(host: str) -> bytes:
    """A host name as certificates and SNI have it: A-labels, without the root's dot. Raises ValueError for anything
    that is not a host name, such as one with a leading dot, for which OpenSSL would accept a certificate of any name
    below it."""
    try:
        name = host.removesuffix(".").encode("idna")
    except UnicodeError as error:
        raise ValueError(f"{host!r} is not a host name: {error}") from error
    if not name or name.startswith(b".") or b"\0" in name:
        raise ValueError(f"{host!r} is not a host name: it is empty, begins with a dot, or holds a NUL")
    return name


def descriptors_of(ssl: Any) -> list[int]:
    """The wait descriptors of an ``SSL *``."""
    count = ffi.new("size_t *")
    if lib.SSL_get_all_async_fds(ssl, _NULL, count) != 1 or count[0] == 0:
        return []
    descriptors = ffi.new("int[]", count[0])
    check(lib.SSL_get_all_async_fds(ssl, descriptors, count), "wait descriptors")
    return list(descriptors[0 : count[0]])
