"""Listening sockets, and how many descriptors there are for connections."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct

from gpu_provider.errors import ConfigError
from gpu_provider.tls.terminator.addresses import Address, format_address, resolve

__all__ = ["listen", "raise_descriptor_limit", "seconds_since_input"]

_BACKLOG = 4096  # the kernel lowers it to net.core.somaxconn
_REMEDIES = {
    errno.EADDRINUSE: "another program listens there; stop it, or choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address; use one of its own, or 0.0.0.0 or [::] for all",
    errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start need the capability CAP_NET_BIND_SERVICE; "
    "choose a higher port, or grant it",
}


def listen(address: Address, setting: str) -> list[socket.socket]:
    """Non-blocking listening sockets for all that ``address`` resolves to. Raises ConfigError naming ``setting``."""
    listeners: list[socket.socket] = []
    port = address.port
    try:
        resolved = resolve(address, to_listen=True)
        for family, sockaddr in resolved:
            try:
                listener = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(resolved) > 1:
                    continue  # a machine without IPv6, asked for every interface
                raise
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setblocking(False)
            listener.bind((sockaddr[0], port, *sockaddr[2:]))
            listener.listen(_BACKLOG)
            # Port 0 means any free one, and then the same for the other families.
            port = listener.getsockname()[1]
    except (ConfigError, OSError) as error:
        for listener in listeners:
            listener.close()
        if isinstance(error, ConfigError):
            raise ConfigError(f"{setting}: {error}") from None
        number = error.errno or 0
        remedy = _REMEDIES.get(number)
        text = f"{setting}: can't listen on {format_address(address)}: {os.strerror(number)}"
        raise ConfigError(f"{text}; {remedy}" if remedy else text) from None
    return listeners


def seconds_since_input(sock: socket.socket) -> float:
    """How long ago the peer's last bytes came, or without any the connection was established."""
    (milliseconds,) = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56), 52)
    return float(milliseconds) / 1000


def raise_descriptor_limit(wanted: int) -> int:
    """Raises the limit of open files as far as allowed, if it is below ``wanted``. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
