"""The interactive report: one HTML file that is opened from disk and fetches nothing.

Plotly's script is packed into it, and its policy forbids every connection. All that comes in is text: it is escaped in
the markup, and the script puts it in as text.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from shaprune.planning.resources import RESOURCES
from shaprune.report.comparison import Row
from shaprune.report.content import Content, Evidence
from shaprune.report.figures.network_diagram import network_diagram
from shaprune.report.figures.redundancy import redundancy_figure
from shaprune.report.markup import note, table
from shaprune.report.payload import SLIDER_ALLOCATIONS, SLIDER_RESOURCES, payload
from shaprune.report.plotly_bundle import plotly_js
from shaprune.report.sections import before_after, diagnostics, footer, lead, skipped
from shaprune.storage.own_files import GENERATOR

_SCRIPTS = ("state.js", "tables.js", "plots.js", "main.js")
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_ALLOCATIONS = {
    "global": "by value per cost, over all groups",
    "value": "by value alone, over all groups",
    "uniform": "the same share of every group",
    "shapley-layers": "in proportion to the value of each group",
}


def interactive(content: Content, evidence: Evidence | None = None) -> str:
    """Build the report.

    Raises:
        InputError: plotly is not installed; values, a plan or curves that do not fit the players.
    """
    evidence = evidence or Evidence()
    data = payload(content, evidence)
    plotly = _packed(plotly_js())
    body = "\n".join(
        [
            '<a class="skip" href="#values">Skip to the values</a>',
            f'<h1>{escape(content.title)}</h1><p class="lead">{escape(lead(content))}</p>',
            "<noscript><p>This report needs JavaScript, which your browser has switched off.</p></noscript>",
            *_budget(data),
            *_network(content),
            *_values(data),
            *_groups(),
            *_tradeoffs(data),
            *before_after(content),
            *_removal(data),
            *_estimates(content),
            *_redundancy(content, evidence),
            *_look(evidence),
            *skipped(content.scores),
            f"<footer>{escape(footer(content))}</footer>",
        ]
    )
    style = _asset("style.css") + _asset("assets/interactive.css")
    code = "\n".join(_asset(f"assets/{name}") for name in _SCRIPTS)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{GENERATOR}\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="data">{_inside(json.dumps(data, allow_nan=False))}</script>\n'
        f'<script type="text/plain" id="plotly">{plotly}</script>\n'
        f'<script>\n(() => {{\n"use strict";\n{code}\n}})();\n</script>\n</body>\n</html>\n'
    )


def _asset(name: str) -> str:
    return files("shaprune.report").joinpath(name).read_text(encoding="utf-8")


def _inside(text: str) -> str:
    """JSON that cannot end the element it stands in."""
    return text.replace("<", "\\u003c")


def _packed(text: str) -> str:
    """Text that the page unpacks by itself: gzip, in letters."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _budget(data: dict[str, Any]) -> Iterator[str]:
    resources = "".join(
        f'<option value="{name}">{RESOURCES[name].title}</option>' for name in SLIDER_RESOURCES if data["dense"][name]
    )
    given = '<option value="plan">as in the plan that was given</option>' if "plan" in data["paths"] else ""
    shared = "".join(f'<option value="{name}">{_ALLOCATIONS[name]}</option>' for name in SLIDER_ALLOCATIONS)
    known = data["quality"] is not None or _measured(data)
    quality = '<div><dt id="quality-name"></dt><dd id="quality"></dd></div>' if known else ""
    yield (
        '<section class="budget" aria-labelledby="budget-title"><h2 id="budget-title">The budget</h2>'
        '<div class="controls"><label>Limit <select id="resource">' + resources + "</select></label>"
        '<label>Who leaves <select id="allocation">' + given + shared + "</select></label></div>"
        '<label class="slide" for="budget">At most <output id="asked" for="budget"></output> may stay</label>'
        '<input type="range" id="budget" min="0" max="1000" value="500" step="1" aria-describedby="told">'
        '<dl class="told" id="told"><div><dt>players</dt><dd id="n-players"></dd></div>'
        '<div><dt>multiply-adds</dt><dd id="n-macs"></dd></div><div><dt>parameters</dt><dd id="n-params"></dd></div>'
        f'<div><dt>value that stays</dt><dd id="n-value"></dd></div>{quality}</dl>'
        '<p><button type="button" id="export">Save plan.json</button> <span class="note" id="export-note">for '
        "<code>shaprune prune --plan plan.json</code></span></p></section>"
    )


def _network(content: Content) -> Iterator[str]:
    yield "<h2>The network</h2>"
    yield note(
        "A bar is a group of players that leave together with everything coupled to them, from the first layer that it "
        "touches to the last, in order of execution. It is filled by what stays; the line below it is what it costs in "
        "multiply-adds, against the most expensive one. Choose one to see its values."
    )
    yield network_diagram(content.scores.players)


def _values(data: dict[str, Any]) -> Iterator[str]:
    names = "".join(f'<option value="{i}">{escape(group["name"])}</option>' for i, group in enumerate(data["groups"]))
    yield '<section id="values" tabindex="-1" aria-labelledby="values-title"><h2 id="values-title">Values</h2>'
    yield (
        '<div class="controls"><label>Group <select id="group"><option value="-1">all groups</option>'
        f'{names}</select></label> <span class="note"><span class="key">stays</span> &nbsp;'
        '<span class="key gone">leaves</span>. Bars are 95 % intervals.</span></div>'
    )
    yield _plot("plot-values", "Values of the chosen players, the most valuable first.")
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button" data-key="{key}">{name}</button></th>'
        for key, name in (
            ("name", "player"),
            ("value", "value"),
            ("wide", "\u00b1"),
            ("macs", "multiply-adds"),
            ("params", "parameters"),
            ("stays", "stays"),
        )
    )
    yield (
        '<div class="table tall" tabindex="0" role="region" aria-label="Values of the chosen players">'
        f'<table id="players"><thead><tr>{head}</tr></thead><tbody></tbody></table></div>'
        '<p><button type="button" id="more" hidden></button></p></section>'
    )


