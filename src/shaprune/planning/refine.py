"""Refine a plan by exchanges between groups that are measured to be better. NumPy only; the game is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.options.fields import moved_keywords
from shaprune.planning.curve_allocation import GroupOptions
from shaprune.planning.limits import Limits
from shaprune.planning.plan import Plan, player_values
from shaprune.planning.removal_sequences import removal_sequences
from shaprune.planning.resources import RESOURCES, costs
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.values.games.game import Game
from shaprune.values.result import Values

_STEPS_RETURNED = (1, 2, 4)  # how far the group that gets players back goes up


@dataclass(frozen=True)
class Refined:
    """What `refine` found.

    Attributes:
        plan: the plan, better or as it was.
        worths: measured before, and after each exchange that was taken.
        n_measured: coalitions that were measured.
    """

    plan: Plan
    worths: tuple[float, ...]
    n_measured: int


@moved_keywords({}, {"rounds": "exchanges=..."})
def refine(
    plan: Plan,
    scores: Mapping[str, Values],
    game: Game,
    *,
    curves: Sensitivity | None = None,
    limits: Limits | None = None,
    tries: int = 32,
    exchanges: int = 8,
) -> Refined:
    """Exchange players between two groups as long as the measured worth of the plan rises.

    In an exchange one group gets back its last 1, 2 or 4 steps and another gives as many as the budget then asks. The
    most promising ``tries`` are measured, and the best of them is taken if it is better than the plan.

    Args:
        plan: from `shaprune.planning.plan.plan`; it follows the ranking of ``scores``.
        scores: values per group name.
        game: over all players of all groups; a `NetworkGame` with ``group=None``, say.
        curves: predict what is promising; None = the sum of the values that leave.
        limits: what the plan was made with beside its budget; None = the defaults.
        tries: measured before the best of them is taken.
        exchanges: taken at most.

    Raises:
        InputError: a game over other players, a plan that does not follow these values and limits, no try.
        GameError: a worth that is not finite.
    """
    players = plan.players
    if game.n_players != players.n:
        raise InputError(f"the game has {game.n_players} players and the plan {players.n}; give one over all groups")
    if tries < 1 or exchanges < 0:
        raise InputError(f"tries is {tries} and exchanges is {exchanges}; at least 1 try and 0 exchanges are needed")
    value = player_values(players, scores)
    budget = plan.budget or {name: cost for name, cost in plan.cost.items() if RESOURCES[name].layer}
    options = GroupOptions(players, removal_sequences(players, value, limits or Limits()), list(budget))
    if curves is None:
        losses = [np.cumsum([0.0, *(value[step].sum() for step in steps)]) for steps in options.steps]
    else:
        curves.check_of(scores)
        losses = options.losses(curves)
    now = _options(options, plan)
    most = np.array(list(budget.values()))
    worths, measured, seen = [float(game(options.kept(now)[None])[0])], 1, {tuple(now)}
    for _ in range(exchanges):
        moves = [move for move in _exchanges(options, losses, now, most) if tuple(move) not in seen][:tries]
        if not moves:
            break
        seen |= {tuple(move) for move in moves}
        found = game(np.stack([options.kept(move) for move in moves]))
        measured += len(moves)
        if found.max() <= worths[-1]:
            break
        now, worths = moves[int(found.argmax())], [*worths, float(found.max())]
    kept = options.kept(now)
    name = plan.allocation if len(worths) == 1 else f"{plan.allocation}, refined"
    return Refined(replace(plan, kept=kept, allocation=name), tuple(worths), measured)


def _options(options: GroupOptions, plan: Plan) -> list[int]:
    """Per sequence, how many steps a plan has gone down."""
    now = [next((i for i, step in enumerate(steps) if plan.kept[step].any()), len(steps)) for steps in options.steps]
    if not np.array_equal(options.kept(now), plan.kept):
        raise InputError("the plan does not follow these values and limits; give those that it was made with")
    return now


def _exchanges(
    options: GroupOptions, losses: Sequence[NDArray[np.float64]], now: list[int], most: NDArray[np.float64]
) -> list[list[int]]:
    """Exchanges within the budget, the most promising first."""
    found = costs(options.players, options.kept(now))
    total = np.array([found[name] for name in options.resources])
    moves = []
    for a, option in enumerate(now):
        for up in {max(0, option - n) for n in _STEPS_RETURNED} - {option}:
            moved = [*now[:a], up, *now[a + 1 :]]
            room = most - total - options.around(now)[a][up]
            for b, cost in enumerate(options.around(moved)):
                fits = np.flatnonzero((cost <= room).all(1))
                fits = fits[fits >= now[b]]
                if b == a or not fits.size:
                    continue
                down = int(fits[0])
                change = losses[a][up] - losses[a][option] + losses[b][down] - losses[b][now[b]]
                moves.append((float(change), [*moved[:b], down, *moved[b + 1 :]]))
    moves.sort(key=lambda move: move[0])
    return [move for _, move in moves]
