"""The reach of intervals in standard errors: at one look that is fixed in advance, or at all looks together.

A stopping rule looks again and again and stops where it likes what it sees; an interval for one look then misses more
often than it says. A *confidence sequence* holds at all looks together, whatever stops them (Howard et al. 2021). This
one is the t sequence with a normal prior on the standardised effect (Lai 1976; Wang & Ramdas 2024): for n independent
samples, S their sum about the true mean m, V their sum of squares about m, and the prior's precision c2,

    E_n = sqrt(c2 / (n + c2)) * (V / (V - S^2 / (n + c2)))^(n / 2)

is the ratio of the samples' scale-free likelihoods, a nonnegative martingale for normal samples of any variance; so by
Ville's inequality it ever exceeds 1 / alpha with a chance of at most alpha. Solving E_n < 1 / alpha for the distance
between mean and m, in standard errors, gives `sequence_reach`. It needs no bounds of the worth, because the variance
is estimated and its doubt is in the formula: exact for normal samples from the second one on, and asymptotic for all
others with a variance (Waudby-Smith et al. 2024). Sequences that need bounds and no normality (empirical Bernstein,
betting: Waudby-Smith & Ramdas 2023) are many times wider here: a marginal contribution ranges over [-1, 1] where its
mean is some thousandth.

The estimates themselves need not be plain means: of any two looks at an efficient estimate the covariance is the
variance at the later one (of a sum of two independent means, too), and nothing else is used in the limit.
"""

from __future__ import annotations

from math import inf, log
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError

Reach = NDArray[np.float64]
TIGHTEST = 64  # samples at which the sequence is tightest, beside the interval for one look


def quantile_of(confidence: float) -> float:
    """How many standard errors an interval of this confidence reaches to either side (normal distribution).

    Raises:
        InputError: a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}; it must lie strictly between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def fixed_time_reach(confidence: float, counts: NDArray[np.int64]) -> Reach:
    """Student's quantiles with ``counts - 1`` degrees of freedom: for one look, fixed in advance.

    From the normal one (Abramowitz & Stegun 26.7.5); within 1 % of Student's from 4 degrees on.
    """
    z, v = quantile_of(confidence), np.maximum(counts - 1, 1).astype(np.float64)
    first = (z**3 + z) / (4 * v)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return np.asarray(z + first + second + third)


def sequence_reach(confidence: float, counts: NDArray[np.int64], players: int = 1) -> Reach:
    """The same for all looks together; inf where the samples are too few for any claim.

    Args:
        confidence: that all looks at all ``players`` are right together.
        counts: independent samples at this look.
        players: among how many the doubt is divided (Bonferroni); 1 = each has the confidence for itself.
    """
    quantile_of(confidence)
    doubt = -2 * log((1 - confidence) / players)
    prior = TIGHTEST / (doubt + log(1 + doubt))
    n = np.maximum(counts, 1).astype(np.float64)
    grown = np.expm1((np.log1p(n / prior) + doubt) / n)  # (1 / alpha^2 * (n + c2) / c2)^(1 / n) - 1
    left = n - prior * grown
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.sqrt((n - 1) * grown * (n + prior) / left)
    return np.where((left > 0) & (counts > 1), reach, inf)
