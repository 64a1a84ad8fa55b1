"""The terminator's settings: the same names as flags, as ``GPU_PROVIDER_*`` variables and in the TOML file."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the settings' types are read at run time
from typing import Annotated

from msgspec import Meta

from gpu_provider.config import ProviderConfig
from gpu_provider.errors import ConfigError
from gpu_provider.tls.terminator.addresses import Address, parse_address

__all__ = ["TLS_VERSIONS", "TerminatorConfig"]

TLS_VERSIONS = ("TLSv1.2", "TLSv1.3")

_Seconds = Annotated[float, Meta(gt=0, le=86400, description="seconds, more than 0 and at most 86400")]
_SecondsOrNever = Annotated[float, Meta(ge=0, le=86400, description="seconds, at most 86400, or 0 for never")]


class TerminatorConfig(ProviderConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything ``gpu-provider terminator`` can be told, beside what the batching provider can be told."""

    listen: str = ""
    """HOST:PORT or [IPV6]:PORT to accept TLS connections on; :PORT for every interface; port 0 for any free one."""

    upstream: str = ""
    """HOST:PORT to relay to. Resolved at the start, and again after a failed connection."""

    cert: tuple[Path, ...] = ()
    """PEM files, each a certificate with its chain, the leaf first. By server name the exact one is chosen, then the
    wildcard, then the first. A name may have one with an RSA key and one with an EC key; the client decides."""

    key: tuple[Path, ...] = ()
    """PEM files, each the private key of the certificate in the same place, not encrypted."""

    alpn: tuple[Annotated[str, Meta(min_length=1, max_length=255, description="protocol names such as h2")], ...] = ()
    """ALPN protocols that the upstream speaks, the preferred first. None: ALPN is not negotiated."""

    tls_min: Annotated[str, Meta(pattern=r"\ATLSv1\.[23]\Z", description="TLSv1.2 or TLSv1.3")] = "TLSv1.2"
    tls_max: Annotated[str, Meta(pattern=r"\ATLSv1\.[23]\Z", description="TLSv1.2 or TLSv1.3")] = "TLSv1.3"

    ciphers: str | None = None
    """TLS 1.2 cipher list in OpenSSL's form. None: OpenSSL's default."""

    ciphersuites: str | None = None
    """TLS 1.3 ciphersuites in OpenSSL's form. None: OpenSSL's default."""

    handshake_timeout: _Seconds = 10.0
    connect_timeout: _Seconds = 5.0
    """Seconds for connecting to the upstream. Several addresses are tried beside each other, 250 ms apart."""

    idle_timeout: _SecondsOrNever = 600.0
    """Seconds without a byte in either direction after which a connection is closed; 0: never."""

    drain_timeout: _SecondsOrNever = 30.0
    """Seconds that open connections are given after SIGTERM or SIGINT; 0: none."""

    max_connections: Annotated[int, Meta(ge=1, le=1000000, description="a number from 1 to 1000000")] = 8192
    """Connections open at a time. At the cap the terminator stops accepting, and new ones wait in the kernel's backlog:
    they are late, but not refused."""

    proxy_protocol: Annotated[str, Meta(pattern=r"\A(off|v1|v2)\Z", description="off, v1 or v2")] = "off"
    """The PROXY protocol header to begin each upstream connection with."""

    admin: str = "127.0.0.1:9180"
    """HOST:PORT of /livez, /readyz and /metrics, or "off"."""

    log_level: Annotated[
        str, Meta(pattern=r"\A(debug|info|warning|error)\Z", description="debug, info, warning or error")
    ] = "info"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, example in (("listen", "0.0.0.0:8443"), ("upstream", "127.0.0.1:8080")):
            if not getattr(self, name):
                raise ConfigError(f"{name} is not given: add --{name} HOST:PORT, such as --{name} {example}")
        if not self.cert:
            raise ConfigError("cert is not given: add --cert chain.pem --key key.pem")
        if len(self.cert) != len(self.key):
            raise ConfigError(
                f"cert names {_files(self.cert)} and key names {_files(self.key)}: give one key for each certificate, "
                "in the same order"
            )
        if TLS_VERSIONS.index(self.tls_min) > TLS_VERSIONS.index(self.tls_max):
            raise ConfigError(f"tls_min = {self.tls_min!r} is above tls_max = {self.tls_max!r}: no version is left")
        for protocol in self.alpn:
            parts = protocol.replace(",", " ").split()
            if parts != [protocol]:
                flags = " ".join(f"--alpn {part}" for part in parts) or "--alpn h2"
                raise ConfigError(f"alpn = {protocol!r}: a name has no comma or space in it; write {flags}")
            if not protocol.isascii() or len(protocol) > 255:
                raise ConfigError(f"alpn = {protocol!r}: a protocol name is 1 to 255 ASCII characters, such as h2")
        _ = self.listen_address, self.upstream_address, self.admin_address

    @property
    def listen_address(self) -> Address:
        return _address("listen", self.listen, any_host=True)

    @property
    def upstream_address(self) -> Address:
        return _address("upstream", self.upstream, any_host=False)

    @property
    def admin_address(self) -> Address | None:
        return None if self.admin == "off" else _address("admin", self.admin, any_host=True)


def _address(setting: str, text: str, *, any_host: bool) -> Address:
    try:
        return parse_address(text, any_host=any_host)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None


def _files(paths: tuple[Path, ...]) -> str:
    return f"{len(paths)} file{'' if len(paths) == 1 else 's'}"
