"""Clients' certificates: which are asked for, and by which authorities and revocation lists they are verified."""

from __future__ import annotations

import hashlib
import math
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_provider import tls
from gpu_provider.errors import ConfigError
from gpu_provider.tls import constants
from gpu_provider.tls.terminator.certificate_checks import authority_warnings, date
from gpu_provider.tls.terminator.pem_files import read_file

if TYPE_CHECKING:
    from pathlib import Path

    from gpu_provider.tls.terminator.config import TerminatorConfig

__all__ = ["ClientAuth", "load_client_auth"]

_MODES = {
    "optional": constants.VERIFY_PEER,
    "required": constants.VERIFY_PEER | constants.VERIFY_FAIL_IF_NO_PEER_CERT,
}
_MOST_BYTES = 1 << 26
"""A large authority's revocation list has tens of megabytes."""


@dataclass(frozen=True, slots=True)
class ClientAuth:
    """What decides which clients are let in. Read once, for all contexts."""

    mode: int
    flags: int
    authorities: tls.Context
    """Has the certificates and revocation lists, and serves nobody."""
    identity: bytes
    """Stands for all of it. A resumed session is not verified again, so it must not outlive a change."""
    crl_end: float
    """The Unix time at which the first of the revocation lists is out of date; infinity if none will be."""
    warnings: tuple[str, ...]

    def apply(self, context: tls.Context) -> None:
        context.set_verify(self.mode)
        # The same with every version of Python.
        context.clear_verify_flags(ssl.VERIFY_X509_STRICT)
        context.set_verify_flags(self.flags)
        context.use_authorities_of(self.authorities)


def load_client_auth(config: TerminatorConfig) -> ClientAuth | None:
    """None: clients are not asked. Raises ConfigError."""
    if config.verify_client == "off" or config.client_ca is None:
        return None
    # Before OpenSSL reads them: if they change in between, the sessions that follow end at the next reload.
    ca = read_file("client_ca", config.client_ca)
    crl = b"" if config.client_crl is None else read_file("client_crl", config.client_crl, _MOST_BYTES)
    identity = b"".join(hashlib.sha256(part).digest() for part in (config.verify_client.encode(), ca, crl))
    warnings = authority_warnings("client_ca", config.client_ca, ca)
    authorities = tls.Context(constants.TLS_SERVER_METHOD)
    try:
        authorities.load_verify_locations(config.client_ca)
        authorities.load_client_ca(config.client_ca)
    except tls.Error as error:
        raise ConfigError(f"client_ca = {str(config.client_ca)!r}: {error}; give a PEM file of certificates") from None
    crl_end = math.inf
    flags: int = ssl.VERIFY_X509_PARTIAL_CHAIN  # each certificate in the file is trusted, not roots alone
    if config.client_crl is not None:
        flags |= ssl.VERIFY_CRL_CHECK_CHAIN
        crl_end = _load_crls(authorities, config.client_crl)
    if crl_end < time.time():
        warnings.append(
            f"client_crl = {str(config.client_crl)!r}: a list in it is out of date since {date(crl_end)}, so clients "
            "of that authority are refused; fetch the new one"
        )
    return ClientAuth(_MODES[config.verify_client], flags, authorities, identity, crl_end, tuple(warnings))


def _load_crls(authorities: tls.Context, path: Path) -> float:
    try:
        return authorities.load_crls(path)
    except tls.Error as error:
        raise ConfigError(f"client_crl = {str(path)!r}: {error}") from None
