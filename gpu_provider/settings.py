"""Base of the settings classes, and where the values come from.

A settings class derives from :class:`Settings` and describes each field in its annotation::

    queue_depth: Annotated[
        int,
        Meta(ge=1, le=65536, description="a number of requests from 1 to 65536"),
        Shown("batches", "N", "requests that can wait at a time"),
    ] = 4096

``Meta`` bounds the value; its description completes the sentence "it must be …". ``Shown`` is what users read of the
setting: the command line's help and the README's tables are both made from it. :func:`load_config` fills such a class
from command line flags, over ``GPU_PROVIDER_*`` environment variables, over a TOML file, over the defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Meta

from gpu_provider.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Option", "Settings", "Shown", "from_builtins", "load_config", "options", "to_builtins", "unknown_variables"]

_log = logging.getLogger(__name__)
_ENVIRONMENT_PREFIX = "GPU_PROVIDER_"
_MADE_UP = re.compile(r"(\w+_)?(port(_\d+_(tcp|udp)(_(addr|port|proto))?)?|service_host|service_port(_\w+)?)")


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """How users see a setting. The texts may have backticks, which the command line leaves out."""

    group: str
    """The heading of its flag in ``--help``."""
    value: str
    """The placeholder of the flag's value, such as ``SECONDS``; unused if there are choices."""
    help: str
    default: str = ""
    """What the default means, if it is None or empty."""


class Option(typing.NamedTuple):
    """A setting, as the command line and the README show it."""

    name: str
    type: type
    """int, float, Path or str; if several values can be given, the type of one."""
    several: bool
    choices: tuple[str, ...]
    """All possible values; empty: any of its type."""
    default: object
    shown: Shown

    @property
    def default_words(self) -> str:
        """Empty if there is no default."""
        if self.shown.default or not self.default:
            return self.shown.default
        return f"{self.default:g}" if isinstance(self.default, int | float) else f"`{self.default}`"


def options(settings: type[Settings]) -> Iterator[Option]:
    """The settings of a class whose fields all have a :class:`Shown`."""
    annotations = _fields(settings)
    for field in msgspec.structs.fields(settings):
        plain, (shown,) = _taken_apart(annotations[field.name], Shown)
        several = typing.get_origin(plain) is tuple
        if several:
            plain, _ = _taken_apart(typing.get_args(plain)[0], Shown)
        choices = typing.get_args(plain) if typing.get_origin(plain) is typing.Literal else ()
        yield Option(field.name, str if choices else plain, several, choices, field.default, shown)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the settings classes. Checks every field, however the instance is made; the ConfigError names the field,
    its value and what is allowed."""

    def __post_init__(self) -> None:
        for name, annotation in _fields(type(self)).items():
            _check(name, getattr(self, name), annotation)


SettingsT = TypeVar("SettingsT", bound=Settings)
T = TypeVar("T")


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
    another program's settings, but a warning is logged for one that looks like a misspelt setting. Raises ConfigError.
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
    for needed in msgspec.structs.fields(settings):
        if needed.required and needed.name not in values:
            flag, variable = needed.name.replace("_", "-"), _ENVIRONMENT_PREFIX + needed.name.upper()
            raise ConfigError(f"{needed.name} is not set; give --{flag}, {variable}, or {needed.name} in a file")
    return settings(**values)


def to_builtins(settings: Settings) -> dict[str, Any]:
    """The values as JSON can hold them, for another process."""
    values: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=str)
    return values


def from_builtins(settings: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
    """The reverse of :func:`to_builtins`; raises ConfigError."""
    return load_config(settings, overrides=values)


def unknown_variables(settings: type[Settings], environ: Mapping[str, str], likeness: float = 0) -> list[str]:
    """Returns a warning for each ``GPU_PROVIDER_*`` variable that is not a setting but resembles one by at least this
    much, from 0 to 1. Variables that container platforms make up from a service's name are passed over:
    ``GPU_PROVIDER_PORT``, ``GPU_PROVIDER_SERVICE_HOST`` and the like."""
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
    if isinstance(value, str) and _is_list(annotation):
        value = [value]
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
    _, metas = _taken_apart(annotation, Meta)
    return next((meta.description for meta in metas if meta.description), None)


def _taken_apart(annotation: Any, kind: type[T]) -> tuple[Any, list[T]]:
    """The plain type within ``Annotated[… | None, …]``, and all its annotations of this kind."""
    found: list[T] = []
    while True:
        if hasattr(annotation, "__metadata__"):
            found += [one for one in annotation.__metadata__ if isinstance(one, kind)]
            annotation = annotation.__origin__
        elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
            annotation = typing.get_args(annotation)[0]
        else:
            return annotation, found


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
    """Converts an environment variable's text to the field's type: a number, a boolean, a comma-separated list."""
    try:
        if _is_list(annotation):
            return _convert([part.strip() for part in text.split(",") if part.strip()], annotation, strict=False)
        return _convert(text, annotation, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(field, text, annotation, error, variable) from None


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(_taken_apart(annotation, Meta)[0]) in {list, tuple}
