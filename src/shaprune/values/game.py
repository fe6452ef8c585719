"""Games: what a coalition is worth. Anything callable on a boolean matrix is a game.

A *coalition* is a boolean row over the players (True = kept). The worth of a game may be a mean over
*examples*; then every (coalition, example) pair can be asked for on its own, which is what makes one
permutation per example possible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import GameError, InputError

Coalitions = NDArray[np.bool_]  # (R, n_players), True = kept
Examples = NDArray[np.int64]  # (R,)
Worths = NDArray[np.float64]  # (R,), higher is better
Orders = NDArray[np.int64]  # (R, m), players in the order in which they leave


class Game(ABC):
    """A cooperative game, possibly a mean over examples.

    Attributes:
        n_players: number of players.
        n_examples: number of examples that the worth averages over; 1 for a deterministic game.
    """

    n_players: int
    n_examples: int = 1

    @abstractmethod
    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        """Return the worth of each row.

        Args:
            coalitions: (R, n_players) bool, True = kept.
            examples: (R,) the example of each row; None = the mean over all examples.

        Returns:
            (R,) float64.
        """

    def walk(self, orders: Orders, examples: Examples | None = None) -> Worths:
        """Return the worths met as players leave the full coalition one by one.

        Args:
            orders: (R, m) players in the order in which they leave; m may be smaller than ``n_players``,
                then the players that are not named stay.
            examples: (R,) the example of each walk; None = the mean over all examples.

        Returns:
            (R, m + 1) float64: before anyone left, after the first, ..., after all m.
        """
        walks, steps = orders.shape
        rows = None if examples is None else np.repeat(examples, steps + 1)
        coalitions = chain(orders, self.n_players).reshape(-1, self.n_players)
        return checked(self(coalitions, rows), coalitions).reshape(walks, steps + 1)

    @staticmethod
    def from_function(function: Callable[[Coalitions], Any], n_players: int) -> FunctionGame:
        """Make a deterministic game of any callable ``(R, n) bool -> (R,) numbers``."""
        return FunctionGame(function, n_players)


class FunctionGame(Game):
    """A deterministic game around a callable on boolean matrices."""

    def __init__(self, function: Callable[[Coalitions], Any], n_players: int) -> None:
        if n_players < 1:
            raise InputError(f"n_players is {n_players}; a game needs at least one player")
        self.function = function
        self.n_players = n_players

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        return checked(self.function(coalitions), coalitions)


class GameWrapper(Game):
    """Forwards everything to another game; the base of wrappers that add one behaviour."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.n_players = game.n_players
        self.n_examples = game.n_examples

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        worths = self.game(coalitions, examples)
        self.paid(len(coalitions) * (self.n_examples if examples is None else 1))
        return worths

    def walk(self, orders: Orders, examples: Examples | None = None) -> Worths:
        worths = self.game.walk(orders, examples)
        self.paid(worths.size * (self.n_examples if examples is None else 1))
        return worths

    def paid(self, evaluations: int) -> None:
        """Called after every answer with the number of evaluations it took."""


class CountingGame(GameWrapper):
    """Counts evaluations: (coalition, example) rows asked of the game behind it."""

    evaluations = 0

    def paid(self, evaluations: int) -> None:
        self.evaluations += evaluations


class ObservedGame(GameWrapper):
    """Reports evaluations to a callback as they are paid, for progress bars."""

    def __init__(self, game: Game, on_paid: Callable[[int], None]) -> None:
        super().__init__(game)
        self.on_paid = on_paid

    def paid(self, evaluations: int) -> None:
        self.on_paid(evaluations)


def chain(orders: Orders, n_players: int) -> NDArray[np.bool_]:
    """Coalitions met along walks: (R, m) orders -> (R, m + 1, n_players) bool."""
    walks, steps = orders.shape
    leaves_at = np.full((walks, n_players), steps, dtype=np.int64)
    np.put_along_axis(leaves_at, orders, np.broadcast_to(np.arange(steps), orders.shape), axis=1)
    return leaves_at[:, None, :] >= np.arange(steps + 1)[None, :, None]


def describe(coalition: NDArray[np.bool_]) -> str:
    """Describe a coalition in a message, by the smaller of its two halves."""
    kept, removed = np.flatnonzero(coalition), np.flatnonzero(~coalition)
    if removed.size == 0:
        return "the full coalition"
    if kept.size == 0:
        return "the empty coalition"
    word, few = ("without", removed) if removed.size <= kept.size else ("with only", kept)
    shown = ", ".join(map(str, few[:8])) + (", ..." if few.size > 8 else "")
    return f"the coalition {word} player{'s' if few.size > 1 else ''} {shown}"


def checked(answer: Any, coalitions: Coalitions) -> Worths:
    """Worths as a game answered them, (R,) float64.

    Raises:
        GameError: not one number per row, or NaN or infinite for some coalition, which is named.
    """
    worths = np.asarray(answer, dtype=np.float64)
    if worths.shape != (len(coalitions),):
        raise GameError(
            f"the game returned shape {worths.shape} for {len(coalitions)} coalitions; "
            f"it must return one number per row, shape ({len(coalitions)},)"
        )
    bad = np.flatnonzero(~np.isfinite(worths))
    if bad.size:
        raise GameError(f"the game's worth is {worths[bad[0]]} for {describe(coalitions[bad[0]])}")
    return worths


def checked_walks(answer: Any, orders: Orders, n_players: int) -> Worths:
    """Worths along walks as a game answered them, (R, m + 1) float64; raises `GameError` as `checked` does."""
    worths = np.asarray(answer, dtype=np.float64)
    shape = (len(orders), orders.shape[1] + 1)
    if worths.shape != shape:
        raise GameError(f"the game's walk returned shape {worths.shape}; it must be {shape}")
    bad = np.argwhere(~np.isfinite(worths))
    if len(bad):
        walk, step = bad[0]
        kept = chain(orders[walk : walk + 1], n_players)[0, step]
        raise GameError(f"the game's worth is {worths[walk, step]} for {describe(kept)}")
    return worths
