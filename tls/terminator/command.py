"""``gpu-provider terminator``: its flags, and from flags, environment and file to the settings."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from gpu_provider.config import load_config, unknown_variables
from gpu_provider.tls.terminator import serve
from gpu_provider.tls.terminator.config import TLS_VERSIONS, TerminatorConfig

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Accept TLS connections, decrypt them and relay their bytes to an upstream. The RSA operations of all handshakes that
run at the same time are computed in batches."""

_EPILOG = """\
Every setting can be given as a flag, as an environment variable (--queue-depth is GPU_PROVIDER_QUEUE_DEPTH; lists are
separated by commas) or in the TOML file of --config (queue_depth = 4096, cert = ["chain.pem"]). Flags win over the
environment, the environment over the file.

signals:
  SIGTERM, SIGINT, SIGQUIT  accept no connection but those that the system has begun, let all of them finish for
                            --drain-timeout seconds, then cut them off; another one, at least a second later, cuts
                            them off at once
  SIGHUP                    read the certificate and key files again, for new connections; on any error the old ones
                            stay
  SIGUSR1, SIGUSR2          nothing

exit codes:
  0  ended on a signal, every connection had finished
  2  can't start: a mistake in the settings, an address that can't be used, or too few files, threads or memory
  3  ended on a signal, connections had to be cut off
  4  ended by itself, because it could not go on: the log says why

Core dumps are switched off, since private keys are in memory. (A system that pipes them to a program ignores that.)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of TerminatorConfig. Their defaults are the field's, so here every default is None."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.register("action", None, _Once)  # for flags without another action
    default = TerminatorConfig.__struct_defaults__
    defaults = dict(zip(TerminatorConfig.__struct_fields__[-len(default) :], default, strict=True))

    def shown(field: str) -> str:
        return (
            f"(default: {defaults[field]:g})" if isinstance(defaults[field], float) else f"(default: {defaults[field]})"
        )

    add = parser.add_argument_group("addresses").add_argument
    add(
        "--listen",
        metavar="HOST:PORT",
        help="accept TLS connections here; [::1]:443 for IPv6, :443 for every interface",
    )
    add("--upstream", metavar="HOST:PORT", help="relay the decrypted bytes to this address")
    add("--admin", metavar="HOST:PORT", help=f"serve /livez, /readyz and /metrics here; off: nowhere {shown('admin')}")

    add = parser.add_argument_group("TLS").add_argument
    add("--cert", metavar="FILE", action="append", help="PEM certificate and chain, the leaf first; repeat for more")
    add(
        "--key",
        metavar="FILE",
        action="append",
        help="PEM private key, RSA or EC, of the certificate in the same place",
    )
    add("--alpn", metavar="PROTOCOL", action="append", help="protocol to agree on by ALPN; repeat, the preferred first")
    add("--tls-min", choices=TLS_VERSIONS, help=f"lowest version {shown('tls_min')}")
    add("--tls-max", choices=TLS_VERSIONS, help=f"highest version {shown('tls_max')}")
    add("--ciphers", metavar="LIST", help="TLS 1.2 ciphers in OpenSSL's form (default: OpenSSL's)")
    add("--ciphersuites", metavar="LIST", help="TLS 1.3 ciphersuites in OpenSSL's form (default: OpenSSL's)")

    add = parser.add_argument_group("connections").add_argument
    add(
        "--max-connections",
        type=int,
        metavar="N",
        help=f"stop accepting while so many are open; the kernel's backlog holds new ones {shown('max_connections')}",
    )
    for name, what in (
        ("handshake", "for a client's handshake"),
        ("connect", "for connecting to the upstream"),
        ("idle", "without a byte either way before a connection is closed; 0: never"),
        ("drain", "for open connections after SIGTERM"),
    ):
        add(
            f"--{name}-timeout",
            type=float,
            metavar="SECONDS",
            help=f"seconds {what} {shown(f'{name}_timeout')}",
        )
    add(
        "--proxy-protocol",
        choices=("off", "v1", "v2"),
        help=f"tell the upstream the client's address with a PROXY protocol header {shown('proxy_protocol')}",
    )

    add = parser.add_argument_group("batches").add_argument
    add("--backend", metavar="NAME", help=f"what computes: auto, cuda, cpu or libcrypto {shown('backend')}")
    add("--queue-depth", type=int, metavar="N", help=f"RSA operations that can wait at a time {shown('queue_depth')}")
    add("--max-batch", type=int, metavar="N", help=f"most operations in one batch {shown('max_batch')}")
    add("--max-delay", type=float, metavar="SECONDS", help=f"seconds that one batch may take {shown('max_delay')}")
    add(
        "--backend-timeout",
        type=float,
        metavar="SECONDS",
        help=f"seconds after which a batch is taken away from a backend that hangs {shown('backend_timeout')}",
    )
    add(
        "--backend-retry",
        type=float,
        metavar="SECONDS",
        help=f"seconds that a failed backend stays out of use at first {shown('backend_retry')}",
    )
    add("--arithmetic", metavar="NAME", help=f"how GPUs multiply: auto, fp64 or int32 {shown('arithmetic')}")
    add(
        "--kernel-cache",
        metavar="DIRECTORY",
        help="where kernels compiled for a GPU are kept (default: gpu-provider/cubins in $XDG_CACHE_HOME or ~/.cache)",
    )
    add("--threads", type=int, metavar="N", help="threads that compute on the CPU (default: as many as cores)")

    add = parser.add_argument_group("other").add_argument
    add("--config", metavar="FILE", help="TOML file with these settings")
    add("--log-level", choices=("debug", "info", "warning", "error"), help=f"least level to log {shown('log_level')}")
    add(
        "--check",
        action="store_true",
        help="only check the settings, certificates, keys and names, and warn of what is surely not meant",
    )


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    # Before anything is made of the rest: a setting that is missing may be a misspelt one.
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
    """A flag with one value. Of two, argparse would take the last and say nothing."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        if getattr(namespace, self.dest, None) is not None:
            raise argparse.ArgumentError(self, "given more than once, but it takes one value; remove all but one")
        setattr(namespace, self.dest, values)


def load(path: str | Path | None, flags: dict[str, object]) -> TerminatorConfig:
    return load_config(TerminatorConfig, path, os.environ, flags)
