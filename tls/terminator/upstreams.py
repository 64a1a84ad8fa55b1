"""Which addresses of the upstream a connection tries, and in which order.

Each setting is a name, an address or a Unix socket. Connections go round robin over the settings and, where a name
stands for several addresses, over those of each family. Those that have failed a moment ago come last: the pause grows
with each failure in a row, and the first connection after it finds out whether the address is back.

Of a name with IPv6 and IPv4 addresses the families take turns, in the order of the resolver, so that a family which
does not work costs little (RFC 8305, section 4; the timers are in connecting.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from gpu_provider.addresses import families_in_turn, named, resolve
from gpu_provider.errors import ConfigError
from gpu_provider.tls.terminator.background import in_background

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpu_provider.addresses import Address, Resolved, UnixPath

__all__ = ["Upstreams", "resolve_upstreams"]

_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_RESOLVE_SECONDS = 30.0
_SOONEST_SECONDS = 1.0
"""After a failure: the name may stand for others by now."""
_log = structlog.stdlib.get_logger(__name__)


def resolve_upstreams(addresses: Iterable[Address | UnixPath]) -> list[tuple[Resolved, ...]]:
    """What each stands for. May block. Raises ConfigError."""
    with named("upstream"):
        return [resolve(address, to_listen=False) for address in addresses]


class _Paused:
    """An address that has failed."""

    __slots__ = ("failures", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0


class Upstreams:
    """On the running loop."""

    def __init__(self, addresses: Sequence[Address | UnixPath], resolved: Sequence[tuple[Resolved, ...]]) -> None:
        self._addresses = addresses
        self._resolved = list(resolved)
        self._turn = 0
        self._paused: dict[Resolved, _Paused] = {}
        self._loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()
        self._resolving = self._loop.create_task(self._resolve_again_and_again())

    def close(self) -> None:
        self._resolving.cancel()

    def order(self) -> list[Resolved]:
        """For the next connection; at least one."""
        several = self._resolved
        turn, self._turn = self._turn, self._turn + 1
        first = turn % len(several)
        order: list[Resolved] = []
        for each in (*several[first:], *several[:first]):
            order += each if len(each) == 1 else families_in_turn(each, turn // len(several))
        if not self._paused:
            return order
        now = self._loop.time()
        return sorted(order, key=lambda one: one in self._paused and self._paused[one].until > now)

    def failed(self, address: Resolved) -> None:
        """It refused, or did not answer in time. Of many connections that fail together, the first counts."""
        now, paused = self._loop.time(), self._paused.setdefault(address, _Paused())
        if paused.until > now:
            return
        paused.until = now + min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2**paused.failures)
        paused.failures = min(paused.failures + 1, 16)
        self._asked.set()

    def paused(self) -> dict[str, bool]:
        """Whether each address has failed a moment ago."""
        now = self._loop.time()
        paused = {str(one) for one, paused in self._paused.items() if paused.until > now}
        return {str(one): str(one) in paused for each in self._resolved for one in each}

    def answered(self, address: Resolved) -> None:
        if self._paused:
            self._paused.pop(address, None)

    async def _resolve_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(_SOONEST_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESOLVE_SECONDS):
                    await self._asked.wait()
            self._asked.clear()
            for place, address in enumerate(self._addresses):
                try:
                    (self._resolved[place],) = await in_background(resolve_upstreams, [address])
                except ConfigError as error:
                    _log.warning("the upstream's name can't be resolved now", reason=str(error))
            known = {one for each in self._resolved for one in each}
            self._paused = {one: paused for one, paused in self._paused.items() if one in known}
