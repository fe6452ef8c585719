"""Pruning in rounds: each round scores the network that the round before has left, cuts a little more, and recovers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from shaprune.budget import Budget, Kept, costs
from shaprune.errors import InputError, check_choice
from shaprune.network.batches import Forward, Inputs
from shaprune.network.players import Group, Member, Players, check_channels
from shaprune.network.subject import Subject
from shaprune.network.worths import AnyWorth, judge_of
from shaprune.planning import Plan
from shaprune.pruning import prune
from shaprune.scores import Scores

SCHEDULES = ("geometric", "linear")
ScoreRound = Callable[[nn.Module, Players, Subject, AnyWorth, int], Scores]  # the last argument is the round
PlanRound = Callable[[Scores, Budget], Plan]
Mend = Callable[[nn.Module, Plan], nn.Module]


@dataclass(frozen=True, eq=False)
class Rescored:
    """What `in_rounds` returns.

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


def step_budget(budget: Budget, players: Players, done: int, rounds: int, schedule: str = "geometric") -> Budget:
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
    dense = costs(players, np.ones(players.n, dtype=bool))
    limits: dict[str, float] = {}
    for name, limit in budget.absolute(players).items():
        share = limit / dense[name]
        if share < 1:
            limits[name] = share ** (done / rounds) if schedule == "geometric" else 1 - (1 - share) * done / rounds
    return Budget(**limits)


def in_rounds(
    model: nn.Module,
    players: Players,
    subject: Subject,
    worth: AnyWorth,
    budget: Budget,
    *,
    example_inputs: Inputs,
    score_round: ScoreRound,
    plan_round: PlanRound,
    mend: Mend | None = None,
    rounds: int = 3,
    schedule: str = "geometric",
    forward: Forward | None = None,
) -> Rescored:
    """Score, cut and recover several times on the way to a budget.

    A worth that compares with the dense network compares with the uncut one in every round. Limits of the plan count
    from the dense network: those who left in earlier rounds have the lowest values.

    Args:
        model, players, subject: the dense network; it comes back untouched.
        worth: what coalitions are judged by.
        budget: what may stay in the end, of predicted resources.
        example_inputs: see `prune`.
        score_round: scores the players of a (smaller) network.
        plan_round: plans from values of all dense players.
        mend: recovers after every round, given the plan so far; None = nothing is recovered.
        rounds: how often.
        schedule: see `step_budget`.
        forward: see `NetworkGame`.

    Raises:
        InputError: less than one round, players that are no channels, and as `step_budget`.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; it must be at least 1")
    check_channels(players.groups, "rounds")
    judge, targets = judge_of(worth), subject.targets
    if judge.reference == "dense":
        judge, targets = replace(judge, reference="targets", needs="anything"), subject.outputs
    first: Scores | None = None
    plans: list[Plan] = []
    kept, small = np.ones(players.n, dtype=bool), model
    for done in range(1, rounds + 1):
        part = remaining(players, kept)
        own = subject if small is model else Subject(small, [(subject.inputs, targets)], forward)
        scores = score_round(small, part, own, worth if small is model else judge, done)
        first = first or scores
        step = step_budget(budget, players, done, rounds, schedule)
        decided = plan_round(_of_all(players, kept, scores, first), step)
        plans.append(replace(decided, kept=decided.kept & kept))
        if not (plans[-1].kept == kept).all():
            small = prune(small, Plan.from_coalition(part, plans[-1].kept[kept]), example_inputs)
            small = mend(small, plans[-1]) if mend else small
        kept = plans[-1].kept
    assert first is not None
    return Rescored(small, plans[-1], first, tuple(plans))


def remaining(players: Players, kept: Kept) -> Players:
    """The players of the network in which only ``kept`` stay, with channels counted as there.

    Raises:
        InputError: players that are no channels.
    """
    check_channels(players.groups, "pruning in rounds")
    new = _new_places(players, kept)
    groups, start = [], 0
    for group in players.groups:
        stays = np.flatnonzero(kept[group.indices])
        if not stays.size:
            continue
        members = tuple(_renumbered(m, stays, new[m.module]) for m in group.members)
        labels = tuple(group.labels[i] for i in stays) if group.labels else ()
        groups.append(Group(group.name, np.arange(start, start + len(stays)), members, labels))
        start += len(stays)
    layers = {}
    for name, (n_in, n_out) in players.widths(kept).items():
        layer = players.layers[name]
        layers[name] = replace(layer, n_in=n_in, n_out=n_out, groups=layer.groups_left(n_out))
    params, macs = players.cost(kept)
    stored, activations = players.memory(kept) if players.model_bytes else (0, 0.0)
    return replace(
        players,
        groups=tuple(groups),
        layers=layers,
        model_params=params,
        model_macs=macs,
        model_bytes=int(stored),
        model_activations=activations,
    )


def _renumbered(
    member: Member, stays: NDArray[np.int64], places: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> Member:
    """A member with the players ``stays`` only, at their new places."""
    new = places[member.role == "in"]
    return replace(member, channels=tuple(tuple(new[list(member.channels[i])].tolist()) for i in stays))


def _new_places(players: Players, kept: Kept) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Per layer, the new place of each output channel, and of each input channel."""
    stays = {n: (np.ones(x.n_out, dtype=bool), np.ones(x.n_in, dtype=bool)) for n, x in players.layers.items()}
    for group in players.groups:
        for member in group.members:
            sides = {"in": (1,), "out": (0,), "both": (0, 1)}[member.role]
            for i in np.flatnonzero(~kept[group.indices]):
                for side in sides:
                    stays[member.module][side][list(member.channels[i])] = False
    return {n: (np.cumsum(out) - 1, np.cumsum(inner) - 1) for n, (out, inner) in stays.items()}


def _of_all(players: Players, kept: Kept, scores: Mapping[str, Any], first: Scores) -> Scores:
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
