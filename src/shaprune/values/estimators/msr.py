"""Maximum sample reuse: every coalition informs every player, for any semivalue.

phi_i = sum over S of v(S) (a[|S|] if i is in S else -b[|S|]) (see `shaprune.values.estimators.exact`), so one random
coalition says something about all players. For independent draws this is phi_i = E[v | i in] - E[v | i out], the
index of Diaz-Ortiz et al. 2023 and the Banzhaf estimator of Wang & Jia 2023; for other semivalues see Li & Yu 2024.

Sizes are drawn so that the variances of all players together are least (see `best_shares`); Banzhaf values draw every
player with probability p, as dropout does. Within a size coalitions are drawn without replacement; v(all) and v(none)
are exact where they count. Both means of a player are self-normalised (Hajek).

``adjust`` subtracts a function that is linear in the players plus smooth in |S|, fitted to the same coalitions, and
adds its own value, which is known: c + sum_i beta_i z_i + g(|S|) gives each player beta_i plus the weighted mean of
g(s + 1) - g(s). What remains to be estimated is only what the function misses (Witter et al. 2025, who fit trees).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma, log
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shaprune.values.estimators.base import Method, Task
from shaprune.values.estimators.coalition_sampling import SizeSampler
from shaprune.values.estimators.gaussian_process import size_curves
from shaprune.values.estimators.growing_sample import by_enumeration, grow_sample
from shaprune.values.estimators.semivalues import best_shares, complete, shares_by_size
from shaprune.values.games.arrays import Coalitions
from shaprune.values.games.checks import check_worths
from shaprune.values.result import Values

Array = NDArray[np.float64]
MIN_COALITIONS_PER_PLAYER = 10  # coalitions per player from which on standard errors are claimed
SIZE_TERMS = 4


@dataclass(frozen=True)
class MSR(Method):
    """Maximum sample reuse.

    For Banzhaf values ``Values.diagnostics`` has ``dropout_mean`` and ``dropout_std``: mean and standard deviation of
    the worth when every player is kept with probability p.

    Attributes:
        adjust: subtract a fitted function whose value is known.
        per_example: evaluate every coalition on one example, a different one each time, instead of on all. Where a
            game has no worths of single examples it is False, and ``Values.options`` says so.
    """

    name: ClassVar[str] = "msr"
    adjust: bool = True
    per_example: bool = False

    def least(self, task: Task) -> int:
        """Two coalitions more than players; all that count, where they are fewer.

        With ``per_example`` those on one example each, and two over all examples.
        """
        count = min(task.n + 2, _relevant_coalitions(task))
        return task.game.price(2) + count if self._separate(task) else task.game.price(count)

    def default(self, task: Task) -> int:
        if self._separate(task):
            return task.game.price(2) + max(20 * task.n, 1024, 4 * task.game.n_examples)
        return task.game.price(min(max(20 * task.n, 1024), _relevant_coalitions(task)))

    def run(self, task: Task) -> Values:
        separate = self._separate(task)
        exact = None if separate else by_enumeration(self, task)
        if exact is not None:
            return exact
        sample = _Sample(task, separate)
        return grow_sample(self, task, sample, lambda stopped_by: self._values(sample, stopped_by))

    def options(self, task: Task) -> dict[str, Any]:
        return {**super().options(task), "per_example": self._separate(task)}

    def _separate(self, task: Task) -> bool:
        return self.per_example and task.game.separable and task.game.n_examples > 1

    def _values(self, sample: _Sample, stopped_by: str) -> Values:
        task, n = sample.task, sample.task.n
        diagnostics: dict[str, float] = {"distinct_coalitions": float(len(sample.rows) + len(sample.ends))}
        if sample.complete:
            value, error = complete(*sample.everything(), task.weights), np.zeros(n)
        else:
            value, error = _estimate(sample, self.adjust)
            if diagnostics["distinct_coalitions"] < MIN_COALITIONS_PER_PLAYER * n:
                error = np.full(n, np.inf)
        if task.concept.p is not None:
            diagnostics |= _dropout(sample)
        ends = sample.ends.get(n), sample.ends.get(0)
        return self.result(
            task, value, error, ends=ends, counts=len(sample.rows), stopped_by=stopped_by, diagnostics=diagnostics
        )


def _shares(task: Task) -> Array:
    """(n + 1,) how often coalitions of each size are drawn; the ends are not, but by Banzhaf values."""
    n, p = task.n, task.concept.p
    s = np.arange(n + 1)
    if p is not None:
        choose = np.array([lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) for k in s.tolist()])
        return np.asarray(np.exp(choose + s * log(p) + (n - s) * log(1 - p)))
    share = best_shares(task.weights)
    share[[0, n]] = 0
    return share


def _ends(task: Task) -> list[int]:
    """Sizes whose only coalition is evaluated for sure."""
    if task.concept.p is not None:
        return []
    return [size for size, weight in ((task.n, task.weights[-1]), (0, task.weights[0])) if weight > 0]


def _relevant_coalitions(task: Task) -> int:
    """Coalitions that count."""
    return int(SizeSampler(_shares(task)).capacity.sum()) + len(_ends(task))


class _Sample:
    """Coalitions by size, and their worths.

    Attributes:
        rows: (m, n); ``worths``: (m,); ``raw``: (m,) the worths before examples were made comparable.
        ends: worths of the full and the empty coalition by size, where they count.
    """

    def __init__(self, task: Task, separate: bool) -> None:
        self.task, self.separate = task, separate
        self.sampler = SizeSampler(_shares(task), repeated=separate)
        self.rows: Coalitions = np.zeros((0, task.n), dtype=bool)
        self.worths, self.raw = np.zeros(0), np.zeros(0)
        self.ends: dict[int, float] = {}
        self._offset: Array | None = None  # (N,) what an example's worths are above the mean
        self._turn = np.zeros(0, dtype=np.int64)  # examples whose turn it is
        self._begun = False

    @property
    def complete(self) -> bool:
        """Whether no coalition that counts is left (never, where each is seen on one example only)."""
        return not self.separate and self.sampler.left == 0

    def grow(self, evaluations: int, rng: np.random.Generator) -> None:
        """Draw and evaluate further coalitions, so that at most so many evaluations are paid in all."""
        task, n = self.task, self.task.n
        if not self._begun:
            self._begun = True
            self._start()
        fixed = task.game.price(2) if self.separate else task.game.price(len(self.ends))
        each = 1 if self.separate else task.game.price(1)
        rows = self.sampler.draw(max((evaluations - fixed) // each - len(self.rows), 0), rng)
        examples = self._examples(len(rows), rng) if self.separate else None
        if not len(rows):
            return
        raw = check_worths(task.game(rows, examples), rows)
        worths = raw if examples is None or self._offset is None else raw - self._offset[examples]
        self.rows = np.concatenate([self.rows, rows]).reshape(-1, n)
        self.worths, self.raw = np.append(self.worths, worths), np.append(self.raw, raw)

    def _start(self) -> None:
        """Evaluate the ends."""
        task, n = self.task, self.task.n
        sizes = _ends(task)
        if not self.separate:
            if sizes:
                rows = np.array([[size == n] * n for size in sizes])
                self.ends = dict(zip(sizes, check_worths(task.game(rows), rows).tolist(), strict=True))
            return
        every = np.arange(task.game.n_examples)
        rows = np.repeat(np.array([[True] * n, [False] * n]), len(every), axis=0)
        worths = check_worths(task.game(rows, np.tile(every, 2)), rows).reshape(2, -1)
        self.ends = {size: float(worths[row].mean()) for row, size in enumerate((n, 0)) if size in sizes}
        self._offset = worths.mean(0) - worths.mean()

    def _examples(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The examples of so many rows: all in turn, in random orders."""
        while len(self._turn) < count:
            self._turn = np.append(self._turn, rng.permutation(self.task.game.n_examples))
        examples, self._turn = self._turn[:count], self._turn[count:]
        return examples

    def everything(self) -> tuple[Coalitions, Array]:
        """All coalitions evaluated, and their worths."""
        ends = np.array([[size == self.task.n] * self.task.n for size in self.ends]).reshape(-1, self.task.n)
        return np.concatenate([self.rows, ends.astype(bool)]), np.append(self.worths, list(self.ends.values()))


