"""Drawing: values and curves -> inline SVG. Colours are names of CSS variables, so the page decides light and dark."""

from __future__ import annotations

import io
import re
import zlib
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from shaprune.values.result import Values

if TYPE_CHECKING:
    from shaprune.report.removal_curves import Curves

# Stand-ins for CSS variables: matplotlib needs a colour, the page puts the variable in its place.
_COLOURS = {name: f"#0{i}0{i}0{i}" for i, name in enumerate(("ink", "muted", "rule", "kept", "gone", "norm"), 1)}
INK, MUTED, RULE, KEPT, GONE, NORM = _COLOURS.values()
_ON_WHITE = {
    "ink": "#1b1f24",
    "muted": "#626a75",
    "rule": "#dfe3e8",
    "kept": "#1f66d1",
    "gone": "#8b929c",
    "norm": "#c2740a",
}
_FILE = (
    '<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{label}" font-family="sans-serif">'
    '<rect width="100%" height="100%" fill="white"/>{body}'
)
STYLE: Any = {  # matplotlib types its keys differently from release to release
    "svg.fonttype": "none",
    "svg.hashsalt": "shaprune",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 4),
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
}
_MAX_SINGLE_BARS = 80  # up to so many players, each gets its own bar


def values_figure(values: Values, kept: NDArray[np.bool_] | None, label: str) -> str:
    """Values of one group, most valuable first, with bars of two standard errors and the cut.

    Args:
        values: of the group.
        kept: (n,) who stays; None where there is no plan.
        label: what the figure shows, for those who cannot see it.
    """
    order = values.ranking()[::-1]
    value, error = values.value[order], 2 * np.where(np.isfinite(values.stderr), values.stderr, 0)[order]
    stays = np.ones(values.n, dtype=bool) if kept is None else kept[order]
    place = np.arange(1, values.n + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for colour, shown in ((KEPT, stays), (GONE, ~stays)):
            if shown.any():
                _draw(axes, place, value, error, shown, colour)
        if kept is not None and not stays.all() and stays[: stays.sum()].all():  # the plan follows the values
            axes.axvline(float(stays.sum()) + 0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(0.5 - 0.01 * values.n, values.n + 0.5 + 0.01 * values.n)
        axes.set_xticks(sorted({1, *(int(t) for t in axes.get_xticks() if 1 < t < 0.93 * values.n), values.n}))
        axes.set_xlabel("players, the most valuable first")
        axes.set_ylabel("value")
        return svg(figure, label)


def _draw(
    axes: Axes,
    place: NDArray[np.int64],
    value: NDArray[np.float64],
    error: NDArray[np.float64],
    shown: NDArray[np.bool_],
    colour: str,
) -> None:
    if len(place) <= _MAX_SINGLE_BARS:
        size = 3.5 if len(place) <= 40 else 2.5
        axes.errorbar(
            place[shown], value[shown], error[shown], color=colour, fmt="o", markersize=size, elinewidth=1, capsize=0
        )
        return
    axes.vlines(place[shown], (value - error)[shown], (value + error)[shown], color=colour, linewidth=0.8, alpha=0.35)
    axes.scatter(place[shown], value[shown], s=3, color=colour, linewidth=0)


def curves_figure(curves: Curves, cut: int | None, recovered: float | None, label: str) -> str:
    """Accuracy against the share of players that have left.

    Args:
        curves: what was measured.
        cut: how many players the plan removes; None where there is no plan.
        recovered: accuracy of the pruned and recovered network at the cut, where measured.
        label: what the figure shows, for those who cannot see it.
    """
    share = curves.removed / curves.n_players
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.5), layout="constrained")
        axes = figure.add_subplot()
        random = curves.accuracy["random"]
        axes.fill_between(share, random.min(0), random.max(0), color=GONE, alpha=0.2, linewidth=0)
        axes.plot(share, random.mean(0), color=GONE, linewidth=1.6, label=f"random ({len(random)} orders)")
        axes.plot(share, curves.accuracy["weight norm"][0], "s-", color=NORM, markersize=3.5, label="weight norm")
        axes.plot(share, curves.accuracy["values"][0], "o-", color=KEPT, markersize=4, label="values")
        if cut is not None:
            at = cut / curves.n_players
            axes.axvline(at, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate("the plan", (at, 0.02), xytext=(4, 0), textcoords="offset points", color=INK)
            if recovered is not None:
                axes.plot([at], [recovered], "*", color=INK, markersize=10, clip_on=False, label="the plan, recovered")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("players removed")
        axes.set_ylabel("test accuracy")
        handles, names = axes.get_legend_handles_labels()
        order = [names.index(n) for n in ("values", "weight norm") if n in names]
        order += [i for i in range(len(names)) if i not in order]
        figure.legend([handles[i] for i in order], [names[i] for i in order], loc="outside lower center", ncols=2)
        return svg(figure, label)


def svg(figure: Figure, label: str, *, standalone: bool = False) -> str:
    """The figure as an ``<svg>`` element: no ids that clash, no addresses, the page's font and colours.

    Args:
        figure: drawn with `STYLE`.
        label: what the figure shows, for those who cannot see it.
        standalone: an SVG file of its own, on white.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL).replace("xlink:href", "href")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    prefix = f"f{zlib.crc32(label.encode()):x}-"
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r"(href=\"|url\()#", rf"\1#{prefix}", body)
    for name, colour in _COLOURS.items():
        body = body.replace(colour, _ON_WHITE[name] if standalone else f"var(--{name})")
    if standalone:
        return _FILE.format(box=box.group(), label=escape(label), body=body)
    return f'<svg {box.group()} role="img" aria-label="{escape(label)}">{body}'
