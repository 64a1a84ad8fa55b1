"""``gpu-provider terminator``: makes its flags from the settings, and the settings from flags, environment and file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_provider.commands import flags
from gpu_provider.tls.terminator import serve
from gpu_provider.tls.terminator.config import TerminatorConfig

if TYPE_CHECKING:
    import argparse

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Accept TLS connections, decrypt them and relay their bytes to an upstream. The RSA operations of all handshakes that
run at the same time, also in several processes, are computed in batches."""

_GROUPS = ("addresses", "TLS", "connections", "processes", "batches", "other")
"""In the order of ``--help``."""

_EPILOG = """\
Every setting can be given as a flag, as an environment variable (--queue-depth is GPU_PROVIDER_QUEUE_DEPTH; lists are
separated by commas) or in the TOML file of --config (queue_depth = 4096, cert = ["chain.pem"]). Flags win over the
environment, the environment over the file.

signals:
  SIGTERM, SIGINT, SIGQUIT, SIGUSR1
            after --drain-delay, accept only the connections that the system has begun, let all of them finish for
            --drain-timeout seconds, then cut them off; a second signal, at least a second later, cuts them off at
            once
  SIGHUP    reload the files of certificates, keys, authorities and revocation lists, for new connections; on any
            error the old ones stay
  with --workers, send them to the first process; a worker that gets SIGTERM itself finishes its connections and is
  replaced, and one that dies is replaced too
  SIGUSR2   nothing

exit codes:
  0  ended on a signal, every connection had finished
  2  can't start: a mistake in the settings, an address that can't be used, or too few files, threads or memory
  3  ended on a signal, connections had to be cut off
  4  ended by itself, because it could not go on: the log says why

Core dumps are switched off, since private keys are in memory. (A system that pipes them to a program ignores that.)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    flags.add_flags(parser, TerminatorConfig, _GROUPS)
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check the settings, certificates, keys and names, and warn of what is surely a mistake",
    )


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    config = flags.load(args, TerminatorConfig)
    if args.check:
        flags.warn("terminator", serve.check(config))
        print("the settings are valid")
        return 0
    return serve.run(config)
