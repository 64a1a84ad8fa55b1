"""From certificate and key files to the contexts that new connections are made from."""

from __future__ import annotations

import dataclasses
import stat
from typing import TYPE_CHECKING

from gpu_provider import tls
from gpu_provider.errors import ConfigError
from gpu_provider.tls import constants
from gpu_provider.tls.leaf import read_leaf

if TYPE_CHECKING:
    from pathlib import Path

    from gpu_provider import BatchingProvider
    from gpu_provider.tls.terminator.config import TerminatorConfig

__all__ = ["Certificate", "Certificates", "load_certificates"]

_VERSIONS = {"TLSv1.2": constants.TLS1_2_VERSION, "TLSv1.3": constants.TLS1_3_VERSION}
_MOST_BYTES = 1 << 20
_READ_BUFFER = 65536  # four records of the largest size


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """What there is to say about one certificate file's leaf."""

    path: Path
    names: tuple[str, ...]
    """DNS names in lower case, wildcards included."""
    key_type: str
    not_after: float
    """Unix time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Certificates:
    """All certificates as read at one time."""

    context: tls.Context
    """The first certificate's context, which turns to the others by the server name that the client asks for."""
    all: tuple[Certificate, ...]


def load_certificates(config: TerminatorConfig, provider: BatchingProvider | None) -> Certificates:
    """Reads every pair of files. Raises ConfigError that names the file and what to do about it."""
    contexts: list[tls.Context] = []
    certificates: list[Certificate] = []
    by_name: dict[str, tls.Context] = {}
    for cert, key in zip(config.cert, config.key, strict=True):
        context = _settings_context(config, provider)
        try:
            _check_file(cert)
            _check_file(key)
            context.use_certificate_chain_file(cert)
            certificate = _describe(cert, context)
            context.use_privatekey_file(key)
        except (tls.CertificateError, tls.PrivateKeyError) as error:
            raise ConfigError(f"{error}; given as --cert {cert} --key {key}") from None
        try:
            context.check_privatekey()
        except tls.PrivateKeyError:  # of another type
            raise ConfigError(
                f"private key file {str(key)!r} does not belong to the certificate; given as --cert {cert} --key {key}"
            ) from None
        contexts.append(context)
        certificates.append(certificate)
        for name in certificate.names:
            by_name.setdefault(name, context)
    contexts[0].set_sni_contexts(by_name)
    return Certificates(contexts[0], tuple(certificates))


def _settings_context(config: TerminatorConfig, provider: BatchingProvider | None) -> tls.Context:
    context = tls.Context(constants.TLS_SERVER_METHOD, provider)
    context.set_min_proto_version(_VERSIONS[config.tls_min])
    context.set_max_proto_version(_VERSIONS[config.tls_max])
    for setting, value, use in (
        ("ciphers", config.ciphers, context.set_cipher_list),
        ("ciphersuites", config.ciphersuites, context.set_ciphersuites),
    ):
        if value is not None:
            try:
                use(value)
            except tls.Error as error:
                raise ConfigError(
                    f"{setting} = {value!r}: {error}; `openssl ciphers -v` lists the names that OpenSSL knows"
                ) from None
    if config.alpn:
        context.set_alpn_server_protos([protocol.encode("ascii") for protocol in config.alpn])
    # Tickets let clients resume; a cache in this process would only cost memory beside them.
    context.set_session_cache_mode(constants.SESS_CACHE_OFF)
    context.set_read_ahead(_READ_BUFFER)
    context.set_mode(constants.SSL_MODE_ASYNC)
    return context


def _check_file(path: Path) -> None:
    """Before it is read: a pipe would be waited for, maybe for ever."""
    try:
        status = path.stat()
    except OSError:
        return  # reading it will say why
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} can't be the name of a file: {error}") from None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{str(path)!r} is no regular file; give a PEM file")
    if status.st_size > _MOST_BYTES:
        raise ConfigError(f"{str(path)!r} has {status.st_size} bytes; a PEM file has at most {_MOST_BYTES}")


def _describe(path: Path, context: tls.Context) -> Certificate:
    try:
        leaf = read_leaf(context)
    except tls.CertificateError as error:
        raise ConfigError(f"certificate file {str(path)!r} can't be used: {error}") from None
    usable = (name.rstrip(".").lower() for name in leaf.names)
    names = tuple(dict.fromkeys(name for name in usable if _is_server_name(name)))
    return Certificate(path, names, leaf.key_type, leaf.not_after)


def _is_server_name(name: str) -> bool:
    """Whether clients can ask for it: not so for wildcards other than ``*.`` at the front, which no client accepts."""
    host = name.removeprefix("*.")
    return bool(host) and len(name) <= 255 and name.isascii() and "*" not in host and "\0" not in host
