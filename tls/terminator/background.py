"""Runs calls that may take long off the event loop's thread."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from gpu_provider.errors import MORE_THREADS, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_background"]

P = ParamSpec("P")
T = TypeVar("T")


async def in_background(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like asyncio.to_thread, but the process does not wait for the call when it ends: a name server or a network file
    system may never answer. Raises what the function raises, and ConfigError if no thread can be started."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whoever awaits the call handles it
            outcome.set_exception(error)

    try:
        threading.Thread(target=run, name="gpu-provider-background", daemon=True).start()
    except RuntimeError as error:
        raise ConfigError(f"no thread can be started: {error}; {MORE_THREADS}") from None
    return await asyncio.wrap_future(outcome)
