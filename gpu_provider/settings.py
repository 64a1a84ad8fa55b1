"""Settings: frozen, validated, and the same rules for every program of the project.

A settings class derives from :class:`Settings` and gives each field its bounds and its meaning with
``Annotated[type, msgspec.Meta(ge=…, description="…")]``. The description completes the sentence "it must be …".
:func:`load_config` fills such a class from command line flags, over ``GPU_PROVIDER_*`` environment variables, over a
TOML file, over the defaults.
"""

from __future__ import annotations

import difflib
import logging
import re
import tomllib
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from gpu_provider.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ProviderConfig", "Settings", "load_config", "unknown_variables"]

_log = logging.getLogger(__name__)
_ENVIRONMENT_PREFIX = "GPU_PROVIDER_"
_MADE_UP = re.compile(r"(\w+_)?(port(_\d+_(tcp|udp)(_(addr|port|proto))?)?|service_host|service_port(_\w+)?)")
_LATER_BACKENDS = {"service": "leaves the computing to another process"}
_BACKENDS = ("auto", "cuda", "cpu", "libcrypto")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the settings classes: checks every field however the instance was made. ConfigError names the field, the
    value and what is allowed."""

    def __post_init__(self) -> None:
        for name, annotation in _fields(type(self)).items():
            _check(name, getattr(self, name), annotation)


class ProviderConfig(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a :class:`gpu_provider.BatchingProvider` works."""

    backend: Annotated[str, Meta(description="'auto', 'cuda', 'cpu' or 'libcrypto'")] = "auto"
    """What computes. "cuda": the NVIDIA GPUs of this machine, all that ``CUDA_VISIBLE_DEVICES`` leaves, and the
    processor for what it finishes sooner; needs the extra ``gpu-provider[cuda13]`` or ``[cuda12]``. "cpu": our own
    kernels, which are several times as fast as OpenSSL where the processor has AVX-512 IFMA, and OpenSSL for what it
    computes sooner (all of it, where there is no IFMA). "libcrypto": OpenSSL alone. "auto": "cuda" if there is a GPU
    that works here, else "cpu"; the choice is logged once."""

    arithmetic: Annotated[str, Meta(description="'auto', 'fp64' or 'int32'")] = "auto"
    """How GPUs multiply. "fp64": by floating-point multiply-adds. "int32": by integers. "auto": whichever is
    the faster on that GPU."""

    kernel_cache: Annotated[Path, Meta(description="a directory")] | None = None
    """Where the kernels that are compiled for a GPU are kept. None: ``gpu-provider/cubins`` in ``$XDG_CACHE_HOME`` or
    ``~/.cache``."""

    queue_depth: Annotated[int, Meta(ge=1, le=65536, description="a number of requests from 1 to 65536")] = 4096
    """Requests that can wait or be computed at a time. When all are in use, further ones get RETRY."""

    max_batch: Annotated[int, Meta(ge=1, le=65536, description="a number of requests from 1 to 65536")] = 4096
    """Most requests in one batch, however many ``max_delay`` would allow."""

    max_delay: Annotated[float, Meta(gt=0, le=3600, description="seconds, more than 0 and at most 3600")] = 0.010
    """Seconds that one batch may be expected to take, which bounds how long a request waits for a busy worker. No
    request ever waits for a batch to fill."""

    threads: Annotated[int, Meta(ge=1, le=1024, description="a number of threads from 1 to 1024")] | None = None
    """Threads that compute on the processor. None: as many as the process has processor cores."""

    backend_timeout: Annotated[float, Meta(gt=0, le=3600, description="seconds, more than 0 and at most 3600")] = 5.0
    """Seconds after which a batch is taken away from a backend that does not return, and computed on libcrypto.
    libcrypto itself, being the last resort, has no timeout."""

    backend_retry: Annotated[float, Meta(gt=0, le=3600, description="seconds, more than 0 and at most 3600")] = 1.0
    """Seconds that a failed backend stays out of use before it is tried again. Doubles with each failure in a row, up
    to 64 times this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend in _LATER_BACKENDS:
            raise ConfigError(
                f"backend = {self.backend!r}: the backend that {_LATER_BACKENDS[self.backend]} comes with a later "
                "version; use 'cpu', or 'auto' to have it chosen when it is there"
            )
        if self.backend not in _BACKENDS:
            raise ConfigError(f"backend = {self.backend!r}: it must be 'auto', 'cuda', 'cpu' or 'libcrypto'")
        if self.arithmetic not in {"auto", "fp64", "int32"}:
            raise ConfigError(f"arithmetic = {self.arithmetic!r}: it must be 'auto', 'fp64' or 'int32'")


SettingsT = TypeVar("SettingsT", bound=Settings)


def load_config(
    settings: type[SettingsT],
    path: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> SettingsT:
    """Makes ``settings`` from ``overrides`` over ``environ`` over the TOML file at ``path``, over the defaults.

    In the file, keys may be written with ``-`` or ``_``. In the environment, the field ``queue_depth`` is
    ``GPU_PROVIDER_QUEUE_DEPTH``; a list is separated by commas. ``overrides`` are command line flags by field name;
    None means that the flag was not given.

    Unknown keys in the file and in ``overrides`` are errors. Unknown environment variables are not, because they may be
    another program's settings, but one that looks like a misspelt setting is logged as a warning. Raises ConfigError.
    """
    annotations = _fields(settings)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in _read_file(path).items() if path is not None else ():
        field = name.replace("-", "_")
        if field in values:
            raise ConfigError(f"{path}: the setting {field!r} is there twice, with '-' and with '_'")
        _check_known(field, annotations, f"{path}: {name!r}")
        values[field], origin[field] = value, str(path)
    for warning in unknown_variables(settings, environ or {}, likeness=0.8):
        _log.warning("%s", warning)
    for field, text in _environment_settings(environ or {}, annotations).items():
        variable = _ENVIRONMENT_PREFIX + field.upper()
        values[field], origin[field] = _from_text(text, annotations[field], field, variable), variable
    for field, value in (overrides or {}).items():
        _check_known(field, annotations, repr(field))
        if value is not None:
            values[field], origin[field] = value, "command line"
    for field, value in values.items():
        try:
            values[field] = _convert(value, annotations[field])
        except msgspec.ValidationError as error:
            raise _invalid(field, value, annotations[field], error, origin[field]) from None
    return settings(**values)


def unknown_variables(settings: type[Settings], environ: Mapping[str, str], likeness: float = 0) -> list[str]:
    """A warning for each ``GPU_PROVIDER_*`` variable that is no setting, but like one to this degree, from 0 to 1.
    Variables that container platforms make up from a service's name are passed over: ``GPU_PROVIDER_PORT``,
    ``GPU_PROVIDER_SERVICE_HOST`` and the like."""
    annotations = _fields(settings)
    warnings = []
    for variable in environ:
        field = variable.removeprefix(_ENVIRONMENT_PREFIX).lower()
        if not variable.startswith(_ENVIRONMENT_PREFIX) or field in annotations or _MADE_UP.fullmatch(field):
            continue
        near = difflib.get_close_matches(field, annotations, n=1, cutoff=likeness or 0.6)
        if near:
            warnings.append(f"{variable} is not a setting and has no effect; {_ENVIRONMENT_PREFIX}{near[0].upper()} is")
        elif not likeness:
            warnings.append(f"{variable} is not a setting and has no effect")
    return warnings


def _fields(settings: type[Settings]) -> dict[str, Any]:
    return {
        name: annotation
        for name, annotation in typing.get_type_hints(settings, include_extras=True).items()
        if name in settings.__struct_fields__
    }


def _check(field: str, value: object, annotation: Any) -> None:
    try:
        _convert(msgspec.to_builtins(value, enc_hook=str), annotation)
    except (msgspec.ValidationError, TypeError) as error:
        raise _invalid(field, value, annotation, error) from None


def _convert(value: object, annotation: Any, strict: bool = True) -> Any:
    return msgspec.convert(value, annotation, strict=strict, dec_hook=_convert_path)


def _convert_path(wanted: type, value: object) -> object:
    if wanted is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError


def _check_known(field: str, annotations: Mapping[str, Any], shown: str) -> None:
    if field not in annotations:
        near = difflib.get_close_matches(field, annotations, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the settings are {', '.join(sorted(annotations))}"
        raise ConfigError(f"{shown} is not a setting; {hint}")


def _invalid(field: str, value: object, annotation: Any, error: Exception, origin: str | None = None) -> ConfigError:
    where = f"{origin}: " if origin else ""
    if isinstance(error.__cause__, ConfigError):
        return ConfigError(f"{where}{field}: {error.__cause__}")
    description = _description(annotation)
    remedy = f"it must be {description}" if description else str(error)
    return ConfigError(f"{where}{field} = {value!r}: {remedy}")


def _description(annotation: Any) -> str | None:
    """The description of an annotated type, also where it is one side of ``… | None``."""
    for candidate in (annotation, *typing.get_args(annotation)):
        for meta in getattr(candidate, "__metadata__", ()):
            if isinstance(meta, Meta) and meta.description:
                return meta.description
    return None


def _read_file(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the configuration file can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the configuration file is not valid TOML: {error}") from None


def _environment_settings(environ: Mapping[str, str], annotations: Mapping[str, Any]) -> dict[str, str]:
    return {
        field: text
        for variable, text in environ.items()
        if variable.startswith(_ENVIRONMENT_PREFIX)
        and (field := variable.removeprefix(_ENVIRONMENT_PREFIX).lower()) in annotations
    }


def _from_text(text: str, annotation: Any, field: str, variable: str) -> Any:
    """What an environment variable's text means for a field: numbers, booleans and comma-separated lists."""
    try:
        if _is_list(annotation):
            return _convert([part.strip() for part in text.split(",") if part.strip()], annotation, strict=False)
        return _convert(text, annotation, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(field, text, annotation, error, variable) from None


def _is_list(annotation: Any) -> bool:
    candidates = (annotation, *typing.get_args(annotation))
    return any(typing.get_origin(candidate) in {list, tuple} for candidate in candidates)
