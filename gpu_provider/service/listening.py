"""The socket that programs connect to: our own, or one that systemd has opened."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_provider.errors import ConfigError
from gpu_provider.service.admission import group_number
from gpu_provider.systemd import inherited_listener

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpu_provider.service.config import ServiceConfig

__all__ = ["listening"]

_BACKLOG = 4096
_PROBE_SECONDS = 1.0


@contextlib.contextmanager
def listening(config: ServiceConfig) -> Iterator[socket.socket]:
    """Raises ConfigError."""
    inherited = inherited_listener()
    if inherited is not None:
        with inherited:
            path = Path(os.fsdecode(inherited.getsockname()))
            if config.socket not in {None, path}:
                raise ConfigError(
                    f"socket = {str(config.socket)!r}: systemd listens at {str(path)!r}; leave the setting out"
                )
            yield inherited
    elif config.socket is None:
        raise ConfigError("socket is not set; give --socket, GPU_PROVIDER_SOCKET, or socket in a file")
    else:
        with _own(config.socket, int(config.socket_mode, 8), config.socket_group) as own:
            yield own


@contextlib.contextmanager
def _own(path: Path, mode: int, group: str | None) -> Iterator[socket.socket]:
    """A socket that an earlier service left behind is replaced; one that is in use is not. At the end it is removed,
    unless another service has taken its place by then."""
    number = None if group is None else group_number(group, "socket_group")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, contextlib.ExitStack() as at_end:
        with _one_at_a_time(path):
            if _is_in_use(path):
                raise ConfigError(f"socket {str(path)!r}: another service listens there")
            try:
                if path.is_socket():
                    path.unlink()
                listener.bind(os.fspath(path))
                at_end.callback(_remove, path, path.stat().st_ino)
            except OSError as error:
                raise _failed(path, error) from None
            _open(listener, path, mode, number)
        yield listener


def _remove(path: Path, own: int) -> None:
    with contextlib.suppress(OSError):
        if path.stat().st_ino == own:
            path.unlink()


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Two services that start together must not both take the socket for one that was left behind. A lock on its
    directory leaves no file."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # the directory may be hidden, and then there is no lock
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            fcntl.flock(directory, fcntl.LOCK_EX)
        yield


def _open(listener: socket.socket, path: Path, mode: int, group: int | None) -> None:
    """It listens last, so that nobody comes through the door of another group or mode."""
    if group is not None:
        try:
            os.chown(path, -1, group)
        except PermissionError:
            raise ConfigError(f"socket_group: only root or a member can give a socket to group {group}") from None
    try:
        path.chmod(mode)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _failed(path, error) from None


def _failed(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"socket {str(path)!r}: {error.strerror or error}")


def _is_in_use(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            raise _failed(path, error) from None
    return True
