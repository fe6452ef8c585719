"""Weighted least squares of worths on players: coefficients, their standard errors, and how well posed it is.

With the Shapley kernel and the efficiency constraint the coefficients are Shapley values (Charnes et al. 1988;
Lundberg & Lee 2017), with the weights of independent draws they are (weighted) Banzhaf values (Marichal & Mathonet
2011).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError

Array = NDArray[np.float64]
MAX_CONDITION_NUMBER = 1e12  # a condition number that leaves no digits


@dataclass(frozen=True)
class Fit:
    """Coefficients of a weighted regression.

    Attributes:
        value: (n,) a coefficient per player.
        stderr: (n,) standard error, inf where the fit is regularised and so biased.
        condition_number: of the normal equations, with the ridge if there is one.
        error: weighted mean squared error of predicting a row from all others.
    """

    value: Array
    stderr: Array
    condition_number: float
    error: float


def fit(
    players: Array,
    others: Array,
    worths: Array,
    weights: Array,
    unseen: Array,
    *,
    ridge: float = 0.0,
    l1: float = 0.0,
    centred: bool,
) -> Fit:
    """Regress ``worths`` on the columns of ``players``, with the columns of ``others`` beside them.

    The standard errors are robust to heteroskedasticity: HC3 (MacKinnon & White 1985), with the finite-population
    correction of every row.

    Args:
        players: (m, n).
        others: (m, q) columns that are never penalised and whose coefficients are not asked for.
        worths: (m,).
        weights: (m,) above 0.
        unseen: (m,) share of the row's class that has not been drawn; 0 = its class is complete.
        ridge: penalty on squared coefficients, relative to the mean diagonal of the normal equations.
        l1: penalty on absolute coefficients, relative to the smallest that makes all of them 0.
        centred: every row of ``players`` sums to 0, and so do the coefficients.

    Raises:
        InputError: the regression is singular.
    """
    n = players.shape[1]
    root = np.sqrt(weights / weights.sum())
    x, y = players * root[:, None], worths * root
    leverage = np.zeros(len(y))
    if others.shape[1]:  # the normal equations of the players alone (Frisch & Waugh)
        q, scales, _ = np.linalg.svd(others * root[:, None], full_matrices=False)
        q = q[:, scales > 1e-10 * max(scales[0], 1e-300)]  # a column may be 0 on few coalitions
        x, y = x - q @ (q.T @ x), y - q @ (q.T @ y)
        leverage += (q**2).sum(1)
    size, axes = np.linalg.eigh(x.T @ x)
    if centred:  # the direction in which all players move together has no data, and none is needed
        size, axes = size[1:], axes[:, 1:]
    if not len(size):
        return Fit(np.zeros(n), np.zeros(n), 1.0, float(y @ y))
    penalty = ridge * float(size.sum()) / n
    size = np.maximum(size, 0) + penalty
    condition = float(size[-1] / size[0]) if size[0] > 0 else np.inf
    if condition > MAX_CONDITION_NUMBER and not l1:
        raise InputError(
            f"the regression on {len(y)} coalitions or pairs is singular (condition number {condition:.1e}); "
            "raise max_evaluations, or regularise: Regression(ridge=0.01)"
        )
    if l1:
        value = _lasso(x, y, l1)
        value -= value.mean() if centred else 0
        left = y - x @ value
        return Fit(value, np.full(n, np.inf), min(condition, 1e300), float(left @ left))
    inverse = axes / size @ axes.T
    value = inverse @ (x.T @ y)
    leverage += np.einsum("ij,jk,ik->i", x, inverse, x, optimize=True)
    left = (y - x @ value) / np.maximum(1 - leverage, 1e-6)
    stderr = np.sqrt((((x * (left * np.sqrt(unseen))[:, None]) @ inverse) ** 2).sum(0))
    return Fit(value, np.full(n, np.inf) if ridge else stderr, condition, float(left @ left))


def _lasso(x: Array, y: Array, l1: float) -> Array:
    from sklearn.linear_model import Lasso  # heavy, and only needed here

    largest = float(np.abs(x.T @ y).max())
    if largest == 0:
        return np.zeros(x.shape[1])
    scale = float(np.linalg.norm(y)) / np.sqrt(len(y))
    lasso = Lasso(alpha=l1 * largest / len(y) / scale, fit_intercept=False, max_iter=100_000, tol=1e-6)
    return np.asarray(lasso.fit(x, y / scale).coef_ * scale, dtype=np.float64)
