"""``gpu-provider check``: does a program in this environment reach the module, and what does it gain? If not, why?"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_provider.commands import module_settings
from gpu_provider.commands.check_report import Report
from gpu_provider.commands.counts import read_counts
from gpu_provider.commands.openssl_config import MODULE, PREFERENCE, PROVIDER, Configuration, system_path, text
from gpu_provider.commands.signatures import MEASUREMENTS, one_core, queued_error, sign
from gpu_provider.errors import ConfigError
from gpu_provider.kernels import Isa, isa
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Read OPENSSL_CONF as a program that is started in this environment does, sign with throw-away keys, and say whether our
module computed the signatures, how, and how fast. Also say what is wrong with the module's settings, what programs have
counted in counts_directory, and what to write into the configurations of some programs. Exit code 0 if the module
computed, 1 if not. A program that is linked to another libcrypto than is shown is not reached, whatever the
configuration."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="read this openssl.cnf, instead of what OPENSSL_CONF names")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help=f"how long each of the {MEASUREMENTS} measurements takes; 0: don't measure (default: 1)",
    )
    parser.add_argument(
        "--output",
        choices=("auto", "table", "json"),
        default="auto",
        help="tables, or one JSON object per line (default: tables on a terminal, JSON into a pipe)",
    )


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.seconds <= 60:
        raise ConfigError(f"--seconds {args.seconds:g}: a measurement takes 0 to 60 seconds")
    if args.config is not None and args.config != os.environ.get("OPENSSL_CONF"):
        _start_again(args)
    path = _configuration_path()
    report = Report(args.output)
    report.environment(path, text(lib.OpenSSL_version(0)), _libcrypto_path())
    with one_core():
        signing = sign()
        reason = None if signing.is_ours else _reason(path)
        report.signed(signing.provider_name, reason)
        section, settings = _section(path)
        for mistake in module_settings.mistakes(settings):
            report.mistake(f"section [{section}]: {mistake}")
        if reason is None:
            report.groups(*_groups(settings))
            if args.seconds > 0:
                report.speeds(signing, args.seconds)
    if directory := settings.get(module_settings.COUNTS_DIRECTORY):
        _report_counts(Path(directory), report)
    if reason is None:
        report.advice(_advice(path.absolute(), settings.get(module_settings.SERVICE)))
    return 0 if reason is None else 1


def _start_again(args: argparse.Namespace) -> None:
    """As a program that is started with this OPENSSL_CONF. OpenSSL has read the former one by now, for Python's own use
    of it."""
    command = [sys.executable, "-P", "-m", "gpu_provider.commands.cli", "check", "--config", args.config]
    command += ["--seconds", str(args.seconds), "--output", args.output]
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | {"OPENSSL_CONF": args.config})  # noqa: S606 - nothing of a shell's


def _configuration_path() -> Path:
    named = os.environ.get("OPENSSL_CONF")
    return system_path() if named is None else Path(named)


def _libcrypto_path() -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.rpartition(" ")[2]
        if Path(path).name.startswith("libcrypto.so"):
            return path
    return "linked statically"


def _module_section(configuration: Configuration) -> str | None:
    start = configuration.get("default", "openssl_conf") or ""
    return configuration.section(configuration.get(start, "providers") or "").get(PROVIDER)


def _section(path: Path) -> tuple[str, dict[str, str]]:
    """The name of the module's section, and what is in it. Both are empty if there is none."""
    with suppress(ConfigError):
        configuration = Configuration(path)
        if section := _module_section(configuration):
            return section, configuration.section(section)
    return "", {}


