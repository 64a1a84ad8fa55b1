"""Finds what is surely a mistake in certificates, although they can be served."""

from __future__ import annotations

import datetime
import itertools
import time
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from gpu_provider.tls.public_part import public_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from gpu_provider.tls.terminator.certificates import Certificate

__all__ = ["authority_warnings", "date", "file_warnings", "name_warnings"]

_LEAST_RSA_BITS = 2048

_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for certificates that OpenSSL may bear with."""


def date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def file_warnings(path: Path) -> list[str]:
    """Warnings about a certificate file that OpenSSL accepts, those about the leaf first. Whether the leaf has expired
    is checked elsewhere."""
    try:
        chain = x509.load_pem_x509_certificates(public_part(path))
        return [f"certificate file {str(path)!r}: {warning}" for warning in _chain_warnings(chain)]
    except (OSError, *_UNREADABLE) as error:
        return [f"certificate file {str(path)!r}: it can't be parsed ({error}), and clients may refuse it"]


def _chain_warnings(chain: Sequence[x509.Certificate]) -> Iterator[str]:
    for number, (subject, issuer) in enumerate(itertools.pairwise(chain), start=2):
        try:
            subject.verify_directly_issued_by(issuer)
        except (*_UNREADABLE, InvalidSignature):
            yield (
                f"its certificate {number} ({issuer.subject.rfc4514_string()}) did not issue the one before it, so "
                "clients can't follow the chain; put the leaf first, and then each one's issuer"
            )
    now = datetime.datetime.now(datetime.UTC)
    for number, one in enumerate(chain, start=1):
        which = f"its certificate {number} ({one.subject.rfc4514_string()})"
        warning = _time_warning(one)
        if warning is not None and (number > 1 or one.not_valid_before_utc > now):
            yield f"{which} {warning}"
        if isinstance(key := one.public_key(), rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
            yield f"{which} has a key of {key.key_size} bits, so clients refuse it; use RSA-2048 or P-256"
    if len(chain) == 1 and _says_where_its_issuer_is(chain[0]):
        yield (
            f"it lacks its issuer's certificate ({chain[0].issuer.rfc4514_string()}), so most clients can't verify it; "
            "put that behind it, as in the file that is often named fullchain.pem"
        )
    if not _may_serve(chain[0]):
        yield "it is not for servers (its extended key usage lacks serverAuth), so clients refuse it"


def _time_warning(certificate: x509.Certificate) -> str | None:
    """The end of a sentence about the certificate, unless it is valid now."""
    now = datetime.datetime.now(datetime.UTC)
    if certificate.not_valid_before_utc > now:
        return f"is not valid yet: it is valid from {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
    if certificate.not_valid_after_utc < now:
        return f"has expired: it was valid until {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    return None


def authority_warnings(setting: str, path: Path, pem: bytes) -> list[str]:
    """Warnings about a file of trusted certificates that OpenSSL accepts."""
    shown = f"{setting} = {str(path)!r}"
    try:
        return [
            f"{shown}: the certificate of {authority.subject.rfc4514_string()} {warning}"
            for authority in x509.load_pem_x509_certificates(pem)
            if (warning := _time_warning(authority)) is not None
        ]
    except _UNREADABLE as error:
        return [f"{shown}: it can't be parsed ({error}), although OpenSSL may read it"]


def _says_where_its_issuer_is(certificate: x509.Certificate) -> bool:
    """Clients have no use for that unless the issuer is an intermediate one."""
    try:
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except x509.ExtensionNotFound:
        return False
    return any(one.access_method == AuthorityInformationAccessOID.CA_ISSUERS for one in access)


def _may_serve(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.SERVER_AUTH in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def name_warnings(
    certificates: Sequence[Certificate], by_name: Mapping[str, Mapping[str, int]], default: Sequence[int]
) -> list[str]:
    """``by_name`` has, for each server name and kind of key, the index of the certificate that serves it; ``default``,
    the indices of those that serve unknown names."""
    warnings = []
    for index, certificate in enumerate(certificates):
        taken = [name for name in certificate.names if by_name[name][certificate.kind] != index]
        others = "earlier certificates with keys of the same type have"
        if index not in default and not certificate.names:
            warning = "is never used: it has no DNS name that a client could ask for"
        elif index not in default and len(taken) == len(certificate.names):
            warning = f"is never used: {others} all its names ({', '.join(taken)})"
        elif taken:
            warning = f"is not used for all its names: {others} some of them ({', '.join(taken)})"
        else:
            continue
        warnings.append(f"certificate file {str(certificate.path)!r} {warning}")
    return warnings
