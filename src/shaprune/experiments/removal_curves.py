"""Removal curves: accuracy and loss of a network while its players leave one after another, without any recovery.

A player that has left is masked at the inputs of its consumers, which is what surgery does, so a point of a curve is
the quality of the pruned network. Networks that are changed between points (retrained ones) are measured with
`quality` and put together with `curve_of`.

The *area* of a curve is its mean: the integral by the trapezoid rule over the share of players that has left, from the
first point to the last, divided by the width of that range. Munovas 2023 gives areas under loss curves without saying
how they are normalised; his random orders (.83, with accuracy falling from .98 to .32) agree with a mean cross-entropy
in nats over the share removed and not with a sum over the 11 rounds, so this is what we take them for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from shaprune.builtin.splits import Split
from shaprune.errors import InputError
from shaprune.network.borrow import borrowed, device_of
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.evaluation import evaluate_coalitions
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.worths import accuracy, cross_entropy
from shaprune.players.players import Players
from shaprune.values.games.game import coalitions_along
from shaprune.values.intervals import quantile_of

Floats = NDArray[np.float64]
COALITIONS_AT_ONCE = 256  # measured together: more gain nothing, and masks of many players take memory


@dataclass(frozen=True, eq=False)
class Curve:
    """Quality along one order of leaving.

    Attributes:
        removed: (P,) int64, how many players have left at each point, rising.
        n_players: of how many.
        accuracy: (P,) share of the examples that are classified right.
        loss: (P,) mean cross-entropy, in nats.
        n_examples: examples behind every number.
    """

    removed: NDArray[np.int64]
    n_players: int
    accuracy: Floats
    loss: Floats
    n_examples: int

    @property
    def share(self) -> Floats:
        """(P,) share of the players that has left."""
        return self.removed / self.n_players

    @property
    def area_accuracy(self) -> float:
        """Mean accuracy over the share removed, see the module."""
        return _mean_height(self.share, self.accuracy)

    @property
    def area_loss(self) -> float:
        """Mean loss over the share removed, see the module; lower is better."""
        return _mean_height(self.share, self.loss)

    def at(self, share: float) -> tuple[float, float]:
        """Accuracy and loss once ``share`` of the players (rounded to whole players) has left.

        Raises:
            InputError: the curve has no such point.
        """
        count = round(share * self.n_players)
        found = np.flatnonzero(self.removed == count)
        if not found.size:
            raise InputError(f"the curve has no point at {count} of {self.n_players} players removed; add it to points")
        return float(self.accuracy[found[0]]), float(self.loss[found[0]])

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "removed": self.removed.tolist(),
            "n_players": self.n_players,
            "accuracy": self.accuracy.tolist(),
            "loss": self.loss.tolist(),
            "n_examples": self.n_examples,
            "area_accuracy": self.area_accuracy,
            "area_loss": self.area_loss,
        }


def removal_curves(
    model: nn.Module,
    players: Players,
    orders: ArrayLike,
    data: Split | Calibration,
    *,
    group: str | Sequence[str] | None = None,
    points: Sequence[int] | None = None,
) -> list[Curve]:
    """Measure the curves of several orders on the same examples.

    Args:
        model: the dense network; it comes back untouched.
        players: from `find_players`.
        orders: (R, m) players (indices among all players of ``players``) in the order in which they leave. Players that
            are not named stay.
        data: labelled examples; a `Calibration` where several calls share them.
        group: name(s) of the groups that ``orders`` are of; None = all. The share removed counts their players.
        points: numbers of players removed at which to measure, 0 to m; None = 0, 1, ..., m.

    Raises:
        InputError: players that are unknown, of other groups or named twice; points that are not between 0 and m or do
            not rise.
        GameError: an output that is not finite.
    """
    calibration = data if isinstance(data, Calibration) else Calibration(model, data.batches())
    game = NetworkGame(model, players, calibration, "accuracy", group)
    loss = game.judged_by("cross_entropy")
    local = _within([g.indices for g in game.groups], players.n, np.asarray(orders))
    removed = _points(points, local.shape[1])
    coalitions = coalitions_along(local, game.n_players)[:, removed].reshape(-1, game.n_players)
    unique, back = np.unique(coalitions, axis=0, return_inverse=True)
    blocks = [
        evaluate_coalitions([game.evaluator, loss.evaluator], unique[start : start + COALITIONS_AT_ONCE])
        for start in range(0, len(unique), COALITIONS_AT_ONCE)
    ]
    right, worth = (np.concatenate(parts)[back.reshape(len(local), -1)] for parts in zip(*blocks, strict=True))
    return [Curve(removed, game.n_players, r, -w, calibration.n_examples) for r, w in zip(right, worth, strict=True)]


def quality(model: nn.Module, data: Split, *, batch_size: int = 1_000) -> tuple[float, float]:
    """Accuracy and mean cross-entropy (nats) of a network in eval mode, for networks that are no coalition."""
    right, loss, device = 0.0, 0.0, device_of(model)
    with borrowed(model), torch.no_grad():
        for inputs, targets in data.batches(batch_size):
            outputs, wanted = model(inputs.to(device)), targets.to(device)
            right += float(accuracy(outputs, wanted).sum(dtype=torch.float64))
            loss -= float(cross_entropy(outputs, wanted).sum(dtype=torch.float64))
    return right / len(data), loss / len(data)


def curve_of(
    removed: Sequence[int], qualities: Sequence[tuple[float, float]], n_players: int, n_examples: int
) -> Curve:
    """A curve from (accuracy, loss) of one network per point, see `quality`."""
    right, loss = np.array(qualities, dtype=np.float64).T
    return Curve(_points(removed, n_players), n_players, right, loss, n_examples)


def band(curves: Sequence[Curve], confidence: float = 0.95) -> tuple[Curve, Curve, Curve]:
    """Mean curve over seeds, and the ends of the confidence interval of that mean at every point.

    Student's t with (curves - 1) degrees of freedom. Accuracies are kept within [0, 1] and losses above 0. One curve
    has no band: all three are this curve.

    Returns:
        (mean, low, high): ``low`` holds the lower ends of both accuracy and loss.

    Raises:
        InputError: no curve, or curves with different points.
    """
    if not curves:
        raise InputError("a band needs at least one curve")
    first = curves[0]
    if any(c.n_players != first.n_players or not np.array_equal(c.removed, first.removed) for c in curves):
        raise InputError("these curves have different points; measure all of them at the same points")
    accuracy_, reach_accuracy = mean_and_reach(np.stack([c.accuracy for c in curves]), confidence)
    loss, reach_loss = mean_and_reach(np.stack([c.loss for c in curves]), confidence)
    mean = replace(first, accuracy=accuracy_, loss=loss)
    low = replace(first, accuracy=np.clip(accuracy_ - reach_accuracy, 0, 1), loss=np.clip(loss - reach_loss, 0, None))
    high = replace(first, accuracy=np.clip(accuracy_ + reach_accuracy, 0, 1), loss=loss + reach_loss)
    return mean, low, high


def mean_and_reach(rows: Floats, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Mean over rows (S, ...) and how far its confidence interval (Student's t) reaches; 0 for a single row."""
    quantile_of(confidence)  # refuses what is no confidence
    mean, freedom = np.asarray(rows.mean(0)), len(rows) - 1
    if not freedom:
        return mean, np.zeros_like(mean)
    # with t = sqrt(freedom) tan(angle), P(|T| <= t) is the integral of cos^(freedom - 1) up to the angle, normalised
    angle = np.linspace(0, np.pi / 2, 100_001)
    height = np.cos(angle) ** (freedom - 1)
    inside = np.concatenate([[0.0], np.cumsum(height[1:] + height[:-1])])
    reach = np.sqrt(freedom) * np.tan(np.interp(confidence, inside / inside[-1], angle))
    return mean, np.asarray(reach * rows.std(0, ddof=1) / np.sqrt(len(rows)))


