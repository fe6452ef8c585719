"""Pruning in cycles: each scores the network that the one before has left, cuts a little more, and recovers."""

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
from shaprune.options.groups import SCHEDULES, Planning
from shaprune.pipeline.prune import prune
from shaprune.planning.budget import Budget
from shaprune.planning.plan import Plan
from shaprune.planning.resources import dense_costs
from shaprune.planning.scores import Scores
from shaprune.players.players import Players, check_channels
from shaprune.players.subset import Kept, remaining_players

ScoreCycle = Callable[[nn.Module, Players, Calibration, AnyWorth, int], Scores]  # the last argument is the cycle
PlanCycle = Callable[[Scores, Budget], Plan]
RecoverPlan = Callable[[nn.Module, Plan], nn.Module]


@dataclass(frozen=True, eq=False)
class PrunedInCycles:
    """What `prune_in_cycles` returns.

    Attributes:
        model: the pruned network of the last cycle.
        plan: who stayed, of the dense network's players.
        scores: of the first cycle, of all players.
        plans: one per cycle.
    """

    model: nn.Module
    plan: Plan
    scores: Scores
    plans: tuple[Plan, ...]


def cycle_budget(budget: Budget, players: Players, done: int, cycles: int, schedule: str = "geometric") -> Budget:
    """What may stay after ``done`` of ``cycles`` cycles.

    ``"linear"``: every cycle takes the same number away; ``"geometric"``: the same share of what is left.

    Raises:
        InputError: an unknown schedule, a cycle that does not exist, a budget that must be measured.
    """
    check_choice("schedule", schedule, SCHEDULES)
    if not 1 <= done <= cycles:
        raise InputError(f"cycle {done} of {cycles} does not exist")
    if budget.measured:
        raise InputError(f"{' and '.join(budget.measured)} cannot be approached in cycles; use cycles=1")
    if done == cycles:
        return budget
    dense = dense_costs(budget.weigh(players))
    limits: dict[str, float] = {}
    for name, limit in budget.absolute(players).items():
        share = limit / dense[name]
        if share < 1:
            limits[name] = share ** (done / cycles) if schedule == "geometric" else 1 - (1 - share) * done / cycles
    return budget.like(limits)


def prune_in_cycles(
    model: nn.Module,
    players: Players,
    calibration: Calibration,
    worth: AnyWorth,
    budget: Budget,
    *,
    example_inputs: Inputs,
    score_cycle: ScoreCycle,
    plan_cycle: PlanCycle,
    recover: RecoverPlan | None = None,
    planning: Planning,
    forward: Forward | None = None,
) -> PrunedInCycles:
    """Score, cut and recover several times on the way to a budget.

    A worth that compares with the dense network compares with the uncut one in every cycle. Limits of the plan count
    from the dense network: those who left in earlier cycles have the lowest values.

    Args:
        model, players, calibration: the dense network; it comes back untouched.
        worth: what coalitions are judged by.
        budget: what may stay in the end, of predicted resources.
        example_inputs: see `prune`.
        score_cycle: scores the players of a (smaller) network.
        plan_cycle: plans from values of all dense players.
        recover: recovers after every cycle, given the plan so far; None = nothing is recovered.
        planning: how many cycles, and how the budget falls over them.
        forward: see `NetworkGame`.

    Raises:
        InputError: less than one cycle, players that are no channels, and as `cycle_budget`.
    """
    cycles = planning.cycles
    if cycles < 1:
        raise InputError(f"cycles is {cycles}; it must be at least 1")
    check_channels(players.groups, "cycles")
    evaluator, targets = resolve_worth(worth), calibration.targets
    if evaluator.reference == "dense":
        evaluator, targets = replace(evaluator, reference="targets", needs="anything"), calibration.outputs
    first: Scores | None = None
    plans: list[Plan] = []
    kept, small = np.ones(players.n, dtype=bool), model
    for done in range(1, cycles + 1):
        part = remaining_players(players, kept)
        own = calibration if small is model else Calibration(small, [(calibration.inputs, targets)], forward)
        scores = score_cycle(small, part, own, worth if small is model else evaluator, done)
        first = first or scores
        due = cycle_budget(budget, players, done, cycles, planning.schedule)
        decided = plan_cycle(_values_of_dense_players(players, kept, scores, first), due)
        plans.append(replace(decided, kept=decided.kept & kept))
        if not (plans[-1].kept == kept).all():
            small = prune(small, Plan.from_coalition(part, plans[-1].kept[kept]), example_inputs)
            small = recover(small, plans[-1]) if recover else small
        kept = plans[-1].kept
    assert first is not None
    return PrunedInCycles(small, plans[-1], first, tuple(plans))


def _values_of_dense_players(players: Players, kept: Kept, scores: Mapping[str, Any], first: Scores) -> Scores:
    """Values of all dense players: those that left are below all others, in the order of the first cycle."""
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
    return replace(first, players=players, by_group=by_group)