def _estimate(sample: _Sample, adjust: bool) -> tuple[Array, Array]:
    """(n,) values and standard errors."""
    task, rows, n = sample.task, sample.rows, sample.task.n
    weights = task.weights
    ends = dict(sample.ends)
    worths, residual, value = sample.worths, sample.worths, np.zeros(n)
    if adjust:
        fitted, value, left_out = _control(sample)
        worths, residual = worths - fitted(rows), left_out
        edge = {size: fitted(np.array([[size == n] * n]))[0] for size in ends}
        ends = {size: worth - edge[size] for size, worth in ends.items()}
    value = value + weights[-1] * ends.get(n, 0.0) - weights[0] * ends.get(0, 0.0)
    kinds = sample.sampler.class_of(rows)
    size, drawn = rows.sum(1), sample.sampler.drawn
    inside, outside = shares_by_size(weights)
    number = np.where(sample.sampler.expected < 1, sample.sampler.expected, drawn)[kinds]
    influence = np.zeros((len(rows), n))
    for sign, members, by_size, among in ((1, rows, inside, size), (-1, ~rows, outside, n - size)):
        mass = float(sum(by_size[s] for s in range(n + 1) if s not in ends))
        each = members * (by_size[size] * n / np.maximum(among, 1) / np.maximum(number, 1e-300))[:, None]
        whole = each.sum(0)
        each = each * np.divide(mass, whole, out=np.zeros(n), where=whole > 0)
        mean = worths @ each / (mass or 1)
        value = value + sign * worths @ each
        influence += sign * each * (residual[:, None] - mean)
    return value, np.sqrt(_stratified(influence, kinds, sample))


