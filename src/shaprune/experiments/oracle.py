"""The oracle benchmark of Adamczewski, Li, Van Gool 2024 (arXiv 2407.15875, Table 2): how good is a ranking?

Of a game small enough to be tabulated, the *oracle subset* O_K is the best set of size K by enumeration: for
``remove`` the K players whose removal leaves the highest worth, for ``keep`` the K players that have the highest worth
alone. A ranking claims a set of its own for every K: R_K, its K least valuable players (``remove``) or its K most
valuable ones (``keep``). Its score is the Jaccard overlap of both, weighted by K:

    score = sum_K K |O_K & R_K| / |O_K | R_K|  /  sum_K K,    K = 1 .. 5, between 0 and 1.

Oracle subsets of neighbouring sizes need not contain each other, so no fixed order need reach 1. The *Oracle rank* is
the order that scores highest, and its score the bound for every ranking. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import combinations
from operator import or_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, check_choice
from shaprune.values.games.arrays import Coalitions
from shaprune.values.games.game import Game

QUESTIONS = ("keep", "remove")
LARGEST = 5  # the largest K that the paper asks for

SOURCE = "Adamczewski, Li, Van Gool 2024, arXiv 2407.15875, Table 2 (reduced LeNet-5)"
COLUMNS = ("leave-one-out", "partial-3", "regression", "permutation", "exact", "Oracle")
PAPER: dict[str, dict[str, float | None]] = {  # question, number of players -> score by column; None = not computed
    "keep, 10": dict(zip(COLUMNS, (0.702, 0.584, 0.678, 0.676, 0.688, 0.874), strict=True)),
    "keep, 20": dict(zip(COLUMNS, (0.332, 0.332, 0.398, 0.452, None, 0.6), strict=True)),
    "remove, 10": dict(zip(COLUMNS, (0.916, 0.878, 0.916, 0.918, 0.944, 1.0), strict=True)),
    "remove, 20": dict(zip(COLUMNS, (0.33, 0.364, 0.33, 0.372, None, 0.74), strict=True)),
}


@dataclass(frozen=True)
class Oracle:
    """What the best sets of a tabulated game are.

    Attributes:
        question: ``"keep"`` or ``"remove"``.
        subsets: O_K for K = 1, 2, ..., players in ascending order; of equally good sets the one with the lowest code.
        worths: the worth with O_K kept or removed.
        ties: how many other sets of size K are as good.
        rank: the Oracle rank: the first K of it are its R_K.
        score: what the Oracle rank scores; no order scores more.
        best: the codes of all best sets, per K; ``ties[K - 1] + 1`` of them.
        any_rank: the order that scores highest where every best set counts as O_K, see `overlap`.
        any_score: its score.
        optimal: whether no order scores more, which is proven (see `best_rank`): the search is exact.
    """

    question: str
    subsets: tuple[tuple[int, ...], ...]
    worths: tuple[float, ...]
    ties: tuple[int, ...]
    rank: tuple[int, ...]
    score: float
    best: tuple[tuple[int, ...], ...]
    any_rank: tuple[int, ...]
    any_score: float
    optimal: bool = True

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, without the codes of tied sets."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "best"}


def oracle(table: NDArray[np.float64], question: str, *, largest: int = LARGEST) -> Oracle:
    """Find the oracle subsets and the Oracle rank of a game.

    Args:
        table: (2^n,) worth of every coalition; bit i of the index says whether player i is kept.
        question: ``"remove"`` or ``"keep"``.
        largest: the largest K.

    Raises:
        InputError: an unknown question, a table that is not one of 2^n finite worths, or ``largest`` outside 1 .. n.
    """
    check_choice("question", question, QUESTIONS)
    n = n_players(table)
    if not 1 <= largest <= n:
        raise InputError(f"largest is {largest}; a game of {n} players has subsets of 1 to {n}")
    everyone = (1 << n) - 1
    best, worths = [], []
    for size in range(1, largest + 1):
        codes = np.sort([_code(subset) for subset in combinations(range(n), size)])
        found = table[codes if question == "keep" else everyone ^ codes]
        worths.append(float(found.max()))
        best.append(tuple(codes[found == found.max()].tolist()))
    rank, score = best_rank([codes[:1] for codes in best])
    any_rank, any_score = best_rank(best)
    return Oracle(
        question,
        subsets=tuple(_players(codes[0]) for codes in best),
        worths=tuple(worths),
        ties=tuple(len(codes) - 1 for codes in best),
        rank=rank,
        score=score,
        best=tuple(best),
        any_rank=any_rank,
        any_score=any_score,
    )


def best_rank(targets: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], float]:
    """The order whose first K players overlap most with a K-th target, for all K, and its score.

    Exact, by dynamic programming over sets: what the first K players of an order score at K depends on their set alone,
    so the best order of a set's players ends with one of them, behind the best order of the rest. Only sets
    within the union U of all targets are searched (with one target per K up to 5: at most 15 players, 4,944 sets).
    Nothing is lost: suppose that an order holds a player x outside U among its first L, L being the largest K. U has
    at least L members, as a target of size L has, so some member u of U is not among these L. Put u in the place of x:
    no target O had counted x, so no |O & R_K| falls; and as |O | R_K| = 2K - |O & R_K|, no term of the score falls
    either. Repeating this ends with an order inside U that scores no less. Of equal orders the first found is returned.

    Args:
        targets: for K = 1, 2, ... the codes of one or more sets of K players, of which the nearest one counts.
    """
    members = _players(reduce(or_, (code for codes in targets for code in codes)))
    orders: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # set of players -> score and best order so far
    for size, codes in enumerate(targets, 1):
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for code, (score, order) in orders.items():
            for player in members:
                grown = code | 1 << player
                if grown != code and (grown not in longer or score > longer[grown][0]):
                    longer[grown] = (score, (*order, player))
        common = _nearest(np.array(list(longer)), np.array(codes))
        orders = {
            code: (score + _term(int(both), size), order)
            for (code, (score, order)), both in zip(longer.items(), common, strict=True)
        }
    score, order = max(orders.values(), key=lambda found: found[0])
    return order, score / sum(range(1, len(targets) + 1))


def overlap(ranking: Sequence[int] | NDArray[np.int64], found: Oracle, *, ties: bool = False) -> float:
    """Score a ranking against the oracle subsets: 1 where it contains all of them, see the module's formula.

    Where many sets are equally good, the one with the lowest code is an arbitrary choice, and one that flatters
    rankings with ties of their own, because these leave in player order too. With ``ties`` every best set counts as
    O_K, and the one that R_K overlaps most is taken.

    Args:
        ranking: (n,) players from the least to the most valuable.
        found: the oracle subsets.
        ties: compare with the nearest of all best sets.
    """
    order = [int(player) for player in ranking]
    if found.question == "keep":
        order.reverse()
    total = 0.0
    for k, codes in enumerate(found.best, 1):
        targets = codes if ties else codes[:1]
        total += _term(int(_nearest(np.array([_code(order[:k])]), np.array(targets))[0]), k)
    return total / sum(range(1, len(found.best) + 1))


def table_of(game: Game, *, chunk: int = 1 << 16) -> NDArray[np.float64]:
    """The worth of every coalition, (2^n,) by code, as the mean over all examples of the game."""
    codes = np.arange(1 << game.n_players, dtype=np.int64)
    bits = np.arange(game.n_players)
    return np.concatenate(
        [game((part[:, None] >> bits & 1).astype(bool)) for part in np.split(codes, range(chunk, len(codes), chunk))]
    )


def game_of_table(table: NDArray[np.float64]) -> Game:
    """The deterministic game that looks its worths up in a table."""
    n = n_players(table)
    bits = 1 << np.arange(n)

    def look_up(coalitions: Coalitions) -> NDArray[np.float64]:
        return table[coalitions @ bits]

    game = Game.from_function(look_up, n)
    game.repeatable = True
    return game


def n_players(table: NDArray[np.float64]) -> int:
    """How many players a table of all 2^n worths has.

    Raises:
        InputError: not 2^n finite numbers.
    """
    n = table.size.bit_length() - 1
    if table.ndim != 1 or table.size != 1 << max(n, 0) or n < 1:
        raise InputError(f"the table has shape {table.shape}; it must hold 2^n worths, one for each coalition")
    bad = np.flatnonzero(~np.isfinite(table))
    if bad.size:
        raise InputError(f"the table's worth is {table[bad[0]]} for coalition {bad[0]:#b}; it must be finite")
    return n


def _nearest(codes: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many players each set shares with the target that it shares most with."""
    parts = np.array_split(codes, -(-codes.size * targets.size // (1 << 22)))
    return np.concatenate([np.bitwise_count(part[:, None] & targets).max(1) for part in parts])


def _term(common: int, k: int) -> float:
    """K |O & R| / |O | R| of two sets of K players that share ``common``."""
    return k * common / (2 * k - common)


def _code(players: Sequence[int]) -> int:
    return sum(1 << player for player in players)


def _players(code: int) -> tuple[int, ...]:
    return tuple(player for player in range(code.bit_length()) if code >> player & 1)
