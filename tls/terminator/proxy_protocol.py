"""The header that tells the upstream the client's address: the PROXY protocol, versions 1 and 2.

Source: "The PROXY protocol, versions 1 & 2", HAProxy Technologies, sections 2.1 and 2.2. Version 2 also says what the
client's TLS connection is (section 2.2.7).
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_provider.tls.terminator.client_facts import ClientFacts

__all__ = ["header"]

_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_VERSION_AND_PROXY = 0x21
_V2_STREAM = {socket.AF_INET: 0x11, socket.AF_INET6: 0x21}
_V1_NAME = {socket.AF_INET: "TCP4", socket.AF_INET6: "TCP6"}
_TYPE_SSL, _SUBTYPE_VERSION, _SUBTYPE_CN, _SUBTYPE_CIPHER = 0x20, 0x21, 0x22, 0x23
_CLIENT_SSL, _CLIENT_CERT_CONN, _CLIENT_CERT_SESS = 1, 2, 4
_NOT_VERIFIED = 1


def header(
    version: int,
    family: socket.AddressFamily,
    source: tuple[str, int] | tuple[str, int, int, int],
    destination: tuple[str, int] | tuple[str, int, int, int],
    facts: ClientFacts,
) -> bytes:
    """The bytes to send to the upstream before the client's own.

    ``version``: 1 (a line of text) or 2 (binary). ``family``: AF_INET or AF_INET6. ``source``: the client's socket
    address. ``destination``: the address that it connected to. ``facts`` are for version 2 alone.
    """
    if version == 1:
        line = f"PROXY {_V1_NAME[family]} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n"
        return line.encode("ascii")
    addresses = (
        socket.inet_pton(family, source[0])
        + socket.inet_pton(family, destination[0])
        + struct.pack("!HH", source[1], destination[1])
    )
    body = addresses + _ssl_value(facts)
    return _V2_SIGNATURE + struct.pack("!BBH", _V2_VERSION_AND_PROXY, _V2_STREAM[family], len(body)) + body


def _ssl_value(facts: ClientFacts) -> bytes:
    """PP2_TYPE_SSL."""
    client, verify = _CLIENT_SSL, _NOT_VERIFIED
    if facts.subject is not None:
        client |= _CLIENT_CERT_SESS if facts.resumed else _CLIENT_CERT_SESS | _CLIENT_CERT_CONN
        verify = facts.verify_result
    values = _value(_SUBTYPE_VERSION, facts.version) + _value(_SUBTYPE_CIPHER, facts.cipher)
    if facts.subject is not None and facts.subject.common_name is not None:
        values += _value(_SUBTYPE_CN, facts.subject.common_name)
    return struct.pack("!BHBI", _TYPE_SSL, 5 + len(values), client, verify) + values


def _value(kind: int, text: str) -> bytes:
    data = text.encode()
    return struct.pack("!BH", kind, len(data)) + data
