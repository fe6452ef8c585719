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

from shaprune.bench.oracle import LARGEST
from shaprune.network.criteria import CRITERIA, rank
from shaprune.network.game import NetworkGame
from shaprune.network.players import Players
from shaprune.network.subject import Subject
from shaprune.values.enumeration import Partial
from shaprune.values.estimate import METHODS, estimate
from shaprune.values.game import Game
from shaprune.values.method import Method
from shaprune.values.modes import rounds
from shaprune.values.permutation import Permutation
from shaprune.values.regression import Regression
from shaprune.values.result import Values

ORDERS = 10  # random orders of the paper's permutation row; other estimators get as many evaluations
TEN = "10 (N + 1)"  # the label of that budget
SAMPLES = (1_000, 5_000)  # the range that the paper gives for its regression
ENUMERATING = ("exact", "partial", "leave-one-out")  # methods without a budget
IMAGES = ("accuracy", "cross_entropy", "fidelity")  # worths of the rows with one order per example


@dataclass(frozen=True)
class Layer:
    """A tabulated layer of a trained network: the network, and the game of the table."""

    name: str
    model: nn.Module
    players: Players
    subject: Subject
    game: Game


Ranked = tuple[NDArray[np.int64], float]  # players from the least to the most valuable; evaluations per example


@dataclass(frozen=True)
class Row:
    """A way to rank.

    Attributes:
        order: ``(layer, seed) -> Ranked``.
        budget: evaluations per example that it may pay, where it draws coalitions.
        paper: the column of the paper's table that it reproduces.
        random: whether it draws something else.
        optional: an `InputError` means that it does not apply to the layer, such as a batch-norm scale without one.
    """

    order: Callable[[Layer, int], Ranked]
    budget: int | None = None
    paper: str | None = None
    random: bool = False
    optional: bool = False

    @property
    def drawn(self) -> bool:
        """Whether the seed matters."""
        return self.random or self.budget is not None


def rows_of(n: int) -> dict[str, Row]:
    """All rows for a layer of ``n`` players."""
    few = ORDERS * (n + 1)
    more = {f"{samples:,}": samples for samples in SAMPLES if few < samples < 1 << n}
    budgets = {TEN: few, **more}
    rows = {
        "leave-one-out": Row(_estimated("leave-one-out"), paper="leave-one-out"),
        "partial-3": Row(_estimated(Partial(k=3)), paper="partial-3"),
        "partial-3, both sides": Row(_estimated(Partial(k=3, side="both"))),
        f"partial-{LARGEST}": Row(_estimated(Partial(k=LARGEST))),
        f"partial-{LARGEST}, empty side": Row(_estimated(Partial(k=LARGEST, side="empty"))),
        "exact": Row(_estimated("exact"), paper="exact"),
        "exact, sizes 0.5 to 1": Row(_estimated("exact", sizes=(0.5, 1.0))),
        "exact, sizes 0 to 0.5": Row(_estimated("exact", sizes=(0.0, 0.5))),
        "exact, banzhaf": Row(_estimated("exact", concept="banzhaf")),
        "greedy-backward": Row(_in_rounds("greedy-backward")),
        "greedy-forward": Row(_in_rounds("greedy-forward")),
        "iterated, exact": Row(_in_rounds("iterated", "exact")),
        "building, exact": Row(_in_rounds("building", "exact")),
    }
    tables = {name: method for name, method in METHODS.items() if not method.differentiates}  # they have no derivatives
    drawing = {name: method for name, method in tables.items() if name not in ENUMERATING}
    drawing["permutation, antithetic"] = Permutation(antithetic=True)
    drawing["regression, linear"] = Regression(basis="linear")
    for label, budget in budgets.items():
        for name, method in drawing.items():
            published = {"permutation": few, "regression": max(budgets.values())}.get(name) == budget
            paper = name if published else None
            rows[f"{name}, {label}"] = Row(_estimated(method, budget), budget=budget, paper=paper)
    for label, budget in more.items():  # fewer do not pay for n rounds
        for mode in ("iterated", "building"):
            rows[f"{mode}, permutation, {label}"] = Row(_in_rounds(mode, "permutation", budget), budget=budget)
    for worth in IMAGES:
        rows[f"permutation per example, {worth}, {TEN}"] = Row(_per_example(worth, few), budget=few)
    for name in CRITERIA:
        rows[name] = Row(_criterion(name), random=name == "random", optional=True)
    return rows


def _estimated(
    method: str | Method,
    budget: int | None = None,
    *,
    concept: str = "shapley",
    sizes: tuple[float, float] = (0.0, 1.0),
) -> Callable[[Layer, int], Ranked]:
    """An estimator on the table, whose worths are means over all examples already."""
    return lambda layer, seed: _ranked(
        estimate(layer.game, method, budget, seed=seed, concept=concept, sizes=sizes), examples=1
    )


def _in_rounds(mode: str, method: str = "permutation", budget: int | None = None) -> Callable[[Layer, int], Ranked]:
    """A mode that scores again as players leave or enter, on the table; greedy modes have a method of their own."""
    return lambda layer, seed: _ranked(rounds(layer.game, mode, method, budget, seed=seed), examples=1)


def _per_example(worth: str, budget: int) -> Callable[[Layer, int], Ranked]:
    """One order per example and sweep: what a network game that is a mean over examples allows."""

    def order(layer: Layer, seed: int) -> Ranked:
        game = NetworkGame(layer.model, layer.players, layer.subject, worth, layer.name)
        return _ranked(estimate(game, "permutation", budget * game.n_examples, seed=seed), game.n_examples)

    return order


def _criterion(name: str) -> Callable[[Layer, int], Ranked]:
    def order(layer: Layer, seed: int) -> Ranked:
        values = rank(layer.model, layer.players, layer.subject, name, seed=seed)[layer.name]
        return _ranked(values, layer.subject.n_examples)

    return order


def _ranked(values: Values, examples: int) -> Ranked:
    return values.ranking(), values.n_evaluations / examples
