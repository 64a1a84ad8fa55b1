"""``python -m bench.plot RESULT.json …``: draws each result file, and nothing but what it holds, as a PNG beside it."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter


def draw(path: Path) -> Path:
    """One panel per unit and one for the ratios with their targets, then two to a row the curves of each kind and the
    values side by side; bars and points are medians, lines reach from min to max."""
    document = json.loads(path.read_text())
    rows = document["rows"] if document.get("draw_rows", True) else []  # files of before 2026-11-30 don't say it
    units = list(dict.fromkeys(row["unit"] for row in rows))
    ratios = [row for row in rows if row["ratio"]]
    curves = document.get("curves", [])  # files of before 2026-11-23 have none
    kinds = list(dict.fromkeys((curve["x"], curve["y"]) for curve in curves))
    compared = document.get("bars", [])  # files of before 2026-12-01 have none
    subjects = list(dict.fromkeys(subject for chart in compared for subject in chart["heights"]))
    charts = len(kinds) + len(compared)
    panels = [unique([row for row in rows if row["unit"] == unit]) for unit in units] + ([ratios] if ratios else [])
    columns = min(2, max(1, charts))
    heights = [1 + 0.3 * len(panel) for panel in panels] + [3.5] * -(-charts // columns)
    figure = Figure(figsize=(9 if columns == 1 else 12, sum(heights) + 1), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    for place, (panel, unit) in enumerate(zip(panels, [*units, None], strict=False)):
        bars(figure.add_subplot(grid[place, :]), panel, unit)
    for place, kind in enumerate(kinds, start=len(panels) * columns):
        axis = figure.add_subplot(grid[divmod(place, columns)])
        lines(axis, [curve for curve in curves if (curve["x"], curve["y"]) == kind])
    for place, chart in enumerate(compared, start=len(panels) * columns + len(kinds)):
        side_by_side(figure.add_subplot(grid[divmod(place, columns)]), chart, subjects)
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


def side_by_side(axis: Axes, chart: dict[str, Any], subjects: list[str]) -> None:
    """``subjects``: of all charts, so that each has its colour in all."""
    heights: dict[str, dict[str, Any]] = chart["heights"]
    cases = list(dict.fromkeys(case for by_case in heights.values() for case in by_case))
    width = 0.8 / len(heights)
    for number, (subject, by_case) in enumerate(heights.items()):
        xs = [cases.index(case) + (number - (len(heights) - 1) / 2) * width for case in by_case]
        medians = [spread["median"] for spread in by_case.values()]
        below = [spread["median"] - spread["low"] for spread in by_case.values()]
        above = [spread["high"] - spread["median"] for spread in by_case.values()]
        colour = f"C{subjects.index(subject)}"
        drawn = axis.bar(xs, medians, width, yerr=[below, above], color=colour, label=subject, capsize=2, ecolor="0.3")
        axis.bar_label(drawn, [f"{median:,.0f}" for median in medians], fontsize=7, padding=2)
    axis.set_xticks(range(len(cases)), cases)
    axis.set_title(chart["title"], fontsize=9)
    axis.set_ylabel(chart["y"], fontsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, loc="upper left", frameon=False)


def lines(axis: Axes, curves: list[dict[str, Any]]) -> None:
    for curve in curves:
        xs = [x for x, _spread in curve["points"]]
        spreads = [spread for _x, spread in curve["points"]]
        medians = [spread["median"] for spread in spreads]
        axis.plot(xs, medians, marker=".", label=curve["subject"])
        axis.fill_between(xs, [spread["low"] for spread in spreads], [spread["high"] for spread in spreads], alpha=0.2)
    if curves[0].get("logarithmic"):
        axis.set(xscale="log", yscale="log")
        for one in (axis.xaxis, axis.yaxis):
            label_plainly(one)
    else:
        axis.axhline(1, color="black", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_xticks(xs, [f"{x:g}" for x in xs])
        axis.set_ylim(bottom=0)
    axis.set_xlabel(curves[0]["x"], fontsize=8)
    axis.set_ylabel(curves[0]["y"], fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(visible=True, alpha=0.3)
    axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)  # above, over no line


def label_plainly(axis: Axis) -> None:
    """1,000 instead of 10^3; between the powers of ten, 2, 3 and 5 where they are few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high / low < 1000 else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:,.9g}"))
    axis.set_minor_formatter(NullFormatter())


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(draw(Path(argument)))
