"""The terminator's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from gpu_provider.addresses import Address, UnixPath, named, parse_address, parse_target
from gpu_provider.config import ProviderConfig
from gpu_provider.errors import ConfigError
from gpu_provider.observe.admin import TERMINATOR_ADDRESS, parse_admin
from gpu_provider.settings import Shown

__all__ = ["AccessLog", "TerminatorConfig"]

_Seconds = Annotated[float, Meta(gt=0, le=86400, description="seconds, more than 0 and at most 86400")]
_SecondsOrNever = Annotated[float, Meta(ge=0, le=86400, description="seconds, at most 86400, or 0 for never")]
AccessLog = Literal["off", "errors", "all"]
_Version = Annotated[Literal["TLSv1.2", "TLSv1.3"], Meta(description="TLSv1.2 or TLSv1.3")]

_PathOrNone = Annotated[Path, Meta(description="a path")] | None


class TerminatorConfig(ProviderConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of ``gpu-provider terminator``: its own, and those of the batching provider."""

    listen: Annotated[
        tuple[str, ...],
        Meta(description="a HOST:PORT, or several"),
        Shown(
            "addresses",
            "HOST:PORT",
            "accept TLS connections on this HOST:PORT; `[::1]:443` for IPv6, `:443` for every interface, port 0 for "
            "any free one; repeat for more. Must be given, unless systemd passes the sockets",
            default="none",
        ),
    ] = ()

    upstream: Annotated[
        tuple[str, ...],
        Meta(description="a HOST:PORT or the path of a Unix socket, or several"),
        Shown(
            "addresses",
            "HOST:PORT",
            "relay the decrypted bytes to this HOST:PORT, or to the Unix socket at this path; repeat for more, which "
            "get the connections in turn. Must be given",
            default="none",
        ),
    ] = ()
    """Names are resolved at the start, each half minute, and after a failure."""

    upstream_tls: Annotated[
        Literal["off", "on", "unverified"],
        Meta(description="off, on or unverified"),
        Shown(
            "addresses",
            "",
            "encrypt the connections to the upstream. `on`: verify its certificate; `unverified`: accept any, from "
            "whoever answers",
        ),
    ] = "off"

    upstream_ca: Annotated[
        _PathOrNone,
        Shown(
            "addresses",
            "FILE",
            "PEM certificates of the authorities whose upstreams are trusted by `upstream_tls`",
            default="the system's",
        ),
    ] = None

    upstream_name: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="a host name"),
        Shown(
            "addresses",
            "NAME",
            "the name that the upstream's certificate must have, and that it is asked for (SNI)",
            default="the host of `upstream`",
        ),
    ] = None

    upstream_cert: Annotated[
        _PathOrNone,
        Shown(
            "addresses",
            "FILE",
            "PEM certificate and chain to show to an upstream that asks for one",
            default="none",
        ),
    ] = None

    upstream_key: Annotated[
        _PathOrNone,
        Shown(
            "addresses",
            "FILE",
            "PEM private key of that certificate, not encrypted",
            default="in the file of `upstream_cert`",
        ),
    ] = None

    admin: Annotated[
        str,
        Shown(
            "addresses",
            "HOST:PORT",
            "serve a status page, `/livez`, `/readyz` and `/metrics` on this HOST:PORT; `off`: nowhere",
        ),
    ] = TERMINATOR_ADDRESS

    handover: Annotated[
        Annotated[Path, Meta(description="a path")] | None,
        Shown(
            "addresses",
            "PATH",
            "a Unix socket: who is started with the same takes the listening sockets over from the one that runs, "
            "which then ends as on SIGTERM. No connection is lost between the two",
            default="none",
        ),
    ] = None

    cert: Annotated[
        tuple[Path, ...],
        Shown(
            "TLS",
            "FILE",
            "PEM certificate and chain, the leaf first; repeat for more. This or `cert_dir` must be given",
        ),
    ] = ()
    """The server name chooses: the exact name, then the wildcard, then the first certificate. A name may have one with
    an RSA key and one with an EC key; the client decides."""

    key: Annotated[
        tuple[Path, ...],
        Shown(
            "TLS",
            "FILE",
            "PEM private key, RSA or EC and not encrypted, of the certificate in the same place; it may be in its file",
        ),
    ] = ()

    cert_dir: Annotated[
        _PathOrNone,
        Shown(
            "TLS",
            "DIRECTORY",
            "certificates beside those of `cert`: each file is a chain, with its private key in it or beside it, as "
            "FILE.key",
            default="none",
        ),
    ] = None

    watch: Annotated[
        _SecondsOrNever,
        Shown(
            "TLS",
            "SECONDS",
            "seconds between looks for changes in the files of certificates, keys, authorities and revocation lists, "
            "which are then reloaded; 0: on SIGHUP alone",
            default="0",
        ),
    ] = 0.0

    alpn: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=255)], ...],
        Meta(description="protocol names such as h2"),
        Shown("TLS", "PROTOCOL", "protocol to agree on by ALPN; repeat, the preferred first", default="none"),
    ] = ()

    tls_min: Annotated[_Version, Shown("TLS", "", "lowest version")] = "TLSv1.2"
    tls_max: Annotated[_Version, Shown("TLS", "", "highest version")] = "TLSv1.3"

    ciphers: Annotated[str | None, Shown("TLS", "LIST", "TLS 1.2 ciphers in OpenSSL's form", default="OpenSSL's")] = (
        None
    )

    ciphersuites: Annotated[
        str | None, Shown("TLS", "LIST", "TLS 1.3 ciphersuites in OpenSSL's form", default="OpenSSL's")
    ] = None

    ticket_keys: Annotated[
        tuple[Annotated[Path, Meta(description="a path")], ...],
        Shown(
            "TLS",
            "FILE",
            "keys of session tickets, for instances that resume each other's sessions: a file with keys of 48 or 80 "
            "bytes in base64, one a line, of which the last but one encrypts; or several files of one key each, of "
            "which the first encrypts",
            default="made at the start and each hour",
        ),
    ] = ()

    verify_client: Annotated[
        Literal["off", "optional", "required"],
        Meta(description="off, optional or required"),
        Shown(
            "TLS",
            "",
            "ask clients for certificates. `optional`: those without one are served too; one that can't be verified is "
            "always refused",
        ),
    ] = "off"

    client_ca: Annotated[
        _PathOrNone,
        Shown(
            "TLS",
            "FILE",
            "PEM certificates of the authorities whose clients are let in by `verify_client`",
            default="none",
        ),
    ] = None

    client_crl: Annotated[
        _PathOrNone,
        Shown(
            "TLS",
            "FILE",
            "PEM certificate revocation lists, one of each authority in a client's chain; without it, none is revoked",
            default="none",
        ),
    ] = None

    max_connections: Annotated[
        int,
        Meta(ge=1, le=1000000, description="a number from 1 to 1000000"),
        Shown(
            "connections",
            "N",
            "stop accepting while so many are open; the kernel's backlog holds new ones. Each needs two file "
            "descriptors: the number is lowered to what `ulimit -n` allows",
        ),
    ] = 8192

    handshakes_per_address: Annotated[
        int,
        Meta(ge=0, le=1000000, description="a number up to 1000000"),
        Shown(
            "connections",
            "N",
            "refuse connections from an address, or from an IPv6 network of 64 bits, with so many handshakes in "
            "progress, in each process; 0: no limit. Not for clients behind a common proxy",
            default="0",
        ),
    ] = 0

    handshake_timeout: Annotated[_Seconds, Shown("connections", "SECONDS", "seconds for a client's handshake")] = 10.0

    connect_timeout: Annotated[
        _Seconds,
        Shown(
            "connections", "SECONDS", "seconds for connecting to the upstream, TLS and all of its addresses together"
        ),
    ] = 5.0

    idle_timeout: Annotated[
        _SecondsOrNever,
        Shown("connections", "SECONDS", "seconds without a byte either way before a connection is closed; 0: never"),
    ] = 600.0

    drain_timeout: Annotated[
        _SecondsOrNever, Shown("connections", "SECONDS", "seconds for open connections after SIGTERM; 0: none")
    ] = 30.0

    drain_delay: Annotated[
        _SecondsOrNever,
        Shown(
            "connections",
            "SECONDS",
            "seconds after SIGTERM in which connections are still accepted, while `/readyz` says that it is draining: "
            "load balancers need time to look elsewhere",
            default="0",
        ),
    ] = 0.0

    proxy_protocol: Annotated[
        Literal["off", "v1", "v2"],
        Meta(description="off, v1 or v2"),
        Shown("connections", "", "tell the upstream the client's address with a PROXY protocol header"),
    ] = "off"

    workers: Annotated[
        int,
        Meta(ge=1, le=1024, description="a number from 1 to 1024"),
        Shown(
            "processes",
            "N",
            "processes that serve connections. One computes by itself; several share `service`, or one that is started "
            "for them",
        ),
    ] = 1

    service: Annotated[
        _PathOrNone,
        Shown(
            "processes",
            "PATH",
            "socket of a `gpu-provider service` that computes; without one, the processes do",
            default="none",
        ),
    ] = None

    access_log: Annotated[
        AccessLog,
        Meta(description="off, errors or all"),
        Shown("other", "", "the connections that the log has a line for when they end"),
    ] = "errors"

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="debug, info, warning or error"),
        Shown("other", "", "least level to log"),
    ] = "info"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.upstream:
            raise ConfigError("upstream is not given: add --upstream HOST:PORT, such as --upstream 127.0.0.1:8080")
        if not self.cert and self.cert_dir is None:
            raise ConfigError("cert is not given: add --cert chain.pem --key key.pem, or --cert-dir DIRECTORY")
        if len(self.cert) != len(self.key):
            raise ConfigError(
                f"cert names {_files(self.cert)} and key names {_files(self.key)}: give one key for each certificate, "
                "in the same order"
            )
        if self.verify_client != "off" and self.client_ca is None:
            raise ConfigError(
                f"verify_client = {self.verify_client!r} needs the authorities that have issued the clients' "
                "certificates: add --client-ca FILE"
            )
        if self.upstream_key is not None and self.upstream_cert is None:
            raise ConfigError(
                f"upstream_key = {str(self.upstream_key)!r} is the key of no certificate: add --upstream-cert FILE"
            )
        if self.tls_min > self.tls_max:  # their names are in order
            raise ConfigError(f"tls_min = {self.tls_min!r} is above tls_max = {self.tls_max!r}: no version is left")
        for protocol in self.alpn:
            parts = protocol.replace(",", " ").split()
            if parts != [protocol]:
                flags = " ".join(f"--alpn {part}" for part in parts) or "--alpn h2"
                raise ConfigError(f"alpn = {protocol!r}: a name has no comma or space in it; write {flags}")
            if not protocol.isascii() or len(protocol) > 255:
                raise ConfigError(f"alpn = {protocol!r}: a protocol name is 1 to 255 ASCII characters, such as h2")
        _ = self.listen_addresses, self.upstream_addresses, self.admin_address

    @property
    def listen_addresses(self) -> tuple[Address, ...]:
        with named("listen"):
            return tuple(parse_address(each, any_host=True) for each in self.listen)

    @property
    def upstream_addresses(self) -> tuple[Address | UnixPath, ...]:
        with named("upstream"):
            return tuple(map(parse_target, self.upstream))

    @property
    def admin_address(self) -> Address | None:
        return parse_admin(self.admin)


def _files(paths: tuple[Path, ...]) -> str:
    return f"{len(paths)} file{'' if len(paths) == 1 else 's'}"
