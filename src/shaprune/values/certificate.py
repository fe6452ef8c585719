"""Certificates of a cut: no player that leaves is worth more than one that stays by more than eps.

Where all intervals of the players hold at all looks together, any statement about their ends does, too, and so does
this one, whichever players leave, whenever it is asked for, and whatever eps is: it is enough that some level lies
above the upper ends of all that leave, and at most eps above the lower ends of all that stay. Players of equal value
at the cut need no order then; sampling them goes on only until their intervals are as narrow as eps (cf. the
(eps, delta)-identification of the best k arms, Kalyanakrishnan et al. 2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError

Ends = NDArray[np.float64]
SHARE_OF_MEDIAN = 0.1  # eps where none is given, of the median size of a value


@dataclass(frozen=True)
class Certificate:
    """What is certain of a cut.

    Attributes:
        confidence: that it is true, of all looks and players together.
        eps: by how much a player that leaves may be worth more than one that stays.
        undecided: the fewest players without which it would be certain; 0 = it is.
    """

    confidence: float
    eps: float
    undecided: int

    def __str__(self) -> str:
        of = f"certified at {f'{self.confidence:g}'.lstrip('0')}, eps = {self.eps:.3g}"
        if not self.undecided:
            return f"{of}: no player that leaves is worth more than one that stays by more than eps"
        return f"not {of}: {self.undecided:,} player{' is' if self.undecided == 1 else 's are'} undecided"


def eps_of(value: Ends, given: float | None) -> float:
    """The eps that was given, or a tenth of the median size of a value."""
    return float(SHARE_OF_MEDIAN * np.median(np.abs(value))) if given is None else given


def count_undecided(ends: Ends, leaves: NDArray[np.bool_], eps: float) -> int:
    """The fewest players without which the cut is certain.

    Args:
        ends: (n, 2) of the players' intervals, which hold together.
        leaves: (n,) True for the players that leave.
        eps: see above.
    """
    high, low = np.sort(ends[leaves, 1]), np.sort(ends[~leaves, 0] + eps)
    level = np.append(-np.inf, high)  # the best level is the upper end of a player that leaves, or below all
    return int((np.arange(len(high), -1, -1) + np.searchsorted(low, level)).min())


def near_cut(value: Ends, ends: Ends, leaves: NDArray[np.bool_], eps: float) -> NDArray[np.bool_]:
    """(n,) True for players whose interval passes the middle between both sides by more than half of eps."""
    middle = (value[leaves].max() + value[~leaves].min()) / 2
    return np.asarray(np.where(leaves, ends[:, 1] > middle + eps / 2, ends[:, 0] < middle - eps / 2))


def check_eps(eps: float | None) -> None:
    """Check an eps.

    Raises:
        InputError: it is not a finite number above 0.
    """
    if eps is None:
        return
    if eps == 0 and not isinstance(eps, bool):
        raise InputError(
            "eps=0: players of equal value at the cut could never be separated; give the difference in worth that "
            "does not matter, None for a tenth of the median value, or use cut_settled"
        )
    if isinstance(eps, bool) or not 0 < eps < np.inf:
        raise InputError(f"eps is {eps!r}; give the difference in worth that does not matter, a number above 0")
