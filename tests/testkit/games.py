"""Games and slow, independent oracles for the estimators; nothing here uses the package's own arithmetic."""

from collections.abc import Callable, Mapping
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from shaprune.values.games.arrays import Coalitions, Examples, Orders, Start, Worths
from shaprune.values.games.game import Game

Worth = Callable[[frozenset[int]], float]


def game_of(worth: Worth, n: int) -> Game:
    """A game from a worth of sets of players."""
    return Game.from_function(lambda rows: [worth(frozenset(np.flatnonzero(row).tolist())) for row in rows], n)


def random_worth(n: int, seed: int) -> Worth:
    """A game without any structure: every coalition, the empty one too, has a worth of its own."""
    rng = np.random.default_rng(seed)
    subsets = (frozenset(c) for size in range(n + 1) for c in combinations(range(n), size))
    table = {subset: float(worth) for subset, worth in zip(subsets, rng.normal(size=2**n), strict=True)}
    return table.__getitem__


def by_all_orders(worth: Worth, n: int) -> NDArray[np.float64]:
    """Shapley values by their first definition: the mean over all n! orders of what a player adds on arrival."""
    orders = list(permutations(range(n)))
    value = np.zeros(n)
    for order in orders:
        for position, player in enumerate(order):
            before = frozenset(order[:position])
            value[player] += worth(before | {player}) - worth(before)
    return value / len(orders)


def by_sizes(worth: Worth, n: int, low: int, high: int) -> NDArray[np.float64]:
    """Values in a window of sizes low..high: the mean over sizes of the mean of what a player adds to a coalition."""
    value = np.zeros(n)
    for player in range(n):
        others = [p for p in range(n) if p != player]
        means = [
            np.mean([worth(frozenset(c) | {player}) - worth(frozenset(c)) for c in combinations(others, size)])
            for size in range(low, high)
        ]
        value[player] = np.mean(means)
    return value


def by_subsets(worth: Worth, n: int, coefficient: Callable[[int], float]) -> NDArray[np.float64]:
    """A semivalue by definition: what a player adds to each coalition S of others, times coefficient(|S|), summed."""
    value = np.zeros(n)
    for player in range(n):
        others = [p for p in range(n) if p != player]
        for size in range(n):
            for members in combinations(others, size):
                before = frozenset(members)
                value[player] += coefficient(size) * (worth(before | {player}) - worth(before))
    return value


def unanimity(coefficients: Mapping[frozenset[int], float]) -> Worth:
    """A weighted sum of unanimity games: each pays once all of its members are there."""
    return lambda kept: sum(weight for members, weight in coefficients.items() if members <= kept)


def unanimity_values(coefficients: Mapping[frozenset[int], float], n: int) -> NDArray[np.float64]:
    """Closed form: the members of each unanimity game share its weight alike (Harsanyi dividends)."""
    value = np.zeros(n)
    for members, weight in coefficients.items():
        for player in members:
            value[player] += weight / len(members)
    return value


class TableGame(Game):
    """A mean over examples, each with its own random worth of every coalition; it notes which examples are asked for.

    ``spread`` is the size of an additive part that differs from example to example, and drowns the rest where large.
    A table answers alike every time, so nobody pays for checking it; tests of the check set ``repeatable`` to False.
    """

    repeatable = True

    def __init__(self, n_players: int, n_examples: int, seed: int, spread: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.n_players, self.n_examples = n_players, n_examples
        self.tables = rng.normal(size=(n_examples, 2**n_players))
        kept = np.arange(2**n_players)[:, None] >> np.arange(n_players) & 1
        self.tables += spread * rng.normal(size=(n_examples, n_players)) @ kept.T
        self.walked: list[int] = []  # the example of every walk, in order; -1 for a mean over all

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        codes = coalitions @ (1 << np.arange(self.n_players))
        return self.tables.mean(0)[codes] if examples is None else self.tables[examples, codes]

    def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
        self.walked += [-1] * len(orders) if examples is None else examples.tolist()
        return super().walk(orders, examples, start)

    def truth(self) -> NDArray[np.float64]:
        return by_all_orders(self.mean_worth, self.n_players)

    def mean_worth(self, kept: frozenset[int]) -> float:
        return float(self.tables[:, sum(1 << player for player in kept)].mean())

    def worth_of(self, example: int) -> Worth:
        return lambda kept: float(self.tables[example, sum(1 << player for player in kept)])
