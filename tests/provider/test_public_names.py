"""The package's public names: loaded at first use, and listed before that."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import gpu_provider


def test_every_public_name_is_listed_and_there() -> None:
    assert set(gpu_provider.__all__) <= set(dir(gpu_provider))
    for name in gpu_provider.__all__:
        assert getattr(gpu_provider, name) is not None


def test_names_are_listed_before_their_modules_are_loaded() -> None:
    script = (
        "import gpu_provider, sys\n"
        "names = dir(gpu_provider)\n"
        "assert {'BatchingProvider', 'Key', 'load_config', '__version__'} <= set(names), names\n"
        "assert 'numpy' not in sys.modules and 'importlib.metadata' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_version_is_the_distributions() -> None:
    assert gpu_provider.__version__ == importlib.metadata.version("gpu-provider")
