"""ResNet-56 on CIFAR-10 (JPEG): 25, 50 and 70 % of the players inside its blocks removed, raw and refitted.

All 1,008 inner channels are scored with the fidelity worth, one game per block, only coalitions that keep at least
half; one global ranking over all layers decides. Rivals in the same plan, surgery and refit: random (3 seeds), weight
norm, Taylor. Scoring and calibration use held-out training images, never the test set. Accuracy on 2,000 fixed random
test images; for our ranking also on all 10,000, and with batch-norm recalibration in place of the refit.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from common import resnet56, write
from torch import nn

import shaprune as sp
from shaprune.builtin.datasets import Dataset
from shaprune.criteria.registry import criterion_scores
from shaprune.deploy.measure import accuracy
from shaprune.network.forward.calibration import Calibration
from shaprune.recovery.steps import Batchnorm, Refit

KEPT = (0.75, 0.5, 0.3)
SCORING, CALIBRATION, TEST = 384, 768, 2000
RANDOM_SEEDS = 3


def main() -> None:
    started = time.perf_counter()
    model, data = resnet56()
    example = data.test.inputs[:2]
    players = sp.find_players(model, example)
    clock = time.perf_counter()
    scores = sp.score(model, players, data.held_out.take(SCORING).batches(), "fidelity", progress=False)
    scoring = time.perf_counter() - clock
    subject = Calibration(model, data.held_out.take(CALIBRATION).batches())
    rankings: dict[str, list[Any]] = {
        "shapley, fidelity, window": [scores],
        "random": [criterion_scores(model, players, criterion="random", seed=seed) for seed in range(RANDOM_SEEDS)],
        "weight norm": [criterion_scores(model, players, criterion="weight_norm")],
        "taylor": [criterion_scores(model, players, subject, "taylor")],
    }
    table = {
        name: {f"{1 - kept:.1%} removed": _row(model, data, players, values, kept) for kept in KEPT}
        for name, values in rankings.items()
    }
    results = {
        "dense accuracy": {str(TEST): _accuracy(model, data, TEST), "10000": _accuracy(model, data, 10_000)},
        "players": players.n,
        "scoring": {
            "images": SCORING,
            "evaluations": scores.n_evaluations,
            "seconds": round(scoring, 1),
            "median relative stderr": float(
                np.median([np.linalg.norm(v.stderr) / np.linalg.norm(v.value) for v in scores.values()])
            ),
        },
        "calibration images": CALIBRATION,
        "table": table,
    }
    write("resnet56", results, started)


def _row(model: nn.Module, data: Dataset, players: sp.Players, values: list[Any], kept: float) -> dict[str, Any]:
    raws, refits, alls, norms, seconds = [], [], [], [], []
    calibration = data.held_out.take(CALIBRATION).batches()
    for one in values:
        plan = sp.plan(sp.Scores(players, one), sp.Budget(players=kept))
        small = sp.prune(model, plan, data.test.inputs[:2])
        raws.append(_accuracy(small, data, TEST))
        clock = time.perf_counter()
        refitted = sp.recover(small, model, plan, calibration, (Refit(),))
        seconds.append(time.perf_counter() - clock)
        refits.append(_accuracy(refitted, data, TEST))
        if isinstance(one, sp.Scores):
            alls.append(_accuracy(refitted, data, 10_000))
            norms.append(_accuracy(sp.recover(small, model, plan, calibration, (Batchnorm(),)), data, TEST))
    row: dict[str, Any] = {
        "raw": round(float(np.mean(raws)), 4),
        "refitted": round(float(np.mean(refits)), 4),
        "refit seconds": round(float(np.median(seconds)), 1),
        "macs kept": round(plan.cost["macs"] / players.model_macs, 4),
        "params kept": round(plan.cost["params"] / players.model_params, 4),
    }
    if len(values) > 1:
        row |= {"raw runs": raws, "refitted runs": refits}
    if alls:
        row |= {"refitted, 10000 test images": alls[0], "batch-norm recalibration instead of refit": norms[0]}
    return row


def _accuracy(model: nn.Module, data: Dataset, images: int) -> float:
    return round(accuracy(model, data.test.take(images).batches()), 4)


if __name__ == "__main__":
    main()
