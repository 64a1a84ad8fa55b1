"""One of several processes that serve connections: ``python -m gpu_provider.tls.terminator.worker``, for the master."""

from __future__ import annotations

import socket
import sys

from gpu_provider.errors import ConfigError
from gpu_provider.settings import from_builtins
from gpu_provider.supervised import receive_task
from gpu_provider.tls.terminator import serve
from gpu_provider.tls.terminator.config import TerminatorConfig
from gpu_provider.tls.terminator.lifecycle import Worker


def main() -> int:
    connection, task = receive_task()
    listeners = [socket.socket(fileno=descriptor) for descriptor in task.descriptors["listen"]]
    worker = Worker(task.number, connection, task.descriptors["ticket_keys"][0])
    try:
        return serve.run_worker(from_builtins(TerminatorConfig, task.config), listeners, worker)
    except ConfigError as error:
        print(f"gpu-provider terminator: worker {task.number}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
