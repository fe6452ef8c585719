"""Sections that every report has, as HTML: before and after, diagnostics, what cannot leave."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import numpy as np

from shaprune.planning.resources import RESOURCES, dense_costs
from shaprune.planning.scores import Scores
from shaprune.report.comparison import Row, compared, percent
from shaprune.report.content import Content
from shaprune.report.markup import note, table
from shaprune.report.skipped import by_reason

_ALWAYS_PLANNED = ("macs", "params", "players")  # compared with the dense network besides what the budget limits


def lead(content: Content) -> str:
    """One sentence: what was scored, what stays, and what it costs."""
    players, plan = content.scores.players, content.plan
    if plan is None:
        return f"{players.n:,} players in {len(players.groups)} groups were scored; no plan was made yet."
    cost = plan.cost
    text = (
        f"{cost['players']:,.0f} of {players.n:,} players stay: {cost['macs'] / players.model_macs:.1%} of the "
        f"multiply-adds and {cost['params'] / players.model_params:.1%} of the parameters."
    )
    if plan.certificate is not None:
        text += f" The cut is {plan.certificate}."
    networks = list(content.measurements.values())
    if len(networks) > 1 and networks[0].accuracy is not None and networks[-1].accuracy is not None:
        text += f" Test accuracy: {networks[0].accuracy:.2%} before, {networks[-1].accuracy:.2%} after."
    return text


def before_after(content: Content) -> Iterator[str]:
    """The networks side by side: measured, or else predicted by the plan."""
    plan = content.plan
    if content.measurements:
        yield "<h2>Before and after</h2>"
        yield table(compared(content.measurements, content.setting))
        raw = "Raw: right after surgery, before any recovery. " if "raw" in content.measurements else ""
        yield note(f"{raw}Latency: the median over interleaved rounds on this machine, in milliseconds.")
    elif plan is not None:
        cost, dense = plan.cost, dense_costs(plan.players)
        planned = dict.fromkeys((*_ALWAYS_PLANNED, *plan.budget))
        rows = [
            (row.title, row.shown(dense[name]), row.shown(cost[name]), percent(dense[name], cost[name]))
            for name, row in RESOURCES.items()
            if name in planned
        ]
        yield "<h2>Before and after</h2>"
        yield table([("", "dense", "planned", "change"), *rows])
        yield note("Predicted by the plan; nothing has been cut or measured for this report.")


def diagnostics(scores: Scores) -> Iterator[str]:
    """How the values were estimated, group by group."""
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


def skipped(scores: Scores) -> Iterator[str]:
    """What cannot leave, once per reason."""
    yield "<h2>What cannot leave, and why</h2>"
    reasons = by_reason(scores.players)
    if not reasons:
        yield note("Nothing: every layer can be pruned.")
        return
    yield table([("reason", "layers"), *((why, ", ".join(names)) for why, names in reasons.items())], "words")


def footer(content: Content) -> str:
    """Who wrote it, and how long it took."""
    parts = [f"{name.replace('_', ' ')} {s:.1f} s" for name, s in content.seconds.items()]
    if not parts:
        parts = [f"scoring {content.scores.seconds:.1f} s"]
    return f"shaprune {version('shaprune')}. Time: {', '.join(parts)}."
