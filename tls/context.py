"""Context: an SSL_CTX, which connections are made from."""

import logging
import os
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from gpu_provider.tls import constants, credentials
from gpu_provider.tls._ssl import ffi, lib
from gpu_provider.tls.errors import CertificateError, Error, check, why
from gpu_provider.tls.library_context import default_library_context
from gpu_provider.tls.server_names import OwnedContext, ServerNames, is_server_name
from gpu_provider.tls.text import alpn_wire, c_string, encoded
from gpu_provider.tls.tickets import TicketKeys

if TYPE_CHECKING:
    from gpu_provider.provider import LibraryContext
    from gpu_provider.tls.connection import Connection

__all__ = ["AsyncCallback", "Context"]

AsyncCallback = Callable[["Connection", Any], object]
"""``callback(connection, arg)``; runs on the dispatcher thread and should only schedule the next call."""

_log = logging.getLogger("gpu_provider.tls")

_METHODS = {
    constants.TLS_METHOD: lib.TLS_method,
    constants.TLS_SERVER_METHOD: lib.TLS_server_method,
    constants.TLS_CLIENT_METHOD: lib.TLS_client_method,
}
_MODES = (
    constants.MODE_ENABLE_PARTIAL_WRITE | constants.MODE_ACCEPT_MOVING_WRITE_BUFFER | constants.MODE_RELEASE_BUFFERS
)
# CPython's (_ssl.c): forward secrecy and no SHA-1.
_CLIENT_CIPHERS = "@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM"
# As ssl.create_default_context() has them, which would read the system's authorities to say so.
_VERIFY_FLAGS = ssl.VERIFY_X509_TRUSTED_FIRST | (
    ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN if sys.version_info >= (3, 13) else 0
)
_SESSION_ID_CONTEXT = b"gpu_provider.tls"


class Provider(Protocol):
    """A BatchingProvider, or a ServiceProvider."""

    @property
    def library_context(self) -> "LibraryContext": ...


