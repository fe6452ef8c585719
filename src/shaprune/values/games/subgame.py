"""Subgame of the players that are not settled; the others are in or out for good."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shaprune.values.games.arrays import Coalitions, Examples, Orders, Start, Worths
from shaprune.values.games.game import Game, GameWrapper, Question, relay_questions


class Subgame(GameWrapper):
    """A game over some players of another.

    Args:
        game: the whole game.
        players: (k,) those who play.
        base: (n,) bool, who of the others is there for good; entries of ``players`` are ignored.
    """

    def __init__(self, game: Game, players: NDArray[np.int64], base: NDArray[np.bool_]) -> None:
        super().__init__(game)
        self.players = np.asarray(players, dtype=np.int64)
        self.base = np.array(base, dtype=bool)
        self.n_players = len(self.players)

    @property
    def fingerprint(self) -> str | None:
        return None  # the whole game's log is the one to keep

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        return super().__call__(self._whole(coalitions), examples)

    def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
        return self._of_the_whole(Question(orders, examples, True, start)).of(self.game)

    def derivatives(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        return self._ours(self.game.derivatives(self._whole(coalitions), examples))

    def stream(self, questions: Iterable[Question]) -> Iterator[Worths]:
        for question, worths in relay_questions(self.game, questions, self._of_the_whole):
            yield self._ours(worths) if question.derivatives else worths

    def _ours(self, derivatives: Worths) -> Worths:
        """The worths, and the derivatives by those who play."""
        return derivatives[:, np.append(0, self.players + 1)]

    def _of_the_whole(self, question: Question) -> Question:
        if not question.walks:
            return replace(question, rows=self._whole(question.rows))
        start = np.ones(self.n_players, dtype=bool) if question.start is None else question.start
        return Question(self.players[question.rows], question.examples, True, self._whole(start[None])[0])

    def _whole(self, coalitions: Coalitions) -> Coalitions:
        whole = np.tile(self.base, (len(coalitions), 1))
        whole[:, self.players] = coalitions
        return whole
