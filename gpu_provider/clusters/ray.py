"""Ray actors that each have a provider. Needs the extra ``[ray]``.

::

    pool = provider_pool(2, {"signing": Path("/etc/keys/signing.pem")}, num_gpus=1)
    for powers in pool.map(lambda actor, rows: actor.run.remote(private_op, rows), blocks):
        ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_provider.clusters.worker import Worker, check_keys

try:
    import ray
    from ray.util import ActorPool
except ImportError as error:
    raise ImportError(f"gpu_provider.clusters.ray needs Ray: pip install 'gpu-provider[ray]' ({error})") from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpu_provider.clusters.worker import KeyOnWorker
    from gpu_provider.config import ProviderConfig

__all__ = ["provider_pool"]

_RETRIES = 3  # as often as Dask: a block that kills whoever computes it must not go around forever


def provider_pool(
    actors: int,
    keys: Mapping[str, KeyOnWorker],
    config: ProviderConfig | None = None,
    *,
    num_cpus: int = 1,
    num_gpus: float = 0,
) -> ActorPool:
    """A pool of so many actors. Each opens a provider and loads the keys, once: in its process when it starts, and in a
    new one if that dies. Then what it was computing is computed again, up to three times.

    ``actor.run.remote(work, block)`` computes ``work(provider, keys, block)``. Ray gives each actor ``num_cpus``
    processors, which is how many threads compute unless ``config`` says, and ``num_gpus`` GPUs, which it sets
    ``CUDA_VISIBLE_DEVICES`` to. ``config`` None: defaults and the actor's own ``GPU_PROVIDER_*`` variables. The actors
    end when the pool is collected. One thread at a time may use it.

    Raises InputError if ``keys`` has a key itself. What else is wrong with a key, or with the configuration, is the
    cause of the ActorDiedError that an actor's first result raises.
    """
    check_keys(keys)
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=-1, max_task_retries=_RETRIES)
    actor = remote(Worker)
    return ActorPool([actor.remote(dict(keys), config, max(1, num_cpus)) for _ in range(actors)])
