"""Estimate values with any estimator, by its name or with options."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from typing import Any

from shaprune.errors import InputError, check_choice
from shaprune.values.aggregation import Aggregate, aggregated, check_aggregate
from shaprune.values.concepts import Concept, concept_of, shapley
from shaprune.values.estimators.base import Method, Task
from shaprune.values.estimators.control_variate import ControlVariate
from shaprune.values.estimators.exact import Exact, LeaveOneOut, Partial
from shaprune.values.estimators.msr import MSR
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.estimators.regression import Regression
from shaprune.values.estimators.svarm import SVARM
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.games.repeatability import RepeatabilityCheck
from shaprune.values.result import Values
from shaprune.values.rounding_error import rounded
from shaprune.values.stopping import ABOUT_ERRORS, Reason, Rule, started

METHODS: dict[str, Method] = {
    m.name: m
    for m in (Permutation(), ControlVariate(), Exact(), Regression(), MSR(), SVARM(), Partial(), LeaveOneOut())
}


def estimate(
    game: Game,
    method: str | Method = "permutation",
    max_evaluations: int | None = None,
    stop: Rule | Reason | None = None,
    seed: int = 0,
    *,
    concept: str | Concept = "shapley",
    sizes: tuple[float, float] = (0.0, 1.0),
    aggregate: str | Aggregate = "mean",
    keep_examples: bool = False,
    max_memory: int = 1 << 30,
) -> Values:
    """Estimate what each player of ``game`` contributes.

    Args:
        game: any `Game`; `Game.from_function` makes one of a callable.
        method: name of an estimator (``METHODS``), or one with options, such as ``Permutation(antithetic=True)``.
        max_evaluations: budget in (coalition, example) rows; None = the method's default.
        stop: stopping rule, see `shaprune.stopping`.
        seed: seed; the same seed gives the same bits.
        concept: the solution concept, see `shaprune.values.concepts`: ``"shapley"``, ``"banzhaf:0.7"``, ...
        sizes: (lo, hi) fractions: Shapley values over coalitions that keep at least ``lo`` and at most ``hi`` of the
            players.
        aggregate: how values of single examples become one, see `shaprune.values.aggregation`; anything but the mean
            needs one order per example.
        keep_examples: return the values of every example as ``Values.by_example``.
        max_memory: bytes that the values of all examples may take.

    Returns:
        `Values`: (n,) values in units of the worth, their standard errors, and the evaluations paid.

    Raises:
        InputError: unknown method or concept, an option that the method does not have, or a budget that is too small.
        GameError: a worth that is not finite, or a game that answers the same question in two ways.
    """
    chosen = method_of(method)
    task = _task(game, max_evaluations, concept, sizes)
    stopped_twice = isinstance(stop, Rule) and "evaluations" in stop.kinds and max_evaluations is not None
    if stopped_twice:
        raise InputError("max_evaluations and a stopping rule evaluations(...) conflict; give one of them")
    looks: list[int] = []
    check = started(stop, game.n_players)
    task = replace(
        task,
        check=None if check is None else check.noted(looks),
        seed=check_whole_number("seed", seed, 0),
        keep_examples=keep_examples or aggregate != "mean",
        max_memory=max_memory,
    )
    if aggregate != "mean":
        check_aggregate(aggregate, game.labels)
    chosen.check(task)
    _check_can_be_met(chosen, stop)
    answered = game.answered
    watched = RepeatabilityCheck(game)
    counted = CountingGame(watched)
    values = chosen.run(replace(task, game=counted))
    budget = None if task.max_evaluations is None else task.max_evaluations - counted.evaluations
    watched.ask_again(counted, budget)
    from_log = game.answered - answered
    values = replace(values, n_evaluations=counted.evaluations - from_log)
    values = rounded(values, game.rounding(watched.size), watched.size, watched.spread)
    if check is not None:
        found = {"looks": float(len(looks)), **check.measures(values)}
        noted = stop.noted if isinstance(stop, Rule) else {}
        values = replace(values, diagnostics=values.diagnostics | found, options=values.options | dict(noted))
    if from_log:
        values = replace(values, diagnostics={**values.diagnostics, "evaluations_from_log": float(from_log)})
    if aggregate != "mean":
        values = aggregated(values, aggregate, game.labels, task.seed)
    return values if keep_examples else replace(values, by_example=None)


def expected_evaluations(
    game: Game,
    method: str | Method = "permutation",
    max_evaluations: int | None = None,
    stop: Rule | Reason | None = None,
    *,
    concept: str | Concept = "shapley",
    sizes: tuple[float, float] = (0.0, 1.0),
) -> int | None:
    """Evaluations that `estimate` will pay at most, before any work; None where only a stopping rule ends it.

    Without a budget, a game that is not known to be repeatable may be asked one question more, see
    `RepeatabilityCheck.ask_again`.

    Raises:
        InputError: as `estimate`.
    """
    chosen = method_of(method)
    task = replace(_task(game, max_evaluations, concept, sizes), check=started(stop, game.n_players))
    chosen.check(task)
    _check_can_be_met(chosen, stop)
    return chosen.cost(task)


def least_evaluations(
    game: Game,
    method: str | Method = "permutation",
    stop: Rule | Reason | None = None,
    *,
    concept: str | Concept = "shapley",
    sizes: tuple[float, float] = (0.0, 1.0),
) -> int:
    """The smallest ``max_evaluations`` that works.

    Raises:
        InputError: as `estimate`.
    """
    chosen = method_of(method)
    task = replace(_task(game, None, concept, sizes), check=started(stop, game.n_players))
    chosen.check(task)
    return chosen.least(task)


def method_of(method: str | Method) -> Method:
    """An estimator by its name, or itself.

    Raises:
        InputError: an unknown name, with the nearest.
    """
    if isinstance(method, Method):
        return method
    check_choice("method", method, METHODS)
    return METHODS[method]


def _task(game: Game, max_evaluations: int | None, concept: str | Concept, sizes: tuple[float, float]) -> Task:
    if not isinstance(game, Game):
        raise InputError(
            f"game is a {type(game).__name__}; wrap a callable with Game.from_function(function, n_players)"
        )
    chosen = concept_of(concept)
    window = shapley(sizes)
    if window.label != "shapley":
        if chosen.label != "shapley":
            raise InputError(
                f"sizes={sizes!r} is a window of the Shapley value and concept is {chosen.label!r}; give one"
            )
        chosen = window
    chosen.weights(game.n_players)  # refused now where it holds no coalition
    budget = None if max_evaluations is None else check_whole_number("max_evaluations", max_evaluations, 1)
    return Task(CountingGame(game), chosen, budget)


def _check_can_be_met(method: Method, stop: Rule | Reason | None) -> None:
    """Refuse a rule that waits for standard errors where the method claims none."""
    if isinstance(stop, Rule) and set(stop.kinds) <= ABOUT_ERRORS and not method.claims_errors:
        raise InputError(
            f"{stop.name} looks at standard errors and {method!r} claims none: it would never be met; take another "
            "method, or combine it with a limit, such as seconds(60)"
        )


def check_whole_number(name: str, number: Any, least: int) -> int:
    """``number`` as a Python int; floats, booleans and numbers below ``least`` are refused by name."""
    if isinstance(number, bool) or not isinstance(number, Integral) or number < least:
        raise InputError(f"{name} is {number!r}; it must be a whole number, {least} or above")
    return int(number)
