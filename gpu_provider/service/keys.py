"""The keys that only the service has, and programs use by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpu_provider.errors import ConfigError, KeyLoadError
from gpu_provider.library.key_formats import is_encrypted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpu_provider.library.keys import Key
    from gpu_provider.provider import BatchingProvider

__all__ = ["ServiceKeys"]


class ServiceKeys:
    """Reads them from the settings, and again when the files have changed."""

    def __init__(self, provider: BatchingProvider, settings: Sequence[str]) -> None:
        """``settings``: NAME=FILE each. Raises ConfigError for a name that is there twice."""
        self._provider = provider
        self._files: dict[str, Path] = {}
        self._keys: dict[str, Key] = {}
        for setting in settings:
            name, _, file = setting.partition("=")
            if name in self._files:
                raise ConfigError(f"service_key: two keys have the name {name!r}; give one of them another name")
            self._files[name] = Path(file)

    def load(self, give: Callable[[str, Key], None]) -> int:
        """Reads all files, and only then gives programs what is in them instead of what they had. Returns how many keys
        are other ones than before. Raises ConfigError, and programs still have the former keys then."""
        loaded: dict[str, Key] = {}
        try:
            for name, file in self._files.items():
                loaded[name] = self._read(name, file)
        except ConfigError:
            for key in loaded.values():
                key.close()
            raise
        changed = 0
        for name, key in loaded.items():
            former = self._keys.get(name)
            if former is not None and (former.n, former.e) == (key.n, key.e):
                key.close()
                continue
            give(name, key)
            self._keys[name] = key
            changed += 1
            if former is not None:
                former.close()
        return changed

    def _read(self, name: str, file: Path) -> Key:
        reason = "the private key is encrypted; decrypt it: openssl pkey -in FILE -out NEW"
        try:
            data = file.read_bytes()
            if not is_encrypted(data):
                return self._provider.load_key(data)
        except OSError as error:
            reason = f"can't be read: {error.strerror or error}"
        except KeyLoadError as error:
            reason = str(error)
        raise ConfigError(f"service_key {name!r}: {str(file)!r}: {reason}")
