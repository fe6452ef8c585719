"""``shaprune plan``: who stays for a budget. Runs without torch."""

from __future__ import annotations

from shaprune.cli.command import Outcome, command
from shaprune.cli.options import (
    Allocation,
    Debug,
    Json,
    Limits,
    MinPlayers,
    Out,
    Overwrite,
    UnusedDevice,
    UnusedSeed,
    ValuesFile,
)
from shaprune.cli.outputs import check_out
from shaprune.cli.parse import budget_of
from shaprune.cli.tables import plan_rows


@command
def plan(
    values: ValuesFile,
    limits: Limits,
    out: Out,
    allocation: Allocation = "global",
    min_players: MinPlayers = 1,
    as_json: Json = False,
    seed: UnusedSeed = 0,
    device: UnusedDevice = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> Outcome:
    """Decide from saved values who leaves so that a budget is met; writes plan.json into --out.

    Needs neither the network nor data; several budgets must all be met.

    Example: shaprune plan scores/values.json --budget macs=0.5 --budget params=0.6 --out plan
    """
    budget = budget_of(limits)
    check_out(out, ["plan.json"], overwrite=overwrite)

    from shaprune import planning
    from shaprune.atomic import new_directory
    from shaprune.scores import Scores

    scores = Scores.load(values)
    decided = planning.plan(scores.players, scores, budget, allocation, min_players=min_players)
    with new_directory(out, overwrite=overwrite) as folder:
        decided.save(folder / "plan.json")
    written = out / "plan.json"
    players = scores.players
    summary = {
        "allocation": allocation,
        "budget": decided.budget,
        "dense": {"macs": players.model_macs, "params": players.model_params, "players": players.n},
        "cost": decided.cost,
        "groups": plan_rows(decided),
        "artifacts": {"plan": str(written)},
    }
    return Outcome(summary, (decided.summary(), f"-> {written}"))
