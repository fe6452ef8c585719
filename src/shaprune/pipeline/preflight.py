"""Every refusal that needs no work: what `score` and `compress` are given must fit together before all else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from shaprune.criteria.registry import CRITERIA
from shaprune.deploy.measure import accuracy
from shaprune.errors import InputError, check_choice
from shaprune.network.collect_batches import check_data
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.subset_worth import Only
from shaprune.network.game.worths import Evaluate
from shaprune.options.fields import changed
from shaprune.options.groups import LAYER_ORDERS, NO_GAME, PRECISIONS, SCHEDULES, Compression, Planning, Scoring
from shaprune.pipeline.cycles import cycle_budget
from shaprune.planning.budget import Budget, check_budget
from shaprune.planning.limits import check_hf_uniform
from shaprune.planning.plan import ALLOCATIONS, check_reachable
from shaprune.players.players import Players
from shaprune.recovery.steps import RecoveryStep, check_batches, check_steps
from shaprune.runs.session import RunOptions
from shaprune.values.estimate import METHODS, check_whole_number
from shaprune.values.estimators.base import Method
from shaprune.values.rescoring import MODES


def is_criterion(method: str | Method) -> bool:
    """Whether a method is the name of a classical criterion, which plays no game.

    Raises:
        InputError: an unknown name, with the nearest.
    """
    if not isinstance(method, str) or method in METHODS:
        return False
    check_choice("method", method, (*METHODS, *CRITERIA))
    return True


def check_scoring(
    method: str | Method,
    worth: Any,
    how: Scoring,
    run: RunOptions,
    *,
    max_evaluations: int | None,
    stop: object,
    log: object,
) -> None:
    """Check that the options of `score` go together.

    Raises:
        InputError: one that does not, by name.
    """
    for name, chosen, known in (
        ("layers", how.layers, LAYER_ORDERS),
        ("mode", how.mode, MODES),
        ("precision", how.precision, PRECISIONS),
    ):
        check_choice(name, chosen, known)
    if is_criterion(method):
        idle = [leaf.name for leaf in changed(how, run, but=NO_GAME)]
        plain = {"max_evaluations": max_evaluations, "stop": stop, "log": log}
        idle += [name for name, value in plain.items() if value is not None]
        if idle:
            raise InputError(f"criterion {method!r} plays no game; drop {', '.join(idle)}")
        return
    run.check(layers=how.layers, mode=how.mode, stop=stop, log=log, precision=how.precision)
    if how.layers == "output-to-input" and (how.together or log is not None or isinstance(worth, (Evaluate, Only))):
        raise InputError(f"layers={how.layers!r} goes with neither together, log, Only nor Evaluate; drop these")


def check_compression(
    model: nn.Module,
    batches: Mapping[str, Iterable[Any] | Calibration | None],
    budget: Budget,
    worth: Any,
    method: str | Method,
    recover: Sequence[str | RecoveryStep],
    seed: int,
    options: Compression,
) -> None:
    """Check that the arguments of `compress` go together.

    Raises:
        InputError: one that does not, by name; no budget; a floor without examples to measure it on.
    """
    check_budget(budget)
    check_whole_number("seed", seed, 0)
    check_steps(recover, model)
    most = options.max_evaluations
    check_scoring(method, worth, options.scoring, RunOptions(), max_evaluations=most, stop=None, log=None)
    _check_planning(options.planning, worth)
    if budget.floored and options.validation is None:
        raise InputError(
            "a floor needs options=sp.options.Compression(validation=...): batches that are neither recovered on nor "
            "the test set"
        )
    for name, given in batches.items():
        check_data(given, name)


def _check_planning(planning: Planning, worth: Any) -> None:
    check_choice("allocation", planning.allocation, ALLOCATIONS)
    check_choice("schedule", planning.schedule, SCHEDULES)
    cycles = planning.cycles
    if not isinstance(cycles, int) or cycles < 1:
        raise InputError(f"cycles is {cycles!r}; it must be a whole number, 1 or above")
    if cycles > 1 and (planning.allocation in ("curves", "shapley-layers") or isinstance(worth, Evaluate)):
        what = "worth=Evaluate(...)" if isinstance(worth, Evaluate) else f"allocation={planning.allocation!r}"
        raise InputError(f"{what} measures the dense network and does not go with cycles={cycles}; use cycles=1")


def check_players(
    model: nn.Module,
    players: Players,
    budget: Budget,
    options: Compression,
    tests: Sequence[Any] | None,
) -> None:
    """Check what can be checked once the players are found: the budget in numbers, and examples that fit the network.

    Raises:
        InputError: a budget that is met or cannot be met, or examples that the network does not run on.
    """
    if options.limits.hf_uniform:
        check_hf_uniform(players)
    check_reachable(players, budget, options.limits)
    if options.planning.cycles > 1:
        cycle_budget(budget, players, 1, options.planning.cycles, options.planning.schedule)
    check_batches(model, options.train, "train", options.scoring.forward)
    if tests is not None:
        check_batches(model, tests, "test")
        accuracy(model, tests[:1])
