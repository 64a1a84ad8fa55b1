"""What a worker process opens once, whichever engine started it: a provider, and the keys that it loads itself."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

import msgspec

from gpu_provider.config import ProviderConfig
from gpu_provider.errors import InputError, KeyLoadError
from gpu_provider.provider import BatchingProvider
from gpu_provider.settings import load_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpu_provider.library.key_formats import KeySource
    from gpu_provider.library.keys import Key

__all__ = ["KeyOnWorker", "Work", "Worker", "check_keys"]

KeyOnWorker: TypeAlias = "Path | Callable[[], KeySource]"
"""Where a worker finds a key: the path of a file on its machine, or a function that fetches the key there and returns
what ``load_key()`` takes. It is sent to the workers, so the function must not hold the key."""

_T = TypeVar("_T")
_R = TypeVar("_R")

Work: TypeAlias = "Callable[[BatchingProvider, Mapping[str, Key], _T], _R]"
"""What a worker does with one block of the data: a function of its provider, its keys by name, and the block."""


class Worker:
    """A started provider and its keys, for the process that makes it. Any thread."""

    def __init__(self, keys: Mapping[str, KeyOnWorker], config: ProviderConfig | None, threads: int) -> None:
        """``config`` None: defaults and the worker's ``GPU_PROVIDER_*`` variables. ``threads``: the worker's share of
        its machine, used unless the configuration says how many. Raises KeyLoadError, ConfigError, BackendError, and
        what the functions among ``keys`` raise."""
        if config is None:
            config = load_config(ProviderConfig, environ=os.environ)
        if config.threads is None:
            config = msgspec.structs.replace(config, threads=threads)
        self.provider = BatchingProvider(config)
        try:
            self.keys = {name: self._load(name, source) for name, source in keys.items()}
            self.provider.start()
        except BaseException:
            self.provider.close()
            raise

    def run(self, work: Work[_T, _R], block: _T) -> _R:
        """What ``work`` makes of the block."""
        return work(self.provider, self.keys, block)

    def close(self) -> None:
        """Closes the provider, which waits for what it computes."""
        self.provider.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a worker's provider and keys stay in its process; return results alone")

    def _load(self, name: str, source: KeyOnWorker) -> Key:
        try:
            return self.provider.load_key(source.read_bytes() if isinstance(source, Path) else source())
        except KeyLoadError as error:
            raise KeyLoadError(f"key {name!r} on {socket.gethostname()}: {error}") from None
        except OSError as error:
            raise KeyLoadError(
                f"key {name!r} can't be read on {socket.gethostname()}: {error}; each worker loads its keys itself"
            ) from error


def check_keys(keys: Mapping[str, Any]) -> None:
    """Raises InputError if a key itself would be sent to the workers, instead of where they find it."""
    for name, source in keys.items():
        if not isinstance(source, Path) and not callable(source):
            raise InputError(
                f"key {name!r} is given as {type(source).__name__}, but keys are not sent to workers: give the Path of "
                "a file on their machines, or a function that fetches the key there"
            )
