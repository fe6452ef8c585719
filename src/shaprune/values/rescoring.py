"""Removal orders by re-scoring: score once, or again after every few players.

All modes are rounds of one estimator on the game that is left:

- ``one-shot``: one round (top-n of Diaz-Ortiz et al. 2023).
- ``iterated``: the least valuable leave, the rest is scored again (their iterated pruning; Munovas 2023).
- ``building``: from the empty network, the most valuable enter, the rest is scored again (their iterated building).
- ``greedy-backward``: iterated with leave-one-out; ``greedy-forward``: building with what each adds alone. They are
  baselines and methods in one; within a layer re-scoring matters more than the estimator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, check_choice
from shaprune.values.aggregation import Aggregate
from shaprune.values.concepts import Concept, concept_of, shapley
from shaprune.values.estimate import METHODS, check_whole_number, estimate, expected_evaluations, least_evaluations
from shaprune.values.estimators.base import Method
from shaprune.values.estimators.exact import LeaveOneOut, Partial
from shaprune.values.games.game import Game
from shaprune.values.games.subgame import Subgame
from shaprune.values.result import Values
from shaprune.values.stopping import Reason, Rule, started

MODES = ("one-shot", "iterated", "building", "greedy-backward", "greedy-forward")
_MODE_METHODS: dict[str, Method] = {"greedy-backward": LeaveOneOut(), "greedy-forward": Partial(k=1, side="empty")}


def estimate_in_rounds(
    game: Game,
    mode: str = "one-shot",
    method: str | Method = "permutation",
    max_evaluations: int | None = None,
    stop: Rule | Reason | None = None,
    seed: int = 0,
    *,
    step: int | float = 1,
    negative_first: bool = False,
    concept: str | Concept = "shapley",
    sizes: tuple[float, float] = (0.0, 1.0),
    aggregate: str | Aggregate = "mean",
) -> Values:
    """Values whose ranking is the order in which players leave under a mode.

    Args:
        game: the game.
        mode: see above.
        method, stop, seed, concept, sizes, aggregate: of every round, see `estimate`; the greedy modes have their own
            method. What does not fit the few players of a late round is made to: a size window is widened to two
            neighbouring sizes, ``k`` of `Partial` is lowered, a rule that needs more players is left out.
        max_evaluations: of all rounds together; every round gets the least that its method needs, and the rest is
            shared out by the numbers of players that are left.
        step: players that leave (or enter) per round; a fraction of all players below 1.
        negative_first: where more players than ``step`` have negative values, all of these leave in this round (cf.
            Held & Yannakoudakis 2022, who remove negative-value heads first); not for building.

    Returns:
        Values in player order. In modes with rounds a value is what it was when the player left, raised where needed so
        that values grow strictly along the order of leaving; ``n_evaluations`` is the sum over all rounds.

    Raises:
        InputError: unknown mode, a step below 1 player, a method for a mode that has its own, negative_first where
            players enter, or as `estimate` for any of the rounds, before the first of them.
    """
    check_choice("mode", mode, MODES)
    seed = check_whole_number("seed", seed, 0)
    if mode == "one-shot":
        return estimate(game, method, max_evaluations, stop, seed, concept=concept, sizes=sizes, aggregate=aggregate)
    by_adding = mode in ("building", "greedy-forward")
    if by_adding and negative_first:
        raise InputError(f"negative_first is for modes in which players leave, and in {mode!r} they enter; drop it")
    n, going = game.n_players, _step(step, game.n_players)
    plan = _plan(game, mode, method, stop, going, concept, sizes)
    budgets = _budgets(plan, list(range(n, 0, -going)), max_evaluations)
    left = np.arange(n)
    order: list[int] = []  # leaving, or entering
    value, stderr, counts = np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64)
    parts: list[Values] = []
    while len(left):
        base = np.zeros(n, dtype=bool)
        base[order] = by_adding
        this = plan[len(left)]
        part = estimate(
            Subgame(game, left, base),
            this.method,
            None if budgets is None else budgets[len(left)],
            this.stop,
            int(np.random.SeedSequence([seed, len(parts)]).generate_state(1)[0]),
            concept=concept,
            sizes=this.sizes,
            aggregate=aggregate,
        )
        parts.append(part)
        value[left], stderr[left], counts[left] = part.value, part.stderr, part.counts
        negative = int((part.value < 0).sum()) if negative_first else 0
        ranked = part.ranking()[::-1] if by_adding else part.ranking()
        order += left[ranked[: max(going, negative)]].tolist()
        left = np.setdiff1d(left, order)
    leaving = np.array(order[::-1] if by_adding else order)
    summed = {
        name: total
        for name in ("looks", "evaluations_from_log")
        if (total := sum(part.diagnostics.get(name, 0.0) for part in parts))
    }
    return replace(
        parts[0],
        value=_strictly_increasing(value, leaving),
        stderr=stderr,
        counts=counts,
        n_evaluations=sum(part.n_evaluations for part in parts),
        efficiency_gap=None,
        efficient=False,
        worth_all=None,
        worth_none=None,
        stopped_by="rounds",
        options={**parts[0].options, "mode": mode, "step": step, "negative_first": negative_first, "seed": seed},
        diagnostics={"rounds": float(len(parts)), **summed},
    )


def expected_evaluations_in_rounds(
    game: Game,
    mode: str = "one-shot",
    method: str | Method = "permutation",
    max_evaluations: int | None = None,
    stop: Rule | Reason | None = None,
    *,
    step: int | float = 1,
    concept: str | Concept = "shapley",
    sizes: tuple[float, float] = (0.0, 1.0),
) -> int | None:
    """Evaluations that `estimate_in_rounds` will pay at most, before any work; None where only a rule ends a round.

    Raises:
        InputError: as `estimate_in_rounds`.
    """
    check_choice("mode", mode, MODES)
    if mode == "one-shot":
        return expected_evaluations(game, method, max_evaluations, stop, concept=concept, sizes=sizes)
    n, going = game.n_players, _step(step, game.n_players)
    numbers = list(range(n, 0, -going))
    plan = _plan(game, mode, method, stop, going, concept, sizes)
    budgets = _budgets(plan, numbers, max_evaluations)
    total = 0
    for left in numbers:
        this = plan[left]
        cost = expected_evaluations(
            _first(game, left),
            this.method,
            None if budgets is None else budgets[left],
            this.stop,
            concept=concept,
            sizes=this.sizes,
        )
        if cost is None:
            return None
        total += cost
    return total


@dataclass(frozen=True)
class _Round:
    """How a round with a certain number of players is played, and the fewest evaluations that it takes."""

    method: str | Method
    stop: Rule | Reason | None
    sizes: tuple[float, float]
    least: int


def _plan(
    game: Game,
    mode: str,
    method: str | Method,
    stop: Rule | Reason | None,
    going: int,
    concept: str | Concept,
    sizes: tuple[float, float],
) -> dict[int, _Round]:
    """A round for every number of players that may be left."""
    if mode in _MODE_METHODS:
        if (
            method not in ("permutation", METHODS["permutation"], _MODE_METHODS[mode], _MODE_METHODS[mode].name)
            or concept_of(concept).label != "shapley"
            or tuple(sizes) != (0, 1)
        ):
            raise InputError(f"mode {mode!r} has a method and a concept of its own; drop method, concept and sizes")
        method = _MODE_METHODS[mode]
    shapley(sizes)  # refused where these are no fractions
    n = game.n_players
    plan = {}
    for left in [n, *range(n - going, 0, -1)]:
        fitting = replace(method, k=min(method.k, left)) if isinstance(method, Partial) and left < n else method
        window = sizes if left == n else _widened(sizes, left)
        rule = stop if left == n or _can_begin(stop, left) else None
        try:
            least = least_evaluations(_first(game, left), fitting, rule, concept=concept, sizes=window)
        except InputError as error:
            if left == n:
                raise
            raise InputError(f"mode {mode!r}, once {left} of {n} players are left: {error}") from error
        plan[left] = _Round(fitting, rule, window, least)
    return plan


def _budgets(plan: dict[int, _Round], numbers: list[int], max_evaluations: int | None) -> dict[int, int] | None:
    """Budget of a round, by the number of players that are left; ``numbers`` are those of the rounds that are due.

    Raises:
        InputError: a budget below what all rounds need, with the smallest that works.
    """
    if max_evaluations is None:
        return None
    least = sum(plan[left].least for left in numbers)
    spare = max_evaluations - least
    if spare < 0:
        raise InputError(
            f"max_evaluations={max_evaluations} is too small for {len(numbers)} rounds; "
            f"the smallest that works is {least}: raise it, or give a larger step"
        )
    total = sum(left + 1 for left in numbers)
    return {left: this.least + spare * (left + 1) // total for left, this in plan.items()}


def _first(game: Game, left: int) -> Game:
    """A game of as many players, to ask for prices."""
    return Subgame(game, np.arange(left), np.zeros(game.n_players, dtype=bool))


def _can_begin(stop: Rule | Reason | None, left: int) -> bool:
    """Whether a rule can be used with so few players."""
    try:
        started(stop, left)
    except InputError:
        return False
    return True


def _widened(sizes: tuple[float, float], left: int) -> tuple[float, float]:
    """The window, or the two neighbouring sizes at its upper end where it holds none among so few players."""
    first, last = math.ceil(sizes[0] * left - 1e-9), math.floor(sizes[1] * left + 1e-9)
    if last > first:
        return sizes
    last = max(last, 1)
    return (last - 1) / left, last / left


def _step(step: int | float, n: int) -> int:
    """Players per round."""
    if (
        isinstance(step, bool)
        or not isinstance(step, (int, float, np.number))
        or not (0 < step < 1 or (step >= 1 and step % 1 == 0))
    ):
        raise InputError(f"players per round are {step!r}; give whole players, or a fraction of them below 1")
    return max(1, round(step * n)) if step < 1 else int(step)


def _strictly_increasing(value: NDArray[np.float64], leaving: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values that grow strictly along the order of leaving."""
    result = value.copy()
    for before, after in pairwise(leaving.tolist()):
        result[after] = max(result[after], np.nextafter(result[before], np.inf))
    return result
