"""``gpu-provider check``: does a program in this environment reach the module? If not, why?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_provider.commands.openssl_config import PREFERENCE, PROVIDER, Configuration, system_path, text
from gpu_provider.errors import ConfigError, GpuProviderError
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    import argparse

__all__ = ["DESCRIPTION", "run"]

DESCRIPTION = """\
Read OPENSSL_CONF as a program that is started in this environment does, sign once with a throw-away key, and say
whether our module computed the signature. Exit code 0 if it did, 1 if not. A program that is linked to another
libcrypto than the line "libcrypto" shows is not reached, whatever the configuration."""

_MESSAGE = b"gpu-provider check"


def run(_args: argparse.Namespace) -> int:
    path = _configuration_path()
    print(f"configuration  {path}" + ("" if path.is_file() else " (not there)"))
    print(f"libcrypto      {text(lib.OpenSSL_version(0))}, {_libcrypto_path()}")
    computed_by, is_ours = _sign()
    print(f"computed by    {computed_by}")
    if not is_ours:
        print(f"The module is not reached: {_reason(path)}.")
        return 1
    print("The module is reached.")
    return 0


def _configuration_path() -> Path:
    named = os.environ.get("OPENSSL_CONF")
    return system_path() if named is None else Path(named)


def _libcrypto_path() -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.rpartition(" ")[2]
        if Path(path).name.startswith("libcrypto.so"):
            return path
    return "linked statically"


def _sign() -> tuple[str, bool]:
    """Returns the provider that signs in OpenSSL's default library context, and whether it is ours."""
    key = ffi.gc(lib.EVP_PKEY_Q_keygen(ffi.NULL, ffi.NULL, b"RSA", ffi.cast("size_t", 2048)), lib.EVP_PKEY_free)
    context = ffi.gc(lib.EVP_MD_CTX_new(), lib.EVP_MD_CTX_free)
    operation = ffi.new("EVP_PKEY_CTX **")
    size, signature = ffi.new("size_t *", 256), ffi.new("unsigned char[256]")
    if (
        not key
        or lib.EVP_DigestSignInit_ex(context, operation, b"SHA256", ffi.NULL, ffi.NULL, key, ffi.NULL) != 1
        or lib.EVP_DigestSign(context, signature, size, _MESSAGE, len(_MESSAGE)) != 1
    ):
        raise GpuProviderError(f"no RSA signature can be made with this configuration: {_queued_error()}")
    provider = lib.EVP_PKEY_CTX_get0_provider(operation[0])
    ours = ffi.gc(
        lib.EVP_SIGNATURE_fetch(ffi.NULL, b"RSA", PREFERENCE.removeprefix("?").encode()), lib.EVP_SIGNATURE_free
    )
    is_ours = bool(ours) and lib.EVP_SIGNATURE_get0_provider(ours) == provider
    lib.ERR_clear_error()
    return text(lib.OSSL_PROVIDER_get0_name(provider)), is_ours


def _queued_error() -> str:
    code = lib.ERR_get_error()
    buffer = ffi.new("char[256]")
    lib.ERR_error_string_n(code, buffer, 256)
    lib.ERR_clear_error()
    return text(buffer) if code else "OpenSSL does not say why"


def _reason(path: Path) -> str:
    """The first thing that is wrong on the way from the configuration file to the module."""
    if not path.is_file():
        return f"there is no file {path}"
    try:
        configuration = Configuration(path)
    except ConfigError as error:
        return str(error)
    start = configuration.get("default", "openssl_conf") or ""
    section = configuration.section(configuration.get(start, "providers") or "").get(PROVIDER)
    if section is None:
        unset = "OPENSSL_CONF is not set, and " if "OPENSSL_CONF" not in os.environ else ""
        return f"{unset}{path} does not name {PROVIDER}; 'gpu-provider openssl-config' prints a file that does"
    if not configuration.activates(section):
        return f"section [{section}] of {path} lacks 'activate = 1'"
    if not lib.OSSL_PROVIDER_available(ffi.NULL, PROVIDER.encode()):
        return _load_failure(configuration.get(section, "module"))
    properties = configuration.get(configuration.get(start, "alg_section") or "", "default_properties")
    return f"it is active, but default_properties is {properties or 'not set'}, and should contain {PREFERENCE}"


def _load_failure(module: str | None) -> str:
    name = module or PROVIDER
    if module is not None and module.startswith("/") and not Path(module).is_file():
        return f"'module = {module}' is no file"
    lib.ERR_clear_error()
    provider = lib.OSSL_PROVIDER_load(ffi.NULL, name.encode())
    return f"OpenSSL can't load {name}" if provider else f"OpenSSL can't load {name}: {_queued_error()}"
