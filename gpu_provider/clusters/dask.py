"""A provider in each worker process of a Dask cluster, and arrays that are computed there. Needs the extra ``[dask]``.

::

    client.register_plugin(ProviderPlugin({"signing": Path("/etc/keys/signing.pem")}))
    powers = map_blocks(lambda provider, keys, rows: provider.private_op(keys["signing"], rows), array)

For a GPU each, start one worker process per GPU, each with its number in ``CUDA_VISIBLE_DEVICES``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from gpu_provider.clusters.worker import Worker, check_keys
from gpu_provider.errors import InputError, ProviderClosedError

try:
    from distributed import WorkerPlugin, get_worker
except ImportError as error:
    raise ImportError(f"gpu_provider.clusters.dask needs Dask: pip install 'gpu-provider[dask]' ({error})") from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    import dask.array as da

    from gpu_provider.clusters.worker import KeyOnWorker, Work
    from gpu_provider.config import ProviderConfig

__all__ = ["ProviderPlugin", "map_blocks", "run"]

_NAME = "gpu-provider"
_T = TypeVar("_T")
_R = TypeVar("_R")


class ProviderPlugin(WorkerPlugin):
    """Give it to ``Client.register_plugin()``: every worker, one that starts later too, opens a provider and loads the
    keys, once. A worker's end closes its provider. To renew keys, register another while nothing is computed."""

    name = _NAME

    def __init__(self, keys: Mapping[str, KeyOnWorker], config: ProviderConfig | None = None) -> None:
        """``config`` None: each worker's own ``GPU_PROVIDER_*`` variables and the defaults, but as many threads as the
        worker has. Raises InputError if ``keys`` has a key itself. What else is wrong with a key, or with the
        configuration, ``register_plugin()`` raises, from a worker."""
        check_keys(keys)
        self.worker: Worker | None = None
        self._keys = dict(keys)
        self._config = config

    async def setup(self, worker: Any) -> None:
        """Called by Dask. Opens the provider on a thread of its own, since that may take seconds."""
        self.worker = await asyncio.to_thread(Worker, self._keys, self._config, worker.state.nthreads)

    async def teardown(self, worker: Any) -> None:
        """Called by Dask. Waits for what the provider computes."""
        if self.worker is not None:
            await asyncio.to_thread(self.worker.close)


def run(work: Work[_T, _R], block: _T) -> _R:
    """``work(provider, keys, block)`` with the provider and keys of the Dask worker whose task calls this: for
    ``client.map(functools.partial(run, work), blocks)`` and the like. Raises ProviderClosedError where there is no
    worker or it has no provider, and what ``work`` raises."""
    try:
        plugin = get_worker().plugins.get(_NAME)
    except ValueError:
        raise ProviderClosedError("no Dask worker runs this: compute with a distributed.Client") from None
    if plugin is None or plugin.worker is None:
        raise ProviderClosedError(
            "this Dask worker has no provider: register a ProviderPlugin with the client, or see the worker's log for "
            "why its provider could not be opened"
        )
    opened: Worker = plugin.worker
    return opened.run(work, block)


def map_blocks(work: Work[Any, Any], array: da.Array, *, limbs: int | None = None) -> da.Array:
    """``work(provider, keys, rows)`` for each block of rows of an array [n, limbs], when the result is computed.

    ``work`` returns as many rows, with as many limbs as ``array`` has, or ``limbs``. Raises InputError if a block
    doesn't have whole rows, and when it is computed, if ``work`` returns another shape.
    """
    if array.ndim != 2 or len(array.chunks[1]) != 1:
        raise InputError(
            f"the array's blocks are {array.chunks}; each must have whole rows of [n, limbs]: array.rechunk({{1: -1}})"
        )
    limbs = array.shape[1] if limbs is None else limbs
    return array.map_blocks(
        _run_rows, work=work, limbs=limbs, chunks=(array.chunks[0], (limbs,)), dtype=array.dtype, meta=array._meta
    )


def _run_rows(rows: Any, *, work: Work[Any, Any], limbs: int) -> Any:
    result = run(work, rows)
    if result.shape != (len(rows), limbs):
        raise InputError(
            f"for a block {rows.shape} the function returned {result.shape}, not {(len(rows), limbs)}; for other limbs "
            "than the array's, pass limbs=… to map_blocks()"
        )
    return result
