"""``shaprune plan``: who stays for a budget. Runs without torch."""

from __future__ import annotations

from shaprune.cli.command import Outcome, command
from shaprune.cli.options import (
    Allocation,
    Debug,
    Json,
    Limits,
    MaxRemoved,
    MinPlayers,
    MinWidth,
    Out,
    Overwrite,
    RoundTo,
    Spared,
    UnusedDevice,
    UnusedSeed,
    ValuesFile,
)
from shaprune.cli.outputs import check_out
from shaprune.cli.parse import budget_of, shares_of
from shaprune.cli.tables import plan_rows


@command
def plan(
    values: ValuesFile,
    limits: Limits,
    out: Out,
    allocation: Allocation = "global",
    min_players: MinPlayers = 1,
    min_width: MinWidth = 1,
    round_to: RoundTo = 1,
    max_removed: MaxRemoved = None,
    exclude: Spared = None,
    as_json: Json = False,
    seed: UnusedSeed = 0,
    device: UnusedDevice = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> Outcome:
    """Decide from saved values who leaves so that a budget is met; writes plan.json into --out.

    Needs neither the network nor data; several budgets must all be met, and no limit is passed to meet them.

    Example: shaprune plan scores/values.json --budget macs=0.5 --budget params=0.6 --round-to 8 --out plan
    """
    budget = budget_of(limits)
    shares = shares_of(max_removed or [])
    check_out(out, ["plan.json"], overwrite=overwrite)

    from shaprune import planning
    from shaprune.atomic import new_directory
    from shaprune.scores import Scores

    scores = Scores.load(values)
    decided = planning.plan(
        scores.players,
        scores,
        budget,
        allocation,
        min_players=min_players,
        min_width=min_width,
        round_to=round_to,
        max_removed=shares,
        exclude=exclude or (),
    )
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
