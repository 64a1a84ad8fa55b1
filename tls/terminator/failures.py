"""Why handshakes and connections to the upstream fail, in words for a metric's label."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from gpu_provider import tls

__all__ = ["HANDSHAKE_FAILURES", "OUT_OF_MEMORY", "UPSTREAM_FAILURES", "UpstreamFailure", "handshake_failure"]

OUT_OF_MEMORY = "out_of_memory"

_BY_TEXT = (
    ("http request", "http_request"),
    ("https proxy request", "http_request"),
    ("wrong version number", "not_tls"),
    ("unsupported protocol", "unsupported_version"),
    ("version too low", "unsupported_version"),
    ("unknown protocol", "unsupported_version"),
    ("no application protocol", "no_common_alpn"),
    ("no shared cipher", "no_common_cipher"),
    ("no suitable key share", "no_common_group"),
    ("no shared groups", "no_common_group"),
    ("no suitable groups", "no_common_group"),
    ("no suitable signature algorithm", "no_common_signature_algorithm"),
    ("no shared signature algorithms", "no_common_signature_algorithm"),
    ("peer did not return a certificate", "no_client_certificate"),
    ("certificate verify failed", "bad_client_certificate"),
    ("alert unknown ca", "client_unknown_ca"),
    ("alert certificate expired", "client_certificate_expired"),
    ("alert certificate revoked", "client_bad_certificate"),
    ("alert certificate unknown", "client_bad_certificate"),
    ("alert unsupported certificate", "client_bad_certificate"),
    ("alert bad certificate", "client_bad_certificate"),
    (" alert ", "client_alert"),
    ("records without application data", "client_flood"),
    ("malloc failure", OUT_OF_MEMORY),
)
"""Labels by parts of the errors' texts; the first that is found counts. ``client_`` marks what a client says by an
alert."""

HANDSHAKE_FAILURES = (
    "client_gone",
    "timeout",
    "forced",
    *dict.fromkeys(label for _, label in _BY_TEXT),
    "other",
)
"""All reasons."""


def handshake_failure(text: str) -> str:
    """The reason for a failed handshake by the text of libssl's error."""
    return next((label for part, label in _BY_TEXT if part in text), "other")


_BAD_CERTIFICATE, _TLS_ERROR = "bad_certificate", "tls_error"

UPSTREAM_FAILURES = (
    "ECONNREFUSED",
    "ECONNRESET",
    "EHOSTUNREACH",
    "EMFILE",
    "ENETUNREACH",
    "ETIMEDOUT",
    _BAD_CERTIFICATE,
    _TLS_ERROR,
)
"""The usual labels; others are the names of other errnos."""


class UpstreamFailure(NamedTuple):
    """Why the upstream has not taken a connection."""

    label: str
    reason: str
    error: int = 0
    """The errno; 0 if the TLS handshake has failed."""

    @classmethod
    def of(cls, error: int) -> UpstreamFailure:
        """Of an errno."""
        return cls(errno.errorcode.get(error, str(error)), os.strerror(error), error)

    @classmethod
    def of_handshake(cls, error: tls.Error) -> UpstreamFailure:
        text = str(error)
        if isinstance(error, tls.SysCallError):
            if error.args[0] != -1:
                return cls.of(error.args[0])
            text = "the upstream ended the connection"
        if handshake_failure(text) == OUT_OF_MEMORY:
            return cls.of(errno.ENOMEM)
        label = _BAD_CERTIFICATE if "certificate verify failed" in text else _TLS_ERROR
        return cls(label, f"TLS handshake: {text}")
