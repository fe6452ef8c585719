"""Sufficient statistics of marginal contributions: chunks merge by addition, one pure function finishes.

A *sample* is what one independent draw says about every player: one walk, or the mean of an antithetic pair. In a size
window a walk says nothing about the players that never leave, and a concept weighs sizes differently, hence
``present``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shaprune.values.games.arrays import Orders, Worths

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Sums over samples; every array is (n_players,) float64.

    ``between`` are sums of squares over all samples, ``within`` sums of squared half-differences between two samples of
    the same example, which leave the difference between examples out.
    """

    total: NDArray[np.float64]
    square: NDArray[np.float64]
    weight: NDArray[np.float64]
    weight_square: NDArray[np.float64]
    cross: NDArray[np.float64]
    count: NDArray[np.float64]
    within: NDArray[np.float64]
    pairs: NDArray[np.float64]

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.total + other.total,
            self.square + other.square,
            self.weight + other.weight,
            self.weight_square + other.weight_square,
            self.cross + other.cross,
            self.count + other.count,
            self.within + other.within,
            self.pairs + other.pairs,
        )

    def mean(self) -> NDArray[np.float64]:
        """Value per player; 0 for a player that no sample has seen yet."""
        return self.total / np.where(self.weight > 0, self.weight, 1)

    def stderr(self, n_examples: int) -> NDArray[np.float64]:
        """Standard error of `mean` over ``n_examples`` examples; inf below two samples.

        Where each example has been drawn at least twice, the examples are taken as given and only the randomness of
        the orders counts. Where only some of them have been drawn, twice each, the variance of the examples' means is
        used. Otherwise it is the variance over all samples: it includes the difference between examples, so it errs on
        the safe side.
        """
        mean = self.mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            if np.all(self.pairs >= n_examples):
                return np.sqrt(self.within / self.pairs / self.count)
            if np.all(self.pairs > 0):
                examples = self.pairs
                spread = np.maximum((self.square - self.within) / 2 - examples * mean**2, 0)  # squares of pair means
                return np.where(examples >= 2, np.sqrt(spread / (examples - 1) / examples), np.inf)
            # a ratio of sums: in a window a sample may say less about one player than about another
            spread = np.maximum(self.square - 2 * mean * self.cross + mean**2 * self.weight_square, 0)
            error = np.sqrt(spread * self.count / (self.count - 1)) / self.weight
        return np.where(self.count >= 2, error, np.inf)


def empty(n_players: int) -> Statistics:
    """Statistics of no samples."""
    zeros = np.zeros(n_players)
    return Statistics(zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros)


def marginals(worths: Worths, orders: Orders, weights: Weights) -> tuple[Weights, Weights]:
    """What each walk says about each player: (R, n) weighted marginal contributions, and (R, n) their weights.

    Args:
        worths: (R, m + 1) worths met along the walks.
        orders: (R, m) players in the order in which they left.
        weights: (n,) weight of a marginal contribution to s = 0..n-1 others.
    """
    n, steps = len(weights), orders.shape[1]
    value, present = np.zeros((len(orders), n)), np.zeros((len(orders), n))
    weight = np.broadcast_to(weights[::-1][:steps], orders.shape)  # the k-th to leave left n - 1 - k others behind
    np.put_along_axis(value, orders, -np.diff(worths, axis=1) * weight, axis=1)
    np.put_along_axis(present, orders, weight, axis=1)
    return value, present


def from_samples(value: Weights, present: Weights, *, antithetic: bool, paired: bool) -> Statistics:
    """Statistics of the marginal contributions of one chunk.

    Args:
        value: (R, n) weighted marginal contributions; 0 where a row says nothing about a player.
        present: (R, n) their weights.
        antithetic: rows 2i and 2i + 1 are a pair that makes one sample.
        paired: samples 2i and 2i + 1 belong to the same example.
    """
    if antithetic:
        value = (value[0::2] + value[1::2]) / 2
        present = (present[0::2] + present[1::2]) / 2  # a half where one of the two walks passes outside a window
    within = pairs = np.zeros(value.shape[1])
    if paired:
        both = present[0::2] * present[1::2]
        within = (both * (value[0::2] - value[1::2]) ** 2 / 2).sum(0)
        pairs = both.sum(0)
    return Statistics(
        total=value.sum(0),
        square=(value**2).sum(0),
        weight=present.sum(0),
        weight_square=(present**2).sum(0),
        cross=(present * value).sum(0),
        count=np.count_nonzero(present, axis=0).astype(np.float64),
        within=within,
        pairs=pairs,
    )
