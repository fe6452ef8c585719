"""``shaprune plan``: the players that stay within a budget. Without torch, unless something must be measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shaprune.cli.command import Outcome, renaming
from shaprune.cli.options.groups import Measured
from shaprune.cli.options.parse import budget_of, steps_of
from shaprune.cli.options.shared import Allocation, CurvesFile, OptionalBudgets, Out, Overwrite, Sweep, ValuesFile
from shaprune.cli.outputs import check_out
from shaprune.cli.tables import plan_rows
from shaprune.planning.limits import Limits

if TYPE_CHECKING:
    from shaprune.cli.plan_measurement import PlanMeasurement
    from shaprune.planning.budget import Budget
    from shaprune.planning.frontier import Planner

PLAN, SWEEP = ("plan.json",), ("frontier.json", "frontier.svg")


@renaming({"exclude": "keep"})
def plan(
    values: ValuesFile,
    out: Out,
    limits: Limits,
    network: Measured,
    budget: OptionalBudgets = None,
    sweep: Sweep = None,
    allocation: Allocation = "global",
    curves: CurvesFile = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """Decide from saved values who leaves so that a budget is met; writes plan.json into --out.

    Nothing is scored again. Several budgets must all be met, and no limit is passed to meet them. The network and data
    are needed only for what is measured: latency, a floor (accuracy on held-out examples after --recover), and the
    quality of every network of a --sweep.

    Example: shaprune plan scores/values.json --budget macs=0.5 --budget bytes=2MB --round-to 8 --out plan
    """
    if bool(budget) == (sweep is not None):
        raise typer.BadParameter("give --budget, or else --sweep", param_hint="--budget")
    wanted = budget_of(budget) if budget else None
    if wanted is not None and wanted.measured and (network.model is None or network.data is None):
        names = " and ".join(wanted.measured)
        raise typer.BadParameter(f"{names} must be measured; add --model and --data", param_hint="--budget")
    if (network.model is None) != (network.data is None):
        raise typer.BadParameter("to measure, give both --model and --data", param_hint="--data")
    steps_of(network.recover)
    check_out(out, PLAN if sweep is None else SWEEP, overwrite=overwrite)

    from shaprune.planning import plan as plan_module
    from shaprune.planning.scores import Scores
    from shaprune.planning.sensitivity_curves import Sensitivity

    scores = Scores.load(values)
    along = None if curves is None else Sensitivity.load(curves)
    planner = partial(plan_module.plan, scores, allocation=allocation, curves=along, limits=limits)
    measured = None
    if network.model is not None and (wanted is None or wanted.measured):
        from shaprune.cli.plan_measurement import PlanMeasurement

        measured = PlanMeasurement(scores, network)
    if wanted is None:
        assert sweep is not None
        return _swept(planner, sweep, measured, out, overwrite)
    return _planned(planner, wanted, measured, out, overwrite)


def _planned(planner: Planner, budget: Budget, measured: PlanMeasurement | None, out: Path, overwrite: bool) -> Outcome:
    """The plan of one budget."""
    from shaprune.planning.resources import dense_costs
    from shaprune.storage.atomic_files import replacing_directory

    found = None if measured is None else measured.search(planner, budget)
    decided = planner(budget) if found is None else found.plan
    with replacing_directory(out, files=PLAN, overwrite=overwrite) as folder:
        decided.save(folder / "plan.json")
    written = out / "plan.json"
    dense: dict[str, float | None] = dict(dense_costs(decided.players))
    summary: dict[str, Any] = {
        "allocation": decided.allocation,
        "budget": decided.budget,
        "dense": dense,
        "cost": decided.cost,
        "groups": plan_rows(decided),
        "artifacts": {"plan": str(written)},
    }
    shown = [decided.summary(), f"-> {written}"]
    if found is not None:
        dense["quality"] = found.dense_quality
        summary["trials"] = [
            {
                "share": trial.share,
                "quality": trial.quality,
                "milliseconds": trial.milliseconds,
                "dense_milliseconds": trial.dense_milliseconds,
                "good": trial.good,
            }
            for trial in found.trials
        ]
        shown.insert(0, found.summary())
    return Outcome(summary, tuple(shown))


def _swept(planner: Planner, by: str, measured: PlanMeasurement | None, out: Path, overwrite: bool) -> Outcome:
    """The plans of many sizes."""
    import json

    from shaprune.planning.frontier import frontier
    from shaprune.report.figures.sweep import frontier_figure
    from shaprune.storage.atomic_files import replacing_directory, write_text

    found = frontier(planner, by, quality=None if measured is None else measured.quality_of_plan)
    rows = found.to_json()
    with replacing_directory(out, files=SWEEP, overwrite=overwrite) as folder:
        write_text(folder / "frontier.json", json.dumps(rows))
        write_text(folder / "frontier.svg", frontier_figure(found, standalone=True))
    written = {"frontier": str(out / "frontier.json"), "figure": str(out / "frontier.svg")}
    return Outcome({**rows, "artifacts": written}, (found.summary(), f"-> {written['frontier']}, {written['figure']}"))
