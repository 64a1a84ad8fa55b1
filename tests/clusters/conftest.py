"""The key of the workers' machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rsa_keys import private_key, private_pem

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "signing.pem"
    path.write_bytes(private_pem(private_key(2048)))
    return path
