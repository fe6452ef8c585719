"""Contenders of the curves benchmark: every concept, estimator, aggregation, mode and criterion, at equal price.

A *contest* is one game on one network: the players of one group, or those of several groups together. Who asks for
worths may pay the same number of evaluations, ``Contest.price``: what greedy backward elimination costs, whose price
cannot be chosen. Modes share it over their rounds. What is cheaper by nature (enumerations of few coalitions, rivals)
pays what it pays, and its `Values` say how much; only exact values of few players may cost more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from torch import nn

from shaprune.criteria.registry import CRITERIA, criterion_scores
from shaprune.errors import InputError, check_choice
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import NetworkGame
from shaprune.players.players import Players, number_groups
from shaprune.values.estimate import METHODS, least_evaluations
from shaprune.values.estimators.base import Method
from shaprune.values.estimators.exact import Exact, LeaveOneOut, Partial
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.rescoring import MODES, estimate_in_rounds, expected_evaluations_in_rounds
from shaprune.values.result import Values

Kind = Literal["concept", "estimator", "aggregation", "mode", "rival"]
KINDS: tuple[Kind, ...] = ("concept", "estimator", "aggregation", "mode", "rival")
MOST_EXACT = 12  # players: 4,096 coalitions
GRADIENT = "cross_entropy"  # whose gradient rivals take where the worth has none


@dataclass(frozen=True, eq=False)
class Contest:
    """One game, and what every method may pay for it.

    Attributes:
        model: the dense network.
        players: those who play, all of them in one game; see `players_of` for those of one group.
        calibration: the examples to score on.
        worth: name of the worth.
        step: players that leave per round of a mode; a fraction of them below 1.
        budget: evaluations for every method; None = what greedy backward elimination costs at this step.
    """

    model: nn.Module
    players: Players
    calibration: Calibration
    worth: str = "cross_entropy"
    step: int | float = 1
    budget: int | None = None

    @cached_property
    def game(self) -> NetworkGame:
        """The game."""
        return NetworkGame(self.model, self.players, self.calibration, self.worth)

    @cached_property
    def price(self) -> int:
        """Evaluations that every method may ask for."""
        if self.budget is not None:
            return self.budget
        cost = expected_evaluations_in_rounds(self.game, "greedy-backward", step=self.step)
        assert cost is not None  # no rule ends a round
        return cost


def players_of(players: Players, groups: Sequence[str]) -> Players:
    """Some groups as players of their own, numbered from 0; the other groups stay whole."""
    found = [players.group(name) for name in groups]
    return replace(players, groups=number_groups([(group.name, group.members) for group in found]))


@dataclass(frozen=True)
class Contender:
    """A way to value the players of a contest.

    Attributes:
        name: in the registry.
        kind: what about it is compared.
        method: the estimator; its price is fixed where it enumerates.
        options: more options of `shaprune.values.rescoring.estimate_in_rounds`.
    """

    name: str
    kind: Kind
    method: Method | None = field(default_factory=Permutation)
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def values(self, contest: Contest, seed: int = 0) -> Values:
        """Value the players; the ranking is the order in which they leave.

        Raises:
            InputError: it does not apply to this contest (exact values of many players, a batch-norm scale without
                batch-norm, a budget below the least that works).
        """
        if self.method is None:
            return _rival(self.name, contest, seed)
        options = dict(self.options)
        mode = options.setdefault("mode", "one-shot")
        if mode != "one-shot":
            options["step"] = contest.step
        method = _affordable(self.method, contest)
        fixed = mode == "one-shot" and isinstance(method, (Exact, Partial, LeaveOneOut))
        return estimate_in_rounds(
            contest.game, method=method, max_evaluations=None if fixed else contest.price, seed=seed, **options
        )


def _affordable(method: Method, contest: Contest) -> Method:
    """The method, with as large a ``k`` of `Partial` as the price allows; exact values of a few players are let pass.

    Raises:
        InputError: exact values of more than `MOST_EXACT` players.
    """
    n = contest.game.n_players
    if isinstance(method, Exact) and n > MOST_EXACT:
        raise InputError(f"exact values of {n} players cost 2^{n} coalitions; here they run up to {MOST_EXACT} players")
    if isinstance(method, Partial):
        ks = [k for k in range(1, min(method.k, n) + 1) if _price(replace(method, k=k), contest) <= contest.price]
        return replace(method, k=max(ks, default=1))
    return method


def _price(method: Method, contest: Contest) -> int:
    return least_evaluations(contest.game, method)


def _rival(name: str, contest: Contest, seed: int) -> Values:
    worth = GRADIENT if contest.worth == "accuracy" else contest.worth
    by_group = criterion_scores(contest.model, contest.players, contest.calibration, name, worth=worth, seed=seed)
    parts = [by_group[group.name] for group in contest.players.groups]
    if len(parts) == 1:
        return parts[0]
    return Values(
        value=np.concatenate([part.value for part in parts]),
        stderr=np.concatenate([part.stderr for part in parts]),
        n_evaluations=parts[0].n_evaluations,  # examples are pushed once, for all groups together
        method=name,
        efficiency_gap=None,
        stopped_by=parts[0].stopped_by,
        worth_all=None,
        worth_none=None,
        counts=np.concatenate([part.counts for part in parts]),
        concept=name,
        efficient=False,
    )


def _concept(label: str) -> Contender:
    return Contender(label, "concept", options=MappingProxyType({"concept": label}))


def _mode(mode: str, label: str = "", /, **options: Any) -> Contender:
    return Contender(f"{mode}{label}", "mode", options=MappingProxyType({"mode": mode, **options}))


CONCEPT_LABELS = (
    "shapley",
    "shapley:0.5,1",
    "banzhaf",
    "banzhaf:0.7",
    "owen:0.5,1",
    "beta:1,16",
    "beta:16,1",
)
_ALL = (
    *(_concept(label) for label in CONCEPT_LABELS),
    *(Contender(name, "estimator", method) for name, method in METHODS.items() if name != "permutation"),
    Contender("permutation, antithetic", "estimator", Permutation(antithetic=True)),
    Contender("permutation, shared orders", "estimator", Permutation(per_example=False)),
    Contender("mean+2std", "aggregation", options=MappingProxyType({"aggregate": "mean+2std"})),
    *(_mode(mode) for mode in MODES if mode != "one-shot"),
    _mode("iterated", ", sizes 0.5 to 1", sizes=(0.5, 1.0)),
    _mode("iterated", ", mean+2std", aggregate="mean+2std"),
    _mode("building", ", sizes 0 to 0.5", sizes=(0.0, 0.5)),
    *(Contender(name, "rival", None) for name in CRITERIA),
)
CONTENDERS: dict[str, Contender] = {contender.name: contender for contender in _ALL}


def choose(names: Sequence[str] | None) -> list[Contender]:
    """Contenders by name or by kind (``"mode"``: all modes), each once, in the order of the registry; None = all.

    Raises:
        InputError: a name that is neither, with the nearest.
    """
    if names is None:
        return list(CONTENDERS.values())
    if not names:
        raise InputError(f"no contender is named; name some of {', '.join([*KINDS, *CONTENDERS])}")
    for name in names:
        check_choice("contender", name, [*CONTENDERS, *KINDS])
    return [c for c in CONTENDERS.values() if c.name in names or c.kind in names]
