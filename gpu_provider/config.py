"""The batching provider's settings."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the settings' types are read at run time
from typing import Annotated

from msgspec import Meta

from gpu_provider.errors import ConfigError
from gpu_provider.settings import Settings, Shown

__all__ = ["ProviderConfig"]

_LATER_BACKENDS = {"service": "leaves the computing to another process"}
_BACKENDS = ("auto", "cuda", "cpu", "libcrypto")

_Requests = Annotated[int, Meta(ge=1, le=65536, description="a number of requests from 1 to 65536")]
_Seconds = Annotated[float, Meta(gt=0, le=3600, description="seconds, more than 0 and at most 3600")]


class ProviderConfig(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a :class:`gpu_provider.BatchingProvider` works."""

    backend: Annotated[
        str,
        Meta(description="'auto', 'cuda', 'cpu' or 'libcrypto'"),
        Shown(
            "batches",
            "NAME",
            "what computes. `cuda`: the NVIDIA GPUs, and `cpu` for what it finishes sooner; `cpu`: our kernels, and "
            "OpenSSL for what it computes sooner; `libcrypto`: OpenSSL alone; `auto`: `cuda` if a GPU works here, else "
            "`cpu`",
        ),
    ] = "auto"
    """``cuda`` uses all GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, and needs the extra ``gpu-provider[cuda13]`` or
    ``[cuda12]``. The kernels of ``cpu`` are several times as fast as OpenSSL if the processor has AVX-512 IFMA; without
    it, OpenSSL computes everything. The choice of ``auto`` is logged once."""

    arithmetic: Annotated[
        str,
        Meta(description="'auto', 'fp64' or 'int32'"),
        Shown(
            "batches",
            "NAME",
            "how GPUs multiply. `fp64`: by floating-point multiply-adds; `int32`: by integers; `auto`: whichever is "
            "faster on that GPU",
        ),
    ] = "auto"

    kernel_cache: Annotated[
        Annotated[Path, Meta(description="a directory")] | None,
        Shown(
            "batches",
            "DIRECTORY",
            "where kernels compiled for a GPU are kept",
            default="`gpu-provider/cubins` in `$XDG_CACHE_HOME` or `~/.cache`",
        ),
    ] = None

    queue_depth: Annotated[
        _Requests,
        Shown("batches", "N", "requests that can wait or be computed at a time; further ones get RETRY"),
    ] = 4096

    max_batch: Annotated[
        _Requests,
        Shown("batches", "N", "most requests in one batch, however many `max_delay` would allow"),
    ] = 4096

    max_delay: Annotated[
        _Seconds,
        Shown(
            "batches",
            "SECONDS",
            "seconds that a batch may be expected to take, and that a request may wait for others to share one",
        ),
    ] = 0.010
    """It bounds how long a request waits for a busy worker, and for company."""

    threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024, description="a number of threads from 1 to 1024")] | None,
        Shown("batches", "N", "threads that compute on the processor", default="as many as cores"),
    ] = None

    backend_timeout: Annotated[
        _Seconds,
        Shown("batches", "SECONDS", "seconds after which libcrypto computes a late batch again"),
    ] = 5.0
    """libcrypto itself, the last resort, has no timeout."""

    backend_retry: Annotated[
        _Seconds,
        Shown(
            "batches",
            "SECONDS",
            "seconds that a failed backend stays out of use; doubles with each failure in a row, up to 64 times this",
        ),
    ] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend in _LATER_BACKENDS:
            raise ConfigError(
                f"backend = {self.backend!r}: the backend that {_LATER_BACKENDS[self.backend]} comes with a later "
                "version; use 'cpu', or 'auto' to have it chosen when it is there"
            )
        if self.backend not in _BACKENDS:
            raise ConfigError(f"backend = {self.backend!r}: it must be 'auto', 'cuda', 'cpu' or 'libcrypto'")
        if self.arithmetic not in {"auto", "fp64", "int32"}:
            raise ConfigError(f"arithmetic = {self.arithmetic!r}: it must be 'auto', 'fp64' or 'int32'")
