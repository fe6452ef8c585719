"""LeNet-5 on MNIST at the two sizes of Adamczewski et al. 2024, after fine-tuning: test error, five seeds.

They report 1.04 % with 4.5K parameters and 131K multiply-adds, and 0.88 % with 5.9K and 205K (dense: 0.73 %). Here each
seed trains a dense LeNet-5, ranks its channels and neurons on 1,000 held-out images without labels (reconstruction),
sets the widths along curves with refitted consumers, refits, and trains on labels. The same with weight norm (uniform)
and with the pruned architecture from scratch, for the first size and the first seed. The epoch is chosen on a tenth of
the training images. The best network of the first size is written to ``results/lenet5-small`` (a test reloads it).
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

from augment import warped
from common import ROOT, error_on_test, forgotten, mnist, trained, write
from torch import nn

import shaprune as sp
from shaprune.builtin.datasets import Dataset
from shaprune.criteria.registry import criterion_scores
from shaprune.recovery.steps import Finetune

SIZES = {"4.5K, 131K": sp.Budget(params=4500, macs=131_000), "5.9K, 205K": sp.Budget(params=5900, macs=205_000)}
PAPER = {"4.5K, 131K": 1.04, "5.9K, 205K": 0.88}
SEEDS, IMAGES, POINTS = 5, 1000, 25
DENSE_EPOCHS, EPOCHS = 3, 20
BEST = ROOT / "benchmarks" / "results" / "lenet5-small"


def main() -> None:
    started = time.perf_counter()
    data = mnist()
    example = data.test.inputs[:2]
    held_out = data.held_out.take(IMAGES).batches()
    results: dict[str, Any] = {"dense error": [], "seeds": SEEDS, "epochs": EPOCHS, "paper": PAPER, "table": {}}
    lowest = 100.0
    for seed in range(SEEDS):
        model = trained("lenet5", data, epochs=DENSE_EPOCHS, seed=seed, augment=warped)
        results["dense error"].append(error_on_test(model, data))
        players = sp.find_players(model, example)
        ours = sp.score(model, players, held_out, "fidelity", method="reconstruction")
        curves = sp.sensitivity(model, players, ours, held_out, "fidelity", points=POINTS, refit=True)
        for size, budget in SIZES.items():
            first = size == next(iter(SIZES))
            plans = {"reconstruction, curves": sp.plan(sp.Scores(players, ours), budget, "curves", curves=curves)}
            if first and seed == 0:
                norms = criterion_scores(model, players, criterion="weight_norm")
                plans["weight_norm, uniform"] = sp.plan(sp.Scores(players, norms), budget, "uniform")
            for name, plan in plans.items():
                refitted = sp.recover(sp.prune(model, plan, example), model, plan, held_out, ("refit",))
                small = tuned(refitted, model, plan, data, seed)
                found = note(results, name, size, refitted, small, plan, data)
                if first and name == "reconstruction, curves" and found < lowest:
                    lowest = found
                    sp.save(small, plan, BEST, overwrite=True)
            if first and seed == 0:
                plan = plans["reconstruction, curves"]
                fresh = forgotten(sp.prune(model, plan, example), seed)
                note(results, "from scratch", size, fresh, tuned(fresh, model, plan, data, seed), plan, data)
        write("lenet5-small", results, started)


def tuned(small: nn.Module, model: nn.Module, plan: sp.Plan, data: Dataset, seed: int) -> nn.Module:
    step = Finetune(epochs=EPOCHS, lr=5e-3, loss="cross_entropy", patience=EPOCHS, augment=warped)
    return sp.recover(small, model, plan, data.train.batches(128), (step,), seed=seed)


def note(
    results: dict[str, Any], name: str, size: str, before: nn.Module, after: nn.Module, plan: sp.Plan, data: Dataset
) -> float:
    """Enter a network into the table; returns its error."""
    row = results["table"].setdefault(size, {}).setdefault(name, {"before tuning": [], "error": [], "widths": []})
    row["before tuning"].append(error_on_test(before, data))
    row["error"].append(error_on_test(after, data))
    row["widths"].append([int(plan.kept[group.indices].sum()) for group in plan.players.groups])
    row["median error"] = median(row["error"])
    row["params"], row["macs"] = int(plan.cost["params"]), int(plan.cost["macs"])
    print(size, name, row, file=sys.stderr, flush=True)
    return float(row["error"][-1])


if __name__ == "__main__":
    main()
