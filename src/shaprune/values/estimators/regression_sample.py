"""The coalitions of a regression, their worths, and the rows of its design."""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma, log

import numpy as np
from numpy.typing import NDArray

from shaprune.values.estimators.base import Task
from shaprune.values.estimators.coalition_sampling import SizeSampler, WalkSampler
from shaprune.values.estimators.gaussian_process import size_curves
from shaprune.values.games.arrays import Coalitions
from shaprune.values.games.checks import check_worths

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Kernel:
    """What the least squares weigh.

    Attributes:
        mass: (n + 1,) weight of all coalitions of a size together.
        leverage: (n + 1,) leverage scores of all coalitions of a size together.
        p: of a Banzhaf value; None for the Shapley value.
    """

    mass: Array
    leverage: Array
    p: float | None


def kernel_of(task: Task) -> Kernel:
    """The kernel whose least squares solution is the concept: Shapley's, or independent draws with probability p."""
    n = task.n
    s = np.arange(n + 1)
    if task.efficient:
        inner = (s > 0) & (s < n)
        mass = np.where(inner, 1 / np.where(inner, s * (n - s), 1), 0.0)
        return Kernel(mass, inner.astype(np.float64), None)
    p = task.concept.p
    assert p is not None
    mass = np.exp(_log_choose(n) + s * log(p) + (n - s) * log(1 - p))
    return Kernel(mass, mass * (1 + s * (1 - p) / p + (n - s) * p / (1 - p)), p)


class Sample:
    """A sample that grows.

    Args:
        task: what is estimated.
        kernel: of the concept.
        sampling: as in `Regression`.
        paired: with complements, where the kernel is symmetric.

    Attributes:
        rows: (m, n) coalitions, of a pair one.
        worths: (m,) their worths; ``against``: (m,) those of the complements, empty where not paired.
        ends: v(all) and v(none) of a Shapley value; None for a Banzhaf value.
    """

    def __init__(self, task: Task, kernel: Kernel, sampling: str, *, paired: bool) -> None:
        n = task.n
        self.task, self.kernel = task, kernel
        self.paired = paired and kernel.p in (None, 0.5)
        shares = {
            "leverage": kernel.leverage,
            "kernel": kernel.mass,
            "bernoulli": np.exp(_log_choose(n) - n * log(2)) * (kernel.mass > 0),
        }
        if sampling == "walks":
            self.sampler: SizeSampler = WalkSampler(n, paired=self.paired)
        else:
            self.sampler = SizeSampler(shares[sampling], paired=self.paired)
        self.rows: Coalitions = np.zeros((0, n), dtype=bool)
        self.worths, self.against = np.zeros(0), np.zeros(0)
        self.ends: tuple[float, float] | None = None

    @property
    def distinct(self) -> int:
        """Coalitions evaluated."""
        return len(self.rows) * (2 if self.paired else 1) + (0 if self.ends is None else 2)

    @property
    def complete(self) -> bool:
        """Whether no coalition is left."""
        return self.sampler.left == 0

    def grow(self, evaluations: int, rng: np.random.Generator) -> None:
        """Draw and evaluate further coalitions, so that at most so many evaluations are paid in all."""
        task, n = self.task, self.task.n
        first = np.zeros((0, n), dtype=bool)
        if task.efficient and self.ends is None:
            first = np.array([[True] * n, [False] * n])
        room = evaluations // task.game.price(1) - self.distinct - len(first)
        rows = self.sampler.draw(max(room, 0) // (2 if self.paired else 1), rng)
        asked = np.concatenate([first, rows, ~rows] if self.paired else [first, rows])
        if not len(asked):
            return
        worths = check_worths(task.game(asked), asked)
        if len(first):
            self.ends = float(worths[0]), float(worths[1])
        worths = worths[len(first) :]
        self.rows = np.concatenate([self.rows, rows])
        self.worths = np.concatenate([self.worths, worths[: len(rows)]])
        self.against = np.concatenate([self.against, worths[len(rows) :]])

    @property
    def halves(self) -> Array:
        """(m,) half the difference between each coalition and its complement."""
        return (self.worths - self.against) / 2

    @property
    def weights(self) -> Array:
        """(m,) importance weights: the kernel of a class over the number of its units in the sample."""
        sampler, mass = self.sampler, self.kernel.mass
        n = self.task.n
        whole = mass[sampler.sizes]
        if self.paired:
            whole = whole + np.where(2 * sampler.sizes == n, 0, mass[n - sampler.sizes])
        number = np.where(sampler.expected < 1, sampler.expected, sampler.drawn)
        return np.asarray((whole / np.where(number > 0, number, 1))[sampler.class_of(self.rows)])

    @property
    def unseen(self) -> Array:
        """(m,) share of each row's class that has not been drawn."""
        return np.asarray((1 - self.sampler.drawn / self.sampler.capacity)[self.sampler.class_of(self.rows)])

    def linear(self, size_terms: int) -> tuple[Array, Array, Array, Array]:
        """Design of the linear basis: (m, n) of the players, (m, q) besides, (m,) worths, (m,) weights."""
        n, p, m = self.task.n, self.kernel.p, len(self.rows)
        worths = self.halves if self.paired else self.worths
        if p is not None:
            others = np.zeros((m, 0)) if self.paired else np.ones((m, 1))
            return np.asarray(self.rows - p, dtype=np.float64), others, worths, self.weights
        assert self.ends is not None
        share = self.rows.mean(1)
        worth_all, worth_none = self.ends
        total = worth_all - worth_none
        worths = worths - total * (share - 0.5) if self.paired else worths - worth_none - total * share
        terms = min(size_terms, len(self.sampler.sizes) // 2, max(m - n, 0) // 4)
        others = size_curves(2 * share - 1, terms, odd=self.paired)
        return np.asarray(self.rows - share[:, None], dtype=np.float64), others, worths, self.weights

    def everything(self) -> tuple[Coalitions, Array]:
        """All coalitions evaluated, and their worths."""
        n = self.task.n
        rows = [self.rows, ~self.rows] if self.paired else [self.rows]
        worths = [self.worths, self.against]
        if self.ends is not None:
            rows.append(np.array([[True] * n, [False] * n]))
            worths.append(np.array(self.ends))
        return np.concatenate(rows), np.concatenate(worths)


def _log_choose(n: int) -> Array:
    """(n + 1,) logarithms of the numbers of coalitions of each size."""
    return np.array([lgamma(n + 1) - lgamma(s + 1) - lgamma(n - s + 1) for s in range(n + 1)])
