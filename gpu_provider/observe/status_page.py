"""The admin port's status page: one file that asks ``/metrics``, ``/readyz`` and ``/failures`` again and again."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

__all__ = ["status_page"]


def status_page() -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy: only its own script and style count, and it can reach only the host
    that it came from. So what clients send, such as a server name, can do no harm in it."""
    page = Path(__file__).with_name("status.html").read_bytes()
    script, style = (_source(page, tag) for tag in ("script", "style"))
    return page, (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _source(page: bytes, tag: str) -> str:
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
