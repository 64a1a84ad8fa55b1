"""Batched RSA and modular exponentiation, and the OpenSSL provider in front of them."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

from gpu_provider.errors import (
    BackendError,
    ConfigError,
    GpuProviderError,
    InputError,
    KeyLoadError,
    OperationError,
    ProviderClosedError,
    QueueFullError,
    RowsError,
)
from gpu_provider.status import RETRY, AsyncStatus

if TYPE_CHECKING:
    from gpu_provider.config import ProviderConfig
    from gpu_provider.library.keys import Key
    from gpu_provider.provider import BatchingProvider, LibraryContext, ProviderStats
    from gpu_provider.settings import load_config

    __version__: str

__all__ = [
    "RETRY",
    "AsyncStatus",
    "BackendError",
    "BatchingProvider",
    "ConfigError",
    "GpuProviderError",
    "InputError",
    "Key",
    "KeyLoadError",
    "LibraryContext",
    "OperationError",
    "ProviderClosedError",
    "ProviderConfig",
    "ProviderStats",
    "QueueFullError",
    "RowsError",
    "load_config",
]

# Loaded at first use: the pytest plugin, which pytest imports in every environment with this package, and the command
# line's --help must not pay for NumPy and the C core.
_LAZY = {
    "BatchingProvider": "gpu_provider.provider",
    "Key": "gpu_provider.library.keys",
    "LibraryContext": "gpu_provider.provider",
    "ProviderConfig": "gpu_provider.config",
    "ProviderStats": "gpu_provider.provider",
    "load_config": "gpu_provider.settings",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    value: object
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("gpu-provider")
    elif name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"})
