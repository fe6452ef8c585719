"""Values from random orders (Castro et al. 2009; Adamczewski et al. 2024, Eq. 4), one order per example.

The worth of a network is a mean over examples, and the Shapley value of a mean is the mean of the Shapley values, so
every example may walk its own random order: for the same number of evaluations the noise of the orders averages out
over the examples. ``per_example=False`` is the published practice (Ancona et al. 2020; Adamczewski et al. 2024): one
order for all examples.

Cost: n + 1 evaluations per walk (fewer in a size window). The random stream belongs to (seed, chunk), statistics are
added in chunk order, so the result does not depend on who computes a chunk or when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.values.game import Game, Orders, checked_walks
from shaprune.values.result import Values
from shaprune.values.statistics import Statistics, empty, from_walks
from shaprune.values.window import Window, window

CHUNK = 128  # samples per chunk
DEFAULT_SAMPLES = 256  # at least so many samples where neither a budget nor a rule is given

StoppingRule = Callable[[Values], "str | None"]  # returns the reason to stop, or None to go on


@dataclass(frozen=True)
class Chunk:
    """A piece of work: which examples walk, how many samples each, and which random stream is theirs."""

    index: int
    examples: NDArray[np.int64] | None  # None: every walk is a mean over all examples
    samples: int  # per example
    closes_sweep: bool

    def orders(self, seed: int, n_players: int, steps: int, antithetic: bool) -> Orders:
        """Draw (R, steps) orders; the samples of an example are neighbours, and so are the walks of a sample."""
        rows = self.samples * (1 if self.examples is None else len(self.examples))
        rng = np.random.default_rng([seed, self.index])
        orders = rng.permuted(np.tile(np.arange(n_players), (rows, 1)), axis=1)
        if antithetic:
            orders = np.stack([orders, orders[:, ::-1]], axis=1).reshape(-1, n_players)
        return orders[:, :steps]


def permutation(
    game: Game,
    *,
    max_evaluations: int | None = None,
    stop: StoppingRule | None = None,
    seed: int = 0,
    antithetic: bool = False,
    per_example: bool = True,
    sizes: tuple[float, float] = (0.0, 1.0),
) -> Values:
    """Estimate values from random orders.

    Args:
        game: the game.
        max_evaluations: budget in (coalition, example) rows. Where it covers every example at least once, each example
            gets the same number of walks and a remainder is left unspent; below that, a random subset of the examples
            is walked. None: one walk per example, at least 256 in all (or until ``stop``).
        stop: a rule ``Values -> reason or None``, asked after every chunk of the first sweep over the examples and
            after every later sweep.
        seed: seed of all random streams.
        antithetic: walk every order also backwards; the two walks make one sample.
        per_example: one order per example; False = one order for all examples.
        sizes: window of coalition sizes, as fractions of the players.

    Raises:
        InputError: if the budget is below one sample; the smallest budget that works is named.
    """
    span = window(game.n_players, sizes)
    steps = span.n - span.low
    rows = 1 if per_example else game.n_examples
    n_examples = game.n_examples if per_example else 1
    sample_cost = cost_of_sample(game, antithetic=antithetic, per_example=per_example, sizes=sizes)
    if max_evaluations is not None and max_evaluations < sample_cost:
        raise InputError(
            f"max_evaluations={max_evaluations} is below one sample of this game; "
            f"the smallest that works is {sample_cost}"
        )
    n_samples = None if max_evaluations is None else max_evaluations // sample_cost
    if n_samples is None and stop is None:
        n_samples = default_samples(n_examples)
    options = {"seed": seed, "antithetic": antithetic, "per_example": per_example, "sizes": list(sizes)}

    def finish(statistics: Statistics, stopped_by: str) -> Values:
        return _finalise(statistics, span, n_examples, statistics.walks * (steps + 1) * rows, stopped_by, options)

    statistics = empty(span.n)
    for chunk in _chunks(game.n_examples if per_example else None, n_samples, seed):
        orders = chunk.orders(seed, span.n, steps, antithetic)
        walkers = None if chunk.examples is None else np.repeat(chunk.examples, len(orders) // len(chunk.examples))
        worths = checked_walks(game.walk(orders, walkers), orders, span.n)
        paired = chunk.samples == 2 and span.whole and n_examples > 1
        statistics = statistics + from_walks(worths, orders, span, antithetic=antithetic, paired=paired)
        if stop is not None and chunk.closes_sweep:
            values = finish(statistics, "")
            reason = stop(values)
            if reason:
                return finish(statistics, reason)
    return finish(statistics, "max_evaluations" if max_evaluations is not None else "default")


def cost_of_sample(game: Game, *, antithetic: bool, per_example: bool, sizes: tuple[float, float]) -> int:
    """Evaluations of one sample: one walk, or the two walks of an antithetic pair."""
    span = window(game.n_players, sizes)
    return (span.n - span.low + 1) * (2 if antithetic else 1) * (1 if per_example else game.n_examples)


def default_samples(n_examples: int) -> int:
    """Samples where neither a budget nor a rule is given: whole sweeps over the examples."""
    return n_examples * -(-DEFAULT_SAMPLES // n_examples)


def _chunks(n_examples: int | None, n_samples: int | None, seed: int) -> Iterator[Chunk]:
    """Split ``n_samples`` (None = no end) into chunks: sweeps over all examples, two samples each if they suffice."""
    if n_examples is None or n_examples == 1:
        example = None if n_examples is None else np.zeros(1, dtype=np.int64)
        for index in count():
            size = CHUNK if n_samples is None else min(CHUNK, n_samples - index * CHUNK)
            if size <= 0:
                return
            yield Chunk(index, example, size, closes_sweep=True)
    assert n_examples is not None
    index, done = 0, 0
    for sweep in count():
        left = None if n_samples is None else n_samples - done
        each = 2 if left is None or left >= 2 * n_examples else 1
        if left is not None and left < n_examples and sweep > 0:
            return
        order = np.random.default_rng([seed, 1 << 32, sweep]).permutation(n_examples)
        if left is not None and left < n_examples:
            order = order[:left]
        for start in range(0, len(order), CHUNK):
            block = order[start : start + CHUNK]
            yield Chunk(index, block, each, closes_sweep=sweep == 0 or start + CHUNK >= len(order))
            index += 1
        done += each * len(order)


def _finalise(
    statistics: Statistics, span: Window, n_examples: int, n_evaluations: int, stopped_by: str, options: dict[str, Any]
) -> Values:
    worth_all = statistics.first / statistics.walks if span.high == span.n else None
    worth_none = statistics.last / statistics.walks if span.low == 0 else None
    value = statistics.mean()
    return Values(
        value=value,
        stderr=statistics.stderr(n_examples),
        n_evaluations=n_evaluations,
        method="permutation",
        efficiency_gap=span.efficiency_gap(value, worth_all, worth_none),
        stopped_by=stopped_by,
        worth_all=worth_all,
        worth_none=worth_none,
        counts=statistics.count.astype(np.int64),
        options=options,
    )
