"""The command ``gpu-provider``. It puts the parts together, and so may import what lies above this package, late."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_provider.errors import ConfigError, GpuProviderError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_USAGE = 2
_INTERRUPTED = 130

_OPENSSL_CONFIG = """\
# Activates gpu_provider for every program of OpenSSL 3 that reads this file:
#     OPENSSL_CONF=/path/to/this/file openssl s_server -async ...
# RSA signatures and decryptions go through it, everything else through OpenSSL's default provider.
openssl_conf = openssl_init

[openssl_init]
providers = providers
alg_section = algorithms

[providers]
default = default_provider
gpu_provider = gpu_provider

[default_provider]
activate = 1

[gpu_provider]
module = {module}
activate = 1

[algorithms]
default_properties = ?provider=gpu_provider
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; argparse's own errors leave by SystemExit with code 2."""
    _open_standard_streams()
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
    """Where one was closed (``2>&-``), the next file or connection would get its number, and what is printed to it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _parser() -> argparse.ArgumentParser:
    from gpu_provider import devices_command  # noqa: PLC0415 - see the module
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
        description="Print an openssl.cnf for OPENSSL_CONF. The module lies where the file's 'module =' line says.",
    )
    config.set_defaults(run=_openssl_config)
    return parser


def _openssl_config(_args: argparse.Namespace) -> int:
    module = Path(__file__).parent / "native" / "gpu_provider.so"
    if not module.is_file():
        raise ConfigError(f"the provider module {module} is missing; install gpu-provider again, which builds it")
    print(_OPENSSL_CONFIG.format(module=module), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