def _mean_height(x: Floats, y: Floats) -> float:
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def _within(groups: Sequence[NDArray[np.int64]], n: int, orders: NDArray[np.int64]) -> NDArray[np.int64]:
    """Orders (R, m) of players counted among all, counted within the game of some groups."""
    if orders.ndim != 2 or orders.dtype.kind not in "iu":
        raise InputError(f"orders are {orders.dtype} of shape {orders.shape}; give whole numbers (R, m)")
    if orders.size and not 0 <= orders.min() <= orders.max() < n:
        raise InputError(f"an order names player {orders.max() if orders.max() >= n else orders.min()} of {n}")
    place = np.full(n, -1, dtype=np.int64)
    place[np.concatenate(groups)] = np.arange(sum(map(len, groups)))
    local = place[orders]
    if (local < 0).any():
        raise InputError(f"player {orders[local < 0][0]} is to leave and is of another group; name its group, too")
    if orders.shape[1] > 1 and (np.diff(np.sort(orders, axis=1), axis=1) == 0).any():
        raise InputError("an order names a player twice; every player leaves once")
    return local


def _points(points: Sequence[int] | None, most: int) -> NDArray[np.int64]:
    if points is None:
        return np.arange(most + 1)
    removed = np.asarray(points)
    if removed.ndim != 1 or not removed.size or removed.dtype.kind not in "iu" or (np.diff(removed) <= 0).any():
        raise InputError("points must be whole numbers of players that rise, such as range(0, 51, 5)")
    if removed[0] < 0 or removed[-1] > most:
        raise InputError(f"points run from {removed[0]} to {removed[-1]}; they must lie between 0 and {most}")
    return removed.astype(np.int64)


def removal_order(players: Players, value: NDArray[np.float64]) -> NDArray[np.int64]:
    """All players, the least valuable first; where there are several groups, the best of each comes last."""
    order = np.argsort(value, kind="stable")
    spared = np.zeros(players.n, dtype=bool)
    spared[[group.indices[np.argsort(value[group.indices], kind="stable")[-1]] for group in players.groups]] = True
    return np.concatenate([order[~spared[order]], order[spared[order]]])
