"""The header that tells the upstream the client's address: the PROXY protocol, versions 1 and 2.

Source: "The PROXY protocol, versions 1 & 2", HAProxy Technologies, sections 2.1 and 2.2.
"""

from __future__ import annotations

import socket
import struct

__all__ = ["header"]

_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_VERSION_AND_PROXY = 0x21
_V2_STREAM = {socket.AF_INET: 0x11, socket.AF_INET6: 0x21}
_V1_NAME = {socket.AF_INET: "TCP4", socket.AF_INET6: "TCP6"}


def header(
    version: int,
    family: socket.AddressFamily,
    source: tuple[str, int] | tuple[str, int, int, int],
    destination: tuple[str, int] | tuple[str, int, int, int],
) -> bytes:
    """The bytes to send to the upstream before the client's own.

    ``version``: 1 (a line of text) or 2 (binary). ``family``: AF_INET or AF_INET6. ``source``: the client's socket
    address. ``destination``: the address that it connected to.
    """
    if version == 1:
        line = f"PROXY {_V1_NAME[family]} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n"
        return line.encode("ascii")
    addresses = (
        socket.inet_pton(family, source[0])
        + socket.inet_pton(family, destination[0])
        + struct.pack("!HH", source[1], destination[1])
    )
    return _V2_SIGNATURE + struct.pack("!BBH", _V2_VERSION_AND_PROXY, _V2_STREAM[family], len(addresses)) + addresses
