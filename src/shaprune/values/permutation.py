"""Values from random orders (Castro et al. 2009; Adamczewski et al. 2024, Eq. 4), one order per example.

The worth of a network is a mean over examples, and the Shapley value of a mean is the mean of the Shapley values, so
every example may walk its own random order: for the same number of evaluations the noise of the orders averages out
over the examples. ``per_example=False`` is the published practice (Ancona et al. 2020; Adamczewski et al. 2024): one
order for all examples.

A walk shows every player one marginal contribution, at a size that is uniform over 0..n-1; other concepts than the
Shapley value weigh it by their share of that size (a ratio of sums, as for a size window).

Cost: n + 1 evaluations per walk (fewer in a size window). The random stream belongs to (seed, chunk), statistics are
added in chunk order, so the result does not depend on who computes a chunk or when.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.values.chunks import Chunk, chunks
from shaprune.values.game import Examples, Orders, Worths, chain, checked, checked_walks
from shaprune.values.method import Method, Task
from shaprune.values.result import Values
from shaprune.values.statistics import Statistics, empty, from_samples, marginals

DEFAULT_SAMPLES = 256  # at least so many samples where neither a budget nor a rule is given
NOTHING = 1e-9  # share of the small coalitions that walks of a concept may leave out


@dataclass(frozen=True)
class Permutation(Method):
    """Random orders.

    A budget that covers every example at least once gives each the same number of walks, and a remainder is left
    unspent; below that, a random subset of the examples is walked. Without a budget or a rule: one sample per example,
    at least 256 in all.

    Attributes:
        antithetic: walk every order also backwards; the two walks make one sample (Mitchell et al. 2022).
        per_example: one order per example; False = one order for all examples. Where a game has no worths of single
            examples it is False, and ``Values.options`` says so.
        truncate: end a walk once the worth of its example has fallen to this share of the way from v(none) to v(all);
            what remains counts as v(none). None = never. Evaluations are saved, and the values get a small bias
            (cf. truncated Monte Carlo, Ghorbani & Zou 2019).
    """

    name: ClassVar[str] = "permutation"
    by_example: ClassVar[bool] = True
    antithetic: bool = False
    per_example: bool = True
    truncate: float | None = None

    def check(self, task: Task) -> None:
        if self.truncate is not None:
            if not 0 <= self.truncate < 1:
                raise InputError(f"truncate is {self.truncate!r}; it is a share of v(all) - v(none), in [0, 1)")
            if not task.efficient:
                raise InputError(
                    f"truncate needs whole walks, and {task.concept.label!r} looks at some sizes only; drop one"
                )
        if task.keep_examples:
            if not self._separate(task):
                raise InputError("values per example need one order per example, and a game whose examples have worths")
            needed = 2 * 8 * task.game.n_examples * task.n
            if needed > task.max_memory:
                raise InputError(
                    f"values per example need {needed:,} bytes and max_memory is {task.max_memory:,}; "
                    "raise it, or take fewer examples or groups"
                )
        super().check(task)

    def least(self, task: Task) -> int:
        """One sample: one walk, or the two walks of an antithetic pair."""
        walk = _steps(task) + 1
        return walk * (2 if self.antithetic else 1) * (1 if self._separate(task) else task.game.n_examples)

    def default(self, task: Task) -> int:
        n_examples = task.game.n_examples if self._separate(task) else 1
        return self.least(task) * n_examples * -(-DEFAULT_SAMPLES // n_examples)

    def run(self, task: Task) -> Values:
        method = self if self._separate(task) else replace(self, per_example=False)
        work = _Work(method, task)
        index, players = 0, None
        while True:
            cost = self.least(task) if players is None else 2 * len(players) * self.least(task) // (_steps(task) + 1)
            limit = task.max_evaluations if task.max_evaluations or task.check else self.default(task)
            n_samples = None if limit is None else (limit - task.game.evaluations) // cost
            for chunk in chunks(task.game.n_examples if method.per_example else None, n_samples, task.seed, index):
                index = chunk.index + 1
                work.add(chunk, players)
                if task.check is not None and chunk.closes_sweep:
                    values = work.values("")
                    reason = task.check.reason(values)
                    if reason:
                        return replace(values, stopped_by=reason)
                    near = _near(task.check.undecided(values), players, _steps(task))
                    if near is not players:
                        players = near
                        break
            else:
                return work.values("max_evaluations" if task.max_evaluations is not None else "default")

    def _separate(self, task: Task) -> bool:
        return self.per_example and task.game.separable


def _steps(task: Task) -> int:
    """Players that leave in a walk: down to the smallest coalition that counts for more than a rounding error."""
    return task.n - int(np.flatnonzero(np.cumsum(task.weights) > NOTHING)[0])


def _near(
    undecided: NDArray[np.bool_] | None, players: NDArray[np.int64] | None, steps: int
) -> NDArray[np.int64] | None:
    """The players that alone are sampled from now on; None = all, ``players`` itself = no change.

    They change where that is cheaper by a quarter, or where somebody who is not sampled is undecided again.
    """
    if undecided is None or not undecided.any():
        return players
    near = np.flatnonzero(undecided)
    if players is None:
        return near if 2 * len(near) <= 0.75 * (steps + 1) else None
    if not np.isin(near, players).all():
        return near if 2 * len(near) < steps + 1 else None
    return near if len(near) <= 0.75 * len(players) else players


@dataclass
class _Work:
    """The sums of one estimate as they grow."""

    method: Permutation
    task: Task
    statistics: Statistics = field(init=False)
    walks: int = 0
    first: float = 0.0
    last: float = 0.0
    saved: int = 0  # evaluations that truncation has spared

    def __post_init__(self) -> None:
        weights = self.task.weights
        self.weights = weights / weights.max()
        self.steps = _steps(self.task)
        self.statistics = empty(self.task.n)
        shape = (self.task.game.n_examples, self.task.n)
        # sums and walks of every example, and the sum of the weights over all of them
        self.examples = (np.zeros(shape), np.zeros(shape), np.zeros(self.task.n)) if self.task.keep_examples else None

    def add(self, chunk: Chunk, players: NDArray[np.int64] | None) -> None:
        """Walk the orders of one chunk; ``players`` = only these are sampled."""
        task, method = self.task, self.method
        orders = chunk.orders(task.seed, task.n, self.steps, method.antithetic)
        walkers = None if chunk.examples is None else np.repeat(chunk.examples, len(orders) // len(chunk.examples))
        if players is None:
            worths = self._walk(orders, walkers)
            self.walks += len(orders)
            self.first += float(worths[:, 0].sum())
            self.last += float(worths[:, -1].sum())
            value, present = marginals(worths, orders, self.weights)
        else:
            value, present = self._some(orders, walkers, players)
        if self.examples is not None:
            assert walkers is not None
            np.add.at(self.examples[0], walkers, value)
            np.add.at(self.examples[1], walkers, present > 0)
            self.examples[2][:] += present.sum(0)
        twice = chunk.samples == 2 and task.efficient and walkers is not None and task.game.n_examples > 1
        self.statistics = self.statistics + from_samples(value, present, antithetic=method.antithetic, paired=twice)

    def _walk(self, orders: Orders, walkers: Examples | None) -> Worths:
        task = self.task
        if self.method.truncate is None:
            return checked_walks(task.game.walk(orders, walkers), orders, task.n)
        before = task.game.evaluations
        worths = _truncated(task, orders, walkers, self.method.truncate)
        self.saved += worths.size * (task.game.n_examples if walkers is None else 1) - (task.game.evaluations - before)
        return worths

    def _some(
        self, orders: Orders, walkers: Examples | None, players: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Marginal contributions of ``players`` only: two coalitions for each, at its place in the order."""
        n = self.task.n
        place = np.full((len(orders), n), n)  # n: stays to the end
        np.put_along_axis(place, orders, np.broadcast_to(np.arange(orders.shape[1]), orders.shape), axis=1)
        ours = place[:, players]
        kept = place[:, None, :] >= ours[:, :, None]  # (R, k, n) just before the player leaves
        without = kept.copy()
        without[:, np.arange(len(players)), players] = False
        rows = np.stack([kept, without]).reshape(-1, n)
        examples = None if walkers is None else np.tile(np.repeat(walkers, len(players)), 2)
        with_it, without_it = checked(self.task.game(rows, examples), rows).reshape(2, *ours.shape)
        weight = np.where(ours < n, self.weights[kept.sum(2) - 1], 0.0)
        value, present = np.zeros((len(orders), n)), np.zeros((len(orders), n))
        value[:, players], present[:, players] = (with_it - without_it) * weight, weight
        return value, present

    def values(self, stopped_by: str) -> Values:
        """The estimate so far."""
        task, statistics = self.task, self.statistics
        value = statistics.mean()
        worth_all = self.first / self.walks
        worth_none = self.last / self.walks if self.steps == task.n else None
        by_example = None
        if self.examples is not None:
            # Every walk counts as the mean walk does, not by its own weight: one walk meets a player at one size only,
            # so its own weight would cancel. The mean over examples that walked equally often is then the value.
            total, walks, weight = self.examples
            typical = weight / np.maximum(walks.sum(0), 1)
            by_example = np.where(walks > 0, total / np.where(walks > 0, walks * typical, 1), np.nan)
        diagnostics: dict[str, float] = {}
        if self.method.truncate is not None:
            diagnostics["evaluations_saved"] = float(self.saved)
        options: dict[str, Any] = self.method.options(task)
        return Values(
            value=value,
            stderr=statistics.stderr(task.game.n_examples if self.method.per_example else 1),
            n_evaluations=task.game.evaluations,
            method=self.method.name,
            efficiency_gap=task.gap(value, worth_all, worth_none),
            stopped_by=stopped_by,
            worth_all=worth_all,
            worth_none=worth_none,
            counts=statistics.count.astype(np.int64),
            options=options,
            concept=task.concept.label,
            efficient=task.efficient,
            diagnostics=diagnostics,
            by_example=by_example,
        )


BLOCKS = 8  # a truncated walk is looked at so many times


def _truncated(task: Task, orders: Orders, walkers: Examples | None, share: float) -> Worths:
    """Worths along walks that end at the collapse of their example; the rest is v(none)."""
    steps = orders.shape[1]
    nobody = np.zeros((len(orders), task.n), dtype=bool)
    none = checked(task.game(nobody, walkers), nobody)
    worths = np.repeat(none[:, None], steps + 1, axis=1)
    alive = np.arange(len(orders))
    size = -(-steps // BLOCKS)
    for start in range(0, steps, size):
        stop = min(start + size, steps)
        rows = chain(orders[alive], task.n)[:, start:stop].reshape(-1, task.n)
        examples = None if walkers is None else np.repeat(walkers[alive], stop - start)
        worths[alive, start:stop] = checked(task.game(rows, examples), rows).reshape(len(alive), -1)
        way = worths[alive, 0] - none[alive]
        left = worths[alive, stop - 1] - none[alive]
        alive = alive[np.where(way < 0, -left, left) > share * np.abs(way)]
        if not len(alive):
            break
    return worths
