"""Makes contexts for new connections from certificate and key files."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_provider import tls
from gpu_provider.errors import ConfigError
from gpu_provider.tls import constants
from gpu_provider.tls.leaf import read_leaf
from gpu_provider.tls.server_names import is_server_name
from gpu_provider.tls.terminator.certificate_checks import file_warnings, name_warnings
from gpu_provider.tls.terminator.certificate_files import CertificateFiles, certificate_files
from gpu_provider.tls.terminator.client_auth import load_client_auth
from gpu_provider.tls.terminator.pem_files import check_file
from gpu_provider.tls.terminator.ticket_files import read_ticket_keys
from gpu_provider.tls.terminator.trial_handshake import handshake_problem
from gpu_provider.tls.terminator.upstream_tls import UpstreamTLS, load_upstream_tls

if TYPE_CHECKING:
    from pathlib import Path

    from gpu_provider.tls.terminator.computing import Computing
    from gpu_provider.tls.terminator.config import TerminatorConfig

__all__ = ["Certificate", "Certificates", "load_certificates"]

_VERSIONS = {"TLSv1.2": constants.TLS1_2_VERSION, "TLSv1.3": constants.TLS1_3_VERSION}
_READ_BUFFER = 65536  # four records of the largest size


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate file: what its leaf says, and what is wrong with the file."""

    path: Path
    names: tuple[str, ...]
    """DNS names in lower case, wildcards included."""
    key_type: str
    """Such as ``RSA-2048``."""
    public_key_sha256: bytes
    sha256: bytes
    """Of the leaf."""
    not_after: float
    """Unix time."""
    warnings: tuple[str, ...]
    """What is surely a mistake in the file, although it can be served."""

    @property
    def kind(self) -> str:
        """``RSA`` or ``EC``."""
        return self.key_type.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Certificates:
    """Whatever a reload reads, read at the same time."""

    context: tls.Context
    """The first certificate's context. It switches to another by the server name that the client asks for."""
    all: tuple[Certificate, ...]
    client_crl_end: float
    """The Unix time at which the first list of ``client_crl`` is out of date; infinity if there is none."""
    upstream_tls: UpstreamTLS | None
    """How connections to the upstream are encrypted; None: they are not."""
    warnings: tuple[str, ...]
    """Those of each file, and about the certificates together."""


def load_certificates(
    config: TerminatorConfig, computing: Computing | None, ticket_keys: tls.TicketKeys | None = None
) -> Certificates:
    """Reads every pair of files. Raises a ConfigError that names the file and what to do about it.

    ``ticket_keys`` are for when there are no files of them: the same at each reload, so that clients go on resuming
    their sessions. Sessions that began with other private keys are not resumed: whoever got hold of a replaced key may
    have read such a session, and could read the resumed one too. Nor are those that began with other rules for clients'
    certificates, since a resumed session is not verified again.
    """
    files = certificate_files(config)
    certificates = [_read(config, one) for one in files]
    by_name: dict[str, dict[str, int]] = {}
    for index, certificate in enumerate(certificates):
        for name in certificate.names:
            by_name.setdefault(name, {}).setdefault(certificate.kind, index)
    first = _with_its_counterpart(certificates)
    together = {name: tuple(indices.values()) for name, indices in by_name.items()}
    contexts = {
        indices: _context(config, computing, [files[index] for index in indices])
        for indices in {first, *together.values()}
    }
    client_auth = load_client_auth(config)
    if config.ticket_keys:
        ticket_keys = read_ticket_keys(config.ticket_keys)
    identity = b"".join(sorted(certificate.public_key_sha256 for certificate in certificates))
    if client_auth is not None:
        identity += client_auth.identity
    session_id_context = hashlib.blake2b(identity, digest_size=16).hexdigest().encode()
    for context in contexts.values():
        if client_auth is not None:
            client_auth.apply(context)
        context.set_session_id_context(session_id_context)
        if ticket_keys is not None:
            context.set_ticket_keys(ticket_keys)
    contexts[first].set_sni_contexts({name: contexts[indices] for name, indices in together.items()})
    warnings = [warning for certificate in certificates for warning in certificate.warnings]
    warnings += name_warnings(certificates, by_name, first)
    if client_auth is not None:
        warnings += client_auth.warnings
    upstream_tls = load_upstream_tls(config)
    if upstream_tls is not None:
        warnings += upstream_tls.warnings
    client_crl_end = math.inf if client_auth is None else client_auth.crl_end
    return Certificates(contexts[first], tuple(certificates), client_crl_end, upstream_tls, tuple(warnings))


