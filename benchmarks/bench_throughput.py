"""Coalition rows per second against plain forward rows per second of the same network and batch.

Plain: the dense model on batches of 256 images. Coalitions: the rows that a walk asks for (one coalition and one image
each), group by group, through `NetworkGame.walk`. Both alternate in one run; medians of five rounds.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import torch
from common import mnist, resnet56, trained, write
from torch import nn

import shaprune as sp

ROUNDS, BATCH = 5, 256


def main() -> None:
    started = time.perf_counter()
    data = mnist()
    results = {"lenet5": _network(trained("lenet5", data), data.held_out.take(BATCH), None)}
    model, cifar = resnet56()
    chosen = ["layer1.0.conv1", "layer1.8.conv1", "layer2.4.conv1", "layer3.0.conv1", "layer3.8.conv1"]
    results["resnet56"] = _network(model, cifar.held_out.take(BATCH), chosen)
    write("throughput", {"batch": BATCH, "rounds": ROUNDS, "networks": results}, started)


def _network(model: nn.Module, split: Any, chosen: list[str] | None) -> dict[str, Any]:
    players = sp.find_players(model, split.inputs[:2])
    rows = {}
    for group in [g for g in players.groups if chosen is None or g.name in chosen]:
        game = sp.NetworkGame(model, players, split.batches(BATCH), "fidelity", group.name)
        rng = np.random.default_rng(0)
        examples = np.arange(BATCH)
        orders = np.stack([rng.permutation(game.n_players) for _ in examples])
        plain, walked, ratios = [], [], []
        for round_ in range(ROUNDS + 1):
            clock = time.perf_counter()
            with torch.no_grad():
                model(split.inputs)
            plain.append(BATCH / (time.perf_counter() - clock))
            clock = time.perf_counter()
            worths = game.walk(orders, examples)
            walked.append(worths.size / (time.perf_counter() - clock))
            ratios.append(walked[-1] / plain[-1])
            if round_ == 0:  # warm-up: caches and the prefix
                plain, walked, ratios = [], [], []
        rows[group.name] = {
            "players": game.n_players,
            "plain rows per second": round(median(plain)),
            "coalition rows per second": round(median(walked)),
            "ratio": round(median(ratios), 2),
            "ratio min": round(min(ratios), 2),
            "ratio max": round(max(ratios), 2),
        }
    return rows


if __name__ == "__main__":
    main()
