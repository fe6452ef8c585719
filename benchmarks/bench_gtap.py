"""Game theory assisted pruning (Diaz-Ortiz et al. 2023, arXiv 2311.10468): the dropout index in its three modes.

All hidden units of a network (neurons, channels) play one game; a coalition keeps every unit with probability p, as
dropout does, and the index of a unit is E[worth | kept] - E[worth | dropped] (maximum sample reuse, every coalition on
the same held-out images). Modes: top-n (score once), iterated pruning (a tenth of the units leaves, the rest is scored
again), iterated building (a tenth enters, the rest is scored again). All methods have the same budget of evaluations
and the same worth, minus the cross-entropy: the abstract says "accuracy", whose 0/1 outcomes are noisier. Accuracy on
test images as units leave, without fine-tuning.

Networks: LeNet-300-100 and a reduced LeNet-5 on MNIST, three trained ones of each; the paper publishes neither code nor
widths, so the numbers stand beside rivals and not beside theirs. Rivals: random units, and the weight norm, raw over
the whole network or with the same share of every layer. Ours: Shapley values with one order per image, the index with
a control variate, and leave-one-out, all re-scored.

Dropout bands: mean and standard deviation of accuracy (held-out images) when units are kept with probability p.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from common import mnist, trained, write

import shaprune as sp
from shaprune.builtin.datasets import Dataset
from shaprune.experiments.removal_curves import Curve, quality, removal_curves
from shaprune.network.forward.calibration import Calibration
from shaprune.values.estimators.msr import MSR

NETWORKS = {"MLP": "lenet300", "CNN": "lenet5-reduced"}
SEEDS = range(3)
IMAGES, TEST = 200, 2000
PER_PLAYER = 6  # coalitions over all images per player, for every method alike
STEP = 0.1
KEPT = (0.5, 0.8)
BANDS = (0.9, 0.8, 0.7, 0.6, 0.5)
MODES = {"top-n": "one-shot", "iterated pruning": "iterated", "iterated building": "building"}
SHOWN = (0.2, 0.3, 0.5, 0.7, 0.8)
WORTH = "cross_entropy"
PLAIN = MSR(adjust=False)


def main() -> None:
    started = time.perf_counter()
    data = mnist()
    results = {name: study(architecture, data) for name, architecture in NETWORKS.items()}
    write("gtap", results, started)


def study(architecture: str, data: Dataset) -> dict[str, Any]:
    curves: dict[str, list[Curve]] = {}
    prices: dict[str, list[Any]] = {}
    bands: dict[float, list[dict[str, float]]] = {p: [] for p in BANDS}
    models = [trained(architecture, data, seed=seed) for seed in SEEDS]
    players = sp.find_players(models[0], data.test.inputs[:2])
    for seed, model in zip(SEEDS, models, strict=True):
        held_out = Calibration(model, data.held_out.take(IMAGES).batches())
        orders = {}
        for name, (order, *price) in _orders(held_out, players, seed):
            orders[name] = order
            prices.setdefault(name, []).append(price)
        points = np.unique(np.linspace(0, players.n, 21).round().astype(int)).tolist()
        found = removal_curves(model, players, np.stack(list(orders.values())), data.test.take(TEST), points=points)
        for name, curve in zip(orders, found, strict=True):
            curves.setdefault(name, []).append(curve)
        for p in BANDS:
            bands[p].append(_band(held_out, players, p, seed))
    return {
        "architecture": architecture,
        "units": {g.name: len(g) for g in players.groups},
        "dense accuracy, 10000 test images": _spread([quality(model, data.test)[0] for model in models]),
        "scoring images": IMAGES,
        "test images": TEST,
        "budget of evaluations of every method": PER_PLAYER * players.n * IMAGES,
        "dropout bands": {
            f"p = {p}": {key: round(float(np.mean([run[key] for run in runs])), 4) for key in runs[0]}
            for p, runs in bands.items()
        },
        "methods": {
            name: {
                "accuracy": {f"{share:.0%} removed": _spread([_at(c, share) for c in runs]) for share in SHOWN},
                "area under accuracy": _spread([c.area_accuracy for c in runs]),
                "evaluations": int(np.median([evaluations for evaluations, _ in prices[name]])),
                "seconds": round(float(np.median([seconds for _, seconds in prices[name]])), 2),
            }
            for name, runs in curves.items()
        },
    }


def _orders(subject: Calibration, players: sp.Players, seed: int) -> Any:
    """Yield (name, (players in the order in which they leave, evaluations, seconds))."""
    budget = PER_PLAYER * players.n * IMAGES

    def scored(method: Any, **options: Any) -> tuple[Any, int, float]:
        clock = time.perf_counter()
        scores = sp.score(
            subject.model,
            players,
            subject,
            WORTH,
            method,
            seed=seed,
            progress=False,
            max_evaluations=budget,
            options=sp.options.Scoring(together=True, window=(0, 1), **options),
        )
        value = np.concatenate([scores[g.name].value for g in players.groups])
        evaluations = next(iter(scores.values())).n_evaluations  # every group has the price of the whole game
        return np.argsort(value, kind="stable"), evaluations, time.perf_counter() - clock

    for p in KEPT:
        for name, mode in MODES.items():
            rounds = {} if mode == "one-shot" else {"per_round": STEP}
            yield f"dropout index, p = {p}, {name}", scored(PLAIN, mode=mode, concept=f"banzhaf:{p}", **rounds)
    again = {"mode": "iterated", "per_round": STEP}
    yield "ours: shapley, top-n", scored("permutation")
    yield "ours: shapley, iterated pruning", scored("permutation", **again)
    yield "ours: index with control variate, p = 0.8, iterated pruning", scored(MSR(), concept="banzhaf:0.8", **again)
    yield "ours: greedy backward", scored("leave-one-out", mode="greedy-backward", per_round=STEP)
    norms = sp.score(subject.model, players, subject, "accuracy", "weight_norm")
    raw = np.concatenate([norms[g.name].value for g in players.groups])
    share = np.concatenate([np.argsort(norms[g.name].ranking()) / len(g) for g in players.groups])
    yield "weight norm, over the network", (np.argsort(raw, kind="stable"), 0, 0.0)
    yield "weight norm, same share of every layer", (np.argsort(share, kind="stable"), 0, 0.0)
    yield "random", (np.random.default_rng(seed).permutation(players.n), 0, 0.0)


def _band(subject: Calibration, players: sp.Players, p: float, seed: int) -> dict[str, float]:
    """Mean and standard deviation of accuracy when units are kept with probability p."""
    game = sp.NetworkGame(subject.model, players, subject, "accuracy")
    budget = IMAGES * (players.n + 2)
    found = sp.estimate(game, PLAIN, budget, seed=seed, concept=f"banzhaf:{p}").diagnostics
    return {"mean": found["dropout_mean"], "std": found["dropout_std"]}


def _at(curve: Curve, share: float) -> float:
    return float(np.interp(share, curve.share, curve.accuracy))


def _spread(runs: Sequence[float]) -> dict[str, Any]:
    return {"mean": round(float(np.mean(runs)), 4), "std": round(float(np.std(runs, ddof=1)), 4), "runs": len(runs)}


if __name__ == "__main__":
    main()
