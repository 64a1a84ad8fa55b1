"""The command ``gpu-provider``. It puts the parts together, so it may import what lies above this package, but late."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import signal
import sys
from typing import TYPE_CHECKING

from gpu_provider.errors import ConfigError, GpuProviderError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_USAGE = 2
_INTERRUPTED = 130

_COMMANDS = {
    "terminator": ("gpu_provider.tls.terminator.command", "terminate TLS in front of an upstream"),
    "service": ("gpu_provider.commands.service", "compute for all programs on this host that load the module"),
    "demo": ("gpu_provider.tls.terminator.demo", "see it work, with some hundreds of TLS clients"),
    "devices": ("gpu_provider.commands.devices", "list the GPUs and compile kernels for them"),
    "openssl-config": (
        "gpu_provider.commands.openssl_config",
        "print an openssl.cnf that activates the provider module in other programs",
    ),
    "top": ("gpu_provider.commands.top", "show what a service or a terminator does now"),
    "check": ("gpu_provider.commands.check", "say whether other programs reach the provider module"),
}
"""The module of each command, and a line about it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code. For its own errors argparse raises SystemExit with code 2."""
    _open_standard_streams()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] in (["terminator"], ["service"]):
        # Both handle these; until its modules are imported, they would end the process.
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
    args = _parser(argv).parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except ConfigError as error:
        print(f"gpu-provider {args.command}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except GpuProviderError as error:
        print(f"gpu-provider {args.command}: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough. Without this, Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return code


def _open_standard_streams() -> None:
    """Opens those that the caller has closed, to nowhere. Otherwise a connection could get the number of one of them,
    and a stranger would get what is written there."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Imports only the module of the given command, since each imports much itself."""
    parser = argparse.ArgumentParser(
        prog="gpu-provider", description="Batched RSA for TLS: an OpenSSL provider and a TLS terminator."
    )
    parser.add_argument(
        "--version", action="version", version=f"gpu-provider {importlib.metadata.version('gpu-provider')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name in argv:
            module = importlib.import_module(module_name)
            command.description = module.DESCRIPTION
            if hasattr(module, "add_arguments"):
                module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
