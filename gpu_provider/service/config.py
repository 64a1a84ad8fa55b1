"""The service's settings."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the settings' types are read at run time
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from gpu_provider.config import ProviderConfig
from gpu_provider.observe.admin import SERVICE_ADDRESS, parse_admin
from gpu_provider.settings import Shown

if TYPE_CHECKING:
    from gpu_provider.addresses import Address

__all__ = ["ServiceConfig"]

_Number = Annotated[int, Meta(ge=1, le=65536, description="a number from 1 to 65536")]
_LogLevel = Literal["debug", "info", "warning", "error"]


class ServiceConfig(ProviderConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How ``gpu-provider service`` works, besides its batching provider."""

    socket: Annotated[
        Annotated[Path, Meta(description="a path")] | None,
        Shown(
            "programs",
            "PATH",
            "Unix socket that programs connect to; the same path is in their `openssl.cnf`. Must be given, unless "
            "systemd opens the socket",
        ),
    ] = None

    socket_mode: Annotated[
        Annotated[str, Meta(pattern="^0?[0-7]{3}$", description="an octal mode such as 0660")],
        Shown("programs", "MODE", "permissions of the socket: who may connect"),
    ] = "0660"

    socket_group: Annotated[
        str | None,
        Shown("programs", "GROUP", "group of the socket, by name or number", default="the service's own"),
    ] = None

    allow_users: Annotated[
        tuple[str, ...],
        Shown(
            "programs",
            "USER",
            "user whose programs may use the service, by name or number; repeat for more. Without this and "
            "`allow_groups`: whomever the socket's permissions let in",
        ),
    ] = ()

    allow_groups: Annotated[
        tuple[str, ...],
        Shown("programs", "GROUP", "group whose members' programs may use the service; repeat for more"),
    ] = ()

    service_key: Annotated[
        tuple[Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}=.")], ...],
        Meta(description="NAME=FILE, with a name of letters, digits, '.', '_' and '-', 64 at most"),
        Shown(
            "programs",
            "NAME=FILE",
            "RSA private key that only the service has, not encrypted; programs use it by this name. Repeat for more",
            default="none",
        ),
    ] = ()

    max_processes: Annotated[
        _Number,
        Shown("programs", "N", "processes that may be connected at a time; further ones compute by themselves"),
    ] = 1024

    process_requests: Annotated[
        _Number,
        Shown("programs", "N", "requests that one process may have in its queue; each takes about 1 KiB"),
    ] = 1024

    process_keys: Annotated[
        _Number,
        Shown("programs", "N", "keys that one process may bring, or use by name"),
    ] = 1024

    process_descriptors: Annotated[
        _Number,
        Shown("programs", "N", "paused connections of one process that may wait at a time"),
    ] = 1024

    admin: Annotated[
        str,
        Shown(
            "other",
            "HOST:PORT",
            "serve a status page, `/livez`, `/readyz` and `/metrics` on this HOST:PORT; `off`: nowhere",
        ),
    ] = SERVICE_ADDRESS

    log_level: Annotated[_LogLevel, Shown("other", "LEVEL", "what is logged, at least")] = "info"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.admin_address

    @property
    def admin_address(self) -> Address | None:
        return parse_admin(self.admin)