def _read(config: TerminatorConfig, files: CertificateFiles) -> Certificate:
    """Reads one pair of files and tries it alone, with OpenSSL's own arithmetic, so that the provider counts none of
    it."""
    cert = files.cert
    check_file(cert)
    check_file(files.key)
    context = _settings_context(config, None)
    _use_certificate(context, files)
    try:
        leaf = read_leaf(context)
    except tls.CertificateError as error:
        raise ConfigError(f"certificate file {str(cert)!r} can't be used: {error}") from None
    _use_key(context, files)
    warnings = file_warnings(cert)
    lowest, highest = _VERSIONS[config.tls_min], _VERSIONS[config.tls_max]
    problems = {
        name: handshake_problem(context, version) for name, version in _VERSIONS.items() if lowest <= version <= highest
    }
    if all(problems.values()):
        reasons = "; ".join(dict.fromkeys(str(problem) for problem in problems.values()))
        raise ConfigError(
            f"certificate file {str(cert)!r} (its key is {leaf.key_type}) can't be used in any handshake: "
            f"{reasons}; use a certificate with an RSA-2048 or P-256 key and SHA-256, or see whether ciphers, "
            "ciphersuites, tls_min and tls_max allow for this one"
        )
    warnings += [
        f"certificate file {str(cert)!r} can't be used by {version} clients: {problem}"
        for version, problem in problems.items()
        if problem is not None
    ]
    names = dict.fromkeys(filter(is_server_name, (name.rstrip(".").lower() for name in leaf.names)))
    return Certificate(
        cert, tuple(names), leaf.key_type, leaf.public_key_sha256, leaf.sha256, leaf.not_after, tuple(warnings)
    )


def _with_its_counterpart(certificates: list[Certificate]) -> tuple[int, ...]:
    """The index of the first certificate, which serves clients that ask for no name or an unknown one; and of one with
    the other key type, if it has all of the first one's names."""
    first = certificates[0]
    for index, other in enumerate(certificates):
        if other.kind != first.kind and first.names and set(first.names) <= set(other.names):
            return 0, index
    return (0,)


def _context(config: TerminatorConfig, computing: Computing | None, several: list[CertificateFiles]) -> tls.Context:
    """OpenSSL keeps a certificate of each key type in a context, and uses whichever the client can use."""
    context = _settings_context(config, computing)
    for files in several:
        _use_certificate(context, files)
        _use_key(context, files)
    return context


def _use_certificate(context: tls.Context, files: CertificateFiles) -> None:
    try:
        context.use_certificate_chain_file(files.cert)
    except tls.CertificateError as error:
        raise ConfigError(f"{error}; {files.origin}") from None


def _use_key(context: tls.Context, files: CertificateFiles) -> None:
    try:
        context.use_privatekey_file(files.key)
    except tls.PrivateKeyError as error:
        raise ConfigError(f"{error}; {files.origin}") from None
    try:
        context.check_privatekey()
    except tls.PrivateKeyError:  # of another type
        raise ConfigError(
            f"private key file {str(files.key)!r} does not belong to the certificate; {files.origin}"
        ) from None


def _settings_context(config: TerminatorConfig, computing: Computing | None) -> tls.Context:
    context = tls.Context(constants.TLS_SERVER_METHOD, computing)
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
