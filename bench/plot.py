"""``python -m bench.plot RESULT.json …``: draws each result file, and nothing but what it holds, as a PNG beside it."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw(path: Path) -> Path:
    """One panel per unit, and one for the ratios with their targets; bars are medians, lines reach from min to max."""
    document = json.loads(path.read_text())
    rows = document["rows"]
    units = list(dict.fromkeys(row["unit"] for row in rows))
    ratios = [row for row in rows if row["ratio"]]
    panels = [unique([row for row in rows if row["unit"] == unit]) for unit in units] + ([ratios] if ratios else [])
    heights = [1 + 0.3 * len(panel) for panel in panels]
    figure = Figure(figsize=(9, sum(heights) + 1), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axis, panel, unit in zip(axes[:, 0], panels, [*units, None], strict=False):
        bars(axis, panel, unit)
    environment = document["environment"]
    machine = f"{environment['machine']['cpu']}, {environment['machine']['cores']} cores"
    commit = f"commit {(environment['commit'] or 'unknown')[:10]}{'+' if environment['uncommitted_changes'] else ''}"
    openssl = environment["versions"]["openssl_of_python"]
    figure.suptitle(f"{document['title']}\n{machine} · {openssl}\n{commit} · {document['date']}", fontsize=9)
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=120)
    return target


def unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per case and subject: a value compared with two baselines is drawn once."""
    return list({(row["case"], row["subject"]): row for row in rows}.values())


def bars(axis: Axes, rows: list[dict[str, Any]], unit: str | None) -> None:
    kind = "measured" if unit else "ratio"
    medians = [row[kind]["median"] for row in rows]
    below = [row[kind]["median"] - row[kind]["low"] for row in rows]
    above = [row[kind]["high"] - row[kind]["median"] for row in rows]
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    colours = [f"C{subjects.index(row['subject'])}" for row in rows]
    axis.barh(range(len(rows)), medians, xerr=[below, above], color=colours, height=0.7, capsize=2, ecolor="0.3")
    to = [f" / {row['baseline']}" if unit is None else "" for row in rows]
    labels = [f"{row['case']}: {row['subject']}{base}" for row, base in zip(rows, to, strict=True)]
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(unit or "ratio, with its target", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    for place, row in enumerate(rows):
        if row["target"] and (unit is None) == (row["ratio"] is not None):
            limit = row["target"]["limit"]
            axis.plot([limit, limit], [place - 0.45, place + 0.45], color="black", linewidth=2)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(draw(Path(argument)))
