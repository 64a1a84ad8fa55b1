"""The command ``gpu-provider``. It puts the parts together, and so may import what lies above this package, late."""

from __future__ import annotations

import argparse
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


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; argparse's own errors leave by SystemExit with code 2."""
    _open_standard_streams()
    if "terminator" in (sys.argv[1:2] if argv is None else argv[:1]):
        # The terminator will handle them; until its modules are imported, they would end the process.
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
    parser = _parser()
    args = parser.parse_args(argv)
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
        # The reader has seen enough. Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return code


def _open_standard_streams() -> None:
    """Opens to nowhere those that the caller has closed. Otherwise a connection could get the number of one of them,
    and what is written there would go to a stranger."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _parser() -> argparse.ArgumentParser:
    from gpu_provider import check_command, devices_command, openssl_config  # noqa: PLC0415 - see the module
    from gpu_provider.tls.terminator import command, demo  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="gpu-provider", description="Batched RSA for TLS: an OpenSSL provider and a TLS terminator."
    )
    parser.add_argument(
        "--version", action="version", version=f"gpu-provider {importlib.metadata.version('gpu-provider')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    terminator = commands.add_parser(
        "terminator",
        help="terminate TLS in front of an upstream",
        description=command.DESCRIPTION,
        epilog=command.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(terminator)
    terminator.set_defaults(run=command.run)

    show = commands.add_parser(
        "demo", help="see it work, with some hundreds of TLS clients", description=demo.DESCRIPTION
    )
    demo.add_arguments(show)
    show.set_defaults(run=demo.run)

    devices = commands.add_parser(
        "devices",
        help="list the GPUs and compile kernels for them",
        description=devices_command.DESCRIPTION,
    )
    devices_command.add_arguments(devices)
    devices.set_defaults(run=devices_command.run)

    config = commands.add_parser(
        "openssl-config",
        help="print an openssl.cnf that activates the provider module in other programs",
        description=openssl_config.DESCRIPTION,
    )
    config.set_defaults(run=openssl_config.run)

    check = commands.add_parser(
        "check",
        help="say whether other programs reach the provider module",
        description=check_command.DESCRIPTION,
    )
    check.set_defaults(run=check_command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
