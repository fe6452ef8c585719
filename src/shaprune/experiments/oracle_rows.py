"""The rows of the oracle benchmark: every way to rank the players of a tabulated layer, by name.

Evaluations are counted per example: 1 = one coalition over all examples, or one gradient over all examples. Rows of the
same number can be compared directly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from shaprune.criteria.registry import CRITERIA, criterion_scores
from shaprune.experiments.oracle import LARGEST
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import NetworkGame
from shaprune.players.players import Players
from shaprune.values.estimate import METHODS, estimate
from shaprune.values.estimators.base import Method
from shaprune.values.estimators.exact import Partial
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.estimators.regression import Regression
from shaprune.values.games.game import Game
from shaprune.values.rescoring import estimate_in_rounds
from shaprune.values.result import Values

ORDERS = 10  # random orders of the paper's permutation row; other estimators get as many evaluations
PERMUTATION_BUDGET = "10 (N + 1)"  # the label of that budget
SAMPLES = (1_000, 5_000)  # the range that the paper gives for its regression
ENUMERATING = ("exact", "partial", "leave-one-out")  # methods without a budget
IMAGES = ("accuracy", "cross_entropy", "fidelity")  # worths of the rows with one order per example


@dataclass(frozen=True)
class TabulatedLayer:
    """A tabulated layer of a trained network: the network, and the game of the table."""

    name: str
    model: nn.Module
    players: Players
    calibration: Calibration
    game: Game


Ranked = tuple[NDArray[np.int64], float]  # players from the least to the most valuable; evaluations per example


@dataclass(frozen=True)
class OracleRow:
    """A way to rank.

    Attributes:
        order: ``(layer, seed) -> Ranked``.
        budget: evaluations per example that it may pay, where it draws coalitions.
        paper: the column of the paper's table that it reproduces.
        random: whether it draws something else.
        optional: an `InputError` means that it does not apply to the layer, such as a batch-norm scale without one.
    """

    order: Callable[[TabulatedLayer, int], Ranked]
    budget: int | None = None
    paper: str | None = None
    random: bool = False
    optional: bool = False

    @property
    def drawn(self) -> bool:
        """Whether the seed matters."""
        return self.random or self.budget is not None


def rows_of(n: int) -> dict[str, OracleRow]:
    """All rows for a layer of ``n`` players."""
    few = ORDERS * (n + 1)
    more = {f"{samples:,}": samples for samples in SAMPLES if few < samples < 1 << n}
    budgets = {PERMUTATION_BUDGET: few, **more}
    rows = {
        "leave-one-out": OracleRow(_estimated("leave-one-out"), paper="leave-one-out"),
        "partial-3": OracleRow(_estimated(Partial(k=3)), paper="partial-3"),
        "partial-3, both sides": OracleRow(_estimated(Partial(k=3, side="both"))),
        f"partial-{LARGEST}": OracleRow(_estimated(Partial(k=LARGEST))),
        f"partial-{LARGEST}, empty side": OracleRow(_estimated(Partial(k=LARGEST, side="empty"))),
        "exact": OracleRow(_estimated("exact"), paper="exact"),
        "exact, sizes 0.5 to 1": OracleRow(_estimated("exact", sizes=(0.5, 1.0))),
        "exact, sizes 0 to 0.5": OracleRow(_estimated("exact", sizes=(0.0, 0.5))),
        "exact, banzhaf": OracleRow(_estimated("exact", concept="banzhaf")),
        "greedy-backward": OracleRow(_in_rounds("greedy-backward")),
        "greedy-forward": OracleRow(_in_rounds("greedy-forward")),
        "iterated, exact": OracleRow(_in_rounds("iterated", "exact")),
        "building, exact": OracleRow(_in_rounds("building", "exact")),
    }
    tables = {name: method for name, method in METHODS.items() if not method.differentiates}  # they have no derivatives
    drawing = {name: method for name, method in tables.items() if name not in ENUMERATING}
    drawing["permutation, antithetic"] = Permutation(antithetic=True)
    drawing["regression, linear"] = Regression(basis="linear")
    for label, budget in budgets.items():
        for name, method in drawing.items():
            published = {"permutation": few, "regression": max(budgets.values())}.get(name) == budget
            paper = name if published else None
            rows[f"{name}, {label}"] = OracleRow(_estimated(method, budget), budget=budget, paper=paper)
    for label, budget in more.items():  # fewer do not pay for n rounds
        for mode in ("iterated", "building"):
            rows[f"{mode}, permutation, {label}"] = OracleRow(_in_rounds(mode, "permutation", budget), budget=budget)
    for worth in IMAGES:
        rows[f"permutation per example, {worth}, {PERMUTATION_BUDGET}"] = OracleRow(
            _per_example(worth, few), budget=few
        )
    for name in CRITERIA:
        rows[name] = OracleRow(_criterion(name), random=name == "random", optional=True)
    return rows


def _estimated(
    method: str | Method,
    budget: int | None = None,
    *,
    concept: str = "shapley",
    sizes: tuple[float, float] = (0.0, 1.0),
) -> Callable[[TabulatedLayer, int], Ranked]:
    """An estimator on the table, whose worths are means over all examples already."""
    return lambda layer, seed: _ranked(
        estimate(layer.game, method, budget, seed=seed, concept=concept, sizes=sizes), examples=1
    )


def _in_rounds(
    mode: str, method: str = "permutation", budget: int | None = None
) -> Callable[[TabulatedLayer, int], Ranked]:
    """A mode that scores again as players leave or enter, on the table; greedy modes have a method of their own."""
    return lambda layer, seed: _ranked(estimate_in_rounds(layer.game, mode, method, budget, seed=seed), examples=1)


def _per_example(worth: str, budget: int) -> Callable[[TabulatedLayer, int], Ranked]:
    """One order per example and sweep: what a network game that is a mean over examples allows."""

    def order(layer: TabulatedLayer, seed: int) -> Ranked:
        game = NetworkGame(layer.model, layer.players, layer.calibration, worth, layer.name)
        return _ranked(estimate(game, "permutation", budget * game.n_examples, seed=seed), game.n_examples)

    return order


def _criterion(name: str) -> Callable[[TabulatedLayer, int], Ranked]:
    def order(layer: TabulatedLayer, seed: int) -> Ranked:
        values = criterion_scores(layer.model, layer.players, layer.calibration, name, seed=seed)[layer.name]
        return _ranked(values, layer.calibration.n_examples)

    return order


def _ranked(values: Values, examples: int) -> Ranked:
    return values.ranking(), values.n_evaluations / examples
