"""The recovery ladder on ResNet-56: refit, blocks, distillation, both, behind our plan and Taylor's.

50 and 30 % of the multiply-adds; channels inside the blocks are players. Plans and refits see 768 held-out training
images, blocks and distillation the 5,000, unlabelled (Taylor's ranking sees labels). Accuracy on the 10,000 test
images. One row: ``python benchmarks/bench_ladder.py taylor 0.3 blocks 0`` (plan, share, rung, seed); without arguments
all rows that are missing in ``results/ladder.json``. Refitted networks are kept in the ignored cache folder.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from common import CACHE, ROOT, accuracy_on_test, resnet56, write
from torch import nn

import shaprune as sp
from shaprune.builtin.datasets import Dataset
from shaprune.builtin.models import build_model
from shaprune.recovery import Blocks, Distill

CALIBRATION, CURVES, POINTS, TEST = 768, 384, 8, 10_000
RUNGS: dict[str, tuple[Any, ...]] = {
    "refit": (),
    "blocks": (Blocks(),),
    "distill": (Distill(steps=300),),
    "both": (Blocks(), Distill(steps=150)),
}
RESULTS = ROOT / "benchmarks" / "results" / "ladder.json"


def refitted(model: nn.Module, data: Dataset, ranking: str, share: float, seed: int) -> tuple[nn.Module, sp.Plan]:
    """A pruned and refitted network of a plan, from the cache folder where it is there."""
    folder = CACHE / f"ladder-{ranking}-{share}-{seed}"
    beside = CACHE / f"{folder.name}.plan.json"
    if folder.exists():
        return sp.load(folder, lambda: build_model("resnet56")).eval(), sp.Plan.load(
            folder.parent / f"{folder.name}.plan.json"
        )
    example, few = data.test.inputs[:2], data.held_out.take(CALIBRATION).batches()
    players = sp.find_players(model, example, include="layer*.conv1")
    if ranking == "taylor":
        scores = sp.score(model, players, few, "cross_entropy", "taylor", seed=seed, progress=False)
        plan = sp.plan(scores, sp.Budget(macs=share))
    else:
        scores = sp.score(model, players, few, "fidelity", "reconstruction", seed=seed, progress=False)
        images = data.held_out.take(CURVES).batches()
        curves = sp.sensitivity(model, players, scores, images, "fidelity", points=POINTS, refit=True)
        plan = sp.plan(scores, sp.Budget(macs=share), "curves", curves=curves)
    small = sp.recover(sp.prune(model, plan, example), model, plan, few, ("refit",), seed=seed)
    sp.save(small, plan, folder)
    plan.save(beside)
    return small, plan


def main(ranking: str, share: float, rung: str, seed: int) -> None:
    """Measure a row, unless it is in the results."""
    started = time.perf_counter()
    rows = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else {}
    name = f"{ranking}, {share:.0%}, {rung}, seed {seed}"
    if name in rows:
        print(f"{name}: {rows[name]}")
        return
    model, data = resnet56()
    small, plan = refitted(model, data, ranking, share, seed)
    clock = (time.perf_counter(), time.process_time())
    unlabelled = [data.held_out.inputs]
    made = sp.recover(small, model, plan, unlabelled, RUNGS[rung], seed=seed) if RUNGS[rung] else small
    spent = [round(now - then, 1) for now, then in zip((time.perf_counter(), time.process_time()), clock, strict=True)]
    rows[name] = {"accuracy": accuracy_on_test(made, data, TEST), "seconds": spent[0], "cpu seconds": spent[1]}
    write(Path(RESULTS).stem, rows, started, seed=seed)


if __name__ == "__main__":
    chosen = [sys.argv[1:]] if sys.argv[1:] else product(("taylor", "ours"), (0.3, 0.5), RUNGS, range(3))
    for one, left, step, number in chosen:
        main(one, float(left), step, int(number))
