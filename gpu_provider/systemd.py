"""What systemd and a service tell each other: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).

Without systemd nothing here does anything.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import structlog

from gpu_provider.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

__all__ = ["Systemd", "inherited_listener", "inherited_sockets"]

_FIRST_DESCRIPTOR = 3
_LOOK_SECONDS = 1.0
_log = structlog.stdlib.get_logger(__name__)


class Systemd:
    """Tells systemd, if it has started this process, how the service is. Never waits for it."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Takes the variables out of the environment: children must not speak for this process. Raises OSError if
        there is no descriptor; this one is kept, since systemd ends a service that has none left to call with."""
        address = environ.pop("NOTIFY_SOCKET", "")
        of_watchdog = environ.pop("WATCHDOG_PID", str(os.getpid())), environ.pop("WATCHDOG_USEC", "")
        self._socket: socket.socket | None = None
        self._turns = -1
        self._has_watchdog = False
        self.look_seconds = _LOOK_SECONDS
        """How often to call :meth:`alive`."""
        if not address.startswith(("/", "@")):
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        if of_watchdog[0] == str(os.getpid()) and of_watchdog[1].isdecimal() and int(of_watchdog[1]) > 0:
            self._has_watchdog = True
            self.look_seconds = min(_LOOK_SECONDS, int(of_watchdog[1]) / 2e6)

    def ready(self) -> None:
        self._tell("READY=1")

    def alive(self, pulse: Callable[[], int]) -> None:
        """For systemd's watchdog, if it has one. ``pulse``: tells how often the thread that does the work has gone
        around. Nothing is told if that has not changed since the last call."""
        if self._has_watchdog and (turns := pulse()) != self._turns:
            self._turns = turns
            self._tell("WATCHDOG=1")

    async def watch(self, pulse: Callable[[], int]) -> None:
        """Calls :meth:`alive` until it is cancelled."""
        while True:
            self.alive(pulse)
            await asyncio.sleep(self.look_seconds)

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(state.encode(), self._address)
        except OSError as error:
            _log.warning("systemd can't be told", state=state, reason=os.strerror(error.errno or 0))


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> list[tuple[str, socket.socket]]:
    """The sockets that systemd has opened for this process (socket activation), each with the name of its unit or of
    its ``FileDescriptorName=``; none if there are none. Takes the variables out of the environment."""
    for_this_process = environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if not for_this_process or not count.isdecimal():
        return []
    sockets = []
    for number in range(int(count)):
        os.set_inheritable(_FIRST_DESCRIPTOR + number, False)
        name = names[number] if number < len(names) else ""
        sockets.append((name, socket.socket(fileno=_FIRST_DESCRIPTOR + number)))
    return sockets


def inherited_listener(environ: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The one socket that systemd has opened for programs to connect to, if it has. Raises ConfigError if it is not
    one that they can connect to."""
    sockets = inherited_sockets(environ)
    if not sockets:
        return None
    if len(sockets) > 1:
        raise ConfigError(f"systemd passes {len(sockets)} sockets, but there is one for programs; remove the others")
    _, listener = sockets[0]
    listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (listener.family, listener.type, listens) != (socket.AF_UNIX, socket.SOCK_SEQPACKET, 1):
        raise ConfigError("the socket that systemd passes is not ListenSequentialPacket= with a path")
    return listener
