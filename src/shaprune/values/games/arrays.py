"""Arrays that games are asked with and answer with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Coalitions = NDArray[np.bool_]  # (R, n_players), True = kept
Examples = NDArray[np.int64]  # (R,)
Worths = NDArray[np.float64]  # (R,), higher is better
Orders = NDArray[np.int64]  # (R, m), players in the order in which they leave
Start = NDArray[np.bool_]  # (n_players,), the coalition that walks leave from
