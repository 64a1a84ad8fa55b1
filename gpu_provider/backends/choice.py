"""Opens the GPUs that a provider computes with: all that work, if its settings allow it."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gpu_provider.backends.cuda.backend import CudaBackend
from gpu_provider.backends.cuda.cupy_device import CupyDevice
from gpu_provider.backends.cuda.devices import find_devices
from gpu_provider.errors import BackendError
from gpu_provider.kernels.cubin_cache import CubinCache, default_directory
from gpu_provider.kernels.cubins import Arithmetic

if TYPE_CHECKING:
    from gpu_provider.client import Client
    from gpu_provider.config import ProviderConfig

__all__ = ["open_gpus"]

_log = logging.getLogger(__name__)


def open_gpus(client: Client, config: ProviderConfig) -> list[CudaBackend]:
    """An open backend for each GPU; none unless ``config.backend`` is "cuda" or "auto".

    With "cuda", raises BackendError if there is no GPU or one can't be used. With "auto", that is logged, and the
    others compute. Starts CUDA in this process, so the program must not fork afterwards.
    """
    if config.backend not in {"auto", "cuda"}:
        return []
    required = config.backend == "cuda"
    try:
        gpus = find_devices()
    except BackendError as error:
        if required:
            raise BackendError(f'backend "cuda": {error}') from None
        _log.info('backend "auto": computing with cpu: %s', error)
        return []
    cache = CubinCache(config.kernel_cache or default_directory(os.environ))
    arithmetic = None if config.arithmetic == "auto" else Arithmetic(config.arithmetic)
    names = ["cuda"] if len(gpus) == 1 else [f"cuda{gpu.index}" for gpu in gpus]
    backends = [
        CudaBackend(CupyDevice(gpu, cache, arithmetic), name=name, measured=config.max_batch)
        for gpu, name in zip(gpus, names, strict=True)
    ]
    # On other threads: each makes its device the current one of its thread, and this thread may have another.
    with ThreadPoolExecutor(len(backends)) as pool:
        opening = {backend: pool.submit(backend.open, client) for backend in backends}
    failures = {backend: opened.exception() for backend, opened in opening.items()}
    working = [backend for backend, failure in failures.items() if failure is None]
    for backend, failure in failures.items():
        if failure is not None and (required or not isinstance(failure, BackendError)):
            for other in working:
                other.close()
            raise failure
        if failure is not None:
            _log.warning('backend "auto": %s is not used: %s', backend.name, failure)
    if not required:
        _log.info('backend "auto": computing with %s', ", ".join([*(backend.name for backend in working), "cpu"]))
    return working
