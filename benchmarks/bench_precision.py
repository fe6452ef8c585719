"""Rows in bfloat16 against rows in float32: how much faster, and how far the values move; ResNet-56 and LeNet-5.

The same walks (one random order for each of 256 images) are played in float32, in bfloat16, and there with channels
last, in turns, on groups from the front, the middle and the end of the networks, under three worths. Told: the ratios
of times to those of float32 (median, lowest and highest of the rounds), Spearman's rank correlation of the values, the
root mean square of their difference over that of the standard errors (what rounding adds to sampling), and what
``precision="auto"`` chooses. One thread.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from common import mnist, resnet56, trained, write
from torch import nn

import shaprune as sp
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.precision_probe import probe_precision, rank_correlation
from shaprune.network.precision import RowPrecision

IMAGES, ROUNDS = 256, 3
WORTHS = ("fidelity", "cross_entropy", "accuracy")
LOWER: tuple[RowPrecision, ...] = ("bfloat16", "bfloat16-channels-last")
RESNET = ("layer1.0.conv1", "layer2.4.conv1", "layer3.7.conv1")


def main() -> None:
    started = time.perf_counter()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"images": IMAGES, "rounds": ROUNDS}
    model, data = resnet56()
    results["ResNet-56"] = measured(model, data.held_out.take(IMAGES).batches(), RESNET)
    write("precision", results, started)
    digits = mnist()
    results["LeNet-5"] = measured(trained("lenet5", digits), digits.held_out.take(IMAGES).batches(), None)
    write("precision", results, started)


def measured(model: nn.Module, batches: Any, groups: tuple[str, ...] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    subject = Calibration(model, batches)
    players = sp.find_players(model, subject.inputs[:2])
    for worth in WORTHS:
        games = [sp.NetworkGame(model, players, subject, worth, group.name) for group in players.groups]
        chosen = [game for game in games if groups is None or game.groups[0].name in groups]
        found[worth] = {game.groups[0].name: compared(game) for game in chosen} | {"auto": probe_precision(games)[1]}
        print(worth, found[worth], file=sys.stderr, flush=True)
    return found


def compared(game: sp.NetworkGame) -> dict[str, Any]:
    """The same walks in all precisions."""
    games = [game, *map(game.at, LOWER)]
    rng = np.random.default_rng(0)
    examples = np.arange(game.n_examples)
    orders = rng.permuted(np.tile(np.arange(game.n_players), (len(examples), 1)), axis=1)
    seconds = np.zeros((ROUNDS, len(games)))
    marginals = [np.empty(0) for _ in games]
    for each in games:
        each.walk(orders[:1], examples[:1])
    for row in seconds:
        for i, each in enumerate(games):
            clock = time.perf_counter()
            worths = each.walk(orders, examples)
            row[i] = time.perf_counter() - clock
            marginals[i] = np.zeros((len(examples), game.n_players))
            np.put_along_axis(marginals[i], orders, worths[:, :-1] - worths[:, 1:], 1)
    values = [m.mean(0) for m in marginals]
    stderr = marginals[0].std(0, ddof=1) / len(examples) ** 0.5
    found: dict[str, Any] = {"players": game.n_players}
    for i, precision in enumerate(LOWER, 1):
        ratios = seconds[:, 0] / seconds[:, i]
        found[precision] = {
            "times as fast": {
                name: round(float(of(ratios)), 2) for name, of in (("median", np.median), ("min", min), ("max", max))
            },
            "rank correlation": round(rank_correlation(values[0], values[i]), 4),
            "difference over standard error": round(rms(values[0] - values[i]) / rms(stderr), 3),
        }
    return found


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


if __name__ == "__main__":
    main()
