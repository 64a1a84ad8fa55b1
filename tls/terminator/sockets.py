"""Where the listening sockets come from: opened here, passed by systemd, or handed over by the predecessor."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import structlog

from gpu_provider.errors import ConfigError
from gpu_provider.listening import listen
from gpu_provider.systemd import inherited_sockets
from gpu_provider.tls.terminator.handover import HandedOver, Offer, take_over

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gpu_provider.addresses import Address
    from gpu_provider.tls.terminator.config import TerminatorConfig

__all__ = ["LISTEN_IS_MISSING", "Sockets"]

LISTEN_IS_MISSING = "listen is not given: add --listen HOST:PORT, such as --listen 0.0.0.0:8443"
_log = structlog.stdlib.get_logger(__name__)


class Sockets:
    """The listening sockets of the data port and the admin port."""

    def __init__(
        self,
        listeners: list[socket.socket],
        admin: list[socket.socket],
        *,
        kept: bool = False,
        handed_over: HandedOver | None = None,
    ) -> None:
        self.listeners = listeners
        self.admin = admin
        self.kept = kept
        """Somebody else has them too, and accepts there when this process has ended: systemd, or a successor."""
        self._handed_over = handed_over
        self._offer: Offer | None = None

    @classmethod
    def open(cls, config: TerminatorConfig) -> Sockets:
        """Raises ConfigError."""
        if passed := inherited_sockets():
            return _of_systemd(config, passed)
        if not config.listen:
            raise ConfigError(LISTEN_IS_MISSING)
        if config.handover is not None and (handed_over := take_over(config.handover)) is not None:
            return _of_predecessor(config, handed_over)
        listeners = [listener for address in config.listen_addresses for listener in listen(address, "listen")]
        return cls(listeners, _own_admin(config))

    def accepting(self, handover: Path | None, taken: Callable[[], None]) -> None:
        """This process accepts connections now, on the running loop. ``taken``: called when a successor, which has come
        to ``handover``, does so too, and this process is to end. Raises ConfigError."""

        def end() -> None:
            self.kept = True
            taken()

        if handover is not None:
            self._offer = Offer(handover, self.listeners, self.admin, end)
        # Last: once it is told, the predecessor ends, and nobody else would accept connections.
        if self._handed_over is not None:
            self._handed_over.accepting()

    def close(self) -> None:
        """Hands nothing over any more."""
        if self._offer is not None:
            self._offer.close()


def _own_admin(config: TerminatorConfig) -> list[socket.socket]:
    return listen(config.admin_address, "admin") if config.admin_address is not None else []


def _of_systemd(config: TerminatorConfig, passed: list[tuple[str, socket.socket]]) -> Sockets:
    if config.listen:
        raise ConfigError(f"listen = {config.listen!r}: systemd passes the sockets to listen on; leave the setting out")
    for name, each in passed:
        listens = each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if each.family not in {socket.AF_INET, socket.AF_INET6} or each.type != socket.SOCK_STREAM or not listens:
            raise ConfigError(f"the socket {name!r} that systemd passes is not ListenStream= with a port")
        each.setblocking(False)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listeners = [each for name, each in passed if name != "admin"]
    if not listeners:
        raise ConfigError("systemd passes no socket but that for the admin port; add one for TLS connections")
    return Sockets(listeners, [each for name, each in passed if name == "admin"] or _own_admin(config), kept=True)


def _of_predecessor(config: TerminatorConfig, handed_over: HandedOver) -> Sockets:
    _check_ports("listen", config.listen_addresses, handed_over.listeners)
    _check_ports("admin", [config.admin_address] if config.admin_address else [], handed_over.admin)
    _log.info("taking over from the terminator that runs")
    return Sockets(handed_over.listeners, handed_over.admin, handed_over=handed_over)


def _check_ports(setting: str, wanted: Sequence[Address], sockets: Sequence[socket.socket]) -> None:
    """Raises ConfigError if the settings name others."""
    ports = {each.getsockname()[1] for each in sockets}
    asked = {address.port for address in wanted}
    if asked != ports and 0 not in asked:
        shown = [", ".join(map(str, sorted(each))) or "none" for each in (ports, asked)]
        raise ConfigError(
            f"{setting}: the terminator that runs hands over port {shown[0]}, and the settings name port {shown[1]}; "
            "to change ports, stop it first"
        )
