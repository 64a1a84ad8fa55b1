"""The exceptions of the library, under one root. Those of ``gpu_provider.tls`` derive from the same root."""

__all__ = [
    "MORE_THREADS",
    "BackendError",
    "ConfigError",
    "GpuProviderError",
    "InputError",
    "KeyLoadError",
    "OperationError",
    "ProviderClosedError",
    "QueueFullError",
]

MORE_THREADS = "raise the limits of threads (ulimit -u) and of memory (ulimit -v)"
"""The remedy when a thread can't be started."""


class GpuProviderError(Exception):
    """The root: ``except GpuProviderError`` catches everything this library raises on purpose."""


class ConfigError(GpuProviderError, ValueError):
    """A setting is unknown, of the wrong type or out of range, or the configuration file can't be read."""


class KeyLoadError(GpuProviderError, ValueError):
    """A private key can't be read or can't be used here. The message never holds key material."""


class InputError(GpuProviderError, ValueError):
    """An operand is of the wrong type, size or range. The message never holds the number."""


class QueueFullError(GpuProviderError):
    """The request queue has no free slot: the RETRY of the library. Submit again later, or use a form that waits."""


class ProviderClosedError(GpuProviderError):
    """The provider is closed, not started yet, or belongs to the process that this one was forked from."""


class BackendError(GpuProviderError):
    """A backend can't be opened, or can't compute."""


class OperationError(GpuProviderError):
    """A request ended with status ERR: no backend could compute it, OpenSSL included."""
