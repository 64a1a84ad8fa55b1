"""The C core: ``ffi`` and ``lib`` of the extension, and where the provider module for other programs lies."""

from pathlib import Path

from gpu_provider.native._core import ffi, lib

__all__ = ["MODULE_DIRECTORY", "ffi", "lib"]

MODULE_DIRECTORY = Path(__file__).parent
"""The directory of ``gpu_provider.so``, for ``OPENSSL_MODULES`` or ``-provider-path``."""
