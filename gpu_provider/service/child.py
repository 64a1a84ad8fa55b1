"""The service as a child of another process, as the terminator's: ``python -m gpu_provider.service.child``."""

from __future__ import annotations

import sys

from gpu_provider.errors import ConfigError
from gpu_provider.service import serve
from gpu_provider.service.config import ServiceConfig
from gpu_provider.settings import from_builtins
from gpu_provider.supervised import receive_task


def main() -> int:
    connection, task = receive_task()
    try:
        return serve.run(from_builtins(ServiceConfig, task.config), connection)
    except ConfigError as error:
        print(f"gpu-provider service: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
