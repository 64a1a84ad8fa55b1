"""Which part of the C and C++ sources may include which, and that no two files include each other in a circle.

A part is a folder, or a file beside the folders. ``x.h`` and ``x.c`` count as one file. Run by ``make lint``.
"""

import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

MAY_INCLUDE = {
    "gpu_provider/native": {
        "types": set(),
        "process": set(),
        "keys": {"types", "process"},
        "staging": {"types", "keys"},
        "queue": {"types", "process", "keys"},
        "service": {"types", "process", "keys", "queue"},
        "provider": {"types", "process", "keys", "queue", "service"},
    },
    "kernels": {
        "kernels": set(),
        "arithmetic": set(),
        "cpu": {"arithmetic"},
        "gpu": {"arithmetic"},
        "records": {"arithmetic", "cpu", "gpu"},
        "host": {"cpu", "gpu"},
    },
}
ANYONE = Path("kernels/kernels.h")
"""The kernels' C interface."""


def included(file: Path, root: Path) -> list[Path]:
    """The project's own headers, relative to the repository."""
    names = re.findall(r'^\s*#\s*include "([^"]+)"', file.read_text(), re.MULTILINE)
    return [next(path for path in (root / name, ANYONE.parent / name) if path.exists()) for name in names]


def unit(file: Path) -> Path:
    return file.with_suffix("") if file.suffix in {".h", ".c"} else file


def part(file: Path, root: Path) -> str:
    return file.relative_to(root).with_suffix("").parts[0]


def check(root: Path, allowed: dict[str, set[str]]) -> list[str]:
    problems, graph = [], TopologicalSorter[Path]()
    for file in sorted(path for kind in ("h", "c", "cpp", "cu") for path in root.rglob(f"*.{kind}")):
        for header in included(file, root):
            if unit(header) == unit(file):
                continue
            graph.add(unit(file), unit(header))
            if header == ANYONE:
                continue
            own, other = part(file, root), part(header, root) if header.is_relative_to(root) else str(header)
            if other != own and other not in allowed[own]:
                problems.append(
                    f"{file} includes {header}: {own} may include {', '.join(sorted(allowed[own])) or 'nothing'}"
                )
    try:
        graph.prepare()
    except CycleError as error:
        problems.append(f"a circle: {' → '.join(map(str, reversed(error.args[1])))}")
    return problems


if __name__ == "__main__":
    sys.exit("\n".join(line for root, allowed in MAY_INCLUDE.items() for line in check(Path(root), allowed)) or None)
