"""A command's flags, made from a settings class, and its settings, made from flags, environment and file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gpu_provider.settings import Option, Settings, load_config, options, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Once", "add_flags", "load", "warn"]

SettingsT = TypeVar("SettingsT", bound=Settings)


def add_flags(parser: argparse.ArgumentParser, settings: type[Settings], groups: Sequence[str]) -> None:
    """Adds one flag for each field, and ``--config``. The field has the default, so the flag's is None. ``groups``: the
    headings of ``--help``, in order; the last is for ``--config``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    by_name = {name: parser.add_argument_group(name) for name in groups}
    for option in sorted(options(settings), key=lambda option: groups.index(option.shown.group)):
        by_name[option.shown.group].add_argument(
            f"--{option.name.replace('_', '-')}",
            action="append" if option.several else Once,
            type=str if option.type is Path else option.type,
            choices=option.choices or None,
            metavar=None if option.choices else option.shown.value,
            help=_help(option),
        )
    by_name[groups[-1]].add_argument("--config", action=Once, metavar="FILE", help="TOML file with these settings")


def _help(option: Option) -> str:
    default = f" (default: {option.default_words})" if option.default_words else ""
    return f"{option.shown.help}{default}".replace("`", "")


class Once(argparse.Action):
    """A flag that may be given once. Given twice, argparse would silently use the last value."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        if getattr(namespace, self.dest, None) is not None:
            raise argparse.ArgumentError(self, "given more than once, but it takes one value; remove all but one")
        setattr(namespace, self.dest, values)


def load(args: argparse.Namespace, settings: type[SettingsT]) -> SettingsT:
    """Raises ConfigError. Warns first of what may be a misspelt setting: one that is missing may be it."""
    warn(args.command, unknown_variables(settings, os.environ))
    flags = {field: getattr(args, field, None) for field in settings.__struct_fields__}
    return load_config(settings, args.config, os.environ, flags)


def warn(command: str, warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"gpu-provider {command}: warning: {warning}", file=sys.stderr)
