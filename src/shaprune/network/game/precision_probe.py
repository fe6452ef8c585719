"""``precision="auto"``: bfloat16 where a quick probe finds it faster and the ranking unmoved, else float32.

Where the network has convolutions of images, bfloat16 with channels last is tried as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from shaprune.errors import GameError
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.precision import CHANNELS_LAST, RowPrecision, supports_bfloat16

PROBE_WALKS, PROBE_STEPS = 16, 64  # of each, every walk on its own example; so many players leave
MIN_SPEEDUP = 1.15  # times as fast as float32, all probed games together
MIN_LAYOUT_SPEEDUP = 1.02  # times as fast as bfloat16 is worth another layout
MIN_RANK_CORRELATION = 0.99  # Spearman's rank correlation with float32, of each probed game


def probe_precision(games: Sequence[NetworkGame]) -> tuple[RowPrecision, str]:
    """The precision to play these games of one network in, and why.

    The same walks are run in all precisions; players are ranked by their mean marginal contribution to them. Times are
    measured, so that the choice may differ from machine to machine.
    """
    first = games[0]
    if not first.separable:
        return "float32", "float32: the worth is no mean over examples, so that a few examples say nothing of speed"
    if not supports_bfloat16(first.model):
        return "float32", "float32: bfloat16 is for networks in float32"
    tried: list[RowPrecision] = ["float32", "bfloat16"]
    if any(isinstance(module, nn.Conv2d) for module in first.model.modules()):
        tried.append(CHANNELS_LAST)
    seconds, alike = np.zeros(len(tried)), np.ones(len(tried))
    # The first, one in the middle, the last: what lies behind the mask becomes less.
    for game in {id(games[i]): games[i] for i in (0, len(games) // 2, len(games) - 1)}.values():
        orders, some = _walks(game)
        part, examples = game.part(some), np.arange(len(some))  # what lies before the mask is computed for these only
        means = []
        for i, precision in enumerate(tried):
            each = part if i == 0 else part.at(precision)
            try:
                each.walk(orders[:1], examples[:1])  # fills the cache of what lies before the mask
                clock = time.perf_counter()
                worths = each.walk(orders, examples)
                seconds[i] += time.perf_counter() - clock
            except GameError:
                if i == 0:
                    raise
                return "float32", "float32: bfloat16 gives worths that are not finite"
            means.append(_mean_marginals(orders, worths, game.n_players))
        alike = np.minimum(alike, [rank_correlation(means[0], mean) for mean in means])
    best = 1 if len(tried) < 3 or seconds[1] < MIN_LAYOUT_SPEEDUP * seconds[2] or alike[2] < MIN_RANK_CORRELATION else 2
    times, worst = seconds[0] / seconds[best], alike[best]
    told = f"{tried[best]} ran {times:.2f} times as fast, rank correlation {worst:.3f}"
    if times >= MIN_SPEEDUP and worst >= MIN_RANK_CORRELATION:
        return tried[best], f"{tried[best]} by a probe: {told}"
    return "float32", f"float32 by a probe: {told} (wanted: {MIN_SPEEDUP} and {MIN_RANK_CORRELATION})"


def _walks(game: NetworkGame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    examples = np.unique(np.linspace(0, game.n_examples - 1, PROBE_WALKS).astype(np.int64))
    leaving = rng.choice(game.n_players, min(PROBE_STEPS, game.n_players), replace=False)
    return rng.permuted(np.tile(leaving, (len(examples), 1)), axis=1), examples


def _mean_marginals(orders: NDArray[np.int64], worths: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """(players that leave,): what each took with it, over the walks."""
    sums = np.zeros(n)
    np.add.at(sums, orders, worths[:, :-1] - worths[:, 1:])
    means: NDArray[np.float64] = sums[np.sort(orders[0])] / len(orders)
    return means


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's, ties at their mean rank; 1 where both are constant."""
    first, second = (_ranks(x) - (len(x) + 1) / 2 for x in (a, b))
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale else float(np.array_equal(first, second))


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for the smallest, ...; ties share the mean of their ranks."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    shared: NDArray[np.float64] = (counts.cumsum() - (counts - 1) / 2)[place]
    return shared