def _groups() -> Iterator[str]:
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button" data-key="{key}">{name}</button></th>'
        for key, name in (
            ("name", "group"),
            ("size", "players"),
            ("stay", "stay"),
            ("mean", "mean value"),
            ("macs", "multiply-adds each"),
            ("params", "parameters each"),
        )
    )
    yield "<h2>Groups</h2>"
    yield (
        '<div class="table tall" tabindex="0" role="region" aria-label="Groups">'
        f'<table id="groups"><thead><tr>{head}</tr></thead><tbody></tbody></table></div>'
    )


def _tradeoffs(data: dict[str, Any]) -> Iterator[str]:
    measured = _measured(data)
    if measured or data["quality"] is not None:
        yield "<h2>Quality against cost</h2>"
        parts = [f"measured: {', '.join(measured)}"] if measured else []
        parts += ["predicted by the sensitivity curves, for the slider's way down"] if data["quality"] else []
        yield note("; ".join(parts).capitalize() + ". The diamond is the slider.")
        yield _plot("plot-frontier", "Quality against the share of the cost that stays.")
        for name in measured:
            yield from _as_table(f"{name}, measured", _frontier_rows(data["frontiers"][name]))
    if data["sensitivity"] is not None:
        yield "<h2>Sensitivity of the groups</h2>"
        yield note(
            "What is lost as a group loses its least valuable players, the other groups whole. The prediction above "
            "adds these losses up, as if groups did not depend on each other: measure before you rely on it."
        )
        yield _plot("plot-sensitivity", f"Loss in {data['quality']} against the share of each group that has left.")
        yield from _as_table("the losses", _sensitivity_rows(data["sensitivity"]))


def _as_table(name: str, rows: Sequence[Row]) -> Iterator[str]:
    """What a plot shows, for those who read rather than look."""
    yield f"<details><summary>As a table: {escape(name)}</summary>{table(rows)}</details>"


def _frontier_rows(points: Sequence[dict[str, Any]]) -> list[Row]:
    names = list(points[0]["shares"])
    rows = [
        (*(f"{point['shares'][name]:.1%}" for name in names), "-" if (q := point["quality"]) is None else f"{q:.4g}")
        for point in points
    ]
    titles = [RESOURCES[name].title if name in RESOURCES else name for name in names]
    return [(*(f"{title} that stay" for title in titles), "quality"), *rows]


def _sensitivity_rows(curves: Mapping[str, Any]) -> list[Row]:
    shares = (0.25, 0.5, 0.75, 1.0)
    rows = [
        (name, *(f"{loss:.3g}" for loss in np.interp(shares, curve["share"], curve["loss"])))
        for name, curve in curves.items()
    ]
    return [("lost when so much of a group has left", *(f"{share:.0%}" for share in shares)), *rows]


def _removal_rows(removal: Mapping[str, Any]) -> list[Row]:
    columns = list(zip(*(found["mean"] for found in removal["orders"].values()), strict=True))
    rows = [(f"{share:.1%}", *(f"{x:.2%}" for x in row)) for share, row in zip(removal["share"], columns, strict=True)]
    return [("players that have left", *removal["orders"]), *rows]


def _measured(data: dict[str, Any]) -> list[str]:
    """Frontiers whose quality was measured."""
    return [name for name, points in data["frontiers"].items() if any(p["quality"] is not None for p in points)]


def _removal(data: dict[str, Any]) -> Iterator[str]:
    if data["removal"] is not None:
        yield "<h2>Accuracy as players leave</h2>"
        yield note(
            "The least valuable first, the best of every group last; masks only, no recovery; "
            f"{data['removal']['n_examples']:,} test examples. Random: mean and range."
        )
        yield _plot("plot-removal", "Test accuracy against the share of players that have left.")
        yield from _as_table("the accuracies", _removal_rows(data["removal"]))


def _estimates(content: Content) -> Iterator[str]:
    yield from diagnostics(content.scores)
    yield _plot("plot-error", "Relative standard error of each group's values against the evaluations paid.")
    yield note(
        "Relative standard error of a group's values, ||stderr|| / ||value||, against the evaluations paid. Dashed: "
        "what fewer or more evaluations are expected to give (one over the root of their number)."
    )


def _redundancy(content: Content, evidence: Evidence) -> Iterator[str]:
    if evidence.redundancies:
        yield "<h2>Which players can replace each other</h2>"
    for name, found in evidence.redundancies.items():
        names = content.scores.players.group(name).names
        yield f"<figure><figcaption><b>{escape(name)}</b></figcaption>{redundancy_figure(found, names)}</figure>"


def _look(evidence: Evidence) -> Iterator[str]:
    if evidence.look is not None:
        from shaprune.report.figures.feature_maps import feature_maps_section

        yield from feature_maps_section(evidence.look)


def _plot(name: str, label: str) -> str:
    return f'<div class="plot" id="{name}" role="img" aria-label="{escape(label)}"></div>'