def _reason(path: Path) -> str:
    """The first thing that is wrong on the way from the configuration file to the module."""
    if not path.is_file():
        return f"there is no file {path}"
    try:
        configuration = Configuration(path)
    except ConfigError as error:
        return str(error)
    section = _module_section(configuration)
    if section is None:
        unset = "OPENSSL_CONF is not set, and " if "OPENSSL_CONF" not in os.environ else ""
        return f"{unset}{path} does not name {PROVIDER}; 'gpu-provider openssl-config' prints a file that does"
    if not configuration.activates(section):
        return f"section [{section}] of {path} lacks 'activate = 1'"
    if not lib.OSSL_PROVIDER_available(ffi.NULL, PROVIDER.encode()):
        return _load_failure(configuration.get(section, "module"))
    start = configuration.get("default", "openssl_conf") or ""
    properties = configuration.get(configuration.get(start, "alg_section") or "", "default_properties")
    return f"it is active, but default_properties is {properties or 'not set'}, and should contain {PREFERENCE}"


def _load_failure(module: str | None) -> str:
    name = module or PROVIDER
    if module is not None and module.startswith("/") and not Path(module).is_file():
        return f"'module = {module}' is no file"
    lib.ERR_clear_error()
    provider = lib.OSSL_PROVIDER_load(ffi.NULL, name.encode())
    return f"OpenSSL can't load {name}" if provider else f"OpenSSL can't load {name}: {queued_error()}"


def _groups(settings: Mapping[str, str]) -> tuple[str | None, str]:
    """What computes groups, and a sentence that says so."""
    kernels = settings.get("kernels", "auto")
    if kernels == "off":
        return None, "kernels = off: OpenSSL computes each operation."
    if kernels == "portable":
        return "portable", "kernels = portable: groups are computed by slow portable kernels. That is for tests."
    if isa() is not Isa.IFMA:
        return None, "This processor lacks AVX-512 IFMA: OpenSSL computes each operation."
    return (
        "ifma",
        "OpenSSL computes one operation by itself, and our kernels for AVX-512 IFMA those that come together.",
    )


def _report_counts(directory: Path, report: Report) -> None:
    own = _open_files()
    programs = []
    try:
        for program in read_counts(directory) if directory.is_dir() else []:
            if program.file.resolve() in own:  # this command's, which is of no use when it has ended
                with suppress(OSError):
                    program.file.unlink()
            else:
                programs.append(program)
    except ConfigError as error:
        report.mistake(str(error))
    report.counts(directory, programs)


def _open_files() -> set[Path]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(descriptor.readlink())
    return found


def _advice(configuration: Path, service: str | None) -> dict[str, tuple[str, list[str]]]:
    """For each program a sentence, and what to write."""
    variable = f"OPENSSL_CONF={configuration}"
    advice = {
        "systemd": (
            "What it starts doesn't have your environment. Run 'systemctl edit NAME' and write",
            ["[Service]", f"Environment={variable}"],
        ),
        "HAProxy": (
            (
                "In haproxy.cfg, with a global maxconn of three times what the frontends need, as handshakes wait on "
                "descriptors that it doesn't count. For the module's settings it needs OPENSSL_CONF too; then the line "
                "ssl-mode-async is enough"
            ),
            [
                "global",
                "    ssl-mode-async",
                f"    ssl-provider-path {MODULE.parent}",
                "    ssl-provider default",
                f"    ssl-provider {PROVIDER}",
                f"    ssl-propquery {PREFERENCE}",
            ],
        ),
        "nginx": (
            (
                "In nginx.conf, outside of any block, or it drops OPENSSL_CONF when its binary is replaced. A worker "
                "computes one operation at a time, so it gains nothing without a service"
            ),
            ["env OPENSSL_CONF;"],
        ),
        "Apache": (
            "In its environment, on Debian /etc/apache2/envvars. It gains with the MPMs event and worker",
            [f"export {variable}"],
        ),
        "stunnel": ("In its environment. It gains with many connections at a time", [variable]),
    }
    if service:
        advice["A key that only the service has"] = (
            "Give the service --service-key NAME=FILE, and any program this in place of its key file",
            [f"gpu-provider service key-reference --socket {service} NAME"],
        )
    return advice
