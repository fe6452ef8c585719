"""A semivalue as a sum over coalitions, for estimators that know all of them or draw them by size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shaprune.values.estimators.exact import per_coalition
from shaprune.values.games.arrays import Coalitions, Worths

Array = NDArray[np.float64]


def complete(coalitions: Coalitions, worths: Worths, weights: Array) -> Array:
    """(n,) exact values from every coalition whose size counts, each once.

    Args:
        coalitions: (R, n), without repetition.
        worths: (R,).
        weights: (n,) of the concept.
    """
    inside, outside = per_coalition(weights)
    size = coalitions.sum(1)
    return np.asarray(
        (worths * (inside + outside)[size]) @ coalitions - (worths * outside[size]).sum(), dtype=np.float64
    )


def shares_by_size(weights: Array) -> tuple[Array, Array]:
    """(n + 1,) weight of the coalitions of each size together, for a member and for a player that is not in them.

    phi_i = sum over s of inside[s] (mean worth of the coalitions of s players with i) - outside[s] (without i).
    """
    return np.append(0.0, weights), np.append(weights, 0.0)


def best_shares(weights: Array) -> Array:
    """(n + 1,) how often to draw each size where coalitions of a size are drawn at random, up to a factor.

    A coalition of size s enters with the factor inside[s] n / s for a member, outside[s] n / (n - s) for another
    player, over q(s). The squares of the factors sum to n^2 (inside[s]^2 / s + outside[s]^2 / (n - s)), and the sum of
    this over q(s), the variance of all values together where worths vary alike in all sizes, is least for q its root.
    """
    n = len(weights)
    s = np.arange(n + 1)
    inside, outside = shares_by_size(weights)
    return np.asarray(np.sqrt(inside**2 / np.maximum(s, 1) + outside**2 / np.maximum(n - s, 1)), dtype=np.float64)
