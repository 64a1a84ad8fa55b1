"""Listening sockets on a HOST:PORT."""

from __future__ import annotations

import errno
import os
import socket

from gpu_provider.addresses import Address, format_address, named, resolve
from gpu_provider.errors import ConfigError

__all__ = ["listen"]

_BACKLOG = 4096  # the kernel lowers it to net.core.somaxconn
_REMEDIES = {
    errno.EADDRINUSE: "another program listens there; stop it, or choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address; use one of its own, or 0.0.0.0 or [::] for all",
    errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start need the capability CAP_NET_BIND_SERVICE; "
    "choose a higher port, or grant it",
}


def listen(address: Address, setting: str) -> list[socket.socket]:
    """Opens non-blocking listening sockets for all that ``address`` resolves to. Raises a ConfigError that names
    ``setting``."""
    with named(setting):
        resolved = resolve(address, to_listen=True)
    listeners: list[socket.socket] = []
    port = address.port
    try:
        for family, sockaddr, _ in resolved:
            try:
                listener = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(resolved) > 1:
                    continue  # a machine without IPv6, asked for every interface
                raise
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit this.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setblocking(False)
            listener.bind((sockaddr[0], port, *sockaddr[2:]))
            listener.listen(_BACKLOG)
            # Port 0 means any free one, and then the same for the other families.
            port = listener.getsockname()[1]
    except OSError as error:
        for listener in listeners:
            listener.close()
        number = error.errno or 0
        remedy = _REMEDIES.get(number)
        text = f"{setting}: can't listen on {format_address(address)}: {os.strerror(number)}"
        raise ConfigError(f"{text}; {remedy}" if remedy else text) from None
    return listeners
