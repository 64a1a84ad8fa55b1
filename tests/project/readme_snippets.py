"""Writes the documents' Python snippets into a directory, for `make lint` to check their types. Snippets with asyncio
protocols are left out: they have no annotations, which would only repeat asyncio's documentation. Arguments to Dask are
not checked: it has no types, and what pyright infers from the defaults is wrong."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def main(directory: str) -> None:
    root = Path(__file__).resolve().parents[2]
    for document in (root / "README.md", root / "docs" / "library.md"):
        snippets = re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
        for number, snippet in enumerate(text for text in snippets if "asyncio.Protocol" not in text):
            prefix = "# pyright: reportArgumentType=false\n" if "import dask" in snippet else ""
            (Path(directory) / f"{document.stem.lower()}_{number}.py").write_text(prefix + snippet)


if __name__ == "__main__":
    main(sys.argv[1])
