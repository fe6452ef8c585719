"""Stratified SVARM: mean worths by player, coalition size, and whether the player is in (Kolpaczki et al. 2024).

phi_i = sum over s of w[s] (mean worth of the coalitions of s + 1 players with i - mean worth of those of s without
i), for any semivalue with weights w. A coalition of s players is a sample of n strata at once: "in, size s" of its
members, "out, size s" of the others.

Sizes 0, 1, n - 1 and n are enumerated where they weigh as much as others. The warm-up comes next: ceil(n / min(s, n -
s)) coalitions of each size in balanced blocks (pieces of random orders), which fill all its strata. Then sizes take
turns. Where it deviates from the paper: small and large sizes, whose strata fill unevenly, get more turns (see
`best_shares`), no coalition is drawn twice, and the variance within a stratum is shrunk towards the mean over the
players of its size. (Blocks all the way would be worse: disjoint coalitions have opposite errors, and means with and
without a player are subtracted.) A stratum that is still empty borrows the mean worth of its size (of the
neighbouring sizes, where nothing of its size was drawn): the player then counts as the average player there,
``Values.diagnostics["borrowed_strata"]`` says how many did, and no standard error is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shaprune.values.estimators.base import Method, Task
from shaprune.values.estimators.coalition_sampling import SizeSampler
from shaprune.values.estimators.growing_sample import by_enumeration, grow_sample
from shaprune.values.estimators.semivalues import best_shares, complete, shares_by_size
from shaprune.values.games.arrays import Coalitions
from shaprune.values.games.checks import check_worths
from shaprune.values.result import Values

Array = NDArray[np.float64]
MIN_COALITIONS_PER_PLAYER = 20  # coalitions per player from which on standard errors are claimed
PRIOR_DEGREES_OF_FREEDOM = 2.0  # degrees of freedom that the mean variance of a size counts for
NEGLIGIBLE_SHARE = 1e-6  # share of a size below which its strata may stay empty


@dataclass(frozen=True)
class SVARM(Method):
    """Stratified sampling in which every coalition informs every player; it has no options."""

    name: ClassVar[str] = "svarm"

    def least(self, task: Task) -> int:
        """The sizes 0, 1, n - 1 and n, and one more coalition; all that count, where they are fewer."""
        edges, others = _samplers(task)
        return task.game.price(int(edges.left + min(others.left, 1)))

    def default(self, task: Task) -> int:
        edges, others = _samplers(task)
        return task.game.price(int(min(max(20 * task.n, 1024), edges.left + others.left)))

    def run(self, task: Task) -> Values:
        exact = by_enumeration(self, task)
        if exact is not None:
            return exact
        sample = _Sample(task)
        return grow_sample(self, task, sample, lambda stopped_by: self._values(sample, stopped_by))

    def _values(self, sample: _Sample, stopped_by: str) -> Values:
        task, n = sample.task, sample.task.n
        diagnostics = {"distinct_coalitions": float(len(sample.rows))}
        if sample.complete:
            value, error = complete(sample.rows, sample.worths, task.weights), np.zeros(n)
        else:
            value, error, borrowed = _stratified(sample)
            diagnostics["borrowed_strata"] = float(borrowed)
            if borrowed or len(sample.rows) < MIN_COALITIONS_PER_PLAYER * n:
                error = np.full(n, np.inf)
        size = sample.rows.sum(1)
        ends = [next(iter(sample.worths[size == s].tolist()), None) for s in (n, 0)]
        return self.result(
            task,
            value,
            error,
            ends=(ends[0], ends[1]),
            counts=len(sample.rows),
            stopped_by=stopped_by,
            diagnostics=diagnostics,
        )


def _samplers(task: Task) -> tuple[SizeSampler, SizeSampler]:
    """Of the sizes that are enumerated, and of the others that count."""
    n = task.n
    share = best_shares(task.weights)
    share /= share.sum()
    edge = np.isin(np.arange(n + 1), (0, 1, n - 1, n)) & (share >= share.max() / (2 * n))
    return SizeSampler(np.where(edge, share, 0)), SizeSampler(np.where(edge, 0, share))


class _Sample:
    """Coalitions and their worths; ``rows`` (m, n), ``worths`` (m,)."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.edges, self.others = _samplers(task)
        self.rows: Coalitions = np.zeros((0, task.n), dtype=bool)
        self.worths = np.zeros(0)
        self.share = self.others.shares
        least = np.minimum(self.others.sizes, task.n - self.others.sizes)
        needed = -(-task.n // np.maximum(least, 1)).astype(np.float64)  # fill the strata of a size
        self.needed = np.minimum(np.where(self.share > NEGLIGIBLE_SHARE, needed, 0), self.others.capacity)

    @property
    def complete(self) -> bool:
        """Whether no coalition that counts is left."""
        return self.edges.left + self.others.left == 0

    def grow(self, evaluations: int, rng: np.random.Generator) -> None:
        """Draw and evaluate further coalitions, so that at most so many evaluations are paid in all."""
        task = self.task
        room = evaluations // task.game.price(1) - len(self.rows)
        parts = [self.edges.draw(max(room, 0), rng)]
        room -= len(parts[0])
        warm = int((self.needed - self.others.drawn).clip(0).sum())
        if room > 0 and warm and not self.others.drawn.sum() > self.needed.sum():
            self.others.shares = np.maximum(self.needed, 1e-12 * self.share)
            parts.append(self.others.draw(min(room, warm), rng, balanced=True))
            room -= len(parts[1])
        self.others.shares = self.share
        parts.append(self.others.draw(max(room, 0), rng))
        rows = np.concatenate(parts)
        if len(rows):
            worths = check_worths(task.game(rows), rows)
            self.rows, self.worths = np.concatenate([self.rows, rows]), np.append(self.worths, worths)


def _stratified(sample: _Sample) -> tuple[Array, Array, int]:
    """(n,) values, (n,) standard errors (inf where a variance is unknown), and the number of strata that borrowed."""
    rows, worths, n = sample.rows, sample.worths, sample.task.n
    size = rows.sum(1)
    at = (size[:, None] == np.arange(n + 1)).astype(np.float64)  # (m, n + 1)
    drawn = at.sum(0)
    known = np.flatnonzero(drawn)
    overall = np.interp(np.arange(n + 1), known, (worths @ at)[known] / drawn[known])
    unseen = np.ones(n + 1)
    for sampler in (sample.edges, sample.others):
        unseen[sampler.sizes] = 1 - sampler.drawn / sampler.capacity
    left = worths - overall[size]
    value, variance, borrowed = np.zeros(n), np.zeros(n), 0
    for sign, members, weight in zip((1, -1), (rows, ~rows), shares_by_size(sample.task.weights), strict=True):
        count = at.T @ members  # (n + 1, n)
        mean = at.T @ (members * left[:, None]) / np.maximum(count, 1)
        square = at.T @ (members * left[:, None] ** 2) - count * mean**2
        freedom = np.maximum(count - 1, 0).sum(1)
        pooled = np.maximum(square, 0).sum(1) / np.maximum(freedom, 1)
        within = (np.maximum(square, 0) + PRIOR_DEGREES_OF_FREEDOM * pooled[:, None]) / (
            np.maximum(count - 1, 0) + PRIOR_DEGREES_OF_FREEDOM
        )
        value += sign * weight @ (mean + overall[:, None])
        variance += (weight**2 * unseen) @ (within / np.maximum(count, 1))
        counts = weight > NEGLIGIBLE_SHARE
        borrowed += int(np.count_nonzero(count[counts] == 0))
        if (counts & (freedom == 0) & (unseen > 0)).any():
            variance += np.inf
    return value, np.sqrt(variance), borrowed
