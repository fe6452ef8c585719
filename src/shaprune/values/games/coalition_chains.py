"""The coalitions met along walks, and how many of them are made at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

CELLS = 1 << 26  # entries of coalitions that are made at once


def coalitions_along(
    orders: NDArray[np.int64], n_players: int, start: NDArray[np.bool_] | None = None, steps: slice = slice(None)
) -> NDArray[np.bool_]:
    """Return the coalitions met along walks from ``start``: (R, m) orders -> (R, m + 1, n_players) bool.

    ``steps`` chooses among the m + 1.
    """
    walks, length = orders.shape
    leaves_at = np.full((walks, n_players), length, dtype=np.int32)
    np.put_along_axis(leaves_at, orders, np.broadcast_to(np.arange(length, dtype=np.int32), orders.shape), axis=1)
    at = np.arange(length + 1, dtype=np.int32)[steps]
    coalitions: NDArray[np.bool_] = leaves_at[:, None, :] >= at[None, :, None]
    return coalitions if start is None else np.logical_and(coalitions, start, out=coalitions)


def parts(count: int, cells: int, together: int = 1) -> Iterator[slice]:
    """Yield slices of ``count`` items with ``cells`` entries each, at most `CELLS` entries a slice.

    A slice has a multiple of ``together`` items, and that many at least.
    """
    size = max(1, CELLS // max(cells * together, 1)) * together
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))
