"""What is surely not meant about certificates, although they can be served."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpu_provider.tls.terminator.certificates import Certificate

__all__ = ["chain_warnings", "date", "never_used_warnings", "validity"]


def date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def validity(not_before: float, not_after: float) -> str | None:
    """What is wrong with a certificate's dates now."""
    now = time.time()
    if not_after < now:
        return "has expired"
    return "is not valid yet" if not_before > now else None


def chain_warnings(path: object, chain: Sequence[x509.Certificate]) -> list[str]:
    """Of one certificate file, the leaf first."""
    warnings = []
    for number, (subject, issuer) in enumerate(itertools.pairwise(chain), start=2):
        try:
            subject.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            warnings.append(
                f"certificate file {str(path)!r}: its certificate {number} ({issuer.subject.rfc4514_string()}) did not "
                f"issue the one before it, so that clients can't follow the chain; put the leaf first and then each "
                "certificate's issuer"
            )
    for number, one in enumerate(chain[1:], start=2):
        problem = validity(one.not_valid_before_utc.timestamp(), one.not_valid_after_utc.timestamp())
        if problem is not None:
            warnings.append(
                f"certificate file {str(path)!r}: its certificate {number} ({one.subject.rfc4514_string()}) {problem}"
            )
    if not _may_serve(chain[0]):
        warnings.append(
            f"certificate file {str(path)!r} is not for servers (its extended key usage lacks serverAuth), so that "
            "clients refuse it"
        )
    return warnings


def _may_serve(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return True
    return ExtendedKeyUsageOID.SERVER_AUTH in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def never_used_warnings(certificates: Sequence[Certificate], used: Iterable[int]) -> list[str]:
    """``used``: the indices of those that some server name leads to."""
    warnings = []
    for index in sorted(set(range(len(certificates))) - set(used)):
        certificate = certificates[index]
        if not certificate.names:
            why = "it has no DNS name that a client could ask for"
        else:
            why = f"earlier certificates with keys of the same type have all its names ({', '.join(certificate.names)})"
        warnings.append(f"certificate file {str(certificate.path)!r} is never used: {why}")
    return warnings
