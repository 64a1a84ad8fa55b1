"""What a handshake agreed, under the names of ``ssl.SSLObject``, which HTTP servers and clients use."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from gpu_provider.tls import constants
from gpu_provider.tls._ssl import ffi, lib
from gpu_provider.tls.errors import Error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gpu_provider.tls.connection import Connection

__all__ = ["SSLObject", "decode_certificate"]

_UNREADABLE = (ValueError, x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class SSLObject:
    """Keeps the answers, so that a protocol can ask after the connection has ended, as with ``ssl``."""

    def __init__(self, connection: Connection, server_hostname: str | None = None) -> None:
        self.context = connection.get_context()
        self.server_side = connection.is_server()
        self.server_hostname = server_hostname or None
        self.session_reused = connection.session_reused()
        self._version = connection.get_protocol_version_name()
        self._cipher = connection.get_cipher_name(), connection.get_cipher_version(), connection.get_cipher_bits()
        self._alpn = connection.get_alpn_proto_negotiated()
        self._certificate = connection.get_peer_certificate_der()
        self._verified = bool(connection.get_verify_mode() & constants.VERIFY_PEER)

    def version(self) -> str | None:
        """``"TLSv1.2"`` or ``"TLSv1.3"``."""
        return self._version

    def cipher(self) -> tuple[str, str, int] | None:
        """The cipher's name, the protocol version that defined it, and its secret bits."""
        name, version, bits = self._cipher
        return None if name is None or version is None or bits is None else (name, version, bits)

    def compression(self) -> str | None:
        """Always None: TLS is not compressed here."""
        return None

    def selected_alpn_protocol(self) -> str | None:
        return self._alpn.decode("latin-1") or None

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """The peer's certificate: as ``ssl``'s dictionary, empty if the certificate was not verified, or as DER. None
        if the peer has none. Raises Error if the certificate can't be shown as a dictionary."""
        if binary_form or self._certificate is None:
            return self._certificate
        return decode_certificate(self._certificate) if self._verified else {}


def decode_certificate(der: bytes) -> dict[str, Any]:
    """The dictionary that ``ssl.SSLSocket.getpeercert()`` makes of a certificate."""
    try:
        return _decode(x509.load_der_x509_certificate(der))
    except _UNREADABLE as error:
        raise Error(f"the peer's certificate can't be shown as a dictionary (its DER can be had): {error}") from error


def _decode(certificate: x509.Certificate) -> dict[str, Any]:
    serial = f"{abs(certificate.serial_number):X}"
    decoded: dict[str, Any] = {
        "subject": _name(certificate.subject),
        "issuer": _name(certificate.issuer),
        "version": certificate.version.value + 1,
        "serialNumber": ("-" if certificate.serial_number < 0 else "") + "0" * (len(serial) % 2) + serial,
        "notBefore": _time(certificate.not_valid_before_utc),
        "notAfter": _time(certificate.not_valid_after_utc),
    }
    for extension in certificate.extensions:
        match extension.value:
            case x509.SubjectAlternativeName() as names:
                decoded["subjectAltName"] = tuple(_general_name(name) for name in names)
            case x509.AuthorityInformationAccess() as access:
                for key, method in (
                    ("OCSP", AuthorityInformationAccessOID.OCSP),
                    ("caIssuers", AuthorityInformationAccessOID.CA_ISSUERS),
                ):
                    if places := _places(one.access_location for one in access if one.access_method == method):
                        decoded[key] = places
            case x509.CRLDistributionPoints() as points:
                if places := _places(name for point in points for name in point.full_name or ()):
                    decoded["crlDistributionPoints"] = places
    return decoded


def _name(name: x509.Name) -> tuple[tuple[tuple[str, str | bytes], ...], ...]:
    return tuple(tuple((_long_name(part.oid), _value(part.value)) for part in parts) for parts in name.rdns)


def _value(value: str | bytes) -> str | bytes:
    return value[1:] if isinstance(value, bytes) else value  # a bit string's count of unused bits


def _long_name(oid: x509.ObjectIdentifier) -> str:
    nid = lib.OBJ_txt2nid(oid.dotted_string.encode())
    return str(ffi.string(lib.OBJ_nid2ln(nid)).decode()) if nid else oid.dotted_string


def _time(moment: Any) -> str:
    return f"{_MONTHS[moment.month - 1]} {moment.day:2} {moment:%H:%M:%S} {moment.year} GMT"


def _address(address: object) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return ":".join(f"{int(part, 16):X}" for part in address.exploded.split(":"))
    return str(address)


_GENERAL_NAMES: dict[type[x509.GeneralName], tuple[str, Callable[[Any], Any]]] = {
    x509.DNSName: ("DNS", str),
    x509.RFC822Name: ("email", str),
    x509.UniformResourceIdentifier: ("URI", str),
    x509.IPAddress: ("IP Address", _address),
    x509.DirectoryName: ("DirName", _name),
    x509.RegisteredID: ("Registered ID", _long_name),
    x509.OtherName: ("othername", lambda _: "<unsupported>"),
}


def _general_name(name: x509.GeneralName) -> tuple[str, Any]:
    kind, convert = _GENERAL_NAMES[type(name)]
    return kind, convert(b"" if isinstance(name, x509.OtherName) else name.value)


def _places(names: Iterable[x509.GeneralName]) -> tuple[str, ...]:
    return tuple(name.value for name in names if isinstance(name, x509.UniformResourceIdentifier))
