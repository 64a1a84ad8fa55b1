"""Listening sockets, and the descriptors that are left for connections."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import struct

from gpu_provider.errors import ConfigError
from gpu_provider.tls.terminator.addresses import Address, format_address, named, resolve

__all__ = [
    "connections_allowed",
    "defer_accept",
    "listen",
    "raise_descriptor_limit",
    "refuse_newcomers",
    "seconds_since_input",
]

_BACKLOG = 4096  # the kernel lowers it to net.core.somaxconn
_DESCRIPTORS_EACH = 2
"""The client's and the upstream's socket."""
_OTHER_DESCRIPTORS = 512
"""What start-up may open, GPUs included. How many are really in use is known only afterwards."""
_FEWEST_DESCRIPTORS = 32
"""With fewer, start-up itself would fail."""
_SPARE_DESCRIPTORS = 16
"""For the admin port, and to read certificates and resolve names while everything else is in use."""
_DEFER_ACCEPT_SECONDS = 1
_SO_ATTACH_FILTER = 26
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the TCP header that holds the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK of them
    (0x15, 0, 1, 0x02),  # only SYN?
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # pass all of it
)
"""A program for the kernel's packet filter, in classic BPF: code, jump if true, jump if false, operand."""

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
        for family, sockaddr in resolved:
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


def defer_accept(listener: socket.socket) -> None:
    """Has the system keep a connection until its first bytes are here, since a TLS client speaks first. One that is
    silent for more than a second is handed out all the same."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_ACCEPT_SECONDS)


def refuse_newcomers(listener: socket.socket) -> bool:
    """Has the system begin no new connection, but complete and hand out those that it has begun. Closing the socket
    would reset these, although to their clients they may be established.

    The first packet of a newcomer is dropped. Its client sends it again after a second, and is refused if the socket is
    closed by then. Returns False if the system can't do this.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in _DROP_SYN))
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(program))
        )
    except OSError:
        return False
    return True


def seconds_since_input(sock: socket.socket) -> float:
    """How long ago the peer's last bytes came or, if there were none, the connection was established."""
    (milliseconds,) = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56), 52)
    return float(milliseconds) / 1000


def raise_descriptor_limit(max_connections: int) -> None:
    """Raises the limit of open files to what so many connections need, as far as that is allowed. Raises ConfigError if
    the limit is too low even to start."""
    wanted = _DESCRIPTORS_EACH * max_connections + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < _FEWEST_DESCRIPTORS:
            raise _too_few_descriptors(soft, wanted, max_connections)


def connections_allowed(max_connections: int) -> int:
    """How many connections the limit of open files allows, at most ``max_connections``. Call it when everything that
    stays open is open. Raises ConfigError if the limit does not allow even one."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return max_connections
    others = len(os.listdir("/proc/self/fd")) + _SPARE_DESCRIPTORS
    allowed = (limit - others) // _DESCRIPTORS_EACH
    if allowed < 1:
        raise _too_few_descriptors(limit, others + _DESCRIPTORS_EACH * max_connections, max_connections)
    return min(allowed, max_connections)


def _too_few_descriptors(limit: int, wanted: int, max_connections: int) -> ConfigError:
    return ConfigError(
        f"the limit of open files, {limit}, leaves none for connections: raise it (ulimit -n) to {wanted} "
        f"for max_connections = {max_connections}"
    )
