"""``gpu-provider openssl-config``, and configuration files as OpenSSL reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_provider.errors import ConfigError
from gpu_provider.native import MODULE_DIRECTORY, ffi, lib

if TYPE_CHECKING:
    import argparse

    from _cffi_backend import FFI

__all__ = ["DESCRIPTION", "MODULE", "PREFERENCE", "PROVIDER", "Configuration", "run", "system_path", "text"]

DESCRIPTION = "Print an openssl.cnf for OPENSSL_CONF: the system's, and our module. 'module =' says where that is."

PROVIDER = "gpu_provider"
PREFERENCE = "?gpu_provider.batched=yes"
MODULE = MODULE_DIRECTORY / "gpu_provider.so"

_OFF = {"0", "no", "off", "false"}

_TEMPLATE = """\
# Activates gpu_provider for every program with OpenSSL 3 or later that reads this file:
#     OPENSSL_CONF=/path/to/this/file openssl s_server -async ...
# RSA signatures and decryptions go through it, everything else through OpenSSL's default provider.
# "gpu-provider check" says whether they do, and how fast.
{include}
[default]
openssl_conf = {start}

[{start}]
providers = {providers}
alg_section = {algorithms}

[{providers}]
{default}{provider} = gpu_provider_module
{activation}
[gpu_provider_module]
module = {module}
activate = 1
# What computes operations that come together. auto: our kernels, if the processor has AVX-512 IFMA; off: OpenSSL, each
# by itself; portable: slow kernels for any processor, for tests.
# kernels = auto
# The most operations that are computed together, 2 to 8.
# max_group = 8
# The most microseconds that an operation waits for others.
# max_wait = 20000
# Where each program keeps a file with counts of what it computed, which "gpu-provider check" shows. It must exist, and
# the programs' users must be able to write there.
# counts_directory = /run/gpu-provider/counts
# The socket of "gpu-provider service", which computes for all programs on this host. Without it, or while nobody
# answers there, programs compute by themselves.
# service = /run/gpu-provider/service
# The most milliseconds that an operation waits for the service.
# service_timeout = 200
# The most milliseconds that an operation waits for the service if only that has the key. A program has what
# "gpu-provider service key-reference NAME" prints in place of such a key, or the URI gpu-provider:NAME.
# service_key_timeout = 5000
# PKCS#1 v1.5 decryption never tells of bad padding, whatever OpenSSL's version and the program say.
# implicit-rejection = 1

[{algorithms}]
default_properties = {properties}
"""


def text(pointer: FFI.CData) -> str:
    """A C string of OpenSSL's as str."""
    value = ffi.string(pointer)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class Configuration:
    """A configuration file as OpenSSL reads it, with the files that it includes."""

    def __init__(self, path: Path) -> None:
        self._conf = ffi.gc(lib.NCONF_new(ffi.NULL), lib.NCONF_free)
        line = ffi.new("long *")
        loaded = lib.NCONF_load(self._conf, str(path).encode(), line) > 0
        lib.ERR_clear_error()
        if not loaded:
            where = f", line {line[0]}" if line[0] > 0 else ""
            raise ConfigError(f"OpenSSL can't read the configuration {path}{where}")

    def get(self, section: str, name: str) -> str | None:
        value = lib.NCONF_get_string(self._conf, section.encode(), name.encode())
        lib.ERR_clear_error()
        return text(value) if value else None

    def section(self, name: str) -> dict[str, str]:
        """The section's values by name; empty if there is no such section."""
        values = lib.NCONF_get_section(self._conf, name.encode())
        lib.ERR_clear_error()
        if not values:
            return {}
        found = {}
        for i in range(lib.OPENSSL_sk_num(values)):
            entry: Any = ffi.cast("CONF_VALUE *", lib.OPENSSL_sk_value(values, i))
            found[text(entry.name)] = text(entry.value)
        return found

    def activates(self, provider_section: str) -> bool:
        value = self.section(provider_section).get("activate")
        return value is not None and value.lower() not in _OFF


def system_path() -> Path:
    """The file that programs read without OPENSSL_CONF, if it exists."""
    return Path(text(lib.OPENSSL_info(lib.OPENSSL_INFO_CONFIG_DIR))) / "openssl.cnf"


def run(_args: argparse.Namespace) -> int:
    if not MODULE.is_file():
        raise ConfigError(f"the provider module {MODULE} is missing; install gpu-provider again, which builds it")
    print(_with_module(system_path()), end="")
    return 0


def _with_module(path: Path) -> str:
    """For OpenSSL, sections with the same name are one section, so our lines join those of the file at ``path``."""
    system = Configuration(path) if path.is_file() else None

    def named(section: str, name: str, otherwise: str) -> str:
        return (system and system.get(section, name)) or otherwise

    start = named("default", "openssl_conf", "openssl_init")
    providers = named(start, "providers", "gpu_provider_providers")
    algorithms = named(start, "alg_section", "gpu_provider_algorithms")
    listed = system.section(providers) if system else {}
    properties = named(algorithms, "default_properties", "")
    # OpenSSL activates its default provider by itself only if no provider is activated by name.
    default = activation = ""
    if not (system and any(system.activates(section) for section in listed.values())):
        section = listed.get("default", "gpu_provider_default")
        default, activation = f"default = {section}\n", f"\n[{section}]\nactivate = 1\n"
    return _TEMPLATE.format(
        include=f"\n.include {_escaped(path)}\n" if system else "",
        start=start,
        providers=providers,
        algorithms=algorithms,
        default=default,
        activation=activation,
        provider=PROVIDER,
        module=_escaped(MODULE),
        properties=f"{properties},{PREFERENCE}" if properties else PREFERENCE,
    )


def _escaped(path: Path) -> str:
    return "".join(f"\\{character}" if character in "\\$#\"'" else character for character in str(path))
