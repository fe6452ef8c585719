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

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.values.estimators.base import Method, Task
from shaprune.values.estimators.chunks import Chunk, chunks
from shaprune.values.estimators.marginal_statistics import Statistics, empty, from_samples, marginals
from shaprune.values.games.arrays import Examples, Orders, Worths
from shaprune.values.games.checks import check_walk_worths, check_worths
from shaprune.values.games.game import Question, coalitions_along, parts
from shaprune.values.result import Values

DEFAULT_SAMPLES = 256  # at least so many samples where neither a budget nor a rule is given
NEGLIGIBLE_SHARE = 1e-9  # share of the small coalitions that walks of a concept may leave out


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
            pieces = chunks(task.game.n_examples if method.per_example else None, n_samples, task.seed, index)
            for chunk in work.added(pieces, players):
                index = chunk.index + 1
                if task.check is not None and chunk.closes_sweep:
                    values = work.values("")
                    reason = task.check.reason(values)
                    if reason:
                        return replace(values, stopped_by=reason)
                    near = _undecided_players(task.check.undecided(values), players, _steps(task))
                    if near is not players:
                        players = near
                        break
            else:
                return work.values("max_evaluations" if task.max_evaluations is not None else "default")

    def _separate(self, task: Task) -> bool:
        return self.per_example and task.game.separable


def _steps(task: Task) -> int:
    """Players that leave in a walk: down to the smallest coalition that counts for more than a rounding error."""
    return task.n - int(np.flatnonzero(np.cumsum(task.weights) > NEGLIGIBLE_SHARE)[0])


def _undecided_players(
    undecided: NDArray[np.bool_] | None, players: NDArray[np.int64] | None, steps: int
) -> NDArray[np.int64] | None:
    """The players that alone are sampled from now on; None = all, ``players`` itself = no change.

    They change where that is cheaper by a quarter, or where a player that is not sampled is undecided again.
    """
    if undecided is None or not undecided.any():
        return players
    near = np.flatnonzero(undecided)
    if players is None:
        return near if 2 * len(near) <= 0.75 * (steps + 1) else None
    if not np.isin(near, players).all():
        return near if 2 * len(near) < steps + 1 else None
    return near if len(near) <= 0.75 * len(players) else players


