"""The data port's listening sockets, and the descriptors that are left for connections."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import struct
from typing import NamedTuple

from gpu_provider.errors import ConfigError

__all__ = [
    "Arrival",
    "arrival_of",
    "connections_allowed",
    "defer_accept",
    "raise_descriptor_limit",
    "refuse_newcomers",
]

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
_TCP_ESTABLISHED = 1
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the TCP header that holds the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK of them
    (0x15, 0, 1, 0x02),  # only SYN?
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # pass all of it
)
"""A program for the kernel's packet filter, in classic BPF: code, jump if true, jump if false, operand."""


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


class Arrival(NamedTuple):
    """How a connection looks when it is accepted."""

    waited: float
    """Seconds since the client's last bytes came or, if there were none, since the connection was established."""
    has_left: bool
    """The client has ended or reset the connection."""


def arrival_of(sock: socket.socket) -> Arrival:
    state, milliseconds = struct.unpack("B51xI", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56))
    return Arrival(milliseconds / 1000, state != _TCP_ESTABLISHED)


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
