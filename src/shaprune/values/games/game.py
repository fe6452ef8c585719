"""Games: what a coalition is worth. Anything callable on a boolean matrix is a game.

A *coalition* is a boolean row over the players (True = kept). The worth of a game may be a mean over
*examples*; then every (coalition, example) pair can be asked for on its own, which is what makes one
permutation per example possible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.values.games.arrays import Coalitions, Examples, Orders, Start, Worths
from shaprune.values.games.checks import check_worths
from shaprune.values.games.coalition_chains import coalitions_along as coalitions_along
from shaprune.values.games.coalition_chains import parts as parts

if TYPE_CHECKING:
    from shaprune.values.games.shapiq_bridge import ShapiqGame


MAX_TOGGLED_ENTRIES = 1 << 24  # entries of the coalitions that are asked for at once by `Game.derivatives`


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of a game in one go: the worths of coalitions, also with derivatives, or those met along walks.

    Attributes:
        rows: (R, n_players) bool coalitions, or (R, m) int orders of walks.
        examples: (R,) the example of each row; None = the mean over all examples.
        walks: whether ``rows`` are orders.
        start: where walks leave from, see `Game.walk`.
        derivatives: evaluations that a coalition with its derivatives is counted as; 0 = only worths are asked for.
    """

    rows: NDArray[Any]
    examples: Examples | None = None
    walks: bool = False
    start: Start | None = None
    derivatives: int = 0

    def of(self, game: Game) -> Worths:
        """Ask it: (R,) worths of coalitions, (R, n + 1) with derivatives, (R, m + 1) worths along walks."""
        if self.derivatives:
            return game.derivatives(self.rows, self.examples)
        return game.walk(self.rows, self.examples, self.start) if self.walks else game(self.rows, self.examples)

    def price(self, n_examples: int) -> int:
        """Evaluations that the answer takes in a game of so many examples."""
        each = self.rows.shape[1] + 1 if self.walks else max(self.derivatives, 1)
        return len(self.rows) * each * (n_examples if self.examples is None else 1)


