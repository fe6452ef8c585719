"""Sufficient statistics of marginal contributions: chunks merge by addition, one pure function finishes.

A *sample* is what one independent draw says about every player: one walk, or the mean of an antithetic pair. In a size
window a walk says nothing about the players that never leave, hence ``present``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shaprune.values.game import Orders, Worths
from shaprune.values.window import Window


@dataclass(frozen=True)
class Statistics:
    """Sums over samples; every array is (n_players,) float64.

    ``between`` are sums of squares over all samples, ``within`` sums of squared half-differences between two samples of
    the same example, which leave the difference between examples out.
    """

    total: NDArray[np.float64]
    square: NDArray[np.float64]
    count: NDArray[np.float64]
    within: NDArray[np.float64]
    pairs: NDArray[np.float64]
    walks: int
    first: float
    last: float

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.total + other.total,
            self.square + other.square,
            self.count + other.count,
            self.within + other.within,
            self.pairs + other.pairs,
            self.walks + other.walks,
            self.first + other.first,
            self.last + other.last,
        )

    def mean(self) -> NDArray[np.float64]:
        """Value per player; 0 for a player that no sample has seen yet."""
        return self.total / np.maximum(self.count, 1)

    def stderr(self) -> NDArray[np.float64]:
        """Standard error of `mean`; inf below two samples.

        Where every player has paired samples (each example drawn at least twice) the examples are taken as given and
        only the randomness of the orders counts. Otherwise the variance over all samples is used: it includes the
        difference between examples, so it errs on the safe side once every example has been drawn.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            if np.all(self.pairs > 0):
                variance = self.within / self.pairs
            else:
                variance = np.maximum(self.square - self.count * self.mean() ** 2, 0) / (self.count - 1)
            error = np.sqrt(variance / self.count)
        return np.where(self.count >= 2, error, np.inf)


def empty(n_players: int) -> Statistics:
    """Statistics of no samples."""
    zeros = np.zeros(n_players)
    return Statistics(zeros, zeros, zeros, zeros, zeros, 0, 0.0, 0.0)


def from_walks(worths: Worths, orders: Orders, window: Window, *, antithetic: bool, paired: bool) -> Statistics:
    """Statistics of one chunk of walks.

    Args:
        worths: (R, m + 1) worths met along the walks.
        orders: (R, m) players in the order in which they left.
        window: sizes whose marginal contributions count.
        antithetic: rows 2i and 2i + 1 are a pair that makes one sample.
        paired: samples 2i and 2i + 1 belong to the same example.
    """
    skip = window.n - window.high  # players that leave before the window opens
    steps = -np.diff(worths, axis=1)[:, skip:]
    players = orders[:, skip:]
    value = np.zeros((len(orders), window.n))
    present = np.zeros((len(orders), window.n))
    np.put_along_axis(value, players, steps, axis=1)
    np.put_along_axis(present, players, 1.0, axis=1)
    if antithetic:
        seen = present[0::2] + present[1::2]
        value = (value[0::2] + value[1::2]) / np.maximum(seen, 1)
        present = np.minimum(seen, 1)
    within = pairs = np.zeros(window.n)
    if paired:
        both = present[0::2] * present[1::2]
        within = (both * (value[0::2] - value[1::2]) ** 2 / 2).sum(0)
        pairs = both.sum(0)
    return Statistics(
        total=value.sum(0),
        square=(value**2).sum(0),
        count=present.sum(0),
        within=within,
        pairs=pairs,
        walks=len(orders),
        first=float(worths[:, 0].sum()),
        last=float(worths[:, -1].sum()),
    )
