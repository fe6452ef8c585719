"""Removal curves: accuracy as players leave in a given order, measured with masks, without any recovery.

The orders are those of the values, of the weight norm, and random ones. Weight norms are divided by their group's
mean: raw norms do not compare across layers, and would make a weaker rival. As in a plan, the most valuable player of
every group leaves last, so that no layer is empty before all are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from shaprune.criteria.registry import criterion_scores
from shaprune.experiments.removal_curves import removal_order as order_of_values
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import NetworkGame
from shaprune.players.players import Players
from shaprune.values.result import Values

POINTS = 12
RANDOM_ORDERS = 5


@dataclass(frozen=True, eq=False)
class Curves:
    """Accuracy along removal orders.

    Attributes:
        removed: (P,) how many players have left.
        n_players: of how many.
        accuracy: name of the order -> (orders, P) accuracy; several orders for ``"random"``.
        n_examples: test examples behind every number.
    """

    removed: NDArray[np.int64]
    n_players: int
    accuracy: dict[str, NDArray[np.float64]]
    n_examples: int


def removal_curves(
    model: nn.Module, players: Players, scores: Mapping[str, Values], test: Iterable[Any], *, seed: int = 0
) -> Curves:
    """Measure the curves on labelled test batches; one forward pass per example, point and order.

    Raises:
        InputError: batches without class labels, or scores of other players.
        GameError: an output that is not finite.
    """
    calibration = Calibration(model, test)
    game = NetworkGame(model, players, calibration, "accuracy")
    norms = {name: _scaled(v) for name, v in criterion_scores(model, players, criterion="weight_norm").items()}
    orders = {
        "values": [removal_order(players, scores)],
        "weight norm": [removal_order(players, norms)],
        "random": [
            removal_order(players, criterion_scores(model, players, criterion="random", seed=seed + i))
            for i in range(RANDOM_ORDERS)
        ],
    }
    removed = np.unique(np.linspace(0, players.n - len(players.groups), POINTS).astype(np.int64))
    coalitions = np.ones((sum(map(len, orders.values())), len(removed), players.n), dtype=bool)
    for row, order in enumerate(order for of_name in orders.values() for order in of_name):
        for column, count in enumerate(removed):
            coalitions[row, column, order[:count]] = False
    worths = game(coalitions.reshape(-1, players.n)).reshape(coalitions.shape[:2])
    accuracy, start = {}, 0
    for name, of_name in orders.items():
        accuracy[name] = worths[start : start + len(of_name)]
        start += len(of_name)
    return Curves(removed, players.n, accuracy, calibration.n_examples)


def removal_order(players: Players, scores: Mapping[str, Values]) -> NDArray[np.int64]:
    """All players, the least valuable first; the most valuable of every group come last."""
    return order_of_values(players, np.concatenate([scores[group.name].value for group in players.groups]))


def _scaled(norms: Values) -> Values:
    return replace(norms, value=norms.value / max(float(norms.value.mean()), 1e-30))
