"""One entry to all estimators: a registry by name."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

from shaprune.errors import InputError, check_choice
from shaprune.values.exact import cost_of_enumeration, exact
from shaprune.values.game import Game
from shaprune.values.permutation import StoppingRule, cost_of_sample, default_samples, permutation
from shaprune.values.result import Values

METHODS: dict[str, Callable[..., Values]] = {"exact": exact, "permutation": permutation}


def estimate(
    game: Game,
    method: str = "permutation",
    max_evaluations: int | None = None,
    stop: StoppingRule | None = None,
    seed: int = 0,
    *,
    antithetic: bool = False,
    per_example: bool = True,
    sizes: tuple[float, float] = (0.0, 1.0),
) -> Values:
    """Estimate what each player of ``game`` contributes.

    Args:
        game: any `Game`; `Game.from_function` makes one of a callable.
        method: ``"exact"`` (all coalitions, up to 20 players) or ``"permutation"`` (random orders).
        max_evaluations: budget in (coalition, example) rows; None = the method's default.
        stop: stopping rule, see `shaprune.values.stopping`; permutation only.
        seed: seed; the same seed gives the same bits.
        antithetic: walk every order also backwards; permutation only.
        per_example: one order per example instead of one for all; permutation only.
        sizes: (lo, hi) fractions: only coalitions that keep at least ``lo`` and at most ``hi`` of the players.

    Raises:
        InputError: unknown method, an option that the method does not have, or a budget that is too small.
        GameError: a worth that is not finite.
    """
    check_choice("method", method, METHODS)
    if not isinstance(game, Game):
        raise InputError(
            f"game is a {type(game).__name__}; wrap a callable with Game.from_function(function, n_players)"
        )
    if max_evaluations is not None:
        max_evaluations = _whole("max_evaluations", max_evaluations, 1)
    seed = _whole("seed", seed, 0)
    if method == "exact":
        for option, given in (("stop", stop is not None), ("antithetic", antithetic), ("per_example", not per_example)):
            if given:
                raise InputError(f"method='exact' has no option {option!r}; drop it, or use method='permutation'")
        return exact(game, sizes=sizes, max_evaluations=max_evaluations)
    return permutation(
        game,
        max_evaluations=max_evaluations,
        stop=stop,
        seed=seed,
        antithetic=antithetic,
        per_example=per_example,
        sizes=sizes,
    )


def _whole(name: str, number: Any, least: int) -> int:
    """``number`` as a Python int; floats, booleans and numbers below ``least`` are refused by name."""
    if isinstance(number, bool) or not isinstance(number, Integral) or number < least:
        raise InputError(f"{name} is {number!r}; it must be a whole number, {least} or above")
    return int(number)


def expected_evaluations(
    game: Game,
    method: str,
    max_evaluations: int | None = None,
    stop: StoppingRule | None = None,
    *,
    antithetic: bool = False,
    per_example: bool = True,
    sizes: tuple[float, float] = (0.0, 1.0),
) -> int | None:
    """Evaluations that `estimate` will pay at most, before any work; None where only a stopping rule ends it.

    Raises:
        InputError: unknown method, or exact values of too many players.
    """
    check_choice("method", method, METHODS)
    if method == "exact":
        return cost_of_enumeration(game, sizes)
    if max_evaluations is not None:
        return max_evaluations
    if stop is not None:
        return None
    samples = default_samples(game.n_examples if per_example else 1)
    return samples * cost_of_sample(game, antithetic=antithetic, per_example=per_example, sizes=sizes)
