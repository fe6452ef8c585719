"""Rounding error of values: worths that are large beside their differences lose these, digit by digit."""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import log10

import numpy as np

from shaprune.errors import ShapruneWarning
from shaprune.values.result import Values

FINE = 1e-2  # a rounding error above this share of the largest value is reported
FAINT = 1e-3  # where all values are 0, an error above this, which may have hidden them, is reported


def rounded(values: Values, error: float, worth: float, spread: float = 0.0) -> Values:
    """Warn where rounding of the worths is not small against the values, and count it in their standard errors.

    Args:
        values: an estimate.
        error: rounding error of one worth, see `Game.rounding`.
        worth: the mean size of the worths.
        spread: how far worths lie apart; values of 0 that come of such differences have lost nothing.

    Returns:
        The values; where something is reported, with ``diagnostics["rounding"]`` and standard errors that count it.
    """
    largest = float(np.abs(values.value).max(initial=0.0))
    scale = max(largest, spread / values.n)
    if not error > (FINE * scale if scale else FAINT):
        return values
    digits = max(0, int(-log10(error / largest))) if largest else 0
    left = f"{digits} digit{'' if digits == 1 else 's'} of the values (the largest is {largest:.2g})"
    warnings.warn(
        f"worths of about {worth:.2g} are rounded to {error:.1g}, which leaves {left}: subtract what is the same for "
        "all coalitions from the worth (an offset in outputs and targets), or compute it in float64",
        ShapruneWarning,
        stacklevel=3,
    )
    return replace(values, stderr=np.hypot(values.stderr, error), diagnostics={**values.diagnostics, "rounding": error})