class Context:
    """Settings, certificates and keys that connections share.

    ``method``: ``TLS_METHOD``, ``TLS_SERVER_METHOD`` or ``TLS_CLIENT_METHOD``. ``provider``: the RSA operations of all
    connections made from this context go through it; None: OpenSSL computes them at once, in a library context of its
    own that Python's ``ssl`` does not share.

    Set at the start: TLS 1.2 and later, no compression, no renegotiation, session tickets, partial and moving writes,
    and buffers released when idle. ``SSL_MODE_ASYNC`` is off.

    A client verifies its server, as with ``ssl.create_default_context()`` and unlike pyOpenSSL. By default it trusts
    the system's authorities and, with ``TLS_CLIENT_METHOD``, offers Python's TLS 1.2 ciphers. Its handshake can't begin
    before :meth:`Connection.set_verify_host` has named the server; the functions of :mod:`gpu_provider.tls.aio` do
    that. Two things switch this off: ``check_hostname = False`` accepts a trusted certificate of any name, and
    ``set_verify(VERIFY_NONE)`` accepts any certificate at all. From Python 3.13 on, ``ssl.VERIFY_X509_STRICT`` and
    ``ssl.VERIFY_X509_PARTIAL_CHAIN`` are set, as in ``ssl``; many private authorities' certificates fail the first,
    which :meth:`clear_verify_flags` removes. A server asks for no certificate unless :meth:`set_verify` says so.

    Set it up on one thread; then any thread may make connections from it. Failures raise :class:`Error` with OpenSSL's
    reasons.
    """

    __slots__ = (
        "__weakref__", "_ctx", "_libctx", "_owned", "_trust_chosen", "async_callback", "async_callback_arg",
        "check_hostname", "server_names", "verify_chosen",
    )  # fmt: skip

    def __init__(self, method: str = constants.TLS_METHOD, provider: Provider | None = None) -> None:
        if method not in _METHODS:
            raise ValueError(f"method must be one of {sorted(_METHODS)}, not {method!r}")
        library_context = None if provider is None else provider.library_context
        if library_context is None:
            self._libctx = default_library_context()
        else:
            self._libctx = ffi.cast("OSSL_LIB_CTX *", library_context.pointer)
        ctx = lib.SSL_CTX_new_ex(self._libctx, ffi.NULL, _METHODS[method]())
        if ctx == ffi.NULL:
            raise Error(f"no SSL_CTX: {why()}")
        self._ctx = ctx
        self._owned = OwnedContext(ctx, library_context)
        self.server_names: ServerNames | None = None
        self.async_callback: AsyncCallback | None = None
        self.async_callback_arg: Any = None
        self.check_hostname = True
        self.verify_chosen = self._trust_chosen = False
        if method == constants.TLS_CLIENT_METHOD:
            lib.SSL_CTX_set_verify(ctx, constants.VERIFY_PEER, ffi.NULL)
            self.set_cipher_list(_CLIENT_CIPHERS)
        self.set_min_proto_version(constants.TLS1_2_VERSION)
        self.set_options(constants.OP_NO_COMPRESSION | constants.OP_NO_RENEGOTIATION)
        self.set_mode(_MODES)
        self.set_verify_flags(_VERIFY_FLAGS)
        lib.SSL_CTX_set_session_id_context(ctx, _SESSION_ID_CONTEXT, len(_SESSION_ID_CONTEXT))
        lib.gp_tickets_end_with_certificate(ctx)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Context can't be pickled or copied: set one up in the other process")

    @property
    def pointer(self) -> Any:
        """The ``SSL_CTX *``, a cffi object; valid as long as this Context lives."""
        return self._ctx

    # ---- versions, ciphers, options ----

    def set_min_proto_version(self, version: int) -> None:
        """``TLS1_2_VERSION`` or ``TLS1_3_VERSION``."""
        check(lib.SSL_CTX_set_min_proto_version(self._ctx, version), f"minimum protocol version {version:#x}")

    def set_max_proto_version(self, version: int) -> None:
        """``TLS1_2_VERSION`` or ``TLS1_3_VERSION``; 0: the highest there is."""
        check(lib.SSL_CTX_set_max_proto_version(self._ctx, version), f"maximum protocol version {version:#x}")

    def set_cipher_list(self, ciphers: str | bytes) -> None:
        """The TLS 1.2 ciphers, as in ``openssl ciphers``."""
        check(lib.SSL_CTX_set_cipher_list(self._ctx, c_string(ciphers, "cipher list")), f"cipher list {ciphers!r}")

    def set_ciphersuites(self, ciphersuites: str | bytes) -> None:
        """The TLS 1.3 cipher suites, separated by colons."""
        suites = c_string(ciphersuites, "cipher suites")
        check(lib.SSL_CTX_set_ciphersuites(self._ctx, suites), f"cipher suites {ciphersuites!r}")

    def set_groups(self, groups: str | bytes) -> None:
        """The groups for key exchange in order of preference, separated by colons."""
        check(lib.SSL_CTX_set1_groups_list(self._ctx, c_string(groups, "groups")), f"groups {groups!r}")

    def set_sigalgs(self, algorithms: str | bytes) -> None:
        """The signature algorithms in order of preference, separated by colons: ``RSA-PSS+SHA256:ECDSA+SHA256``."""
        names = c_string(algorithms, "signature algorithms")
        check(lib.SSL_CTX_set1_sigalgs_list(self._ctx, names), f"signature algorithms {algorithms!r}")

    def set_options(self, options: int) -> int:
        """Adds ``OP_*`` bits; returns all that are set."""
        return int(lib.SSL_CTX_set_options(self._ctx, options))

    def clear_options(self, options: int) -> int:
        """Removes ``OP_*`` bits; returns all that are left."""
        return int(lib.SSL_CTX_clear_options(self._ctx, options))

    def set_mode(self, mode: int) -> int:
        """Adds mode bits, such as ``SSL_MODE_ASYNC``, for connections made from now on; returns all that are set."""
        return int(lib.SSL_CTX_set_mode(self._ctx, mode))

    def set_session_cache_mode(self, mode: int) -> int:
        """One of ``SESS_CACHE_*``; returns what it was."""
        return int(lib.SSL_CTX_set_session_cache_mode(self._ctx, mode))

    def set_session_id_context(self, identity: str | bytes) -> None:
        """Sessions are resumed only in contexts with the same identity (1 to 32 bytes of any value, such as a hash)."""
        data = encoded(identity, "session id context")
        check(lib.SSL_CTX_set_session_id_context(self._ctx, data, len(data)), "session id context")

    def set_num_tickets(self, count: int) -> None:
        """How many TLS 1.3 session tickets a server sends after a full handshake (OpenSSL: 2)."""
        check(lib.SSL_CTX_set_num_tickets(self._ctx, count), f"{count} tickets")

    def set_read_ahead(self, size: int) -> None:
        """Reads up to ``size`` bytes from a socket at once instead of record by record, with fewer system calls.

        Bytes may then wait inside although the socket is not readable. Read until WantReadError.
        """
        lib.SSL_CTX_set_default_read_buffer_len(self._ctx, size)
        lib.SSL_CTX_set_read_ahead(self._ctx, 1)

    def set_ticket_keys(self, keys: TicketKeys) -> None:
        """Encrypts the session tickets of connections made from now on with these keys, instead of with keys of this
        context alone. A server that reloads its certificates gives its new context the keys of the old one; call
        :meth:`set_session_id_context` with another identity if sessions must not be resumed."""
        check(lib.gp_tickets_install(self._ctx, keys.pointer), "ticket keys")
        self._owned.alive.append(keys)

    # ---- certificates and keys ----

    def use_certificate_chain_file(self, path: str | os.PathLike[str]) -> None:
        """Reads a PEM file: the certificate, then its chain. May be called once per key type (RSA, EC). Raises
        CertificateError."""
        credentials.use_certificate_chain_file(self._ctx, self._libctx, os.fspath(path))

    def use_certificate(self, certificate: str | bytes | x509.Certificate) -> None:
        """The same from PEM bytes, or from one certificate of ``cryptography`` without a chain. Raises
        CertificateError."""
        credentials.use_certificate(self._ctx, self._libctx, certificate)

    def use_privatekey_file(
        self,
        path: str | os.PathLike[str],
        filetype: int = constants.FILETYPE_PEM,
        password: str | bytes | None = None,
    ) -> None:
        """Reads an RSA or EC private key, after its certificate. OpenSSL reads the file, so no copy of the key is in
        Python's memory. Raises PrivateKeyError if the file is missing, encrypted (without its password), of another
        kind, or not the certificate's."""
        credentials.use_privatekey_file(self._ctx, self._libctx, os.fspath(path), filetype, password)

    def use_privatekey(self, key: str | bytes | PrivateKeyTypes, password: str | bytes | None = None) -> None:
        """The same from PEM or DER bytes, or from a key of ``cryptography``. Raises PrivateKeyError."""
        credentials.use_privatekey(self._ctx, self._libctx, key, password)

    def check_privatekey(self) -> None:
        """Raises PrivateKeyError unless the certificate and the private key set last are there and belong together."""
        credentials.check_privatekey(self._ctx)

    # ---- the peer's certificate ----

    def load_verify_locations(
        self, cafile: str | os.PathLike[str] | None, capath: str | os.PathLike[str] | None = None
    ) -> None:
        """Trusts these authorities instead of the system's: a PEM file of certificates, a hashed directory, or both."""
        file, directory = (ffi.NULL if path is None else os.fsencode(path) for path in (cafile, capath))
        lib.ERR_clear_error()
        check(
            lib.SSL_CTX_load_verify_locations(self._ctx, file, directory),
            f"trusted certificates can't be loaded from {cafile or capath!s}",
        )
        self._trust_chosen = True

    def set_default_verify_paths(self) -> None:
        """Trusts the system's authorities. A client does so by itself unless it was given others."""
        check(lib.SSL_CTX_set_default_verify_paths(self._ctx), "the system's trusted certificates")
        self._trust_chosen = True

    def trust_by_default(self) -> None:
        """Trusts the system's authorities unless others were given. A client's first operation calls this."""
        if not self._trust_chosen:
            self.set_default_verify_paths()

    def load_client_ca(self, cafile: str | os.PathLike[str]) -> None:
        """The authorities that a server names when it asks for a client's certificate. This alone does not make them
        trusted."""
        lib.ERR_clear_error()
        names = lib.SSL_load_client_CA_file(os.fsencode(cafile))
        if names == ffi.NULL:
            raise CertificateError(f"client authorities can't be read from {cafile!s}: {why()}")
        lib.SSL_CTX_set_client_CA_list(self._ctx, names)

    def use_authorities_of(self, other: "Context") -> None:
        """Trusts the authorities and knows the revocation lists of another context, also those that it loads later, and
        names the same authorities to clients."""
        store = lib.SSL_CTX_get_cert_store(other.pointer)
        names = lib.SSL_dup_CA_list(lib.SSL_CTX_get_client_CA_list(other.pointer))
        if names == ffi.NULL:
            raise MemoryError("client authorities")
        lib.SSL_CTX_set1_cert_store(self._ctx, store)
        lib.SSL_CTX_set_client_CA_list(self._ctx, names)
        self._trust_chosen = True

    def load_crls(self, path: str | os.PathLike[str]) -> float:
        """Reads a PEM file of certificate revocation lists. They count with the flags ``ssl.VERIFY_CRL_CHECK_LEAF`` or
        ``ssl.VERIFY_CRL_CHECK_CHAIN`` (:meth:`set_verify_flags`). Returns the Unix time at which the first of them is
        out of date, infinity if none says. Raises CertificateError."""
        return credentials.load_crls(self._ctx, self._libctx, os.fspath(path))

    def set_verify(self, mode: int) -> None:
        """``VERIFY_NONE``, or ``VERIFY_PEER`` with further bits. There is no Python callback, because it would run on
        the job's small stack."""
        lib.SSL_CTX_set_verify(self._ctx, mode, ffi.NULL)
        self.verify_chosen = True

    def get_verify_mode(self) -> int:
        return int(lib.SSL_CTX_get_verify_mode(self._ctx))

    def set_verify_depth(self, depth: int) -> None:
        """How many authorities may stand between the peer's certificate and a trusted one."""
        lib.SSL_CTX_set_verify_depth(self._ctx, depth)

    def set_verify_flags(self, flags: int) -> int:
        """Adds flags, such as ``ssl.VERIFY_X509_STRICT`` or ``ssl.VERIFY_CRL_CHECK_LEAF``, to those that control how a
        peer's certificate is verified; returns all that are set."""
        parameters = lib.SSL_CTX_get0_param(self._ctx)
        check(lib.X509_VERIFY_PARAM_set_flags(parameters, flags), f"verification flags {flags:#x}")
        return int(lib.X509_VERIFY_PARAM_get_flags(parameters))

    def clear_verify_flags(self, flags: int) -> int:
        """Removes such flags; returns all that are left."""
        parameters = lib.SSL_CTX_get0_param(self._ctx)
        check(lib.X509_VERIFY_PARAM_clear_flags(parameters, flags), f"verification flags {flags:#x}")
        return int(lib.X509_VERIFY_PARAM_get_flags(parameters))

    # ---- choices within the handshake ----

    def set_alpn_protos(self, protocols: Sequence[str | bytes]) -> None:
        """The ALPN protocols that a client offers, in order of preference. Raises ValueError for an empty list, and for
        a name that is empty or over 255 bytes."""
        wire = alpn_wire(protocols)
        if lib.SSL_CTX_set_alpn_protos(self._ctx, wire, len(wire)) != 0:  # 0 is success here
            raise MemoryError("ALPN protocols")

    def set_alpn_server_protos(self, protocols: Sequence[str | bytes]) -> None:
        """The ALPN protocols that a server accepts, in order of preference. A client that offers only others is refused
        with the alert no_application_protocol; one that offers nothing is served without ALPN. Raises ValueError as
        :meth:`set_alpn_protos` does."""
        wire = alpn_wire(protocols)
        table = ffi.new("gp_protocols *", (len(wire), wire))
        # Earlier tables are kept too: a handshake may be reading one.
        self._owned.alive.append(table)
        lib.gp_protocols_install(self._ctx, table)

    def set_sni_contexts(self, names: Mapping[str, "Context"]) -> None:
        """Other contexts by server name: first ``"www.example"`` exactly, then ``"*.example"`` (one label), then this
        one.

        Names are A-labels; case does not matter. The chosen context provides certificate, key and ALPN; the connection
        keeps this context's callback, verification and sessions. Raises ValueError for a name of neither form.

        Calling it again replaces the table for connections made from then on.
        """
        table = {}
        for name, context in names.items():
            text = name.lower().rstrip(".")
            if not is_server_name(text):
                raise ValueError(f"a server name must be like www.example or *.example, not {name!r}")
            table[text] = context._owned
        self.server_names = ServerNames(table)
        lib.gp_names_enable(self._ctx)

    # ---- asyncio ----

    def wrap_bio(self, *_: object, **__: object) -> NoReturn:
        """asyncio calls this of a context that was given to an event loop which can't use it. A server's loop swallows
        the exception, so it is logged too."""
        text = (
            "asyncio's own TLS can't use a gpu_provider.tls.Context: run on aio.EventLoop, or on a loop made with "
            "aio.LoopMixin, or call the functions of gpu_provider.tls.aio"
        )
        _log.error(text)
        raise TypeError(text)

    # ---- asynchronous operation ----

    def set_async_callback(self, callback: AsyncCallback | None) -> None:
        """SSL_CTX_set_async_callback: connections made from now on inherit ``callback``, which is called as
        ``callback(connection, arg)`` on the dispatcher thread. None: use wait descriptors instead."""
        if callback is not None and not callable(callback):
            raise TypeError(f"the async callback must be callable, not {callback!r}")
        check(lib.gp_wakeup_attach_context(self._ctx, callback is not None), "async callback")
        self.async_callback = callback

    def set_async_callback_arg(self, arg: Any) -> None:
        """SSL_CTX_set_async_callback_arg: any object, for connections made from now on."""
        self.async_callback_arg = arg
