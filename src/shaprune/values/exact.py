"""Exact values by enumeration of all coalitions (Shapley 1953; Adamczewski et al. 2024, Eq. 3).

2^n evaluations per example. All worths are asked for in order of the binary code of the coalition, in chunks.
"""

from __future__ import annotations

from math import comb, log10

import numpy as np

from shaprune.errors import InputError
from shaprune.values.game import Game, checked
from shaprune.values.result import Values
from shaprune.values.window import window

MAX_PLAYERS = 20
CHUNK = 1 << 17  # coalitions asked for at once


def exact(game: Game, *, sizes: tuple[float, float] = (0.0, 1.0), max_evaluations: int | None = None) -> Values:
    """Return exact values of a game of up to 20 players.

    Args:
        game: the game.
        sizes: window of coalition sizes, as fractions of the players; (0, 1) is the Shapley value.
        max_evaluations: refuse, before any work, if more evaluations than this are needed.

    Raises:
        InputError: above 20 players, or above ``max_evaluations``, with the cost.
    """
    n = game.n_players
    n_evaluations = cost_of_enumeration(game, sizes)
    span = window(n, sizes)
    if max_evaluations is not None and n_evaluations > max_evaluations:
        raise InputError(
            f"exact values need {n_evaluations} evaluations and max_evaluations is {max_evaluations}; "
            "raise it, or use method='permutation'"
        )
    codes = np.arange(1 << n, dtype=np.uint32)
    size = np.bitwise_count(codes).astype(np.int64)
    inside = codes[(size >= span.low) & (size <= span.high)]
    worths = np.zeros(1 << n)
    players = np.arange(n, dtype=np.uint32)
    for start in range(0, len(inside), CHUNK):
        chunk = inside[start : start + CHUNK]
        coalitions = (chunk[:, None] >> players & 1).astype(bool)
        worths[chunk] = checked(game(coalitions), coalitions)
    coefficient = np.zeros(n + 1)  # of v(S + i) - v(S), by |S|
    for s in range(span.low, span.high):
        coefficient[s] = 1 / (span.steps * comb(n - 1, s))
    weight = coefficient[size]
    value = np.empty(n)
    for i in range(n):  # axis 1 says whether player i is in: [without, with]
        v, w = worths.reshape(-1, 2, 1 << i), weight.reshape(-1, 2, 1 << i)
        value[i] = (w[:, 0] * (v[:, 1] - v[:, 0])).sum()
    worth_all = float(worths[-1]) if span.high == n else None
    worth_none = float(worths[0]) if span.low == 0 else None
    return Values(
        value=value,
        stderr=np.zeros(n),
        n_evaluations=n_evaluations,
        method="exact",
        efficiency_gap=span.efficiency_gap(value, worth_all, worth_none),
        stopped_by="enumerated",
        worth_all=worth_all,
        worth_none=worth_none,
        counts=np.full(n, len(inside), dtype=np.int64),
        options={"sizes": list(sizes)},
    )


def cost_of_enumeration(game: Game, sizes: tuple[float, float] = (0.0, 1.0)) -> int:
    """Evaluations that `exact` pays.

    Raises:
        InputError: above 20 players, with the cost.
    """
    n = game.n_players
    span = window(n, sizes)
    if n > MAX_PLAYERS:
        digits = n * log10(2) + log10(game.n_examples)  # 2^n is no float beyond 1,023 players
        cost = f"{10 ** (digits % 1):.1f}e+{int(digits)}"
        raise InputError(
            f"exact values of {n} players need 2^{n} coalitions, {cost} evaluations "
            f"with {game.n_examples} example(s); "
            f"the limit is {MAX_PLAYERS} players: use method='permutation'"
        )
    return sum(comb(n, size) for size in range(span.low, span.high + 1)) * game.n_examples
