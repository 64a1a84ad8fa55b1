"""Finds mistakes that only show when settings are taken together. What can't work is an error, the rest a warning."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gpu_provider import tls
from gpu_provider.addresses import Resolved, named, resolve
from gpu_provider.backends.cuda.devices import find_devices
from gpu_provider.config import ProviderConfig
from gpu_provider.errors import BackendError, ConfigError
from gpu_provider.tls import constants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gpu_provider.tls.terminator.config import TerminatorConfig

__all__ = ["check_settings"]

_MEANT_PROTOCOLS = {"http/2": "h2", "http2": "h2", "http/2.0": "h2", "http1.1": "http/1.1", "http/1": "http/1.1"}


def check_settings(config: TerminatorConfig, upstream: Sequence[tuple[Resolved, ...]]) -> list[str]:
    """Returns warnings. ``upstream`` has the addresses that each of its settings stands for. Raises ConfigError."""
    _check_backend(config)
    return [
        *_check_addresses(config, upstream),
        *_check_ciphers(config),
        *_check_protocols(config),
        *_check_client_auth(config),
        *_check_upstream_tls(config),
        *_check_service(config),
    ]


def _check_service(config: TerminatorConfig) -> Iterable[str]:
    if config.service is None:
        return
    if not config.service.is_socket():
        yield f"service = {str(config.service)!r}: nobody listens there; this process computes until somebody does"
    for field in msgspec.structs.fields(ProviderConfig):
        value = getattr(config, field.name)
        if value != field.default:
            yield f"{field.name} = {value!r} has no effect: the service computes, as its own settings say"


def _check_backend(config: TerminatorConfig) -> None:
    if config.backend == "cuda":
        try:
            find_devices()
        except BackendError as error:
            raise ConfigError(f"backend = 'cuda': {error}; use 'auto', which takes a GPU where there is one") from None


def _check_addresses(config: TerminatorConfig, upstream: Sequence[tuple[Resolved, ...]]) -> Iterable[str]:
    with named("listen"):
        listen = [one for address in config.listen_addresses for one in resolve(address, to_listen=True)]
    with named("admin"):
        admin = () if config.admin_address is None else resolve(config.admin_address, to_listen=True)
    for one in listen:
        for other in admin:
            if _same_port(one, other) and (_host(one) == _host(other) or _is_any(one) or _is_any(other)):
                raise ConfigError(
                    f"listen = {_shown(config)} and admin = {config.admin!r} need the same port of the same address; "
                    "give one of them another port"
                )
    for text, target in ((text, one) for text, each in zip(config.upstream, upstream, strict=True) for one in each):
        if any(_reaches(target, listener) for listener in listen):
            raise ConfigError(
                f"upstream = {text!r} leads back to listen = {_shown(config)} "
                f"({target}): each connection would open another one to this terminator; "
                "name the server that is to get the decrypted bytes"
            )
        if any(_reaches(target, listener) for listener in admin):
            yield f"upstream = {text!r} is the admin port: its metrics would be served to every client"
        if isinstance(target.address, str) and not Path(target.address).is_socket():
            yield f"upstream = {text!r}: nobody listens there"


def _shown(config: TerminatorConfig) -> str:
    return ", ".join(map(repr, config.listen))


def _host(one: Resolved) -> str:
    return one.address[0]


def _same_port(one: Resolved, other: Resolved) -> bool:
    return one.family == other.family and one.address[1] == other.address[1] != 0


def _is_any(one: Resolved) -> bool:
    return _host(one) in {"0.0.0.0", "::"}  # noqa: S104  compared, not listened on


def _reaches(target: Resolved, listener: Resolved) -> bool:
    """Whether a connection to ``target`` arrives at ``listener``."""
    if not _same_port(target, listener):
        return False
    if _is_any(target):  # the system connects to its own loopback address
        return _is_any(listener) or _host(listener) in {"127.0.0.1", "::1"}
    return _host(target) == _host(listener) or (_is_any(listener) and _is_own(target))


def _is_own(one: Resolved) -> bool:
    """Whether it is an address of this machine: only those can be bound."""
    try:
        with socket.socket(one.family, socket.SOCK_DGRAM) as probe:
            probe.bind((one.address[0], 0, *one.address[2:]))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def _check_ciphers(config: TerminatorConfig) -> list[str]:
    context = tls.Context(constants.TLS_SERVER_METHOD)
    warnings = []
    if config.ciphers is not None and config.tls_min == "TLSv1.3":
        warnings.append("ciphers is for TLS 1.2, which tls_min = 'TLSv1.3' switches off: it has no effect")
    if config.ciphersuites is not None and config.tls_max == "TLSv1.2":
        warnings.append("ciphersuites is for TLS 1.3, which tls_max = 'TLSv1.2' switches off: it has no effect")
    wanted = (part for part in (config.ciphers or "").replace(",", ":").replace(" ", ":").split(":"))
    # OpenSSL may no longer know what is excluded ("!RC4"), and commands ("@SECLEVEL=2") are not names.
    names = [part.removeprefix("+") for part in wanted if part and part[0] not in "!-@"]
    for setting, parts, use in (
        ("ciphers", names, context.set_cipher_list),
        ("ciphersuites", (config.ciphersuites or "").split(":"), context.set_ciphersuites),
    ):
        warnings += [
            f"{setting}: OpenSSL has no {part!r} and ignores it; `openssl ciphers -v` lists the names that it knows"
            for part in parts
            if part and not _is_known(use, part)
        ]
    return warnings


def _is_known(use: Callable[[str], None], name: str) -> bool:
    try:
        use(name)
    except tls.Error:
        return False
    return True


def _check_protocols(config: TerminatorConfig) -> Iterable[str]:
    for protocol in config.alpn:
        meant = _MEANT_PROTOCOLS.get(protocol.lower(), protocol.lower())
        if meant != protocol and meant in {"h2", "http/1.1", "http/1.0"}:
            yield f"alpn = {protocol!r}: no client asks for this name; you probably mean {meant!r}"


def _check_client_auth(config: TerminatorConfig) -> Iterable[str]:
    for setting in ("client_ca", "client_crl"):
        if config.verify_client == "off" and getattr(config, setting) is not None:
            yield (
                f"{setting} has no effect, because verify_client = 'off': every client is let in; did you mean "
                "--verify-client required?"
            )


def _check_upstream_tls(config: TerminatorConfig) -> Iterable[str]:
    if config.upstream_tls == "off":
        for setting in ("upstream_ca", "upstream_name", "upstream_cert"):
            if getattr(config, setting) is not None:
                yield f"{setting} has no effect, because upstream_tls = 'off'; did you mean --upstream-tls on?"
    elif config.upstream_tls == "unverified" and config.upstream_ca is not None:
        yield "upstream_ca has no effect, because upstream_tls = 'unverified'; did you mean --upstream-tls on?"
