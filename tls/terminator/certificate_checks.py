"""Finds what is surely a mistake in certificates, although they can be served."""

from __future__ import annotations

import datetime
import itertools
import time
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from gpu_provider.tls.terminator.certificates import Certificate

__all__ = ["UNREADABLE", "date", "file_warnings", "never_used_warnings", "time_warning"]

UNREADABLE = (
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
        chain = x509.load_pem_x509_certificates(path.read_bytes())
        return [f"certificate file {str(path)!r}: {warning}" for warning in _chain_warnings(chain)]
    except (OSError, *UNREADABLE) as error:
        return [f"certificate file {str(path)!r}: it can't be parsed ({error}), and clients may refuse it"]


def _chain_warnings(chain: Sequence[x509.Certificate]) -> Iterator[str]:
    for number, (subject, issuer) in enumerate(itertools.pairwise(chain), start=2):
        try:
            subject.verify_directly_issued_by(issuer)
        except (*UNREADABLE, InvalidSignature):
            yield (
                f"its certificate {number} ({issuer.subject.rfc4514_string()}) did not issue the one before it, so "
                "clients can't follow the chain; put the leaf first, and then each one's issuer"
            )
    now = datetime.datetime.now(datetime.UTC)
    for number, one in enumerate(chain, start=1):
        warning = time_warning(one)
        if warning is not None and (number > 1 or one.not_valid_before_utc > now):
            yield f"its certificate {number} ({one.subject.rfc4514_string()}) {warning}"
    if not _may_serve(chain[0]):
        yield "it is not for servers (its extended key usage lacks serverAuth), so clients refuse it"


def time_warning(certificate: x509.Certificate) -> str | None:
    now = datetime.datetime.now(datetime.UTC)
    if certificate.not_valid_before_utc > now:
        return f"is not valid yet: it is valid from {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
    if certificate.not_valid_after_utc < now:
        return f"has expired: it was valid until {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    return None


def _may_serve(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.SERVER_AUTH in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def never_used_warnings(certificates: Sequence[Certificate], used: Iterable[int]) -> list[str]:
    """``used`` has the indices of the certificates that some server name leads to."""
    warnings = []
    for index in sorted(set(range(len(certificates))) - set(used)):
        certificate = certificates[index]
        if not certificate.names:
            why = "it has no DNS name that a client could ask for"
        else:
            why = f"earlier certificates with keys of the same type have all its names ({', '.join(certificate.names)})"
        warnings.append(f"certificate file {str(certificate.path)!r} is never used: {why}")
    return warnings
