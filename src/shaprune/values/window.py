"""Size windows: which coalition sizes a value looks at.

The Shapley value weighs all sizes alike. A window ``sizes=(lo, hi)`` keeps only coalitions with at least ``lo * n``
and at most ``hi * n`` players, and weighs the sizes inside alike; the result is a semivalue-like value that says what a
player contributes *near the size that will be kept*. It has no efficiency property unless the window is (0, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError


@dataclass(frozen=True)
class Window:
    """Coalition sizes from ``low`` to ``high`` players, both included, in a game of ``n`` players."""

    n: int
    low: int
    high: int

    @property
    def whole(self) -> bool:
        """Whether the window is the Shapley value's own: every size."""
        return self.low == 0 and self.high == self.n

    @property
    def steps(self) -> int:
        """Number of sizes at which a marginal contribution is seen."""
        return self.high - self.low

    def efficiency_gap(
        self, value: NDArray[np.float64], worth_all: float | None, worth_none: float | None
    ) -> float | None:
        """Sum of the values minus (v(all) - v(none)); None where the window promises no such sum."""
        if not self.whole or worth_all is None or worth_none is None:
            return None
        return float(value.sum() - (worth_all - worth_none))


def window(n: int, sizes: tuple[float, float]) -> Window:
    """Turn fractions of ``n`` into a `Window`.

    Raises:
        InputError: if ``sizes`` is not two numbers 0 <= lo < hi <= 1, or no player can leave inside the window.
    """
    try:
        low, high = (float(x) for x in sizes)
    except (TypeError, ValueError):
        raise InputError(f"sizes is {sizes!r}; give two fractions of the players, such as (0.5, 1.0)") from None
    if not 0 <= low < high <= 1:
        raise InputError(f"sizes is {sizes!r}; it must be (lo, hi) with 0 <= lo < hi <= 1")
    result = Window(n, math.ceil(low * n - 1e-9), math.floor(high * n + 1e-9))
    if result.steps < 1:
        raise InputError(
            f"sizes={sizes!r} holds no two neighbouring coalition sizes in a game of {n} players; widen the window"
        )
    return result
