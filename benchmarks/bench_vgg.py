"""VGG-16 with batch-norm on CIFAR-10 (JPEG), a quarter of the channels wide, at the sizes of Adamczewski et al. 2024.

The paper prunes VGG-16 (313.7M multiply-adds, 15M parameters) to 43M and 0.68M, and to 109M and 3.7M; here the same
shares are kept of a network whose layers have a quarter of the channels, so that it trains on two cores. Ours: the
reconstruction ranking on 768 held-out training images, widths along curves with refitted consumers, a refit, and a
training (forward passes in bfloat16) that follows the dense network on the training images. Beside it, the same
recovery behind Taylor (global), at the smaller size.
Errors on all 10,000 test images; the increase over the dense network is what compares with the paper (2.55 and 0.31
points).
"""

from __future__ import annotations

import sys
import time
from typing import Any

from augment import cropped
from common import FAST, SEED, cifar10, error_on_test, trained, write

import shaprune as sp
from shaprune.criteria.registry import criterion_scores
from shaprune.network.forward.calibration import Calibration
from shaprune.recovery.steps import Finetune

PAPER = {"43M": (43.0 / 313.7, 0.68 / 15, 2.55), "109M": (109 / 313.7, 3.7 / 15, 0.31)}  # shares kept, points lost
SMALLER, OURS = "43M", "reconstruction, curves"
CALIBRATION, POINTS = 768, 8
EPOCHS, TUNING = 20, 16


def main() -> None:
    started = time.perf_counter()
    data = cifar10()
    example = data.test.inputs[:2]
    model = trained("vgg16-quarter", data, epochs=EPOCHS, lr=3e-3, weight_decay=5e-3, augment=cropped)
    calibration = data.held_out.take(CALIBRATION).batches()
    subject = Calibration(model, calibration)
    players = sp.find_players(model, example)
    clock = time.perf_counter()
    ours = sp.score(model, players, subject, "fidelity", method="reconstruction")
    curves = sp.sensitivity(model, players, ours, subject, "fidelity", points=POINTS, refit=True)
    rankings: dict[str, tuple[Any, str, dict[str, Any]]] = {
        OURS: (ours, "curves", {"curves": curves}),
        "taylor, global": (criterion_scores(model, players, subject, "taylor"), "global", {}),
    }
    results: dict[str, Any] = {
        "dense error": error_on_test(model, data),
        "players": players.n,
        "calibration images": CALIBRATION,
        "seconds of scoring and curves": round(time.perf_counter() - clock, 1),
        "epochs": {"dense": EPOCHS, "tuning": TUNING},
        "table": {name: {} for name in rankings},
    }
    for size, (macs, params, lost) in PAPER.items():
        for name, (scores, allocation, options) in rankings.items():
            if size != SMALLER and name != OURS:
                continue
            plan = sp.plan(sp.Scores(players, dict(scores)), sp.Budget(macs=macs, params=params), allocation, **options)
            refitted = sp.recover(sp.prune(model, plan, example), model, plan, calibration, ("refit",))
            step = Finetune(TUNING, 2e-3, "distill", patience=TUNING, augment=cropped, precision="bfloat16")
            tuned = sp.recover(
                refitted.to(memory_format=FAST), model, plan, data.train.batches(128), (step,), seed=SEED
            )
            row = {
                "macs kept": round(plan.cost["macs"] / players.model_macs, 4),
                "params kept": round(plan.cost["params"] / players.model_params, 4),
                "refitted error": error_on_test(refitted, data),
                "error": error_on_test(tuned, data),
            }
            row["points over dense"] = round(row["error"] - results["dense error"], 2)
            results["table"][name][size] = row | {"paper: points over dense": lost}
            print(name, size, row, file=sys.stderr, flush=True)
        write("vgg", results, started)


if __name__ == "__main__":
    main()
