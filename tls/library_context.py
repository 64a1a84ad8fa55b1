"""OpenSSL's library context for what has no batching provider."""

import os
import threading
from typing import Any

from gpu_provider.tls._ssl import ffi, lib
from gpu_provider.tls.errors import Error, why

_default_lock = threading.Lock()
_default_libctx: Any = None


def default_library_context() -> Any:
    """A library context with OpenSSL's default provider alone. Created at first use, and never freed."""
    global _default_libctx  # noqa: PLW0603
    with _default_lock:
        if _default_libctx is None:
            libctx = lib.OSSL_LIB_CTX_new()
            if libctx == ffi.NULL or lib.OSSL_PROVIDER_load(libctx, b"default") == ffi.NULL:
                raise Error(f"OpenSSL's default provider can't be loaded: {why()}")
            _default_libctx = libctx
    return _default_libctx


def _renew_lock_in_child() -> None:
    global _default_lock  # noqa: PLW0603
    _default_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock_in_child)
