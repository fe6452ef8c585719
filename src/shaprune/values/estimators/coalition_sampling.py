"""Random coalitions by size, none of them twice.

A *unit* of a sample is a coalition, or a coalition together with its complement. Units fall into classes by their
size, and a sample spreads over the classes in proportion to given shares; a class that is drawn whole passes what is
left to the others. Where every class gets at least one unit that makes a stratified sample without replacement.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb, lgamma, log

import numpy as np
from numpy.typing import NDArray

from shaprune.values.games.arrays import Coalitions

MAX_LISTED = 4096  # a class of up to so many coalitions is listed; larger ones only where much of them is drawn
MAX_COUNT = 1 << 62  # stands for every larger number of coalitions


class SizeSampler:
    """Draws coalitions of random sizes without replacement; a sample may grow.

    Args:
        shares: (n + 1,) relative number of coalitions of each size; 0 = none.
        paired: a unit is a coalition and its complement; ``shares`` must be symmetric.
        repeated: the same unit may be drawn again.

    Attributes:
        capacity: (classes,) number of units that there are, 2^62 at most.
        drawn: (classes,) number of units drawn so far.
        expected: (classes,) their expected number.
    """

    def __init__(self, shares: NDArray[np.float64], *, paired: bool = False, repeated: bool = False) -> None:
        n = self.n = len(shares) - 1
        self.paired, self.repeated = paired, repeated
        self.sizes = np.array([s for s in range(n // 2 + 1 if paired else n + 1) if shares[s] > 0], dtype=np.int64)
        units = [_choose(n, s) // (2 if paired and 2 * s == n else 1) for s in self.sizes.tolist()]
        self.capacity = np.full(len(units), float(MAX_COUNT)) if repeated else np.array(units, dtype=np.float64)
        double = np.where(2 * self.sizes == n, 1, 2) if paired else 1
        self.shares = np.asarray(shares[self.sizes] * double, dtype=np.float64)
        self.drawn = np.zeros(len(units), dtype=np.int64)
        self.expected = np.zeros(len(units))
        self._lists: dict[int, Coalitions] = {}
        self._seen: dict[int, set[bytes]] = {}

    @property
    def left(self) -> float:
        """Units that have not been drawn yet (a large number where they are too many to count)."""
        return float((self.capacity - self.drawn).sum())

    def draw(self, count: int, rng: np.random.Generator, *, balanced: bool = False) -> Coalitions:
        """(at most ``count``, n) further units, in random order; fewer only where no more are left.

        ``balanced``: those of a class contain all players equally often, as far as possible (see `blocks`).
        """
        count = int(min(count, self.left))
        self.expected = spread(float(self.drawn.sum() + count), self.capacity, self.shares)
        more = self._rounded(count, rng)
        rows = [self._of_class(k, int(c), rng, blocks if balanced else subsets) for k, c in enumerate(more) if c]
        self.drawn += more
        if not rows:
            return np.zeros((0, self.n), dtype=bool)
        return np.concatenate(rows)[rng.permutation(count)]

    def class_of(self, coalitions: Coalitions) -> NDArray[np.int64]:
        """(R,) index of each unit's class."""
        size = coalitions.sum(1)
        if self.paired:
            size = np.minimum(size, self.n - size)
        return np.asarray(np.searchsorted(self.sizes, size), dtype=np.int64)

    def _rounded(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Whole numbers of further units that sum to ``count``; the fractions by systematic sampling."""
        missing = np.maximum(self.expected - self.drawn, 0)
        missing *= count / max(missing.sum(), 1e-300)  # growth by rounding may have run ahead in some classes
        more = np.minimum(np.floor(missing + 1e-9), self.capacity - self.drawn).astype(np.int64)
        while (rest := count - int(more.sum())) > 0:
            room = self.capacity - self.drawn - more > 0
            fraction = np.where(room, np.maximum(missing - more, 1e-12), 0)
            turn = rng.permutation(np.flatnonzero(room))[: len(fraction)]
            ends = np.cumsum(fraction[turn])
            step = ends[-1] / min(rest, len(turn))
            marks = (rng.random() + np.arange(min(rest, len(turn)))) * step
            np.add.at(more, np.unique(turn[np.minimum(np.searchsorted(ends, marks), len(turn) - 1)]), 1)
        return more

    def _of_class(
        self,
        k: int,
        count: int,
        rng: np.random.Generator,
        random: Callable[[int, int, int, np.random.Generator], Coalitions],
    ) -> Coalitions:
        """``count`` units of class ``k`` that have not been drawn."""
        n, size, drawn = self.n, int(self.sizes[k]), int(self.drawn[k])
        if self.repeated:
            return random(n, size, count, rng)
        few = self.capacity[k] <= max(MAX_LISTED, 4 * (drawn + count))
        if k not in self._lists and few and (random is subsets or count == self.capacity[k]):
            rows = _all_of(n, size)[: int(self.capacity[k])]
            rows = rows[rng.permutation(len(rows))]
            seen = self._seen.pop(k, set())
            self._lists[k] = rows[[self._key(row) not in seen for row in rows]] if seen else rows
        if k in self._lists:
            rows, self._lists[k] = self._lists[k][:count], self._lists[k][count:]
            return rows
        seen = self._seen.setdefault(k, set())
        found: list[NDArray[np.bool_]] = []
        while len(found) < count:
            for row in random(n, size, count - len(found), rng):
                key = self._key(row)
                if key not in seen:
                    seen.add(key)
                    found.append(row)
        return np.array(found)

    def _key(self, row: NDArray[np.bool_]) -> bytes:
        """Equal for the two halves of a pair."""
        return np.packbits(~row if self.paired and not row[0] else row).tobytes()


class WalkSampler(SizeSampler):
    """Draws the coalitions met along random orders, sizes 1..n-1; one that has been met before is skipped.

    Within a size they are uniformly random, as those of `SizeSampler` are; those of one order contain each other.
    """

    def __init__(self, n: int, *, paired: bool) -> None:
        super().__init__(np.concatenate([[0.0], np.ones(n - 1), [0.0]]), paired=paired)
        self._met: set[bytes] = set()

    def draw(self, count: int, rng: np.random.Generator, *, balanced: bool = False) -> Coalitions:
        count = int(min(count, self.left))
        found: list[NDArray[np.bool_]] = []
        while len(found) < count:
            for row in prefixes(self.n, -(-(count - len(found)) // (self.n - 1)), rng):
                key = self._key(row)
                if key not in self._met and len(found) < count:
                    self._met.add(key)
                    found.append(row)
        rows = np.array(found, dtype=bool).reshape(-1, self.n)
        np.add.at(self.drawn, self.class_of(rows), 1)
        self.expected = spread(float(self.drawn.sum()), self.capacity, self.shares)
        return rows


def subsets(n: int, size: int, count: int, rng: np.random.Generator) -> Coalitions:
    """(count, n) uniformly random coalitions of ``size`` players, independent of each other."""
    rows = np.zeros((count, n), dtype=bool)
    few = min(size, n - size)
    np.put_along_axis(rows, rng.random((count, n)).argsort(axis=1)[:, :few], True, axis=1)
    return rows if few == size else ~rows


def blocks(n: int, size: int, count: int, rng: np.random.Generator) -> Coalitions:
    """(count, n) coalitions of ``size`` players that contain all players equally often, as far as possible.

    They are neighbouring pieces of random orders laid end to end. Each is uniformly random; together they are balanced.
    """
    few = min(size, n - size)
    rows = np.zeros((count, n), dtype=bool)
    rest = rng.permutation(n)
    for row in rows:
        if len(rest) < few:
            order = rng.permutation(n)
            fill = order[~np.isin(order, rest)][: few - len(rest)]
            rest = np.concatenate([rest, fill, order[~np.isin(order, fill)]])
        row[rest[:few]] = True
        rest = rest[few:]
    return rows if few == size else ~rows


def prefixes(n: int, walks: int, rng: np.random.Generator) -> Coalitions:
    """(walks * (n - 1), n) coalitions met along random orders, sizes 1..n-1, the sizes of a walk in random order."""
    place = rng.permuted(np.tile(np.arange(n), (walks, 1)), axis=1)
    size = rng.permuted(np.tile(np.arange(1, n), (walks, 1)), axis=1)
    rows: Coalitions = np.less(place[:, None, :], size[:, :, None])
    return rows.reshape(-1, n)


def spread(total: float, capacity: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spread ``total`` in proportion to ``shares``; no class takes more than its capacity, the others take its rest."""
    result = np.zeros(len(shares))
    free = np.ones(len(shares), dtype=bool)
    left = min(total, float(capacity.sum()))
    while free.any():
        part = left * shares / shares[free].sum()
        full = free & (part >= capacity)
        if not full.any():
            return np.where(free, part, result)
        result[full] = capacity[full]
        left -= float(capacity[full].sum())
        free &= ~full
    return result


def _choose(n: int, size: int) -> int:
    if lgamma(n + 1) - lgamma(size + 1) - lgamma(n - size + 1) > 62 * log(2):
        return MAX_COUNT
    return comb(n, size)


def _all_of(n: int, size: int) -> Coalitions:
    """All coalitions of one size; the first half holds no two complements where ``size`` is n / 2."""
    if n <= 24:
        codes = np.arange(1 << n, dtype=np.uint32)
        codes = codes[np.bitwise_count(codes) == size]
        return np.asarray(codes[:, None] >> np.arange(n, dtype=np.uint32) & 1, dtype=bool)
    few = min(size, n - size)
    chosen = np.array(list(combinations(range(n), few)), dtype=np.int64).reshape(comb(n, few), few)
    rows = np.zeros((len(chosen), n), dtype=bool)
    np.put_along_axis(rows, chosen, True, axis=1)
    return rows if few == size else ~rows
