"""Notices when files change: certificates, keys and whatever else is read again by a reload."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gpu_provider.errors import ConfigError
from gpu_provider.tls.terminator.background import in_background
from gpu_provider.tls.terminator.certificate_files import files_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gpu_provider.tls.terminator.config import TerminatorConfig

__all__ = ["Look", "look_at_files", "watch"]

Look = dict["Path", tuple[int, ...] | None]
"""What tells a file from its next version; None: it isn't there."""


def look_at_files(config: TerminatorConfig) -> Look:
    paths = [*config.cert, *config.key, *config.ticket_keys]
    single = config.client_ca, config.client_crl, config.upstream_ca, config.upstream_cert, config.upstream_key
    paths += [path for path in single if path is not None]
    if config.cert_dir is not None:
        try:
            paths += files_in(config.cert_dir)
        except ConfigError:
            paths.append(config.cert_dir)
    return {path: _version(path) for path in paths}


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


async def watch(config: TerminatorConfig, seen: Look, reload: Callable[[], None]) -> None:
    """Looks every ``watch`` seconds, and reloads when the files are others than those ``seen``. Two looks must see the
    same: whoever writes the files may not be done at the first."""
    last = seen
    while config.watch:
        await asyncio.sleep(config.watch)
        try:
            look = await in_background(look_at_files, config)
        except (ConfigError, MemoryError):  # no thread can be started now
            continue
        if look == last and look != seen:
            seen = look
            reload()
        last = look
