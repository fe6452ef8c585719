"""Check the worths that a game answered, and name coalitions in messages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import GameError
from shaprune.values.games.arrays import Coalitions, Orders, Worths
from shaprune.values.games.coalition_chains import coalitions_along as coalitions_along


def describe_coalition(coalition: NDArray[np.bool_]) -> str:
    """Describe a coalition in a message, by the smaller of its two halves."""
    kept, removed = np.flatnonzero(coalition), np.flatnonzero(~coalition)
    if removed.size == 0:
        return "the full coalition"
    if kept.size == 0:
        return "the empty coalition"
    word, few = ("without", removed) if removed.size <= kept.size else ("with only", kept)
    shown = ", ".join(map(str, few[:8])) + (", ..." if few.size > 8 else "")
    return f"the coalition {word} player{'s' if few.size > 1 else ''} {shown}"


def check_worths(answer: Any, coalitions: Coalitions) -> Worths:
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
        raise GameError(f"the game's worth is {worths[bad[0]]} for {describe_coalition(coalitions[bad[0]])}")
    return worths


def check_walk_worths(answer: Any, orders: Orders, n_players: int) -> Worths:
    """Worths along walks as a game answered them, (R, m + 1) float64; raises `GameError` as `check_worths` does."""
    worths = np.asarray(answer, dtype=np.float64)
    shape = (len(orders), orders.shape[1] + 1)
    if worths.shape != shape:
        raise GameError(f"the game's walk returned shape {worths.shape}; it must be {shape}")
    bad = np.argwhere(~np.isfinite(worths))
    if len(bad):
        walk, step = bad[0]
        kept = coalitions_along(orders[walk : walk + 1], n_players)[0, step]
        raise GameError(f"the game's worth is {worths[walk, step]} for {describe_coalition(kept)}")
    return worths


def check_derivatives(answer: Any, coalitions: Coalitions) -> Worths:
    """Worths and derivatives as a game answered them, (R, n + 1) float64; raises `GameError` as `check_worths` does."""
    found = np.asarray(answer, dtype=np.float64)
    shape = (len(coalitions), coalitions.shape[1] + 1)
    if found.shape != shape:
        raise GameError(f"the game's derivatives have shape {found.shape}; they must have {shape}")
    check_worths(found[:, 0], coalitions)
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        row, column = bad[0]
        raise GameError(
            f"the derivative of the game's worth by player {column - 1} is {found[row, column]} at "
            f"{describe_coalition(coalitions[row])}; use method='permutation', which needs none"
        )
    return found