def _stratified(influence: Array, kinds: NDArray[np.int64], sample: _Sample) -> Array:
    """(n,) variance of the sum of each column of ``influence``, whose rows were drawn by class."""
    drawn = sample.sampler.drawn
    indicator = (kinds[:, None] == np.arange(len(drawn))).astype(np.float64)
    mean = indicator.T @ influence / np.maximum(drawn, 1)[:, None]
    mean[drawn < 2] = 0  # nothing to compare with
    grow = np.where(drawn < 2, 1, drawn / np.maximum(drawn - 1, 1))
    unseen = np.ones(len(drawn)) if sample.separate else 1 - drawn / sample.sampler.capacity
    squares = (influence - mean[kinds]) ** 2
    return np.asarray((squares * (grow * unseen)[kinds][:, None]).sum(0))


def _control(sample: _Sample) -> tuple[Any, Array, Array]:
    """A fitted function of coalitions, its value per player, and (m,) errors of predicting each row from all others."""
    n, rows = sample.task.n, sample.rows
    terms = min(SIZE_TERMS, max(len(sample.sampler.sizes) - 2, 0), max(len(rows) - n, 0) // 4)

    def design(coalitions: Coalitions) -> Array:
        return np.hstack([coalitions - 0.5, size_curves(2 * coalitions.mean(1) - 1, terms, odd=False)])

    x, centre = design(rows), float(sample.worths.mean())
    middle = x.mean(0)
    u, s, vt = np.linalg.svd(x - middle, full_matrices=False)
    y = sample.worths - centre
    best, shrink = np.inf, np.zeros(len(s))
    for ridge in s[0] ** 2 * 10.0 ** np.arange(-10, 1):  # generalised cross-validation (Golub, Heath & Wahba 1979)
        factor = s**2 / (s**2 + ridge)
        left = y - u @ (factor * (u.T @ y))
        score = (left @ left) / max(len(y) - 1 - factor.sum(), 1e-9) ** 2
        if score < best:
            best, shrink = score, factor
    coefficients = vt.T @ (shrink / np.where(s > 0, s, 1) * (u.T @ y))
    leverage = (u**2) @ shrink + 1 / len(y)
    errors = (y - u @ (shrink * (u.T @ y))) / np.maximum(1 - leverage, 1e-6)
    sizes = size_curves(2 * np.arange(n + 1) / n - 1, terms, odd=False) @ coefficients[n:]
    value = coefficients[:n] + sample.task.weights @ np.diff(sizes)
    return (lambda coalitions: centre + (design(coalitions) - middle) @ coefficients), value, errors


def _dropout(sample: _Sample) -> dict[str, float]:
    """Mean and standard deviation of the worth when players are kept with probability p."""
    kinds, drawn = sample.sampler.class_of(sample.rows), sample.sampler.drawn
    weight = sample.sampler.shares[kinds] / drawn[kinds]
    weight /= weight.sum()
    mean = float(weight @ sample.raw)
    notes = {"dropout_mean": mean}
    if not sample.separate:
        notes["dropout_std"] = float(np.sqrt(weight @ (sample.raw - mean) ** 2))
    return notes
