"""What can be set and asked on an SSL without running an operation on it."""

from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gpu_provider.status import AsyncStatus
from gpu_provider.tls._ssl import ffi, lib
from gpu_provider.tls.errors import Error, check
from gpu_provider.tls.text import c_string

_NULL = ffi.NULL
_buffer = ffi.buffer


class Session:
    """A TLS session to resume, from :meth:`Connection.get_session`."""

    __slots__ = ("pointer",)

    def __init__(self, pointer: Any) -> None:
        self.pointer = ffi.gc(pointer, lib.SSL_SESSION_free)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Session can't be pickled or copied: it can be resumed in its own process alone")


class ConnectionInfo:
    """The part of Connection that reads and sets libssl's state."""

    __slots__ = ("_ssl",)

    _ssl: Any

    def _closed(self) -> NoReturn:
        raise Error("the connection is closed")

    def _pointer(self) -> Any:
        if self._ssl is None:
            self._closed()
        return self._ssl

    # ---- settings ----

    def set_accept_state(self) -> None:
        """This end is the server."""
        lib.SSL_set_accept_state(self._pointer())

    def set_connect_state(self) -> None:
        """This end is the client."""
        lib.SSL_set_connect_state(self._pointer())

    def set_verify(self, mode: int) -> None:
        """As :meth:`Context.set_verify`, for this connection."""
        lib.SSL_set_verify(self._pointer(), mode, _NULL)

    def set_tlsext_host_name(self, name: str | bytes) -> None:
        """The server name that a client sends (SNI)."""
        lib.ERR_clear_error()
        check(lib.SSL_set_tlsext_host_name(self._pointer(), c_string(name, "server name")), f"server name {name!r}")

    def set_verify_host(self, host: str) -> None:
        """The peer's certificate must be for this host name or IP address. With ``VERIFY_PEER``."""
        ssl = self._pointer()
        if lib.X509_VERIFY_PARAM_set1_ip_asc(lib.SSL_get0_param(ssl), host.encode()) != 1:
            lib.ERR_clear_error()
            check(lib.SSL_set1_host(ssl, host.encode("idna")), f"host name {host!r}")

    def set_session(self, session: Session) -> None:
        """The session that a client asks to resume."""
        check(lib.SSL_set_session(self._pointer(), session.pointer), "session")

    # ---- what was agreed ----

    def get_session(self) -> Session | None:
        """To resume later. In TLS 1.3 after the first recv, which is when the server's tickets are read. OpenSSL
        resumes no session whose connection was closed without :meth:`Connection.shutdown`."""
        session = lib.SSL_get1_session(self._pointer())
        return None if session == _NULL else Session(session)

    def session_reused(self) -> bool:
        return bool(lib.SSL_session_reused(self._pointer()) == 1)

    def get_alpn_proto_negotiated(self) -> bytes:
        """The ALPN protocol, ``b""`` if none."""
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

    def get_cipher_bits(self) -> int | None:
        cipher = lib.SSL_get_current_cipher(self._pointer())
        return None if cipher == _NULL else int(lib.SSL_CIPHER_get_bits(cipher, _NULL))

    def get_protocol_version_name(self) -> str:
        """``"TLSv1.2"`` or ``"TLSv1.3"``."""
        return str(ffi.string(lib.SSL_get_version(self._pointer())).decode())

    def get_state_string(self) -> str:
        """Where in the handshake it is, in OpenSSL's words."""
        return str(ffi.string(lib.SSL_state_string_long(self._pointer())).decode())

    def is_init_finished(self) -> bool:
        """Whether the handshake is done."""
        return bool(lib.SSL_is_init_finished(self._pointer()) == 1)

    def get_shutdown(self) -> int:
        """``SENT_SHUTDOWN`` | ``RECEIVED_SHUTDOWN``."""
        state: int = lib.SSL_get_shutdown(self._pointer())
        return state

    def pending(self) -> int:
        """Decrypted bytes that the next recv returns without reading from the transport."""
        count: int = lib.SSL_pending(self._pointer())
        return count

    def has_pending(self) -> bool:
        """Whether bytes wait inside, decrypted or not."""
        return bool(lib.SSL_has_pending(self._pointer()) == 1)

    def get_peer_certificate(self) -> x509.Certificate | None:
        certificate = lib.SSL_get1_peer_certificate(self._pointer())
        if certificate == _NULL:
            return None
        try:
            out = ffi.new("unsigned char **")
            der = ffi.new("unsigned char[]", lib.i2d_X509(certificate, _NULL))
            out[0] = der
            return x509.load_der_x509_certificate(bytes(_buffer(der, lib.i2d_X509(certificate, out))))
        finally:
            lib.X509_free(certificate)

    # ---- asynchronous operation ----

    def get_async_status(self) -> AsyncStatus:
        """SSL_get_async_status: how the provider took the last asynchronous operation. UNSUPPORTED before the first,
        and where it was not asynchronous at all."""
        status = ffi.new("int *")
        if lib.SSL_get_async_status(self._pointer(), status) != 1:
            return AsyncStatus.UNSUPPORTED
        return AsyncStatus(status[0])

    def waiting_for_async(self) -> bool:
        """Whether an operation is paused."""
        return bool(lib.SSL_waiting_for_async(self._pointer()) == 1)

    def get_all_async_fds(self) -> list[int]:
        """The wait descriptors; readable when the operation can be resumed. Empty with a callback. They belong to
        OpenSSL."""
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


class SSLObject:
    """A Connection under the method names of ``ssl.SSLObject``, those that HTTP servers and clients call."""

    def __init__(self, connection: ConnectionInfo) -> None:
        self._connection = connection

    def version(self) -> str | None:
        return self._connection.get_protocol_version_name()

    def cipher(self) -> tuple[str, str, int] | None:
        """Name, protocol version, secret bits."""
        name, bits = self._connection.get_cipher_name(), self._connection.get_cipher_bits()
        return None if name is None or bits is None else (name, self._connection.get_protocol_version_name(), bits)

    def selected_alpn_protocol(self) -> str | None:
        return self._connection.get_alpn_proto_negotiated().decode("latin-1") or None

    def getpeercert(self, binary_form: bool = True) -> bytes | None:
        """The peer's certificate as DER. NotImplementedError for ssl's dictionary form: ``peercert`` has the object."""
        if not binary_form:
            raise NotImplementedError("only getpeercert(binary_form=True)")
        certificate = self._connection.get_peer_certificate()
        return None if certificate is None else certificate.public_bytes(Encoding.DER)


def descriptors_of(ssl: Any) -> list[int]:
    """The wait descriptors of an ``SSL *``."""
    count = ffi.new("size_t *")
    if lib.SSL_get_all_async_fds(ssl, _NULL, count) != 1 or count[0] == 0:
        return []
    descriptors = ffi.new("int[]", count[0])
    check(lib.SSL_get_all_async_fds(ssl, descriptors, count), "wait descriptors")
    return list(descriptors[0 : count[0]])
