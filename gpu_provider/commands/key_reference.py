"""``gpu-provider service key-reference``: what a program has in place of a key that only the service has."""

from __future__ import annotations

import base64
import os
import textwrap
from typing import TYPE_CHECKING, Any

from gpu_provider.commands import flags
from gpu_provider.errors import ConfigError
from gpu_provider.native import ffi, lib
from gpu_provider.service.config import ServiceConfig
from gpu_provider.settings import load_config

if TYPE_CHECKING:
    import argparse

__all__ = ["add_to", "run"]

_DESCRIPTION = """\
Print a reference to a key that only the service has. A program that loads the provider module takes it as the PEM file
of its private key. There is nothing secret in it."""

_FORMAT = "gpu-provider-key-reference"
_LABEL = "GPU PROVIDER KEY REFERENCE"
_TIMEOUT_SECONDS = 2
_UTF8_STRING, _INTEGER, _SEQUENCE = 0x0C, 0x02, 0x30


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "key-reference", help="print a reference to one of its keys, for a program", description=_DESCRIPTION
    )
    parser.add_argument("name", metavar="NAME", help="of the key, as in the service's --service-key NAME=FILE")
    for flag, value, text in (
        ("--socket", "PATH", "the service's Unix socket"),
        ("--config", "FILE", "TOML file with the service's settings, which name its socket"),
    ):
        parser.add_argument(flag, action=flags.Once, metavar=value, help=text)
    parser.set_defaults(run_service=run)


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    path = load_config(ServiceConfig, args.config, os.environ, {"socket": args.socket}).socket
    if path is None:
        raise ConfigError("socket is not set; give --socket, GPU_PROVIDER_SOCKET, or socket in the file of --config")
    found: Any = ffi.new("struct gp_public_key *")
    result = lib.gp_lookup(os.fsencode(path), args.name.encode(), _TIMEOUT_SECONDS * 10**9, found)
    if result == lib.GP_LOOKUP_BAD_NAME:
        raise ConfigError(f"{args.name!r} can't be a key's name: it must be letters, digits, '.', '_' and '-'")
    if result == lib.GP_LOOKUP_NO_KEY:
        raise ConfigError(
            f"the service at {str(path)!r} has no key {args.name!r}; start it with --service-key {args.name}=FILE"
        )
    if result == lib.GP_LOOKUP_NO_SERVICE:
        reason = os.strerror(ffi.errno)
        raise ConfigError(f"no service answers at {str(path)!r}: {reason}; start it, or name its socket with --socket")
    modulus = ffi.buffer(found.modulus, found.modulus_size)[:]
    exponent = ffi.buffer(found.exponent, found.exponent_size)[:]
    print(_reference(args.name, modulus, exponent), end="")
    return 0


def _reference(name: str, modulus: bytes, exponent: bytes) -> str:
    """See native/provider/reference.c."""
    content = _element(_UTF8_STRING, _FORMAT.encode()) + _element(_UTF8_STRING, name.encode())
    content += _element(_INTEGER, _positive(modulus)) + _element(_INTEGER, _positive(exponent))
    text = "\n".join(textwrap.wrap(base64.b64encode(_element(_SEQUENCE, content)).decode(), 64))
    bits = int.from_bytes(modulus).bit_length()
    comment = f"The RSA-{bits} key {name!r} of gpu-provider service"
    return f"{comment}\n-----BEGIN {_LABEL}-----\n{text}\n-----END {_LABEL}-----\n"


def _positive(number: bytes) -> bytes:
    """DER's integers have a sign."""
    return b"\0" + number if number[0] & 0x80 else number


def _element(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(size))) + size + content
