"""Sensitivity of groups: curves along a ranking, and one value per group, measured with masks on data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from shaprune.criteria.reconstruction import RefittedConsumers, refit_consumers
from shaprune.errors import InputError
from shaprune.network.batches import Forward
from shaprune.network.borrow import copied
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import DEFAULT_MAX_MEMORY, NetworkGame
from shaprune.network.game.worths import AnyWorth, Evaluate, worth_name
from shaprune.planning.sensitivity_curves import Sensitivity, SensitivityCurve
from shaprune.players.players import Group, Players
from shaprune.values.estimate import estimate
from shaprune.values.estimators.base import Method
from shaprune.values.games.arrays import Coalitions, Examples, Worths
from shaprune.values.games.game import Game, coalitions_along
from shaprune.values.result import Values

DEFAULT_POINTS = 16


def sensitivity(
    model: nn.Module,
    players: Players,
    scores: Mapping[str, Values],
    data: Iterable[Any] | Calibration,
    worth: AnyWorth | Evaluate = "fidelity",
    *,
    points: int | None = DEFAULT_POINTS,
    refit: bool = False,
    forward: Forward | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> Sensitivity:
    """Measure what each group loses as its players leave, the least valuable first, the other groups whole.

    Args:
        model: the dense network; it comes back untouched.
        players: from `find_players`.
        scores: values per group name, which rank its players.
        data: batches, see `NetworkGame`.
        worth: see `NetworkGame`.
        points: measurements per group beside the whole one, evenly spread; None = after every player.
        refit: measure with the consumers of the group fitted anew, as `shaprune.criteria.reconstruction` does, where
            the network will be refitted, too: fitted to one half of the examples, measured on the other, and the
            reverse.
        forward, max_memory: see `NetworkGame`.

    Returns:
        `Sensitivity`: a curve of worths per group.

    Raises:
        InputError: fewer than one point, a group without values, a refit to a single example; and as `NetworkGame`.
        GameError: an output or a worth that is not finite.
    """
    if points is not None and points < 1:
        raise InputError(f"points is {points}; at least 1 is needed, or None for all")
    started = time.perf_counter()
    calibration = data if isinstance(worth, Evaluate) else Calibration.of(model, data, forward, max_memory=max_memory)
    if refit:
        if not isinstance(calibration, Calibration) or isinstance(worth, Evaluate):
            raise InputError("refit=True needs data and a worth, not a function of the whole model")
        found = dict(_refitted_sensitivity(players, scores, calibration, worth, points, max_memory))
        return Sensitivity(found, worth_name(worth), calibration.n_examples, time.perf_counter() - started)
    curves, n_examples = {}, 1
    for group in players.groups:
        order, removed, n = *_measured_steps(group, scores, points), len(group)
        game = NetworkGame(model, players, calibration, worth, group.name, forward=forward, max_memory=max_memory)
        curves[group.name] = SensitivityCurve(order, removed, game(coalitions_along(order[None], n)[0, removed]))
        n_examples = game.n_examples
    return Sensitivity(curves, worth_name(worth), n_examples, time.perf_counter() - started)


def _measured_steps(
    group: Group, scores: Mapping[str, Values], points: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order in which a group's players leave, and after how many of them it is measured."""
    n = len(group)
    spread = np.linspace(0, n, (n if points is None else min(points, n)) + 1)
    return _ranking(group, scores), np.unique(spread.round().astype(np.int64))


def _ranking(group: Group, scores: Mapping[str, Values]) -> NDArray[np.int64]:
    """The players of a group, counted within it, the least valuable first."""
    if group.name not in scores or len(scores[group.name].value) != len(group):
        raise InputError(f"the scores have no values that fit group {group.name!r}; score these players first")
    return scores[group.name].ranking()