class Game(ABC):
    """A cooperative game, possibly a mean over examples.

    Attributes:
        n_players: number of players.
        n_examples: number of examples behind a worth; 1 for a deterministic game.
        separable: single examples have worths, and the worth is their mean. False = there is only the worth over all
            examples (F1, AUROC, ...); then ``examples`` is refused.
        repeatable: known to answer alike every time, so that no check is needed.
        labels: (n_examples,) int64 class of each example, for values per class; None = unknown.
    """

    n_players: int
    n_examples: int = 1
    separable: bool = True
    repeatable: bool = False
    labels: NDArray[np.int64] | None = None

    @property
    def answered(self) -> int:
        """Evaluations that a log has answered so far instead of the game."""
        return 0

    @property
    def fingerprint(self) -> str | None:
        """What must be equal for worths to be of the same game (weights, data, metric); None = unknown."""
        return None

    @property
    def dense(self) -> NDArray[np.float64]:
        """(E,) numbers that say how the whole network behind the game answers, whatever the worth; empty = unknown."""
        return np.zeros(0)

    @property
    def rough(self) -> bool:
        """Whether worths are computed with few digits (bfloat16), so that other batches give visibly others."""
        return False

    @property
    def derivative_price(self) -> int:
        """Evaluations that one coalition with its derivatives is counted as, see `derivatives`."""
        return self.n_players + 1

    def rounding(self, worth: float) -> float:
        """Rounding error of a worth of this size; here that of float64."""
        return float(np.finfo(np.float64).eps) / 2 * abs(worth)

    @abstractmethod
    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        """Return the worth of each row.

        Args:
            coalitions: (R, n_players) bool, True = kept.
            examples: (R,) the example of each row; None = the mean over all examples.

        Returns:
            (R,) float64.
        """

    def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
        """Return the worths met as players leave a coalition one by one.

        Args:
            orders: (R, m) players in the order in which they leave; m may be smaller than ``n_players``,
                then the players that are not named stay.
            examples: (R,) the example of each walk; None = the mean over all examples.
            start: (n_players,) bool, the coalition that all walks leave from; None = all players. It holds all of
                ``orders``; players outside are absent from the beginning.

        Returns:
            (R, m + 1) float64: before anyone left, after the first, ..., after all m.
        """
        n, (walks, steps) = self.n_players, orders.shape
        worths = np.empty((walks, steps + 1))
        for some in parts(walks, (steps + 1) * n):
            for at in parts(steps + 1, (some.stop - some.start) * n):
                length = at.stop - at.start
                rows = None if examples is None else np.repeat(examples[some], length)
                coalitions = coalitions_along(orders[some], n, start, at).reshape(-1, n)
                worths[some, at] = check_worths(self(coalitions, rows), coalitions).reshape(-1, length)
        return worths

    def derivatives(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        """Return the worth of each row and how it changes with each player, by the derivative.

        Here by differences: the worth with the player minus the worth without it, the derivative of the multilinear
        extension. A game with a cheaper answer gives that, and its price: a network differentiates its worth by the
        masks, which is near the difference where the worth is near linear in the player.

        Args:
            coalitions, examples: as `__call__`.

        Returns:
            (R, n_players + 1) float64: the worth, then one derivative per player.
        """
        n, coalitions = self.n_players, np.asarray(coalitions, dtype=bool)
        found = np.empty((len(coalitions), n + 1))
        size = max(1, MAX_TOGGLED_ENTRIES // (n * (n + 1)))
        for part in (slice(start, start + size) for start in range(0, len(coalitions), size)):
            toggled = np.repeat(coalitions[part, None], n + 1, axis=1)
            toggled[:, np.arange(1, n + 1), np.arange(n)] ^= True
            rows = toggled.reshape(-1, n)
            which = None if examples is None else np.repeat(examples[part], n + 1)
            worths = check_worths(self(rows, which), rows).reshape(-1, n + 1)
            found[part, 0] = worths[:, 0]
            found[part, 1:] = np.where(toggled[:, 0], 1, -1) * (worths[:, :1] - worths[:, 1:])
        return found

    def stream(self, questions: Iterable[Question]) -> Iterator[Worths]:
        """Answer many questions, in their order; a game that works on several at once draws them ahead of the answers.

        ``questions`` may have no end; closing the iterator drops those that are under way.
        """
        for question in questions:
            yield question.of(self)

    @staticmethod
    def from_function(function: Callable[[Coalitions], Any], n_players: int) -> FunctionGame:
        """Make a deterministic game of any callable ``(R, n) bool -> (R,) numbers``."""
        return FunctionGame(function, n_players)

    def to_shapiq(self, *, player_names: Sequence[str] | None = None) -> ShapiqGame:
        """Return this game for shapiq (an extra), see `shaprune.values.games.shapiq_bridge.to_shapiq`.

        Raises:
            InputError: shapiq is not installed; names that are not one per player, each of its own.
        """
        from shaprune.values.games.shapiq_bridge import to_shapiq

        return to_shapiq(self, player_names=player_names)


class FunctionGame(Game):
    """A deterministic game around a callable on boolean matrices."""

    def __init__(self, function: Callable[[Coalitions], Any], n_players: int) -> None:
        if n_players < 1:
            raise InputError(f"n_players is {n_players}; a game needs at least one player")
        self.function = function
        self.n_players = n_players

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        return check_worths(self.function(coalitions), coalitions)


class GameWrapper(Game):
    """Forwards everything to another game; the base of wrappers that add one behaviour.

    `stream` asks the wrapper itself, one question after the other. A wrapper that can look ahead relays it, as
    `CostObserver` does.
    """

    def __init__(self, game: Game) -> None:
        self.game = game
        self.n_players = game.n_players
        self.n_examples = game.n_examples
        self.separable = game.separable
        self.repeatable = game.repeatable
        self.labels = game.labels

    @property
    def answered(self) -> int:
        return self.game.answered

    @property
    def fingerprint(self) -> str | None:
        return self.game.fingerprint

    @property
    def dense(self) -> NDArray[np.float64]:
        return self.game.dense

    @property
    def rough(self) -> bool:
        return self.game.rough

    @property
    def derivative_price(self) -> int:
        return self.game.derivative_price

    def rounding(self, worth: float) -> float:
        return self.game.rounding(worth)

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        worths = self.game(coalitions, examples)
        self.paid(len(coalitions) * (self.n_examples if examples is None else 1))
        return worths

    def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
        worths = self.game.walk(orders, examples, start)
        self.paid(worths.size * (self.n_examples if examples is None else 1))
        return worths

    def derivatives(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        answer = self.game.derivatives(coalitions, examples)
        self.paid(len(coalitions) * self.derivative_price * (self.n_examples if examples is None else 1))
        return answer

    def paid(self, evaluations: int) -> None:
        """Called after every answer with the number of evaluations it took."""


class StreamedGame(GameWrapper):
    """A wrapper that asks everything through its own `stream`."""

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        return next(self.stream([Question(coalitions, examples)]))

    def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
        return next(self.stream([Question(orders, examples, True, start)]))

    def derivatives(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        return next(self.stream([Question(coalitions, examples, derivatives=self.derivative_price)]))


class CostObserver(GameWrapper):
    """A wrapper that only looks at what is paid."""

    def stream(self, questions: Iterable[Question]) -> Iterator[Worths]:
        for question, worths in relay_questions(self.game, questions):
            self.paid(question.price(self.n_examples))
            yield worths


class CountingGame(CostObserver):
    """Counts evaluations: (coalition, example) rows asked of the game behind it."""

    evaluations = 0

    def price(self, coalitions: int) -> int:
        """Evaluations of so many coalitions over all examples."""
        return coalitions * self.n_examples

    def paid(self, evaluations: int) -> None:
        self.evaluations += evaluations


class ObservedGame(CostObserver):
    """Reports evaluations to a callback as they are paid, for progress bars."""

    def __init__(self, game: Game, on_paid: Callable[[int], None]) -> None:
        super().__init__(game)
        self.on_paid = on_paid

    def paid(self, evaluations: int) -> None:
        self.on_paid(evaluations)


def relay_questions(
    game: Game, questions: Iterable[Question], put: Callable[[Question], Question] | None = None
) -> Iterator[tuple[Question, Worths]]:
    """Every question with its answer; ``game`` is asked ``put(question)``, and may draw questions ahead."""
    asked: deque[Question] = deque()

    def ahead() -> Iterator[Question]:
        for question in questions:
            asked.append(question)
            yield question if put is None else put(question)

    for worths in game.stream(ahead()):
        yield asked.popleft(), worths
