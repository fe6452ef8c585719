"""Munovas 2023, *The Importance of Filters*: LeNet-1 on MNIST, the 12 filters of conv2, removed in 11 rounds.

The worth is the cross-entropy on 1,000 images; in every round the filter of the lowest value leaves and the rest is
scored again. He took all orders for at most 6 filters and sampled above. Here: exact values in every round (with a log
of worths, so that all rounds together pay 2^12 coalitions), one order per image at the price of greedy backward, the
other modes, exact values used once, random orders, and the best of all 12! orders, by dynamic programming over the 2^12
losses on the images that are scored on: no order has a smaller area there.

Without fine-tuning: accuracy after 1, 3, 6, 9, 11 removed, area under the loss curve (see
`shaprune.experiments.removal_curves` on how we read his), and the seconds of scoring. With fine-tuning after every
removal, one pass over the training images: the same, and the network of two filters (636 parameters). His 1,000 images
are not known. Ours to score on are held out from the training images; curves are measured on the 10,000 test images,
areas also on the 1,000 that were scored on. Spreads are standard deviations over networks (of random, over networks and
orders).
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import mnist, write
from torch import nn

import shaprune as sp
from shaprune.builtin.demo_training import train
from shaprune.builtin.splits import Dataset
from shaprune.experiments.oracle import table_of
from shaprune.experiments.removal_curves import Curve, curve_of, quality, removal_curves
from shaprune.network.forward.calibration import Calibration
from shaprune.recovery.training import fit
from shaprune.values.games.game import Game
from shaprune.values.games.logged import LoggedGame
from shaprune.values.rescoring import estimate_in_rounds, expected_evaluations_in_rounds

NETWORKS, TUNED = 5, 3  # how many of the networks are also fine-tuned
IMAGES = 1_000
REMOVED = (1, 3, 6, 9, 11)
POINTS = range(12)  # 0 to 11 of 12 removed: his rounds
RANDOM_ORDERS = 10
FINETUNE: dict[str, Any] = {"images": 55_000, "epochs": 1, "lr": 1e-2}
HIS = {
    "accuracy": {"shapley": (0.979, 0.958, 0.916, 0.812, 0.416), "random": (0.981, 0.899, 0.782, 0.678, 0.322)},
    "area under the loss curve": {"shapley": ".41 +- .00", "random": ".83 +- .05"},
    "area, fine-tuned": {"shapley": ".08", "random": ".11"},
    "10 of 12 removed, fine-tuned": {"accuracy": 0.968, "parameters": 636},
    "seconds of scoring": 1983,
}

BEST = "best of all orders"
Order = Callable[[Game, int], sp.Values]
ORDERS: dict[str, Order] = {
    "iterated, exact": lambda game, seed: estimate_in_rounds(LoggedGame(game), "iterated", "exact"),
    "iterated, one order per image": lambda game, seed: estimate_in_rounds(
        game, "iterated", max_evaluations=_price(game), seed=seed
    ),
    "building, exact": lambda game, seed: estimate_in_rounds(LoggedGame(game), "building", "exact"),
    "greedy-backward": lambda game, seed: estimate_in_rounds(game, "greedy-backward"),
    "greedy-forward": lambda game, seed: estimate_in_rounds(game, "greedy-forward"),
    "one-shot, exact": lambda game, seed: estimate_in_rounds(game, "one-shot", "exact"),
}


def main(networks: int = NETWORKS, tuned_networks: int = TUNED) -> None:
    started = time.perf_counter()
    data = mnist()
    runs: dict[str, list[dict[str, Any]]] = {}
    tuned: dict[str, list[Curve]] = {}
    dense, small = [], []
    for seed in range(networks):
        model = train("lenet1", data, seed=seed)
        dense.append(quality(model, data.test)[0])
        for name, row in _without_finetuning(model, data, seed).items():
            runs.setdefault(name, []).append(row)
        for name, choose in TUNERS.items() if seed < tuned_networks else ():
            curve, last = _with_finetuning(model, data, choose, seed)
            tuned.setdefault(name, []).append(curve)
            small.append(last)
        print(f"network {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    results = {
        "networks": networks,
        "accuracy of the dense networks": _spread(dense),
        "networks on which the best of all orders has an area below his .41": sum(
            row["scored"][0].area_loss < 0.41 for row in runs[BEST]
        ),
        "without fine-tuning": {name: _summary(rows) for name, rows in runs.items()},
        "with fine-tuning": {
            "networks": min(networks, tuned_networks),
            "recipe": FINETUNE,
            "parameters with 10 of 12 removed": small[0],
            "rows": {name: _tuned_summary(curves) for name, curves in tuned.items()},
        },
        "his": HIS,
    }
    write("munovas", results, started)


def _without_finetuning(model: nn.Module, data: Dataset, seed: int) -> dict[str, dict[str, Any]]:
    players = sp.find_players(model, data.test.inputs[:2], include=["conv2"])
    scored = Calibration(model, data.held_out.take(IMAGES).batches())
    orders, rows = [], {}
    for name, order in ORDERS.items():
        game = sp.NetworkGame(model, players, scored, "cross_entropy")
        clock = time.perf_counter()
        values = order(game, seed)
        rows[name] = {
            "seconds": time.perf_counter() - clock,
            "evaluations per image": values.n_evaluations / IMAGES,
        }
        orders.append(values.ranking())
    clock = time.perf_counter()
    orders.append(_best_order(-table_of(sp.NetworkGame(model, players, scored, "cross_entropy")), players.n))
    rows[BEST] = {"seconds": time.perf_counter() - clock, "evaluations per image": float(2**players.n)}
    rng = np.random.default_rng(seed)
    orders += [rng.permutation(players.n) for _ in range(RANDOM_ORDERS)]
    points = list(POINTS)
    on_test = removal_curves(model, players, np.stack(orders), data.test, points=points)
    on_scored = removal_curves(model, players, np.stack(orders), scored, points=points)
    for name, test, own in zip([*ORDERS, BEST, *["random"] * RANDOM_ORDERS], on_test, on_scored, strict=True):
        rows.setdefault(name, {}).setdefault("test", []).append(test)
        rows[name].setdefault("scored", []).append(own)
    return rows


def _with_finetuning(
    model: nn.Module, data: Dataset, choose: Callable[[Game, np.random.Generator], int], seed: int
) -> tuple[Curve, int]:
    """Choose a filter, cut it, train for a moment, and again; and the parameters with 10 of 12 removed."""
    rng = np.random.default_rng(seed)
    batches = data.train.take(FINETUNE["images"]).batches()
    small, qualities, parameters = copy.deepcopy(model), [quality(model, data.test)], 0
    for removed in POINTS[1:]:
        players = sp.find_players(small, data.test.inputs[:2], include=["conv2"])
        game = sp.NetworkGame(small, players, data.held_out.take(IMAGES).batches(), "cross_entropy")
        kept = np.ones(players.n, dtype=bool)
        kept[choose(game, rng)] = False
        small = sp.prune(small, sp.Plan.from_coalition(players, kept), data.test.inputs[:2])
        fit(small, batches, epochs=FINETUNE["epochs"], lr=FINETUNE["lr"], seed=seed)
        qualities.append(quality(small, data.test))
        if removed == 10:
            parameters = sum(p.numel() for p in small.parameters())
    return curve_of(list(POINTS), qualities, 12, len(data.test)), parameters


def _best_order(losses: np.ndarray, n: int) -> np.ndarray:
    """The order of leaving with the smallest area from all players down to one; ``losses`` (2^n,) by coalition code."""
    everyone = (1 << n) - 1
    cost, last = np.full(1 << n, np.inf), np.full(1 << n, -1)
    cost[everyone] = 0.0
    for code in range(everyone, 0, -1):  # a coalition comes before all that are part of it
        for player in (p for p in range(n) if code >> p & 1):
            left = code ^ 1 << player
            total = cost[code] + (losses[code] + losses[left]) / 2
            if total < cost[left]:
                cost[left], last[left] = total, player
    code = min((1 << p for p in range(n)), key=cost.__getitem__)
    order = [code.bit_length() - 1]
    while code != everyone:
        order.append(int(last[code]))
        code |= 1 << order[-1]
    return np.array(order[::-1])


def _least_valuable(game: Game, rng: np.random.Generator) -> int:
    return int(sp.estimate(game, "exact").ranking()[0])


def _anybody(game: Game, rng: np.random.Generator) -> int:
    return int(rng.integers(game.n_players))


TUNERS = {"iterated, exact": _least_valuable, "random": _anybody}


def _price(game: Game) -> int:
    price = expected_evaluations_in_rounds(game, "greedy-backward")
    assert price is not None
    return price


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    test = [curve for row in rows for curve in row["test"]]
    scored = [curve for row in rows for curve in row["scored"]]
    paid = {
        key: _spread([row[key] for row in rows], 3) for key in ("seconds", "evaluations per image") if key in rows[0]
    }
    return {**_curves(test), "area under the loss curve, on the 1,000": _spread([c.area_loss for c in scored]), **paid}


def _tuned_summary(curves: list[Curve]) -> dict[str, Any]:
    return {**_curves(curves), "accuracy with 10 of 12 removed": _spread([curve.accuracy[10] for curve in curves])}


def _curves(curves: list[Curve]) -> dict[str, Any]:
    return {
        "accuracy after removal of": {k: _spread([curve.accuracy[k] for curve in curves]) for k in REMOVED},
        "area under the loss curve": _spread([curve.area_loss for curve in curves]),
        "mean loss": [round(float(x), 4) for x in np.mean([curve.loss for curve in curves], axis=0)],
    }


def _spread(numbers: list[float], digits: int = 4) -> dict[str, float]:
    return {
        "mean": round(float(np.mean(numbers)), digits),
        "std": round(float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0, digits),
        "min": round(float(np.min(numbers)), digits),
        "max": round(float(np.max(numbers)), digits),
    }


if __name__ == "__main__":
    main()
