"""Pruning in rounds: each round scores the network that the round before has left, cuts a little more, and recovers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from shaprune.errors import InputError, check_choice
from shaprune.network.batches import Forward, Inputs
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.worths import AnyWorth, resolve_worth
from shaprune.pipeline.prune import prune
from shaprune.planning.budget import Budget
from shaprune.planning.plan import Plan
from shaprune.planning.resources import dense_costs
from shaprune.planning.scores import Scores
from shaprune.players.players import Players, check_channels
from shaprune.players.subset import Kept, remaining_players

SCHEDULES = ("geometric", "linear")
ScoreRound = Callable[[nn.Module, Players, Calibration, AnyWorth, int], Scores]  # the last argument is the round
PlanRound = Callable[[Scores, Budget], Plan]
RecoverPlan = Callable[[nn.Module, Plan], nn.Module]


@dataclass(frozen=True, eq=False)
class PrunedInRounds:
    """What `prune_in_rounds` returns.

    Attributes:
        model: the pruned network of the last round.
        plan: who stayed, of the dense network's players.
        scores: of the first round, of all players.
        plans: one per round.
    """

    model: nn.Module
    plan: Plan
    scores: Scores
    plans: tuple[Plan, ...]


def round_budget(budget: Budget, players: Players, done: int, rounds: int, schedule: str = "geometric") -> Budget:
    """What may stay after ``done`` of ``rounds`` rounds.

    ``"linear"``: every round takes the same number away; ``"geometric"``: the same share of what is left.

    Raises:
        InputError: an unknown schedule, a round that does not exist, a budget that must be measured.
    """
    check_choice("schedule", schedule, SCHEDULES)
    if not 1 <= done <= rounds:
        raise InputError(f"round {done} of {rounds} does not exist")
    if budget.measured:
        raise InputError(f"{' and '.join(budget.measured)} cannot be approached in rounds; use rounds=1")
    if done == rounds:
        return budget
    dense = dense_costs(budget.weigh(players))
    limits: dict[str, float] = {}
    for name, limit in budget.absolute(players).items():
        share = limit / dense[name]
        if share < 1:
            limits[name] = share ** (done / rounds) if schedule == "geometric" else 1 - (1 - share) * done / rounds
    return budget.like(limits)


def prune_in_rounds(
    model: nn.Module,
    players: Players,
    calibration: Calibration,
    worth: AnyWorth,
    budget: Budget,
    *,
    example_inputs: Inputs,
    score_round: ScoreRound,
    plan_round: PlanRound,
    mend: RecoverPlan | None = None,
    rounds: int = 3,
    schedule: str = "geometric",
    forward: Forward | None = None,
) -> PrunedInRounds:
    """Score, cut and recover several times on the way to a budget.

    A worth that compares with the dense network compares with the uncut one in every round. Limits of the plan count
    from the dense network: those who left in earlier rounds have the lowest values.

    Args:
        model, players, calibration: the dense network; it comes back untouched.
        worth: what coalitions are judged by.
        budget: what may stay in the end, of predicted resources.
        example_inputs: see `prune`.
        score_round: scores the players of a (smaller) network.
        plan_round: plans from values of all dense players.
        mend: recovers after every round, given the plan so far; None = nothing is recovered.
        rounds: how often.
        schedule: see `round_budget`.
        forward: see `NetworkGame`.

    Raises:
        InputError: less than one round, players that are no channels, and as `round_budget`.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; it must be at least 1")
    check_channels(players.groups, "rounds")
    evaluator, targets = resolve_worth(worth), calibration.targets
    if evaluator.reference == "dense":
        evaluator, targets = replace(evaluator, reference="targets", needs="anything"), calibration.outputs
    first: Scores | None = None
    plans: list[Plan] = []
    kept, small = np.ones(players.n, dtype=bool), model
    for done in range(1, rounds + 1):
        part = remaining_players(players, kept)
        own = calibration if small is model else Calibration(small, [(calibration.inputs, targets)], forward)
        scores = score_round(small, part, own, worth if small is model else evaluator, done)
        first = first or scores
        step = round_budget(budget, players, done, rounds, schedule)
        decided = plan_round(_values_of_dense_players(players, kept, scores, first), step)
        plans.append(replace(decided, kept=decided.kept & kept))
        if not (plans[-1].kept == kept).all():
            small = prune(small, Plan.from_coalition(part, plans[-1].kept[kept]), example_inputs)
            small = mend(small, plans[-1]) if mend else small
        kept = plans[-1].kept
    assert first is not None
    return PrunedInRounds(small, plans[-1], first, tuple(plans))


def _values_of_dense_players(players: Players, kept: Kept, scores: Mapping[str, Any], first: Scores) -> Scores:
    """Values of all dense players: who has left is worth less than everybody else, in the order of the first round."""
    least = min((float(v.value.min()) for v in scores.values()), default=0.0)
    spread = max((float(np.ptp(v.value)) for v in first.values()), default=0.0) or 1.0
    lowest = min(float(v.value.min()) for v in first.values())
    by_group = {}
    for group in players.groups:
        stays = kept[group.indices]
        value = least - 1e6 * (spread + abs(least)) + (first[group.name].value - lowest)
        if stays.any():
            value[stays] = scores[group.name].value
        by_group[group.name] = replace(first[group.name], value=value)
    return replace(first, by_group=by_group)
