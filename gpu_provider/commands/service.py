"""``gpu-provider service``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_provider.commands import flags, key_reference
from gpu_provider.service import serve
from gpu_provider.service.config import ServiceConfig

if TYPE_CHECKING:
    import argparse

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Compute the RSA operations of all programs on this host that load the provider module and name this service's socket in
their openssl.cnf, in common batches. A program that can't reach it computes by itself."""

_EPILOG = """\
Every setting can be given as a flag, as an environment variable (--queue-depth is GPU_PROVIDER_QUEUE_DEPTH) or in the
TOML file of --config (queue_depth = 4096). Flags win over the environment, the environment over the file.

exit codes:
  0  ended on a signal (SIGTERM, SIGINT, SIGQUIT)
  2  can't start: a mistake in the settings, or a socket, files or memory that can't be had
  4  ended by itself, because it could not go on: the log says why

SIGHUP reads the files of --service-key again.

Core dumps are switched off, since private keys are in memory. (A system that pipes them to a program ignores that.)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    flags.add_flags(parser, ServiceConfig, ("programs", "batches", "other"))
    parser.set_defaults(run_service=_serve)
    key_reference.add_to(parser.add_subparsers(title="other commands", metavar="COMMAND"))


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    code: int = args.run_service(args)
    return code


def _serve(args: argparse.Namespace) -> int:
    return serve.run(flags.load(args, ServiceConfig))
