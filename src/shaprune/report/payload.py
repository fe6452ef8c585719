"""Data of the interactive report's script: values, budget paths and curves as one JSON object.

All decisions are made here, by `shaprune.planning.budget_path`; the script only looks them up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.planning.budget_path import BudgetPath, budget_path, costs_along_path
from shaprune.planning.plan import Plan
from shaprune.planning.resources import dense_costs
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.report.content import Content, Evidence

SLIDER_RESOURCES = ("macs", "params", "players")  # what the slider can limit
SLIDER_ALLOCATIONS = ("global", "value", "uniform", "shapley-layers")  # how, see `shaprune.planning.plan.plan`
SLIDER_SHARES = np.arange(1001) / 1000  # the shares that its script asks for, and no others
_DIGITS = 6  # of numbers that are only shown


def payload(content: Content, evidence: Evidence) -> dict[str, Any]:
    """Everything that the script shows, JSON-ready.

    Raises:
        InputError: values, a plan or curves that do not fit the players, or limits under which no player can leave.
    """
    content.check_plan()
    scores, players = content.scores, content.scores.players
    sensitivity = evidence.sensitivity
    if sensitivity is not None:
        sensitivity.check_of(scores)
    paths = dict(_paths(content, evidence))
    intervals = np.concatenate([scores[g.name].interval() for g in players.groups])
    return {
        "title": content.title,
        "worth": scores.worth,
        "groups": [{"name": g.name, "first": int(g.indices[0]), "size": len(g)} for g in players.groups],
        "names": list(players.names),
        "value": _shown(np.concatenate([scores[g.name].value for g in players.groups])),
        "low": _shown(intervals[:, 0]),
        "high": _shown(intervals[:, 1]),
        "params": players.params.tolist(),
        "macs": _shown(players.macs),
        "dense": dense_costs(players),
        "paths": paths,
        "plan": {"players": players.to_json()},
        "quality": None if sensitivity is None else sensitivity.worth,
        "sensitivity": None if sensitivity is None else _curves(sensitivity),
        "frontiers": {name: list(_points(name, found)) for name, found in evidence.frontiers.items()},
        "removal": None if content.curves is None else _removal(content),
        "diagnostics": list(_diagnostics(content)),
    }


def _paths(content: Content, evidence: Evidence) -> Iterator[tuple[str, dict[str, Any]]]:
    """The ways down: the plan as it is, where there is one, then every allocation."""
    scores, players = content.scores, content.scores.players
    if content.plan is not None:
        found = _single_plan_path(content.plan)
        yield "plan", {**_path(found, evidence.sensitivity), "resource": None, "budget": content.plan.budget}
    for allocation in SLIDER_ALLOCATIONS:
        for resource in SLIDER_RESOURCES if allocation == "global" else SLIDER_RESOURCES[:1]:
            if not dense_costs(players)[resource]:
                continue  # nothing to save there
            found = budget_path(players, scores, resource, allocation, within=evidence.within)
            if not found.steps:
                raise InputError(f"under these limits no player can leave ({evidence.within}); loosen them")
            key = f"{allocation}:{resource}" if allocation == "global" else allocation
            limited = resource if allocation == "global" else None
            shown = found.at(SLIDER_SHARES, SLIDER_RESOURCES if limited is None else [limited])
            yield key, {**_path(shown, evidence.sensitivity), "resource": limited, "budget": None}


def _single_plan_path(plan: Plan) -> BudgetPath:
    """A plan as a way of one step."""
    steps = (np.flatnonzero(~plan.kept),)
    return BudgetPath(plan.players, plan.allocation, steps, costs_along_path(plan.players, steps))


def _path(found: BudgetPath, sensitivity: Sensitivity | None) -> dict[str, Any]:
    return {
        "allocation": found.allocation,
        "steps": [step.tolist() for step in found.steps],
        "cost": {name: [_whole(x) for x in cost.tolist()] for name, cost in found.costs.items()},
        "quality": None if sensitivity is None else _shown(found.predicted(sensitivity)),
    }


def _whole(x: float) -> float:
    """The same number, written shorter where it is whole."""
    return int(x) if x.is_integer() else x


def _curves(sensitivity: Sensitivity) -> dict[str, Any]:
    return {
        name: {"share": _shown(curve.removed / len(curve.order)), "loss": _shown(curve.loss(curve.removed))}
        for name, curve in sensitivity.items()
    }


def _points(name: str, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Points of a frontier: the share of each resource that stays, and the measured quality, which may be None."""
    try:
        for point in found["points"]:
            quality = point["quality"]
            shares = {key: float(share) for key, share in point["shares"].items()}
            yield {"shares": shares, "quality": None if quality is None else float(quality)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"frontier {name!r} is not what `shaprune plan --sweep` writes: {error!r}") from error


def _removal(content: Content) -> dict[str, Any]:
    curves = content.curves
    assert curves is not None
    return {
        "share": _shown(curves.removed / curves.n_players),
        "n_examples": curves.n_examples,
        "orders": {
            name: {"mean": _shown(rows.mean(0)), "low": _shown(rows.min(0)), "high": _shown(rows.max(0))}
            for name, rows in curves.accuracy.items()
        },
    }


def _diagnostics(content: Content) -> Iterator[dict[str, Any]]:
    """Per group: evaluations, the error they bought against the size of the values, the gap, and what ended it."""
    for group in content.scores.players.groups:
        values = content.scores[group.name]
        size, error = float(np.linalg.norm(values.value)), float(np.linalg.norm(values.stderr))
        known = np.isfinite(error) and size > 0
        yield {
            "group": group.name,
            "evaluations": values.n_evaluations,
            "error": float(f"{error / size:.{_DIGITS}g}") if known else None,
            "stopped_by": values.stopped_by,
        }


def _shown(numbers: NDArray[Any]) -> list[float | None]:
    """Numbers to look at: few digits, None where there is none."""
    return [float(f"{x:.{_DIGITS}g}") if np.isfinite(x) else None for x in numbers.tolist()]
