"""Observers of games: a callback per question with its answer and price."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from shaprune.values.games.arrays import Worths
from shaprune.values.games.game import Game, Question, StreamedGame, relay_questions
from shaprune.values.result import Values


class GameObserver(Protocol):
    """Callbacks on the games of a run, from several threads where there are workers."""

    def opens(self, expected: Mapping[str, int | None]) -> None:
        """These games will be played, with so many evaluations; None = unknown."""

    def begins(self, group: str, n_players: int) -> None:
        """A game begins."""

    def answered(self, group: str, question: Question, worths: Worths, evaluations: int) -> None:
        """The game has answered, which took so many evaluations."""

    def ends(self, group: str, values: Values) -> None:
        """The values of the game are known."""


class ReportingGame(StreamedGame):
    """Calls a callback with every question, with its answer and price."""

    def __init__(self, game: Game, tell: Callable[[Question, Worths, int], None]) -> None:
        super().__init__(game)
        self.tell = tell

    def stream(self, questions: Iterable[Question]) -> Iterator[Worths]:
        for question, worths in relay_questions(self.game, questions):
            self.tell(question, worths, question.price(self.n_examples))
            yield worths