@dataclass(frozen=True, eq=False)
class _PlayerSubset:
    """Marginal contributions of some players only: two coalitions for each, at its place in the order.

    Attributes:
        rows: (2 R k, n) coalitions with the player, then those without it.
        size: (R, k) how many there are before the player leaves.
        leaves: (R, k) whether it leaves at all.
    """

    players: NDArray[np.int64]
    rows: NDArray[np.bool_]
    size: NDArray[np.int64]
    leaves: NDArray[np.bool_]

    @staticmethod
    def of(orders: Orders, n: int, players: NDArray[np.int64]) -> _PlayerSubset:
        """Of (R, m) orders."""
        place = np.full((len(orders), n), n)  # n: stays to the end
        np.put_along_axis(place, orders, np.broadcast_to(np.arange(orders.shape[1]), orders.shape), axis=1)
        ours = place[:, players]
        rows = np.empty((2, len(orders), len(players), n), dtype=bool)
        np.greater_equal(place[:, None, :], ours[:, :, None], out=rows[0])  # just before the player leaves
        rows[1] = rows[0]
        rows[1][:, np.arange(len(players)), players] = False
        return _PlayerSubset(players, rows.reshape(-1, n), rows[0].sum(2), ours < n)

    def marginals(
        self, worths: Worths, weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(R, n) weighted marginal contributions and (R, n) their weights, from the worths of ``rows``."""
        with_it, without_it = worths.reshape(2, *self.size.shape)
        weight = np.where(self.leaves, weights[self.size - 1], 0.0)
        value, present = np.zeros((2, len(weight), self.rows.shape[1]))
        value[:, self.players], present[:, self.players] = (with_it - without_it) * weight, weight
        return value, present


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Orders (R, m) of a chunk, who walks them, and what is asked about them; ``ends`` = they are its last."""

    chunk: Chunk
    orders: Orders
    walkers: Examples | None
    question: Question
    some: _PlayerSubset | None = None
    ends: bool = True


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

    def added(self, pieces: Iterable[Chunk], players: NDArray[np.int64] | None) -> Iterator[Chunk]:
        """Each chunk once its walks have been added; ``players`` = only these are sampled.

        The game may draw the orders of later chunks before it answers.
        """
        drawn: deque[_Drawn] = deque()

        def questions() -> Iterator[Question]:
            for chunk in pieces:
                for now in self._draw(chunk, players):
                    drawn.append(now)
                    yield now.question

        if self.method.truncate is not None and players is None:
            for chunk in pieces:
                (now,) = self._draw(chunk, None)
                self._add(now, self._truncated(now.orders, now.question.examples, self.method.truncate))
                yield chunk
            return
        for worths in self.task.game.stream(questions()):
            now = drawn.popleft()
            self._add(now, worths)
            if now.ends:
                yield now.chunk

    def _draw(self, chunk: Chunk, players: NDArray[np.int64] | None) -> Iterator[_Drawn]:
        """Draw the orders of a chunk, and what is asked of the game about them; samples of an example stay together."""
        orders = chunk.orders(self.task.seed, self.task.n, self.steps, self.method.antithetic)
        walkers = None if chunk.examples is None else np.repeat(chunk.examples, len(orders) // len(chunk.examples))
        if players is None:
            yield _Drawn(chunk, orders, walkers, Question(orders, walkers, walks=True))
            return
        together = (2 if self.method.antithetic else 1) * chunk.samples
        for part in parts(len(orders), 2 * len(players) * self.task.n, together=together):
            some = _PlayerSubset.of(orders[part], self.task.n, players)
            who = None if walkers is None else walkers[part]
            examples = None if who is None else np.tile(np.repeat(who, len(players)), 2)
            ends = part.stop == len(orders)
            yield _Drawn(chunk, orders[part], who, Question(some.rows, examples), some, ends)

    def _add(self, drawn: _Drawn, worths: Worths) -> None:
        """Add the marginal contributions of one chunk."""
        task, method, chunk, orders, walkers = self.task, self.method, drawn.chunk, drawn.orders, drawn.walkers
        if drawn.some is None:
            worths = check_walk_worths(worths, orders, task.n)
            self.walks += len(orders)
            self.first += float(worths[:, 0].sum())
            self.last += float(worths[:, -1].sum())
            value, present = marginals(worths, orders, self.weights)
        else:
            value, present = drawn.some.marginals(check_worths(worths, drawn.question.rows), self.weights)
        if self.examples is not None:
            assert walkers is not None
            np.add.at(self.examples[0], walkers, value)
            np.add.at(self.examples[1], walkers, present > 0)
            self.examples[2][:] += present.sum(0)
        twice = chunk.samples == 2 and task.efficient and walkers is not None and task.game.n_examples > 1
        self.statistics = self.statistics + from_samples(value, present, antithetic=method.antithetic, paired=twice)

    def _truncated(self, orders: Orders, walkers: Examples | None, share: float) -> Worths:
        task = self.task
        before = task.game.evaluations
        worths = _truncated(task, orders, walkers, share)
        self.saved += worths.size * (task.game.n_examples if walkers is None else 1) - (task.game.evaluations - before)
        return worths

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
        return self.method.result(
            task,
            value,
            statistics.stderr(task.game.n_examples if self.method.per_example else 1),
            ends=(worth_all, worth_none),
            counts=statistics.count.astype(np.int64),
            stopped_by=stopped_by,
            diagnostics=diagnostics,
            by_example=by_example,
        )


TRUNCATION_BLOCKS = 8  # a truncated walk is looked at so many times


def _truncated(task: Task, orders: Orders, walkers: Examples | None, share: float) -> Worths:
    """Worths along walks that end at the collapse of their example; the rest is v(none)."""
    steps = orders.shape[1]
    none_kept = np.zeros((len(orders), task.n), dtype=bool)
    none = check_worths(task.game(none_kept, walkers), none_kept)
    worths = np.repeat(none[:, None], steps + 1, axis=1)
    alive = np.arange(len(orders))
    size = -(-steps // TRUNCATION_BLOCKS)
    for start in range(0, steps, size):
        stop = min(start + size, steps)
        for part in parts(len(alive), (stop - start) * task.n):
            some = alive[part]
            rows = coalitions_along(orders[some], task.n, steps=slice(start, stop)).reshape(-1, task.n)
            examples = None if walkers is None else np.repeat(walkers[some], stop - start)
            worths[some, start:stop] = check_worths(task.game(rows, examples), rows).reshape(len(some), -1)
        way = worths[alive, 0] - none[alive]
        left = worths[alive, stop - 1] - none[alive]
        alive = alive[np.where(way < 0, -left, left) > share * np.abs(way)]
        if not len(alive):
            break
    return worths
