"""Finds the files of certificates and their private keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gpu_provider.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from gpu_provider.tls.terminator.config import TerminatorConfig

__all__ = ["CertificateFiles", "certificate_files", "files_in"]

_NOT_CERTIFICATES = (".key", ".ocsp", ".issuer", ".sctl")
"""What HAProxy keeps beside them."""


class CertificateFiles(NamedTuple):
    cert: Path
    key: Path
    """The same file, if the key is in it too."""
    origin: str
    """How they were given, for whoever has to mend them."""


def certificate_files(config: TerminatorConfig) -> list[CertificateFiles]:
    """Those of ``cert`` and ``key``, then those in ``cert_dir`` by name. Raises ConfigError."""
    found = [
        CertificateFiles(cert, key, f"given as --cert {cert} --key {key}")
        for cert, key in zip(config.cert, config.key, strict=True)
    ]
    if config.cert_dir is not None:
        files = files_in(config.cert_dir)
        found += [_with_key(file) for file in files if file.suffix not in _NOT_CERTIFICATES]
        if not found:
            raise ConfigError(
                f"cert_dir = {str(config.cert_dir)!r} has no certificate in it; put PEM files there, each a chain and "
                "its private key"
            )
    return found


def files_in(directory: Path) -> list[Path]:
    """By name, without subdirectories and names that begin with a dot. Raises ConfigError."""
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith(".") and not path.is_dir())
    except OSError as error:
        raise ConfigError(f"cert_dir = {str(directory)!r} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"cert_dir = {str(directory)!r} can't be the name of a directory: {error}") from None


def _with_key(cert: Path) -> CertificateFiles:
    beside = (cert.with_name(f"{cert.name}.key"), cert.with_suffix(".key"))
    key = next((path for path in beside if path.exists()), cert)
    return CertificateFiles(
        cert, key, f"in cert_dir, where a file has its private key in it or beside it, as {beside[0].name}"
    )
