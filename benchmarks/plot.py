"""The picture of a run: grouped bars on logarithmic axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from report import (
    CALLBACK,
    GROUPS,
    NATIVE,
    OURS,
    PUBLISHED,
    RETURNING,
    SHOWN,
    TITLES,
    VECTORIZED,
    C,
    Results,
    number,
)

COLOURS = {
    NATIVE: "#b0b0b0",
    CALLBACK: "#cc6677",
    C: "#ddaa33",
    PUBLISHED: "#8877bb",
    OURS: "#117733",
    RETURNING: "#55aa77",
    VECTORIZED: "#88ccaa",
}


SMALLEST = 1e-4  # microseconds; a marginal cost can come out as nothing
PANELS = ([0, 3], [1, 2])  # the groups on the left and on the right, from top to bottom


def panel(axis: Any, results: Results, columns: list[str], cases: list[str]) -> None:
    """Medians as bars, quartiles as lines."""
    step = 0.84 / max(len(columns), 1)
    extent: list[float] = []
    for row, case in enumerate(cases):
        present = [c for c in columns if results.median(c, case) is not None]
        for place, column in enumerate(present):
            median = results.median(column, case)
            value = max(median or 0.0, SMALLEST)
            y = row + (place - (len(present) - 1) / 2) * step
            axis.barh(y, value, height=0.92 * step, color=COLOURS[column])
            ends = [max(q, SMALLEST) for q in results.quartiles(column, case) or (value, value)]
            axis.plot(ends, (y, y), color="#333333", linewidth=0.8)
            extent += [value, max(value, *ends)]
            axis.annotate(
                number(median),
                (extent[-1], y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                fontweight="bold" if column == OURS else "normal",
            )
    axis.set_xscale("log")
    if extent:
        axis.set_xlim(min(extent) / 3, max(extent) * 4)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_xlabel("microseconds")
    axis.set_yticks(range(len(cases)), cases)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(cases) - 0.45, -0.55)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)


def plot(results: Results, path: Path) -> None:
    """Draw all groups of cases to ``path``."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = [c for c in SHOWN if any(c in r for r in results.rounds)]
    groups = list(GROUPS.items())
    figure = Figure(figsize=(15, 11), layout="constrained")
    for half, members in enumerate(PANELS):
        place = figure.add_subfigure(figure.add_gridspec(1, 2)[half])
        heights = [len(groups[m][1]) for m in members]
        axes = place.subplots(len(members), 1, height_ratios=heights)
        for axis, member in zip(axes, members, strict=True):
            title, cases = groups[member]
            panel(axis, results, columns, cases)
            axis.set_title(title, loc="left", fontweight="bold")
    figure.legend(
        handles=[Patch(color=COLOURS[c], label=TITLES.get(c, c)) for c in columns],
        loc="outside lower center",
        ncols=len(columns),
        frameon=False,
    )
    versions = results.about.get("versions", {}).get(NATIVE, {})
    where = ", ".join(f"{name} {v}" for name, v in versions.items())
    figure.suptitle(f"x * x on 8 doubles, and what surrounds it ({where})", fontsize=13)
    figure.savefig(path, dpi=120)
