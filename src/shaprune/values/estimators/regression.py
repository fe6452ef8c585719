"""Shapley and Banzhaf values by weighted least squares over random coalitions.

The Shapley value is the solution of min sum over S of k(S) [v(S) - v(none) - sum_{i in S} phi_i]^2 with the kernel
k(S) = (n - 1) / (C(n, s) s (n - s)), s = |S|, subject to sum phi = v(all) - v(none) (Charnes et al. 1988; Lundberg &
Lee 2017; Adamczewski et al. 2024, Eq. 5). The constraint is solved exactly, by projection: phi is the equal share
plus coefficients that sum to 0 on rows z - s / n (Musco & Witter 2025). The Banzhaf value with inclusion probability
p is the same without kernel and constraint, weighted by the probability of S (Marichal & Mathonet 2011).

Coalitions are drawn without replacement, by default with sizes uniform over 1..n-1, which are the leverage scores of
this regression, and together with their complements (Musco & Witter 2025); sizes that fit are enumerated. Importance
weights are the kernel of a size over the number drawn.

Where it deviates from the literature: smooth functions of |S| stand beside the players (``size_terms``). They vanish
at both ends and are orthogonal to the players over all coalitions, so they take no value from anybody, but worths
that bend with the size, as those of networks do, no longer add noise. And ``basis="interactions"`` fits a Gaussian
process on coalitions (see `shaprune.values.estimators.gaussian_process`), which had smaller errors in nearly all games
that were tried. Where a worth and that of the complement sum to a constant (simple majority voting), pairs add nothing
twice: take ``paired=False``.

Standard errors are claimed from 15 n coalitions on, for the linear basis without penalty and coalitions that are
drawn independently within their sizes: leverage and kernel sampling. Bernoulli sampling hardly meets the sizes with
the largest weights, and its intervals were too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, check_choice
from shaprune.values.estimators.base import Method, Task
from shaprune.values.estimators.gaussian_process import fit_gaussian_process
from shaprune.values.estimators.growing_sample import by_enumeration, grow_sample
from shaprune.values.estimators.least_squares import fit
from shaprune.values.estimators.regression_sample import Sample, kernel_of
from shaprune.values.estimators.semivalues import complete
from shaprune.values.result import Values

Array = NDArray[np.float64]
BASES = ("auto", "linear", "interactions")
SAMPLINGS = ("leverage", "kernel", "walks", "bernoulli")
MAX_PAIRS = 2500  # pairs that a Gaussian process takes
MIN_COALITIONS_PER_PLAYER = 15  # coalitions per player from which on standard errors are claimed


@dataclass(frozen=True)
class Regression(Method):
    """Least squares over random coalitions.

    Attributes:
        basis: ``"linear"``: players and ``size_terms``. ``"interactions"``: a Gaussian process over all interactions,
            for Shapley values from pairs and up to 5,000 coalitions (beyond, the linear one serves); it has no
            standard errors, and ``Values.diagnostics["posterior_std"]`` says what it believes. ``"auto"``: the one
            that predicts left-out coalitions better where both are possible; the linear one with a stopping rule.
        sampling: sizes of the coalitions: ``"leverage"``, ``"kernel"`` (in proportion to the kernel), ``"bernoulli"``
            (every player with probability 1/2), or ``"walks"`` (prefixes of random orders).
        paired: draw every coalition with its complement; not used for Banzhaf values with p other than 1/2.
        ridge: penalty on squared coefficients, relative to the mean diagonal of the normal equations.
        l1: penalty on absolute coefficients, in [0, 1) of the one that leaves the equal share only. Needs
            scikit-learn.
        size_terms: functions of |S| in the linear basis; 0 = the plain kernel regression. Shapley values only.
    """

    name: ClassVar[str] = "regression"
    basis: str = "auto"
    sampling: str = "leverage"
    paired: bool = True
    ridge: float = 0.0
    l1: float = 0.0
    size_terms: int = 4

    def check(self, task: Task) -> None:
        check_choice("basis", self.basis, BASES)
        check_choice("sampling", self.sampling, SAMPLINGS)
        if not 0 <= self.ridge < np.inf or not 0 <= self.l1 < 1 or (self.ridge and self.l1):
            raise InputError(
                f"ridge={self.ridge!r}, l1={self.l1!r}: give a ridge of 0 or more, or an l1 in [0, 1), not both"
            )
        if isinstance(self.size_terms, bool) or not isinstance(self.size_terms, int) or self.size_terms < 0:
            raise InputError(f"size_terms is {self.size_terms!r}; it must be a whole number, 0 or above")
        if self.basis == "interactions" and not self._interactions(task):
            raise InputError(
                "basis='interactions' is for Shapley values from pairs of coalitions, without ridge or l1; "
                "use basis='linear'"
            )
        super().check(task)

    def least(self, task: Task) -> int:
        """3 n coalitions, n + 2 where the fit is regularised (ridge, l1, interactions); all, where they are fewer."""
        n = task.n
        if not task.efficient and task.concept.p is None:
            raise InputError(
                f"method 'regression' has Shapley and Banzhaf values only, not {task.concept.label!r}; use method='msr'"
            )
        regularised = self.ridge or self.l1 or self._process(task)
        return task.game.price(_at_most_all(n, n + 2 if regularised else 3 * n + 2))

    @property
    def claims_errors(self) -> bool:
        return self.basis != "interactions" and self.sampling in ("leverage", "kernel") and not (self.ridge or self.l1)

    def default(self, task: Task) -> int:
        return task.game.price(_at_most_all(task.n, max(20 * task.n, 1024)))

    def run(self, task: Task) -> Values:
        exact = by_enumeration(self, task)
        if exact is not None:
            return exact
        sample = Sample(task, kernel_of(task), self.sampling, paired=self.paired)
        return grow_sample(self, task, sample, lambda stopped_by: self._values(sample, stopped_by))

    def _interactions(self, task: Task) -> bool:
        """Whether a Gaussian process can serve."""
        return task.efficient and self.paired and not self.ridge and not self.l1

    def _process(self, task: Task) -> bool:
        """Whether one is fitted: not where a rule waits for standard errors, unless it is asked for."""
        if self.basis == "auto":
            return self._interactions(task) and task.check is None
        return self.basis == "interactions"

    def _values(self, sample: Sample, stopped_by: str) -> Values:
        """The estimate from a sample."""
        task = sample.task
        n, distinct = task.n, sample.distinct
        diagnostics = {"distinct_coalitions": float(distinct)}
        if sample.complete:
            value, error = complete(*sample.everything(), task.weights), np.zeros(n)
        else:
            value, error = self._fitted(sample, diagnostics)
        ends = sample.ends or (None, None)
        return self.result(
            task, value, error, ends=ends, counts=distinct, stopped_by=stopped_by, diagnostics=diagnostics
        )

    def _fitted(self, sample: Sample, notes: dict[str, float]) -> tuple[Array, Array]:
        """Value and standard error; ``notes`` are added to."""
        task, n = sample.task, sample.task.n
        unknown = np.full(n, np.inf)
        chosen, least = (np.zeros(n), unknown), np.inf
        large = len(sample.rows) > MAX_PAIRS
        if (self.basis != "interactions" or large) and (sample.distinct >= 3 * n or self.ridge or self.l1):
            linear = fit(
                *sample.linear(self.size_terms),
                sample.unseen,
                ridge=self.ridge,
                l1=self.l1,
                centred=task.efficient,
            )
            share = 0.0 if sample.ends is None else (sample.ends[0] - sample.ends[1]) / n
            trusted = sample.distinct >= MIN_COALITIONS_PER_PLAYER * n and self.sampling in ("leverage", "kernel")
            chosen, least = (share + linear.value, linear.stderr if trusted else unknown), linear.error
            notes |= {"condition_number": linear.condition_number, "error_linear": float(np.sqrt(least))}
        if self._process(task) and (least == np.inf or not large):
            assert sample.ends is not None
            stream = np.random.default_rng([task.seed, 1 << 32, len(sample.rows)])
            process = fit_gaussian_process(sample.rows, sample.halves, sample.ends[0] - sample.ends[1], stream)
            error = float(np.average(process.errors**2, weights=sample.weights))
            notes |= {"error_interactions": float(np.sqrt(error))}
            if error < least:
                chosen = process.value, unknown
                notes |= {"posterior_std": float(np.sqrt(np.mean(process.spread**2)))}
        return chosen


def _at_most_all(n: int, coalitions: int) -> int:
    return min(coalitions, 1 << n) if n < 62 else coalitions
