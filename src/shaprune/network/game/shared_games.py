"""Several worths in one pass: games that share the outputs of the network.

The first game that is asked something runs the network and judges the outputs by every worth; the others' answers are
kept. The same estimator with the same seed asks every game the same, so that only the first pays forward passes. A game
answers the same bits as it would on its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import nn

from shaprune.errors import InputError
from shaprune.network.batches import Forward
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.evaluation import WorthEvaluator, evaluate_coalitions, evaluate_walks
from shaprune.network.game.network_game import DEFAULT_MAX_MEMORY, NetworkGame
from shaprune.network.game.subset_worth import Only, restrict_to_subset
from shaprune.network.game.worths import AnyWorth, Evaluate
from shaprune.players.players import Players
from shaprune.values.games.arrays import Coalitions, Examples, Orders, Start, Worths
from shaprune.values.games.game import Game, GameWrapper


def several(
    model: nn.Module,
    players: Players,
    data: Iterable[Any] | Calibration,
    worths: Sequence[AnyWorth | Only],
    group: str | Sequence[str] | None = None,
    *,
    forward: Forward | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> list[Game]:
    """One game per worth, on one network and the same data; what one has run, the others need not run again.

    Worths per row share walks and rows; set worths (metrics, perplexity) have no worths of single examples, and share
    with the others what is asked over all examples. Worths around `Only` share where they choose the same examples.

    Args:
        model, players, data, group, forward: see `NetworkGame`.
        worths: see `NetworkGame`; not `Evaluate`, which runs the model itself.
        max_memory: see `NetworkGame`; a quarter of it more for answers that are kept, the oldest of which are dropped.

    Raises:
        InputError, GameError: as `NetworkGame`; a worth that fails for a coalition fails for all games that share.
    """
    if isinstance(worths, str) or not isinstance(worths, Sequence) or not worths:
        raise InputError(f"worths is {worths!r}; give a list of worths, such as ['accuracy', 'cross_entropy']")
    if any(isinstance(worth, Evaluate) for worth in worths):
        raise InputError("Evaluate runs the model itself and cannot share a pass; make a NetworkGame of its own")
    calibration = Calibration.of(model, data, forward, max_memory=max_memory)
    shelves: list[_AnswerCache] = []
    games: list[Game] = []
    for worth in worths:
        examples, judged_by = restrict_to_subset(calibration, worth)
        shelf = next((s for s in shelves if s.games[0].calibration is examples), None)
        if shelf is None:
            game = NetworkGame(model, players, examples, judged_by, group, max_memory=max_memory)
            shelf = _AnswerCache(max_memory // 4)
            shelves.append(shelf)
        else:
            game = shelf.games[0].judged_by(judged_by)
        shelf.games.append(game)
        games.append(SharedGame(game, shelf))
    return games


class SharedGame(GameWrapper):
    """A game that looks on the shelf before it runs the network."""

    def __init__(self, game: NetworkGame, shelf: _AnswerCache) -> None:
        super().__init__(game)
        self._game, self._shelf = game, shelf

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        coalitions = self._game.checked_rows(coalitions, examples)
        key = _key("rows", np.packbits(coalitions), np.array(coalitions.shape), examples)
        return self._shelf.answer(
            self._game, key, examples, lambda evaluators: evaluate_coalitions(evaluators, coalitions, examples)
        )

    def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
        start = self._game.checked_start(orders, examples, start)
        key = _key("walks", orders, np.array(orders.shape), examples, start)
        return self._shelf.answer(
            self._game, key, examples, lambda evaluators: evaluate_walks(evaluators, orders, examples, start)
        )


class _AnswerCache:
    """Answers of games that share, by what was asked; at most ``max_memory`` bytes, the oldest are dropped."""

    def __init__(self, max_memory: int) -> None:
        self.games: list[NetworkGame] = []
        self.max_memory, self.bytes = max_memory, 0
        self.kept: dict[tuple[bytes, NetworkGame], Worths] = {}

    def answer(
        self,
        game: NetworkGame,
        key: bytes,
        examples: Examples | None,
        run: Callable[[list[WorthEvaluator]], list[Worths]],
    ) -> Worths:
        """The answer of ``game``; where it is not here, all games that can be asked the same are."""
        found = self.kept.get((key, game))
        if found is not None:
            return found.copy()
        able = [other for other in self.games if examples is None or other.separable]
        for other, worths in zip(able, run([other.evaluator for other in able]), strict=True):
            if other is game:
                found = worths
            self._keep((key, other), worths)
        assert found is not None
        return found.copy()

    def _keep(self, key: tuple[bytes, NetworkGame], worths: Worths) -> None:
        replaced = self.kept.pop(key, None)
        self.bytes += worths.nbytes - (0 if replaced is None else replaced.nbytes)
        self.kept[key] = worths
        while self.bytes > self.max_memory:
            self.bytes -= self.kept.pop(next(iter(self.kept))).nbytes


def _key(kind: str, *arrays: Any) -> bytes:
    digest = hashlib.sha256(kind.encode())
    for array in arrays:
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        digest.update(b"|")
    return digest.digest()
