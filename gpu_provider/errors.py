"""The exceptions of the library, under one root. Those of ``gpu_provider.tls`` derive from the same root."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    "RowsError",
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


class RowsError(GpuProviderError):
    """Some rows of a call such as ``sign_many()`` failed. All others were computed: nothing is lost."""

    def __init__(self, results: Sequence[Any], errors: Mapping[int, Exception]) -> None:
        self.results = list(results)
        """What the call would have returned, with None for the rows that failed."""
        self.errors = dict(errors)
        """Why each of those failed, by its index."""
        index, first = next(iter(self.errors.items()))
        super().__init__(
            f"{len(self.errors)} of {len(self.results)} rows failed; the one at index {index}: "
            f"{type(first).__name__}: {first}. `errors` has the others, and `results` what did not fail"
        )

    def __reduce__(self) -> tuple[type[RowsError], tuple[list[Any], dict[int, Exception]]]:
        return RowsError, (self.results, self.errors)
