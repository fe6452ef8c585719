"""Estimators of pairwise Shapley interactions; `shaprune.values.redundancy` says what they are and chooses.

All return (n, n) float64, symmetric, zero diagonal, for games of at least two players.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import comb

import numpy as np
from numpy.typing import NDArray

from shaprune.values.games.checks import check_walk_worths, check_worths
from shaprune.values.games.game import Game, coalitions_along, parts

MIN_DEGREES_OF_FREEDOM = 9  # degrees of freedom; fewer do not give the spread between blocks
WALKS_AT_ONCE = 512  # asked for at once
COALITIONS_AT_ONCE = 1 << 15  # asked for at once


def enumerated(game: Game) -> NDArray[np.float64]:
    """Sum over all coalitions T of v(T) times its factor: by |T|, and by how many of the pair are in it."""
    n = game.n_players
    weight = np.array([1 / ((n - 1) * comb(n - 2, size)) for size in range(n - 1)])
    factors = np.zeros((3, n + 1))  # (how many of the pair are in T, |T|)
    for inside, sign in enumerate((1, -1, 1)):
        factors[inside, inside : inside + n - 1] = sign * weight
    matrix, base = np.zeros((n, n)), None
    for start in range(0, 1 << n, COALITIONS_AT_ONCE):
        codes = np.arange(start, min(start + COALITIONS_AT_ONCE, 1 << n))
        coalitions = (codes[:, None] >> np.arange(n) & 1).astype(bool)
        worths = check_worths(game(coalitions), coalitions)
        base = worths[0] if base is None else base  # centred: less is lost to rounding
        none, one, both = (worths - base) * factors[:, coalitions.sum(1)]
        kept = coalitions.astype(np.float64)
        gone = 1 - kept
        mixed = kept.T @ (one[:, None] * gone)
        matrix += kept.T @ (both[:, None] * kept) + gone.T @ (none[:, None] * gone) + mixed + mixed.T
    np.fill_diagonal(matrix, 0)
    return (matrix + matrix.T) / 2


def sampled(game: Game, budget: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Means over blocks of n orders, and their standard errors; None after too few blocks.

    Where the budget pays for two blocks per example, every example has its own blocks, as many as the others (or one
    more), and the error is what is left inside examples. Below, every order takes the next example.

    Args:
        game: any game of at least two players.
        budget: (coalition, example) rows, at least one block: 2 n^2 (times all examples where they have no own worths).
        seed: random streams belong to (seed, block).
    """
    n, per_example = game.n_players, game.separable and game.n_examples > 1
    blocks = budget // (2 * n * n * (1 if per_example else game.n_examples))
    strata = game.n_examples if per_example and blocks >= 2 * game.n_examples else 1
    repeats = blocks // strata + (np.arange(strata) < blocks % strata)
    examples = None if not per_example else _spread(game.n_examples, n * blocks, seed)
    if strata > 1:
        examples = np.repeat(np.arange(strata), n * repeats)
    found = _blocks(game, blocks, examples, seed)
    total, variance = np.zeros((n, n)), np.zeros((n, n))
    for repeat in repeats.tolist():
        mean, squares = np.zeros((n, n)), np.zeros((n, n))
        for number, one in enumerate(islice(found, repeat), 1):  # Welford: nothing is kept, nothing cancels
            off = one - mean
            mean += off / number
            squares += off * (one - mean)
        total += mean
        variance += squares / (max(repeat - 1, 1) * repeat)
    return total / strata, np.sqrt(variance) / strata if blocks - strata >= MIN_DEGREES_OF_FREEDOM else None


def _blocks(game: Game, blocks: int, examples: NDArray[np.int64] | None, seed: int) -> Iterator[NDArray[np.float64]]:
    """(n, n) interactions from each block; ``examples`` (n * blocks,) are those of the orders."""
    n = game.n_players
    at_once = max(1, WALKS_AT_ONCE // n)
    for start in range(0, blocks, at_once):
        some = range(start, min(start + at_once, blocks))
        orders = np.concatenate([_block(n, np.random.default_rng([seed, block])) for block in some])
        rows = None if examples is None else examples[start * n : some.stop * n]
        found = np.zeros((len(some), n, n))
        of = np.repeat(np.arange(len(some)), n)[:, None]
        for part in parts(len(orders), n * n):
            asked, who = orders[part], None if rows is None else rows[part]
            np.add.at(found, (of[part], asked[:, :-1], asked[:, 1:]), _differences(game, asked, who))
        yield from (found + found.swapaxes(1, 2)) / 2  # two samples of every pair


def _differences(game: Game, orders: NDArray[np.int64], examples: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """(R, n) orders -> (R, n - 1): v(S+i+j) - v(S+i) - v(S+j) + v(S) where i leaves, j next, and S stays."""
    walks, n = orders.shape
    worths = check_walk_worths(game.walk(orders, examples), orders, n)
    swapped = coalitions_along(orders, n, steps=slice(n - 1))
    swapped[np.arange(walks)[:, None], np.arange(n - 1), orders[:, 1:]] = False  # j left in place of i
    coalitions = swapped.reshape(-1, n)
    rows = None if examples is None else np.repeat(examples, n - 1)
    other = check_worths(game(coalitions, rows), coalitions).reshape(walks, n - 1)
    return worths[:, :-2] - worths[:, 1:-1] - other + worths[:, 2:]


def _block(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n, n) orders in which every two players are neighbours exactly twice; each order alone is a uniform one."""
    zigzag = np.empty(n, dtype=np.int64)
    zigzag[::2], zigzag[1::2] = np.arange((n + 1) // 2), np.arange(n - 1, (n + 1) // 2 - 1, -1)
    orders: NDArray[np.int64] = rng.permutation(n)[(zigzag + np.arange(n)[:, None]) % n]
    return orders


def _spread(n_examples: int, orders: int, seed: int) -> NDArray[np.int64]:
    """(orders,) all examples in random order, again and again."""
    rng = np.random.default_rng([seed, 1 << 32])
    sweeps = [rng.permutation(n_examples) for _ in range(-(-orders // n_examples))]
    return np.concatenate(sweeps)[:orders]
