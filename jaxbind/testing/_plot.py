"""Plots of what the numerical laws rest on."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbind.testing._evidence import Evidence, evidence

if TYPE_CHECKING:
    from jaxbind.testing._report import Row

KINDS = ("from J v", "from Jᵀ w", "by differences")


def figure(rows: Sequence[Row]) -> Any:
    """A row of four axes per binding that has derivatives: the V curve and three Jacobians."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "plots need matplotlib: pip install 'jaxbind[testing]', or pip install matplotlib"
        ) from None
    found = [(row, evidence(row.check, _cases(row))) for row in rows]
    shown = [(row, e) for row, e in found if e is not None]
    height = 3.1 * max(1, len(shown))
    made = Figure(figsize=(13, height + 0.3), layout="constrained")
    if not shown:
        made.text(0.5, 0.5, "no binding here has a derivative", ha="center")
        return made
    parts = made.subfigures(len(shown), 1, squeeze=False)[:, 0]
    for part, (row, e) in zip(parts, shown, strict=True):
        axes = part.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
        broken = ", ".join(v.law for v in row.violations)
        title = f"{row.label}   " + (f"✗ {broken}" if broken else "✓")
        part.suptitle(
            title, x=0.01, ha="left", weight="bold", color="#b3261e" if broken else "#1b6e3c"
        )
        _curve(axes[0], e)
        _heat_maps(part, axes[1:], e)
    return made


def _cases(row: Row) -> list[Any]:
    return [v.case for v in row.violations]


def _curve(axis: Any, e: Evidence) -> None:
    """Error against step: truncation to the right, rounding to the left."""
    tiny = 1e-18
    axis.loglog(
        e.steps, np.maximum(e.errors, tiny), "o-", color="#33658a", ms=4, label="differences"
    )
    axis.axhline(max(e.estimated, tiny), color="#e3a008", ls="--", label="error of the estimate")
    if np.isfinite(e.gap):
        wrong = e.gap > 100 * max(e.estimated, tiny) and e.gap > 1e-8
        colour = "#b3261e" if wrong else "#1b6e3c"
        axis.axhline(max(e.gap, tiny), color=colour, label="the rule")
    axis.set_xlabel("step, relative to the operand")
    axis.set_ylabel("distance from the estimate")
    axis.legend(fontsize=7, facecolor="white", edgecolor="none", framealpha=0.9)
    axis.set_title("\n".join(textwrap.wrap(e.example, 58)[:2]), fontsize=7, family="monospace")
    axis.spines[["top", "right"]].set_visible(False)


def _heat_maps(part: Any, axes: Sequence[Any], e: Evidence) -> None:
    finite = [m[np.isfinite(m)] for m in e.jacobians.values()]
    largest = max((float(np.max(np.abs(m), initial=0.0)) for m in finite), default=1.0) or 1.0
    image = None
    for axis, kind in zip(axes, KINDS, strict=True):
        axis.set_title(f"Jacobian {kind}", fontsize=9)
        matrix = e.jacobians.get(kind)
        if matrix is None:
            axis.text(0.5, 0.5, "no rule", ha="center", va="center", color="#777")
            axis.set_axis_off()
            continue
        image = axis.imshow(
            matrix, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest"
        )
        axis.set_xticks([])
        axis.set_yticks([])
        if matrix.size <= 40:
            for (i, j), value in np.ndenumerate(matrix):
                dark = abs(value) > 0.55 * largest
                text = f"{value + 0.0:.3g}"
                axis.text(
                    j, i, text, ha="center", va="center", fontsize=7, color="w" if dark else "k"
                )
    if image is not None:
        part.colorbar(image, ax=list(axes), shrink=0.75, pad=0.01)
