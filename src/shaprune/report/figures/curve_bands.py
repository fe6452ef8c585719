"""Drawing the curves benchmark: one panel per layer, the best of every kind with its band over networks."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

COLOURS = {
    "mode": "#0b6e4f",
    "concept": "#1f5fa8",
    "estimator": "#7a4ea3",
    "aggregation": "#b8860b",
    "rival": "#c0392b",
    "random": "#8a8a8a",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shaprune",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.linewidth": 0.5,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}


def curve_bands_figure(panels: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy against the share of players removed, as an SVG file.

    Args:
        panels: title -> rows of `shaprune.experiments.curves_study.summary`. Of every kind the row with the smallest
            area under the loss curve is drawn, and ``random``.
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4 * columns, 3.6 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, found) in zip(grid, panels.items(), strict=False):
            _panel(axes, title, found)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def names_to_draw(found: Mapping[str, Any]) -> dict[str, str]:
    """Names of the rows to draw, by what they stand for: the best of each kind, and ``random``."""
    best: dict[str, str] = {}
    for name, row in sorted(found.items(), key=lambda item: item[1]["area_loss"]["mean"]):
        best.setdefault("random" if name == "random" else row["kind"], name)
    return best


def _panel(axes: Axes, title: str, found: Mapping[str, Any]) -> None:
    for kind, name in names_to_draw(found).items():
        curve = found[name]["curve"]
        share = np.asarray(curve["removed"]) / curve["n_players"]
        accuracy, colour = curve["accuracy"], COLOURS[kind]
        axes.fill_between(share, accuracy["low"], accuracy["high"], color=colour, alpha=0.12, linewidth=0)
        axes.plot(share, accuracy["mean"], color=colour, linewidth=1.4, label=name)
    axes.set_title(title)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("players removed")
    axes.set_ylabel("test accuracy")
    axes.legend(loc="lower left", fontsize=8)
