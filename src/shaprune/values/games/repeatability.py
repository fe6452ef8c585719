"""Repeatability: a wrapper that detects a game that answers the same question in two ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from shaprune.errors import GameError
from shaprune.values.games.arrays import Coalitions, Examples, Orders, Start, Worths
from shaprune.values.games.checks import describe_coalition
from shaprune.values.games.game import CountingGame, Game, GameWrapper, Question, relay_questions

ROUNDING_TOLERANCE = 1e-4  # relative difference that rounding in float32 explains, also with other batch sizes


def worths_agree(one: float, other: float) -> bool:
    """Whether two answers to the same question differ by no more than rounding."""
    return abs(one - other) <= ROUNDING_TOLERANCE * max(abs(one), abs(other), 1.0)


class RepeatabilityCheck(GameWrapper):
    """Compares the answers for the full and the empty coalition, which most estimators ask for again and again.

    It also notes how large the worths are, and how far they lie apart on the same examples.

    Where an estimate asks for neither, the first coalition that it asks for is noted instead.
    """

    def __init__(self, game: Game) -> None:
        super().__init__(game)
        self._noted = [np.ones(self.n_players, dtype=bool), np.zeros(self.n_players, dtype=bool)]
        self._known: dict[tuple[int, int], float] = {}  # (index in _noted, example; -1 = all) -> worth
        self._again = False  # some coalition has been answered twice
        self._sum, self._heard = 0.0, 0
        self._least, self._most, self.spread = np.inf, -np.inf, 0.0

    @property
    def size(self) -> float:
        """Mean size of the worths."""
        return self._sum / max(self._heard, 1)

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        worths = self.game(coalitions, examples)
        self._hear(Question(coalitions, examples), worths)
        return worths

    def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
        worths = self.game.walk(orders, examples, start)
        self._hear(Question(orders, examples, True, start), worths)
        return worths

    def derivatives(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        answer = self.game.derivatives(coalitions, examples)
        self._hear(Question(coalitions, examples, derivatives=self.derivative_price), answer)
        return answer

    def stream(self, questions: Iterable[Question]) -> Iterator[Worths]:
        for question, worths in relay_questions(self.game, questions):
            self._hear(question, worths)
            yield worths

    def ask_again(self, through: CountingGame, budget: int | None) -> None:
        """Ask one question again where nothing has been asked twice, as far as the budget goes.

        That is the worth of the full coalition where it is known, else of another: over all examples, or on each of the
        examples where it is known. It costs ``n_examples`` evaluations at most.

        Raises:
            GameError: the answer differs.
        """
        if self.repeatable or self._again or not self._known:
            return
        which = min(which for which, _ in self._known)
        examples = np.array([example for w, example in self._known if w == which], dtype=np.int64)
        whole = bool((examples < 0).any())
        rows = 1 if whole else len(examples)
        if budget is not None:
            rows = min(rows, budget // through.price(1) if whole else budget)
        if rows:
            through(np.tile(self._noted[which], (rows, 1)), None if whole else examples[:rows])

    def _hear(self, question: Question, answer: Worths) -> None:
        rows, examples, worths = question.rows, question.examples, np.asarray(answer)
        if question.derivatives and worths.ndim == 2:
            worths = worths[:, 0]
        self._sum, self._heard = self._sum + float(np.abs(worths).sum()), self._heard + worths.size
        if question.walks and worths.ndim == 2 and worths.size:
            self.spread = max(self.spread, float(np.ptp(worths, axis=1).max()))
        elif examples is None and worths.size:
            self._least, self._most = min(self._least, float(worths.min())), max(self._most, float(worths.max()))
            self.spread = max(self.spread, self._most - self._least)
        shape = (len(rows), rows.shape[1] + 1) if question.walks else (len(rows),)
        if self.repeatable or worths.shape != shape:  # another shape: the caller says what is wrong
            return
        if question.walks:
            if question.start is None:
                self._compare(0, worths[:, 0], examples)
                if rows.shape[1] == self.n_players:
                    self._compare(1, worths[:, -1], examples)
            return
        if not self._known and len(rows) and len(self._noted) == 2:
            self._noted.append(np.array(rows[0], dtype=bool))
        for which, kept in enumerate(self._noted):
            same = np.flatnonzero(np.all(rows == kept, axis=1))
            self._compare(which, worths[same], None if examples is None else examples[same])

    def _compare(self, which: int, worths: Worths, examples: Examples | None) -> None:
        keys = np.full(len(worths), -1) if examples is None else examples
        for key, worth in zip(keys.tolist(), worths.tolist(), strict=True):
            known = self._known.setdefault((which, key), worth)
            if known is worth or not np.isfinite(known):  # the caller refuses what is not finite
                continue
            self._again = True
            if not worths_agree(known, worth):
                of = describe_coalition(self._noted[which])
                where = "" if key < 0 else f" on example {key}"
                raise GameError(
                    f"the game changes its answer: {of}{where} was worth {known} and then {worth}; "
                    "switch off what is random in it (dropout, augmentation, shuffling), or fix its seed"
                )
