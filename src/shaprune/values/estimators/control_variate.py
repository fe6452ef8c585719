"""Shapley values from many derivatives and few walks: a derivative is the control variate of a marginal contribution.

One pass through a network and one back give the derivatives g_i(S) of the worth by the masks of all n players, where a
walk takes n + 1 passes to show each of them one marginal contribution D_i. Let S be a coalition of uniform size in
0..n, uniform of its size. When player i leaves a coalition S of s players on a walk,

    L_i = (s g_i(S) + (n + 1 - s) g_i(S without i)) / (n + 1)

has the mean of g_i over such coalitions (a coalition of s players has i with probability s / n, and s is uniform in
1..n on a walk). So phi_i = E g_i(S) + E (D_i - L_i): the first mean is taken over many examples and coalitions, each
with its complement, the second over few walks, each there and back. Where the worth is smooth, D_i - L_i varies far
less than D_i; where the derivative says nothing, the estimate is still unbiased.

This is two-level Monte Carlo (Giles 2015) with a first-order expansion, as pruning by Taylor expansion takes it
(Molchanov et al. 2017), for the cheap level; L_i and the pairing are ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.values.estimators.base import Method, Task
from shaprune.values.games.arrays import Coalitions, Examples, Orders
from shaprune.values.games.checks import check_derivatives
from shaprune.values.games.game import Question
from shaprune.values.games.game import coalitions_along as coalitions_of
from shaprune.values.result import Values

Array = NDArray[np.float64]
INITIAL_WALK_PAIRS, INITIAL_REPEATS = (
    16,
    32,
)  # pairs of walks, and coalitions of which their example has a second one, to begin with
DEFAULT_WALKS = 32  # pairs, where neither a budget nor a rule is given
LOOK_GROWTH = 1.05  # of the evaluations from one look of a stopping rule to the next
MAX_ANSWER_ENTRIES = 1 << 22  # numbers in one answer, where a pair of walks has fewer


@dataclass(frozen=True)
class ControlVariate(Method):
    """Derivatives of the worth, corrected by walks; it has no options.

    The budget is shared out between both so that the sum of the players' variances is smallest, from what the first
    walks and derivatives say. ``Values.counts`` are pairs of walks; in ``Values.diagnostics``, ``derivatives`` is the
    number of coalitions (each with its complement) that were differentiated, and ``variance_left`` the share of the
    walks' variance that the derivatives do not explain.
    """

    name: ClassVar[str] = "control-variate"
    differentiates: ClassVar[bool] = True

    def check(self, task: Task) -> None:
        if task.concept.label != "shapley":
            raise InputError(
                f"method {self.name!r} has Shapley values over all sizes only, not {task.concept.label!r}; use "
                "method='permutation'"
            )
        needed = 2 * (8 + 4 + 2) * (task.n + 1) ** 2  # the answer, the masks that are asked about, their coalitions
        if needed > task.max_memory:
            raise InputError(
                f"the derivatives along a walk of {task.n} players take {needed:,} bytes and max_memory is "
                f"{task.max_memory:,}; raise it, play fewer groups together, or use method='permutation'"
            )
        super().check(task)

    def least(self, task: Task) -> int:
        """16 walks there and back, and two coalitions with their complements on each of 32 examples.

        Where there are fewer examples, so many sweeps over all of them as reach 32.
        """
        prices = _EvaluationCosts.of(task)
        return INITIAL_WALK_PAIRS * prices.walk_price + 2 * prices.beginning * prices.price

    def default(self, task: Task) -> int:
        """As much as derivatives on every example, and 32 walks there and back, would take."""
        prices = _EvaluationCosts.of(task)
        return (
            prices.beginning + max(prices.examples, prices.beginning)
        ) * prices.price + DEFAULT_WALKS * prices.walk_price

    def run(self, task: Task) -> Values:
        work, limit = _Work(task), task.max_evaluations
        if task.check is None:
            work.grow(limit or self.default(task))
            return work.values(self, "default" if limit is None else "max_evaluations")
        goal = self.least(task)
        while True:
            work.grow(goal)
            values = work.values(self, "max_evaluations")
            reason = task.check.reason(values)
            if reason or goal == limit:
                return replace(values, stopped_by=reason or values.stopped_by)
            goal = int(goal * LOOK_GROWTH) if limit is None else min(int(goal * LOOK_GROWTH), limit)


@dataclass(frozen=True)
class _EvaluationCosts:
    """What things cost.

    Attributes:
        examples: that have worths of their own; 1 where a worth is over all of them.
        price: evaluations of a coalition and its complement, with derivatives.
        walk_price: of a walk there and back.
    """

    examples: int
    price: int
    walk_price: int

    @staticmethod
    def of(task: Task) -> _EvaluationCosts:
        game = task.game
        each = 2 * game.derivative_price * (1 if game.separable else game.n_examples)
        return _EvaluationCosts(game.n_examples if game.separable else 1, each, task.n * each)

    @property
    def beginning(self) -> int:
        """Coalitions to begin with: `INITIAL_REPEATS`, or, with fewer examples, as many whole sweeps as reach them."""
        return (
            INITIAL_REPEATS
            if self.examples >= INITIAL_REPEATS
            else self.examples * -(-INITIAL_REPEATS // self.examples)
        )

    def whole(self, coalitions: int) -> int:
        """So many coalitions, or a little fewer: beyond the first, sweeps over all examples are whole."""
        return coalitions - (coalitions % self.examples if coalitions > self.examples else 0)

    def share(self, evaluations: int, walks: float, first: float, further: float) -> tuple[int, int]:
        """How many coalitions and pairs of walks make the variance smallest.

        Args:
            evaluations: for both.
            walks: variance of one pair of walks.
            first: of one coalition, while there are examples that have not been met.
            further: of one coalition, once all have.
        """

        def coalitions(variance: float) -> int:
            one, pair = sqrt(variance * self.price), sqrt(walks * self.walk_price)  # what goes into each, relatively
            return int(evaluations * (one / (one + pair) if one + pair else 0.5) / self.price)

        count = coalitions(first)
        if count > self.examples:
            count = self.whole(max(self.examples, coalitions(further)))
        return count, (evaluations - count * self.price) // self.walk_price


class _ExampleShuffler:
    """Examples in random order, all of them before any comes again."""

    def __init__(self, examples: int, rng: np.random.Generator) -> None:
        self.examples, self.rng = examples, rng
        self.rest = np.zeros(0, dtype=np.int64)

    def draw(self, count: int) -> NDArray[np.int64]:
        sweeps = -(-(count - len(self.rest)) // self.examples)
        self.rest = np.concatenate([self.rest, *(self.rng.permutation(self.examples) for _ in range(sweeps))])
        drawn, self.rest = self.rest[:count], self.rest[count:]
        return drawn


@dataclass
class _Sums:
    """Sums over samples; the arrays are (n,)."""

    total: Array
    square: Array
    count: int = 0

    def add(self, samples: Array) -> None:
        """Add samples (R, n)."""
        self.total, self.square = self.total + samples.sum(0), self.square + (samples**2).sum(0)
        self.count += len(samples)

    @property
    def mean(self) -> Array:
        return self.total / self.count

    @property
    def variance(self) -> Array:
        """Of one sample; there are at least two."""
        return np.maximum(self.square - self.count * self.mean**2, 0) / (self.count - 1)


@dataclass(frozen=True, eq=False)
class _Piece:
    """A question and what to do with its answer.

    Attributes:
        rows: (R, n) coalitions.
        examples: (R,) or None.
        add: takes the answer, (R, n + 1).
    """

    rows: Coalitions
    examples: Examples | None
    add: Callable[[Array], None]


class _Work:
    """The sums of one estimate as they grow."""

    def __init__(self, task: Task) -> None:
        self.task, self.prices = task, _EvaluationCosts.of(task)
        self.walking, self.differentiating = (np.random.default_rng([task.seed, level]) for level in (0, 1))
        self.walkers = _ExampleShuffler(self.prices.examples, self.walking)
        self.others = _ExampleShuffler(self.prices.examples, self.differentiating)
        zeros = np.zeros(task.n)
        self.contributions, self.corrections, self.derivatives = (_Sums(zeros, zeros) for _ in range(3))
        self.within = zeros  # variance of the derivatives at a coalition and its complement, of one example
        self.ends = np.zeros(2)  # sums of v(all) and v(none) over the walks

    def grow(self, evaluations: int) -> None:
        """Go on until so many evaluations are paid in all, or nearly."""
        if not self.corrections.count:
            for piece in chain(self._walks(INITIAL_WALK_PAIRS), self._twice(self.prices.beginning)):
                self._ask([piece])  # alone: every shard of a run needs the answer
        prices, walks, done = self.prices, self.corrections.count, self.derivatives.count
        room = evaluations - self.task.game.evaluations
        within = float(self.within.sum())
        first = max(within, float(self.derivatives.variance.sum()))
        corrections = float(self.corrections.variance.sum())
        want = prices.share(room + walks * prices.walk_price + done * prices.price, corrections, first, within)
        to_walks = min(max(want[1] - walks, 0), room // prices.walk_price) * prices.walk_price
        reach = prices.whole(min(max(want[0], done), done + (room - to_walks) // prices.price))
        more = max(reach - done, 0)
        if self.task.check is None or reach >= prices.whole(want[0]):
            to_walks = room - more * prices.price  # with a rule, what a sweep needs is saved up for it
        pieces = chain(self._walks(to_walks // prices.walk_price), self._once(more))
        self._ask(pieces if self.task.check is None else _joined(pieces))  # a budget is spent in few large questions

    def _ask(self, pieces: Iterable[_Piece]) -> None:
        """Ask and add; the game may draw later pieces before it answers."""
        asked: deque[_Piece] = deque()

        def questions() -> Iterator[Question]:
            for piece in pieces:
                asked.append(piece)
                yield Question(piece.rows, piece.examples, derivatives=self.task.game.derivative_price)

        for answer in self.task.game.stream(questions()):
            piece = asked.popleft()
            piece.add(check_derivatives(answer, piece.rows))

    def _walks(self, count: int) -> Iterator[_Piece]:
        """So many orders, each there and back on its own example."""
        n = self.task.n
        for some in _parts(count, 2 * n * (n + 1)):
            there = self.walking.permuted(np.tile(np.arange(n), (some, 1)), axis=1)
            back = there[:, ::-1]
            rows = np.concatenate([coalitions_of(there, n), coalitions_of(back, n)[:, 1:-1]], axis=1)  # the same ends
            examples = self._of(np.repeat(self.walkers.draw(some), 2 * n))
            orders = np.stack([there, back], axis=1).reshape(-1, n)
            yield _Piece(rows.reshape(-1, n), examples, partial(self._add_walks, orders))

    def _once(self, count: int) -> Iterator[_Piece]:
        """So many coalitions and their complements, each on its own example."""
        for some in _parts(count, 2 * (self.task.n + 1)):
            rows, examples = self._coalitions(self.others.draw(some))
            yield _Piece(rows, examples, lambda answer: self.derivatives.add(_over_pairs(answer[:, 1:])))

    def _twice(self, count: int) -> Iterator[_Piece]:
        """Two coalitions and their complements on each of so many examples."""
        rows, examples = self._coalitions(np.repeat(self.others.draw(count), 2))

        def add(answer: Array) -> None:
            one = _over_pairs(answer[:, 1:])
            self.derivatives.add(_over_pairs(one))
            self.within = ((one[0::2] - one[1::2]) ** 2).mean(0) / 2

        yield _Piece(rows, examples, add)

    def _coalitions(self, examples: Examples) -> tuple[Coalitions, Examples | None]:
        """A random coalition and its complement for each example, (2 R, n), and the examples of the rows."""
        n, rng = self.task.n, self.differentiating
        places = rng.permuted(np.tile(np.arange(n), (len(examples), 1)), axis=1)
        rows = places < rng.integers(0, n + 1, len(examples))[:, None]
        return np.stack([rows, ~rows], axis=1).reshape(-1, n), self._of(np.repeat(examples, 2))

    def _of(self, examples: Examples) -> Examples | None:
        return examples if self.task.game.separable else None

    def _add_walks(self, orders: Orders, answer: Array) -> None:
        n = self.task.n
        pairs = answer.reshape(-1, 2 * n, n + 1)
        met = np.stack([np.arange(n + 1), [0, *range(n + 1, 2 * n), n]])  # rows of a walk there, and of one back
        worths = pairs[:, met, 0].reshape(-1, n + 1)
        who = orders.reshape(-1, 2, n) + 1
        which = np.arange(len(pairs))[:, None, None]
        with_it = pairs[which, met[:, :-1], who].reshape(-1, n)
        without = pairs[which, met[:, 1:], who].reshape(-1, n)
        share = np.arange(n, 0, -1) / (n + 1)
        contributions, corrections = np.empty((2, *orders.shape))
        np.put_along_axis(contributions, orders, -np.diff(worths, axis=1), axis=1)
        expected = share * with_it + (1 - share) * without
        np.put_along_axis(corrections, orders, -np.diff(worths, axis=1) - expected, axis=1)
        self.contributions.add(_over_pairs(contributions))
        self.corrections.add(_over_pairs(corrections))
        self.ends += worths[:, [0, -1]].sum(0) / 2

    def values(self, method: ControlVariate, stopped_by: str) -> Values:
        """The estimate so far."""
        task, walks, done = self.task, self.corrections.count, self.derivatives.count
        met = min(1.0, done / self.prices.examples)
        value = self.derivatives.mean + self.corrections.mean
        spread = (1 - met) * self.derivatives.variance  # of examples that have not been met
        variance = (spread + met * self.within) / done + self.corrections.variance / walks
        worth_all, worth_none = (self.ends / walks).tolist()
        plain = float(self.contributions.variance.sum())
        return Values(
            value=value,
            stderr=np.sqrt(variance),
            n_evaluations=task.game.evaluations,
            method=method.name,
            efficiency_gap=None,  # of so few walks it would be noise
            stopped_by=stopped_by,
            worth_all=worth_all,
            worth_none=worth_none,
            counts=np.full(task.n, walks, dtype=np.int64),
            options=method.options(task),
            diagnostics={
                "derivatives": float(done),
                "variance_left": float(self.corrections.variance.sum()) / plain if plain else 0.0,
            },
        )


def _parts(count: int, cells: int) -> Iterator[int]:
    """``count`` in parts whose answers, ``cells`` numbers an item, are not too large."""
    size = max(1, MAX_ANSWER_ENTRIES // cells)
    for start in range(0, count, size):
        yield min(size, count - start)


def _joined(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    """The same, small ones together: at the end of every question the cores wait for the last of its rows."""
    waiting: list[_Piece] = []
    for piece in pieces:
        if waiting and sum(len(p.rows) for p in (*waiting, piece)) * (piece.rows.shape[1] + 1) > MAX_ANSWER_ENTRIES:
            yield _combined(waiting)
            waiting = []
        waiting.append(piece)
    if waiting:
        yield _combined(waiting)


def _combined(pieces: Sequence[_Piece]) -> _Piece:
    """Several pieces as one."""
    rows = np.concatenate([piece.rows for piece in pieces])
    given = [piece.examples for piece in pieces if piece.examples is not None]

    def add(answer: Array) -> None:
        ends = np.cumsum([len(piece.rows) for piece in pieces])
        for piece, part in zip(pieces, np.split(answer, ends[:-1]), strict=True):
            piece.add(part)

    return _Piece(rows, np.concatenate(given) if given else None, add)


def _over_pairs(samples: Array) -> Array:
    """Means of rows 2i and 2i + 1."""
    return (samples[0::2] + samples[1::2]) / 2
