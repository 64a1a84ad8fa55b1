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


def test_a_provider_loads_no_library_that_only_the_programs_and_the_metrics_need() -> None:
    """Hazard: a program that computes a few numbers waits for them at its start."""
    script = (
        "import sys\n"
        "from gpu_provider import BatchingProvider\n"
        "with BatchingProvider() as provider:\n"
        "    assert provider.modexp(2, 10, 1001) == 23\n"
        "heavy = {'cryptography.x509', 'gpu_provider.tls', 'prometheus_client', 'rich', 'structlog', 'uvloop'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "print(type(provider.registry).__module__)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["[]", "prometheus_client.registry"]


def test_the_version_is_the_distributions() -> None:
    assert gpu_provider.__version__ == importlib.metadata.version("gpu-provider")
