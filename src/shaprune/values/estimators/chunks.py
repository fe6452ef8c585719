"""Chunks of random orders: their examples, number of walks, and random stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from shaprune.values.games.arrays import Orders

CHUNK_SAMPLES = 128  # samples per chunk


@dataclass(frozen=True)
class Chunk:
    """A piece of work.

    Attributes:
        index: of the chunk; the random stream belongs to (seed, index).
        examples: that walk; None = every walk is a mean over all examples.
        samples: per example.
        closes_sweep: whether a stopping rule is asked behind it.
    """

    index: int
    examples: NDArray[np.int64] | None
    samples: int
    closes_sweep: bool

    def orders(self, seed: int, n_players: int, steps: int, antithetic: bool) -> Orders:
        """Draw (R, steps) orders; the samples of an example are neighbours, and so are the walks of a sample."""
        rows = self.samples * (1 if self.examples is None else len(self.examples))
        rng = np.random.default_rng([seed, self.index])
        orders = rng.permuted(np.tile(np.arange(n_players), (rows, 1)), axis=1)
        if antithetic:
            orders = np.stack([orders, orders[:, ::-1]], axis=1).reshape(-1, n_players)
        return orders[:, :steps]


def chunks(n_examples: int | None, n_samples: int | None, seed: int, first: int = 0) -> Iterator[Chunk]:
    """Split ``n_samples`` (None = no end) into chunks: sweeps over all examples, two samples each if they suffice.

    ``first`` is the index of the first chunk, where others came before.
    """
    if n_examples is None or n_examples == 1:
        example = None if n_examples is None else np.zeros(1, dtype=np.int64)
        for index in count():
            size = CHUNK_SAMPLES if n_samples is None else min(CHUNK_SAMPLES, n_samples - index * CHUNK_SAMPLES)
            if size <= 0:
                return
            yield Chunk(first + index, example, size, closes_sweep=True)
    assert n_examples is not None
    index, done = first, 0
    for sweep in count():
        left = None if n_samples is None else n_samples - done
        each = 2 if left is None or left >= 2 * n_examples else 1
        if left is not None and left < n_examples and (sweep > 0 or first > 0 or left <= 0):
            return
        stream = [seed, 1 << 32, sweep] if first == 0 else [seed, 1 << 32, sweep, first]
        order = np.random.default_rng(stream).permutation(n_examples)
        if left is not None and left < n_examples:
            order = order[:left]
        for start in range(0, len(order), CHUNK_SAMPLES):
            block = order[start : start + CHUNK_SAMPLES]
            # only the standard error of the first sweep of all can show that some examples have not walked yet
            ends = start + CHUNK_SAMPLES >= len(order) or (sweep == 0 and first == 0)
            yield Chunk(index, block, each, closes_sweep=ends)
            index += 1
        done += each * len(order)
