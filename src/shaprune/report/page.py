"""The report as one HTML file: no scripts, no addresses, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from shaprune.report.content import Content as Content
from shaprune.report.figures.values import curves_figure, values_figure
from shaprune.report.markup import note
from shaprune.report.sections import before_after, diagnostics, footer, lead, skipped
from shaprune.storage.own_files import GENERATOR


def page(content: Content) -> str:
    """Build the report.

    Raises:
        InputError: the plan was made for other players than the values.
    """
    content.check_plan()
    body = "\n".join(
        [
            f"<h1>{escape(content.title)}</h1>",
            f'<p class="lead">{escape(lead(content))}</p>',
            *before_after(content),
            *_curves(content),
            *_values(content),
            *diagnostics(content.scores),
            *skipped(content.scores),
            f"<footer>{escape(footer(content))}</footer>",
        ]
    )
    style = files("shaprune.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{GENERATOR}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _curves(content: Content) -> Iterator[str]:
    curves, plan = content.curves, content.plan
    if curves is None:
        return
    networks = list(content.measurements.values())
    recovered = networks[-1].accuracy if plan is not None and len(networks) > 1 else None
    cut = None if plan is None else int((~plan.kept).sum())
    ends = ", ".join(f"{name} {rows.mean(0)[len(curves.removed) // 2]:.0%}" for name, rows in curves.accuracy.items())
    half = curves.removed[len(curves.removed) // 2] / curves.n_players
    label = f"Test accuracy as players leave. With {half:.0%} removed: {ends}."
    yield "<h2>Accuracy as players leave</h2>"
    yield note(
        "The least valuable leave first, over all layers together, and the best of every group last; masks only, no "
        f"recovery; {curves.n_examples:,} test examples. Random: mean and range. Weight norms: relative to the layer's."
    )
    yield f'<figure class="wide">{curves_figure(curves, cut, recovered, label)}</figure>'


def _values(content: Content) -> Iterator[str]:
    plan = content.plan
    yield "<h2>Values, layer by layer</h2>"
    keys = (
        ""
        if plan is None
        else ' <span class="key">stays</span> &nbsp;<span class="key gone">leaves</span>&nbsp; Dashed: the cut.'
    )
    yield f'<p class="note">What each player contributes; bars are two standard errors.{keys}</p>'
    yield '<div class="grid">'
    for group in content.scores.players.groups:
        values = content.scores[group.name]
        kept: NDArray[np.bool_] | None = None if plan is None else plan.kept[group.indices]
        told = f"{len(group):,} players" if kept is None else f"{int(kept.sum()):,} of {len(group):,} stay"
        label = (
            f"Values of {group.name}: {told}; from {values.value.min():.3g} to {values.value.max():.3g}, "
            f"standard error {values.stderr.mean():.2g} on average."
        )
        figure = values_figure(values, kept, label)
        yield f"<figure><figcaption><b>{escape(group.name)}</b><span>{told}</span></figcaption>{figure}</figure>"
    yield "</div>"
