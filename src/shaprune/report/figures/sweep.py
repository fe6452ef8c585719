"""Figures of sensitivity curves and of the frontier of sizes."""

from __future__ import annotations

from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from shaprune.planning.frontier import Frontier
from shaprune.planning.resources import RESOURCES
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.report.figures import values

_NAMED = 8  # so many of the most sensitive groups are named


def sensitivity_figure(curves: Sensitivity, *, standalone: bool = False) -> str:
    """What each group loses as shares of its players leave, the most sensitive groups named, as SVG.

    Args:
        curves: what was measured.
        standalone: a file of its own, with colours; else an element for a page that has the report's style.
    """
    with matplotlib.rc_context(values.STYLE):
        figure = Figure(figsize=(5.2, 3.5), layout="constrained")
        axes = figure.add_subplot()
        ranked = sorted(curves, key=lambda name: -float(curves[name].loss(curves[name].removed).mean()))
        for rank, name in enumerate(ranked):
            curve = curves[name]
            share, lost = curve.removed / len(curve.order), curve.loss(curve.removed)
            named = rank < _NAMED
            colour = values.KEPT if named else values.GONE
            axes.plot(share, lost, color=colour, linewidth=1.4 if named else 0.8, alpha=1 if named else 0.4)
            if named:
                axes.annotate(
                    name, (share[-1], lost[-1]), (4, 0), textcoords="offset points", color=values.MUTED, fontsize=8
                )
        axes.set_yscale("symlog", linthresh=_threshold(curves))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("players of the group removed")
        axes.set_ylabel(f"loss in {curves.worth}")
        return values.svg(figure, "What each group loses as its players leave", standalone=standalone)


def frontier_figure(frontier: Frontier, *, standalone: bool = False) -> str:
    """Quality against size, or, where it was not measured, what of the other resources stays with each size, as SVG."""
    with matplotlib.rc_context(values.STYLE):
        figure = Figure(figsize=(5.2, 3.5), layout="constrained")
        axes = figure.add_subplot()
        shares = [point.shares for point in frontier.points]
        size = [share[frontier.by] for share in shares]
        quality = [point.quality for point in frontier.points if point.quality is not None]
        if len(quality) == len(size):
            axes.plot(size, quality, "o-", color=values.KEPT, markersize=4)
            axes.set_ylabel("measured quality")
        else:
            colours = cycle((values.KEPT, values.NORM, values.GONE, values.MUTED))
            others = [name for name in shares[0] if name != frontier.by]
            for name, colour in zip(others, colours, strict=False):
                axes.plot(
                    size, [s[name] for s in shares], "o-", color=colour, markersize=3, label=RESOURCES[name].title
                )
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.set_ylabel("stays")
            axes.legend()
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlim(0, 1.02)
        axes.set_xlabel(f"{RESOURCES[frontier.by].title} that stay")
        return values.svg(figure, f"The frontier over {frontier.by}", standalone=standalone)


def _threshold(curves: Sensitivity) -> float:
    """Where the scale turns from linear to logarithmic: losses of a thousandth of the largest can be distinguished."""
    most = max(float(np.abs(c.loss(c.removed)).max()) for c in curves.values())
    return max(most / 1000, 1e-12)
