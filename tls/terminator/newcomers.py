"""Handshakes in progress by the client's address, so that no address has all of them."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_provider.addresses import SocketAddress

__all__ = ["Newcomers"]


class Newcomers:
    """IPv6 addresses of one network of 64 bits, which a single client has to itself, count as one."""

    def __init__(self, most_of_address: int) -> None:
        """0: as many as come."""
        self._most = most_of_address
        self._counts: Counter[str | int] = Counter()

    def has_room(self, client: SocketAddress) -> bool:
        return not self._most or self._counts[_origin(client)] < self._most

    def began(self, client: SocketAddress) -> None:
        if self._most:
            self._counts[_origin(client)] += 1

    def ended(self, client: SocketAddress) -> None:
        if self._most:
            origin = _origin(client)
            self._counts[origin] -= 1
            if not self._counts[origin]:
                del self._counts[origin]


def _origin(client: SocketAddress) -> str | int:
    host: str = client[0]
    if ":" not in host:
        return host
    address = IPv6Address(host)
    mapped = address.ipv4_mapped
    return int(address) >> 64 if mapped is None else str(mapped)