def _refitted_sensitivity(
    players: Players,
    scores: Mapping[str, Values],
    calibration: Calibration,
    worth: AnyWorth,
    points: int | None,
    max_memory: int,
) -> Iterator[tuple[str, SensitivityCurve]]:
    model = copied(calibration.model)
    own, n = Calibration.received(model, calibration.state()), calibration.n_examples
    if n < 2:
        raise InputError("refit=True fits to one half of the examples and measures on the other; give at least 2")
    halves = [np.arange(n)[start::2] for start in (0, 1)]
    fits = zip(*(refit_consumers(calibration.part(rows), players) for rows in halves), strict=True)
    measured_on = [own.part(rows) for rows in reversed(halves)]  # never what was fitted to: few examples overfit
    for both in fits:
        group = both[0].group
        order, removed = _measured_steps(group, scores, points)
        worths = np.zeros(len(removed))
        for fitted, part in zip(both, measured_on, strict=True):
            game = NetworkGame(model, players, part, worth, group.name, max_memory=max_memory)
            worths += part.n_examples / n * _refitted_worths(fitted, game, order, removed)
            for name in fitted.consumers:
                model.get_submodule(name).load_state_dict(calibration.model.get_submodule(name).state_dict())
        yield group.name, SensitivityCurve(order, removed, worths)


def _refitted_worths(
    fitted: RefittedConsumers, game: NetworkGame, order: NDArray[np.int64], removed: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Worths after each number of players in ``removed`` has left; the consumers in the game's model are written."""
    coalitions = coalitions_along(order[None], len(order))[0]
    worths = [game(coalitions[:1])]
    for gone, player in enumerate(order.tolist(), 1):
        fitted.remove(player)
        if gone in removed:
            fitted.install(game.model)
            worths.append(game(coalitions[gone : gone + 1]))
    return np.concatenate(worths)


def layer_values(
    model: nn.Module,
    players: Players,
    scores: Mapping[str, Values],
    data: Iterable[Any] | Calibration,
    worth: AnyWorth | Evaluate = "fidelity",
    method: str | Method = "permutation",
    *,
    remove: float = 0.5,
    max_evaluations: int | None = None,
    seed: int = 0,
    forward: Forward | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> Values:
    """One value per group, for ``allocation="shapley-layers"``: the groups are the players of one game.

    As in SV-NUP (Sun et al. 2025, arXiv 2505.01731) a layer is a player. Here an absent layer has lost its least
    valuable ``remove`` share, which also means something where no shortcut leads around a layer.

    Args:
        model, players, scores, data, worth, forward, max_memory: see `sensitivity`.
        method, max_evaluations, seed: see `estimate`.
        remove: the share of its players that an absent group has lost, in (0, 1].

    Raises:
        InputError: a share out of range; and as `sensitivity` and `estimate`.
    """
    if not 0 < remove <= 1:
        raise InputError(f"remove is {remove!r}; it is the share that an absent group has lost, above 0, at most 1")
    game = NetworkGame(model, players, data, worth, forward=forward, max_memory=max_memory)
    return estimate(GroupsGame(game, players, scores, remove), method, max_evaluations, seed=seed)


class GroupsGame(Game):
    """The game over groups: of an absent group the least valuable players are gone.

    Args:
        game: the game over all players of all groups.
        players: those players.
        scores: values per group name.
        remove: the share of its players that an absent group has lost; at least one of them.
    """

    def __init__(self, game: Game, players: Players, scores: Mapping[str, Values], remove: float) -> None:
        self.game = game
        self.n_players, self.n_examples = len(players.groups), game.n_examples
        self.separable, self.repeatable, self.labels = game.separable, game.repeatable, game.labels
        self.gone: NDArray[np.bool_] = np.zeros((self.n_players, players.n), dtype=bool)
        for row, group in zip(self.gone, players.groups, strict=True):
            lost = max(1, round(remove * len(group)))
            row[group.indices[_ranking(group, scores)[:lost]]] = True

    def rounding(self, worth: float) -> float:
        return self.game.rounding(worth)

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        absent = (~np.asarray(coalitions, dtype=bool)).astype(np.int64)
        return self.game(absent @ self.gone.astype(np.int64) == 0, examples)
