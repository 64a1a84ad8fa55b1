"""HOST:PORT and paths of Unix sockets as operators write them, and the addresses that they stand for."""

from __future__ import annotations

import contextlib
import socket
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from gpu_provider.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Address",
    "Resolved",
    "SocketAddress",
    "UnixPath",
    "families_in_turn",
    "format_address",
    "named",
    "parse_address",
    "parse_target",
    "resolve",
]


class Address(NamedTuple):
    """A host (a name, an IPv4 or IPv6 address without brackets, or empty for every interface) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_address((self.host, self.port))


class UnixPath(NamedTuple):
    """A Unix socket."""

    path: str

    def __str__(self) -> str:
        return self.path


SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""As Python's ``socket`` has it: of IPv4, or of IPv6."""


class Resolved(NamedTuple):
    """A socket address with its family."""

    family: socket.AddressFamily
    address: SocketAddress | str
    """A Unix socket's is its path."""
    host: str = ""
    """Which it was resolved from; empty for a Unix socket."""

    def __str__(self) -> str:
        return self.address if isinstance(self.address, str) else format_address(self.address)


def format_address(address: SocketAddress) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def named(setting: str) -> Iterator[None]:
    """Has a ConfigError begin with the setting's name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None


def parse_address(text: str, *, any_host: bool) -> Address:
    """Reads ``HOST:PORT``, ``[IPV6]:PORT`` or, if ``any_host``, ``:PORT`` for every interface. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    remedy = "write HOST:PORT, such as 192.0.2.1:443, name.example:443 or [::1]:443"
    if not colon:
        raise ConfigError(f"{text!r} has no port; {remedy}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ConfigError(f"{text!r}: {host!r} in brackets is not an IPv6 address; {remedy}")
    elif ":" in host:
        raise ConfigError(f"{text!r}: an IPv6 address needs brackets around it; {remedy}")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(f"{text!r}: {port!r} is not a port number from 0 to 65535; {remedy}")
    if not any_host and (not host or int(port) == 0):
        raise ConfigError(f"{text!r} names no {'port' if host else 'host'} to connect to; {remedy}")
    return Address(host, int(port))


def parse_target(text: str) -> Address | UnixPath:
    """Reads ``HOST:PORT``, ``[IPV6]:PORT`` or ``/path``, to connect to. Raises ConfigError."""
    return UnixPath(text) if text.startswith("/") else parse_address(text, any_host=False)


def resolve(address: Address | UnixPath, *, to_listen: bool) -> tuple[Resolved, ...]:
    """All stream addresses behind ``address``, in the resolver's order. Those to connect to alternate between IPv6 and
    IPv4, so that a family that does not work costs little. May block. Raises ConfigError."""
    if isinstance(address, UnixPath):
        return (Resolved(socket.AF_UNIX, address.path),)
    try:
        found = socket.getaddrinfo(
            address.host or None,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE if to_listen else 0,
        )
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a host name"
        raise ConfigError(f"{address}: the name {address.host!r} can't be resolved: {reason}") from None
    addresses = tuple(
        dict.fromkeys(Resolved(family, sockaddr, address.host) for family, _, _, _, sockaddr in found)  # type: ignore[arg-type]
    )
    return addresses if to_listen else families_in_turn(addresses)


def families_in_turn(addresses: Sequence[Resolved], first: int = 0) -> tuple[Resolved, ...]:
    """Alternates between families, beginning with that of the first address (RFC 8305, section 4). Of each, the order
    begins at place ``first``, counted round and round."""
    by_family = []
    for family in dict.fromkeys(one.family for one in addresses):
        of_family = [one for one in addresses if one.family is family]
        begin = first % len(of_family)
        by_family.append(of_family[begin:] + of_family[:begin])
    return tuple(one for several in zip_longest(*by_family) for one in several if one is not None)


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except OSError:
        return False
    return True
