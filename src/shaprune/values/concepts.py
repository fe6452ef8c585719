"""Solution concepts: how much each coalition size counts.

The values offered here are all *semivalues* (Dubey, Neyman & Weber 1981): the value of a player is a weighted mean of
what it adds to coalitions, and the weight depends on the coalition's size alone. So a concept is a probability per
size, ``weights(n)[s]`` = the share that falls to coalitions of ``s`` other players, s = 0..n-1; inside a size all
coalitions count alike. In the literature's notation the coefficient of one coalition is
``p_s = weights[s] / C(n - 1, s)``.

Only the Shapley value, which weighs all sizes alike, is efficient: its values sum to v(all) - v(none).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shaprune.errors import InputError, check_choice

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Concept:
    """A solution concept: a probability per coalition size.

    Attributes:
        name: the family, as in the registry.
        label: name and parameters, such as ``"banzhaf:0.7"``.
        rule: n -> (n,) weights; use `weights`, which checks them.
        p: every player is in a coalition with this probability, independently; None where the concept is no Banzhaf
            value.
    """

    name: str
    label: str
    rule: Callable[[int], Weights] = field(repr=False, compare=False)
    p: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", lru_cache(maxsize=8)(self.rule))  # asked for again and again

    def weights(self, n: int) -> Weights:
        """(n,) share of coalitions of s = 0..n-1 other players; they sum to 1.

        Raises:
            InputError: the concept holds no coalition in a game of ``n`` players.
        """
        weights = self.rule(n)
        weights.setflags(write=False)
        return weights

    def efficient(self, n: int) -> bool:
        """Whether the values of a game of ``n`` players sum to v(all) - v(none)."""
        return bool(np.allclose(self.weights(n), 1 / n, rtol=1e-9, atol=0))


def shapley(sizes: tuple[float, float] = (0.0, 1.0)) -> Concept:
    """All coalition sizes alike (Shapley 1953), or all sizes in a window.

    A window ``sizes=(lo, hi)`` looks only at coalitions with at least ``lo * n`` and at most ``hi * n`` players; it
    says what a player contributes *near the size that will be kept*, and is not efficient. Leave-one-out and the
    partial values of Adamczewski et al. 2024 (4.3.1) are windows, counted in players: see `partial`.

    Raises:
        InputError: if ``sizes`` is not two numbers 0 <= lo < hi <= 1.
    """
    try:
        low, high = (float(x) for x in sizes)
    except (TypeError, ValueError):
        raise InputError(
            f"the window of sizes is {sizes!r}; give two fractions of the players, such as (0.5, 1.0)"
        ) from None
    if not 0 <= low < high <= 1:
        raise InputError(f"the window of sizes is {sizes!r}; it must be (lo, hi) with 0 <= lo < hi <= 1")

    def rule(n: int) -> Weights:
        first, last = math.ceil(low * n - 1e-9), math.floor(high * n + 1e-9)
        if last <= first:
            raise InputError(
                f"the window {sizes!r} holds no two neighbouring coalition sizes in a game of {n} players; widen it"
            )
        return _alike(n, range(first, last))

    label = "shapley" if (low, high) == (0, 1) else f"shapley:{low:g},{high:g}"
    return Concept("shapley", label, rule)


def partial(k: int, side: str = "full") -> Concept:
    """Coalitions with at most ``k`` players removed, at most ``k`` kept, or both, all sizes alike.

    Adamczewski et al. 2024, 4.3.1; k = 1 from the full side is leave-one-out. Their coefficients are those of the
    Shapley value, which differ from ours by one common factor.

    Raises:
        InputError: a ``k`` below 1, an unknown side; or, for a given game, a ``k`` above its number of players.
    """
    check_choice("side", side, SIDES)
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise InputError(f"k is {k!r}; it must be a whole number, 1 or above")

    def rule(n: int) -> Weights:
        if k > n:
            raise InputError(f"k={k} is above the {n} players of this game; use at most {n}")
        near_full = set(range(n - k, n)) if side in ("full", "both") else set()
        near_empty = set(range(k)) if side in ("empty", "both") else set()
        return _alike(n, near_full | near_empty)

    return Concept("partial", f"partial:{k},{side}", rule)


SIDES = ("full", "empty", "both")


def leave_one_out() -> Concept:
    """What the full coalition loses without the player: v(all) - v(all without i)."""
    return Concept("leave-one-out", "leave-one-out", lambda n: _alike(n, [n - 1]))


def banzhaf(p: float = 0.5) -> Concept:
    """Every other player is there with probability ``p``: p = 1/2 is the Banzhaf value.

    Other ``p`` give the weighted Banzhaf value, the index of Diaz-Ortiz et al. 2023, whose coalitions are drawn as
    dropout draws them.

    Raises:
        InputError: ``p`` outside (0, 1).
    """
    _inside("p", p)
    return Concept("banzhaf", f"banzhaf:{p:g}", lambda n: _binomial(n - 1, p), p=float(p))


def owen(low: float = 0.0, high: float = 1.0) -> Concept:
    """The Banzhaf value averaged over ``p`` uniform in (low, high) (Owen 1972); (0, 1) is the Shapley value.

    Raises:
        InputError: if not 0 <= low < high <= 1.
    """
    if not 0 <= low < high <= 1:
        raise InputError(f"p runs from {low} to {high}; it must be 0 <= low < high <= 1")

    def rule(n: int) -> Weights:
        # the integral of C(n-1, s) p^s (1-p)^(n-1-s) up to p is 1/n of the chance of more than s successes among n
        return _normal(np.maximum(_more_than(n, high) - _more_than(n, low), 0))

    return Concept("owen", f"owen:{low:g},{high:g}", rule)


def beta(alpha: float = 16.0, beta: float = 1.0) -> Concept:
    """Beta(alpha, beta)-Shapley (Kwon & Zou 2022): a large ``alpha`` weighs small coalitions, ``beta`` large ones.

    (1, 1) is the Shapley value; (16, 1) is the paper's default; to prune a little, take (1, 16).

    Raises:
        InputError: parameters that are not above 0.
    """
    if not (alpha > 0 and beta > 0 and math.isfinite(alpha + beta)):
        raise InputError(f"alpha is {alpha} and beta is {beta}; both must be above 0")

    def rule(n: int) -> Weights:
        sizes = range(n)
        # C(n-1, s) B(s + beta, n - 1 - s + alpha) / B(beta, alpha), their Eq. 4 summed over coalitions of a size
        logs = [_log_choose(n - 1, s) + _log_beta(s + beta, n - 1 - s + alpha) for s in sizes]
        return _normal(np.exp(np.array(logs) - max(logs)))

    return Concept("beta", f"beta:{alpha:g},{beta:g}", rule)


def semivalue(weights: ArrayLike) -> Concept:
    """Any semivalue: ``weights`` (n,) is the share of each size 0..n-1 of the other players' coalition.

    Raises:
        InputError: weights that are negative, not finite or all zero; or a game with another number of players.
    """
    given = np.array(weights, dtype=np.float64)
    if given.ndim != 1 or not np.isfinite(given).all() or (given < 0).any() or given.sum() == 0:
        raise InputError("the weights of a semivalue must be non-negative numbers, one per size 0..n-1, not all zero")

    def rule(n: int) -> Weights:
        if len(given) != n:
            raise InputError(
                f"the semivalue has {len(given)} weights and the game {n} players; give one per size 0..n-1"
            )
        return _normal(given)

    shown = (
        ",".join(f"{w:g}" for w in given) if len(given) <= 12 else f"sha256-{sha256(given.tobytes()).hexdigest()[:12]}"
    )
    return Concept("semivalue", f"semivalue:{shown}", rule)


CONCEPTS: dict[str, Callable[..., Concept]] = {
    "shapley": lambda *sizes: shapley(sizes or (0.0, 1.0)),
    "banzhaf": banzhaf,
    "owen": owen,
    "beta": beta,
    "semivalue": lambda *weights: semivalue(weights),
}


def concept_of(concept: str | Concept) -> Concept:
    """The concept of a name, with parameters behind a colon: ``"banzhaf"``, ``"banzhaf:0.7"``, ``"beta:1,16"``.

    Raises:
        InputError: an unknown name (with the nearest), or parameters that it does not take.
    """
    if isinstance(concept, Concept):
        return concept
    if not isinstance(concept, str):
        raise InputError(f"concept is a {type(concept).__name__}; give a name such as 'banzhaf:0.7', or a Concept")
    name, _, rest = concept.partition(":")
    check_choice("concept", name, CONCEPTS)
    try:
        return CONCEPTS[name](*(float(x) for x in rest.split(",") if x.strip()))
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        known = "'banzhaf:0.7', 'beta:1,16' or 'owen:0.5,1'"
        raise InputError(f"concept {concept!r} cannot be read ({error}); write it as {known}") from None


def _alike(n: int, sizes: range | list[int] | set[int]) -> Weights:
    weights = np.zeros(n)
    weights[list(sizes)] = 1 / len(sizes)
    return weights


def _normal(weights: Weights) -> Weights:
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _binomial(m: int, p: float) -> NDArray[np.float64]:
    """(m + 1,) probability of each count of successes among ``m``."""
    counts = np.arange(m + 1)
    choose = np.array([_log_choose(m, s) for s in range(m + 1)])
    return np.asarray(np.exp(choose + counts * math.log(p) + (m - counts) * math.log1p(-p)))


def _more_than(n: int, p: float) -> NDArray[np.float64]:
    """(n,) probability of more than s = 0..n-1 successes among ``n``."""
    if p in (0, 1):
        return np.full(n, float(p))
    return np.asarray(np.cumsum(_binomial(n, p)[:0:-1])[::-1])


def _log_choose(m: int, s: int) -> float:
    return math.lgamma(m + 1) - math.lgamma(s + 1) - math.lgamma(m - s + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _inside(name: str, p: float) -> None:
    if not isinstance(p, (int, float, np.floating)) or isinstance(p, bool) or not 0 < p < 1:
        raise InputError(f"{name} is {p!r}; it must lie strictly between 0 and 1")
