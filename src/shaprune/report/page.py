"""The report as one HTML file: no scripts, no addresses, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.planning import Plan
from shaprune.report.comparison import Row, compared, percent
from shaprune.report.figures import curves_figure, values_figure
from shaprune.report.markup import note, table
from shaprune.report.skipped import by_reason
from shaprune.scores import Scores

if TYPE_CHECKING:
    from shaprune.measure import Measurement
    from shaprune.report.curves import Curves


@dataclass(frozen=True, eq=False)
class Content:
    """What a report tells; whatever is None is left out.

    Attributes:
        title: the heading.
        scores: the values.
        plan: who stays.
        curves: accuracy as players leave.
        measurements: name -> network, measured; the dense one first, the pruned one last.
        setting: how latency was measured.
        seconds: wall time per stage.
    """

    title: str
    scores: Scores
    plan: Plan | None = None
    curves: Curves | None = None
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    setting: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


def page(content: Content) -> str:
    """Build the report.

    Raises:
        InputError: the plan was made for other players than the values.
    """
    plan, players = content.plan, content.scores.players
    if plan is not None and plan.players.names != players.names:
        raise InputError("the plan and the values belong to different players; make the plan from these values")
    body = "\n".join(
        [
            f"<h1>{escape(content.title)}</h1>",
            f'<p class="lead">{escape(_lead(content))}</p>',
            *_before_after(content),
            *_curves(content),
            *_values(content),
            *_diagnostics(content.scores),
            *_skipped(content.scores),
            f"<footer>{escape(_footer(content))}</footer>",
        ]
    )
    style = files("shaprune.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _lead(content: Content) -> str:
    players, plan = content.scores.players, content.plan
    if plan is None:
        return f"{players.n:,} players in {len(players.groups)} groups were scored; no plan was made yet."
    cost = plan.cost
    text = (
        f"{cost['players']:,.0f} of {players.n:,} players stay: {cost['macs'] / players.model_macs:.1%} of the "
        f"multiply-adds and {cost['params'] / players.model_params:.1%} of the parameters."
    )
    networks = list(content.measurements.values())
    if len(networks) > 1 and networks[0].accuracy is not None and networks[-1].accuracy is not None:
        text += f" Test accuracy: {networks[0].accuracy:.2%} before, {networks[-1].accuracy:.2%} after."
    return text


def _before_after(content: Content) -> Iterator[str]:
    plan, players = content.plan, content.scores.players
    if content.measurements:
        yield "<h2>Before and after</h2>"
        yield table(compared(content.measurements, content.setting))
        raw = "Raw: right after surgery, before any recovery. " if "raw" in content.measurements else ""
        yield note(f"{raw}Latency: the median over interleaved rounds on this machine, in milliseconds.")
    elif plan is not None:
        cost, dense = plan.cost, {"macs": players.model_macs, "params": players.model_params, "players": players.n}
        names = {"macs": "multiply-adds", "params": "parameters", "players": "players"}
        rows = [(names[k], f"{dense[k]:,.0f}", f"{cost[k]:,.0f}", percent(dense[k], cost[k])) for k in names]
        yield "<h2>Before and after</h2>"
        yield table([("", "dense", "planned", "change"), *rows])
        yield note("Predicted by the plan; nothing has been cut or measured for this report.")


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


def _diagnostics(scores: Scores) -> Iterator[str]:
    rows: list[Row] = [
        ("group", "players", "mean value", "mean std. error", "evaluations", "efficiency gap", "ended by")
    ]
    for group in scores.players.groups:
        v = scores[group.name]
        error, gap = float(v.stderr.mean()), v.efficiency_gap
        rows.append(
            (
                group.name,
                f"{v.n:,}",
                f"{v.value.mean():.4g}",
                f"{error:.2g}" if np.isfinite(error) else "unknown",
                f"{v.n_evaluations:,}",
                "-" if gap is None else f"{gap:.1e}",
                v.stopped_by,
            )
        )
    first = next(iter(scores.values()))
    options = ", ".join(f"{name} {value}" for name, value in first.options.items())
    yield "<h2>How the values were estimated</h2>"
    yield note(f"Worth: {scores.worth}. Method: {first.method}{f' ({options})' if options else ''}.")
    yield table(rows)
    yield note("No gap (-): values inside a window of coalition sizes, or of a part of a game, promise no sum.")
    for text in scores.notes:
        yield note(text)


def _skipped(scores: Scores) -> Iterator[str]:
    yield "<h2>What cannot leave, and why</h2>"
    reasons = by_reason(scores.players)
    if not reasons:
        yield note("Nothing: every layer can be pruned.")
        return
    yield table([("reason", "layers"), *((why, ", ".join(names)) for why, names in reasons.items())], "words")


def _footer(content: Content) -> str:
    parts = [f"{name.replace('_', ' ')} {s:.1f} s" for name, s in content.seconds.items()]
    if not parts:
        parts = [f"scoring {content.scores.seconds:.1f} s"]
    return f"shaprune {version('shaprune')}. Time: {', '.join(parts)}."
