"""``gpu-provider terminator``: makes its flags from the settings, and the settings from flags, environment and file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_provider.settings import Option, load_config, options, unknown_variables
from gpu_provider.tls.terminator import serve
from gpu_provider.tls.terminator.config import TerminatorConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Accept TLS connections, decrypt them and relay their bytes to an upstream. The RSA operations of all handshakes that
run at the same time are computed in batches."""

_GROUPS = ("addresses", "TLS", "connections", "batches", "other")
"""In the order of ``--help``."""

_EPILOG = """\
Every setting can be given as a flag, as an environment variable (--queue-depth is GPU_PROVIDER_QUEUE_DEPTH; lists are
separated by commas) or in the TOML file of --config (queue_depth = 4096, cert = ["chain.pem"]). Flags win over the
environment, the environment over the file.

signals:
  SIGTERM, SIGINT, SIGQUIT  accept only the connections that the system has begun, let all of them finish for
                            --drain-timeout seconds, then cut them off; a second signal, at least a second later,
                            cuts them off at once
  SIGHUP                    reload the certificate and key files, for new connections; on any error the old ones
                            stay
  SIGUSR1, SIGUSR2          nothing

exit codes:
  0  ended on a signal, every connection had finished
  2  can't start: a mistake in the settings, an address that can't be used, or too few files, threads or memory
  3  ended on a signal, connections had to be cut off
  4  ended by itself, because it could not go on: the log says why

Core dumps are switched off, since private keys are in memory. (A system that pipes them to a program ignores that.)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one flag for each field of TerminatorConfig. The field has the default, so the flag's is None."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    groups = {name: parser.add_argument_group(name) for name in _GROUPS}
    for option in sorted(options(TerminatorConfig), key=lambda option: _GROUPS.index(option.shown.group)):
        groups[option.shown.group].add_argument(
            f"--{option.name.replace('_', '-')}",
            action="append" if option.several else _Once,
            type=str if option.type is Path else option.type,
            choices=option.choices or None,
            metavar=None if option.choices else option.shown.value,
            help=_help(option),
        )
    groups["other"].add_argument("--config", action=_Once, metavar="FILE", help="TOML file with these settings")
    groups["other"].add_argument(
        "--check",
        action="store_true",
        help="only check the settings, certificates, keys and names, and warn of what is surely a mistake",
    )


def _help(option: Option) -> str:
    default = f" (default: {option.default_words})" if option.default_words else ""
    return f"{option.shown.help}{default}".replace("`", "")


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    # Warn before the settings are checked: a missing setting may be a misspelt one.
    _warn(unknown_variables(TerminatorConfig, os.environ))
    config = load(args.config, {field: getattr(args, field, None) for field in TerminatorConfig.__struct_fields__})
    if args.check:
        _warn(serve.check(config))
        print("the settings are valid")
        return 0
    return serve.run(config)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"gpu-provider terminator: warning: {warning}", file=sys.stderr)


class _Once(argparse.Action):
    """A flag that may be given once. Given twice, argparse would silently use the last value."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        if getattr(namespace, self.dest, None) is not None:
            raise argparse.ArgumentError(self, "given more than once, but it takes one value; remove all but one")
        setattr(namespace, self.dest, values)


def load(path: str | Path | None, flags: dict[str, object]) -> TerminatorConfig:
    return load_config(TerminatorConfig, path, os.environ, flags)
