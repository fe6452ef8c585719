"""ResNet-56 on CIFAR-10 (JPEG) with 75, 50 and 30 % of its multiply-adds left: ours against rivals, same recovery.

All channels inside the blocks are players; in a second table those of the residual stream, too (of its 16, 32 and 64
channels the first 16: the zeros that the others are padded with are written in the network's code). Ours: the
reconstruction ranking, and layer widths along sensitivity curves measured with refitted consumers (``curves``), or
the same share of every layer (``uniform``). Rivals: weight norm, batch-norm scale, FPGM, LAMP, Hessian (optimal brain
damage), Taylor, random; by value per multiply-add over all layers (``global``), or uniform. Three columns: (a) raw,
(b) refitted on 768 unlabelled images, (c) one epoch of fine-tuning behind the refit, on 10,000 labelled training
images, for the better rows; beside it, the same architecture from scratch at the same effort, and, as a column of its
own for ours and the strongest rival, distillation on 5,000 unlabelled images, mirrored and shifted. Rankings and
curves see held-out training images only. Accuracy on 4,000 fixed random test images. ``--no-training`` leaves column
(c) out; ``--ours`` measures the row along curves again (also with the residual streams) and keeps the other rows of
the results as they are, for changes that concern no other row.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

from augment import cropped
from common import ROOT, SEED, accuracy_on_test, forgotten, resnet56, write
from torch import nn

import shaprune as sp
from shaprune.builtin.datasets import Dataset
from shaprune.criteria.registry import criterion_scores
from shaprune.network.forward.calibration import Calibration
from shaprune.recovery.steps import Finetune

KEPT = (0.5, 0.3, 0.75)  # results are written after each
CALIBRATION, CURVES, TEST, LABELLED, UNLABELLED = 768, 384, 4000, 10_000, 5000
POINTS = 8  # of each curve
RANDOM_SEEDS = 2
RIVALS = {
    "weight_norm": ("global", "uniform"),
    "bn_scale": ("global",),
    "fpgm": ("uniform",),
    "lamp": ("global",),
    "hessian": ("global",),
    "taylor": ("global", "uniform"),
}
RESULTS = ROOT / "benchmarks" / "results" / "compress.json"
OURS = "reconstruction, curves"
TUNED = (OURS, "taylor, global", "lamp, global", "bn_scale, global", "weight_norm, uniform", "fpgm, uniform")
DISTILLED = (OURS, "taylor, global")
Ranking = tuple[Any, str, dict[str, Any]]  # scores, allocation, what else `plan` wants
say = partial(print, file=sys.stderr, flush=True)


def main() -> None:
    started = time.perf_counter()
    model, data = resnet56()
    example = data.test.inputs[:2]
    players = sp.find_players(model, example, include="layer*.conv1")
    calibration = data.held_out.take(CALIBRATION).batches()
    subject = Calibration(model, calibration)
    clock = time.perf_counter()
    ours = sp.score(model, players, subject, "fidelity", method="reconstruction")
    seconds = {"ranking": round(time.perf_counter() - clock, 1)}
    clock = time.perf_counter()
    few = data.held_out.take(CURVES).batches()
    curves = sp.sensitivity(model, players, ours, few, "fidelity", points=POINTS, refit=True)
    seconds["curves"] = round(time.perf_counter() - clock, 1)
    say(seconds)
    rankings: dict[str, Ranking] = {
        "reconstruction, curves": (ours, "curves", {"curves": curves}),
        "reconstruction, uniform": (ours, "uniform", {}),
    }
    for criterion, allocations in RIVALS.items():
        scores = criterion_scores(model, players, subject, criterion)
        rankings |= {f"{criterion}, {allocation}": (scores, allocation, {}) for allocation in allocations}
    for seed in range(RANDOM_SEEDS):
        scores = criterion_scores(model, players, criterion="random", seed=seed)
        rankings |= {f"random {seed}, {a}": (scores, a, {}) for a in ("global", "uniform")}
    results: dict[str, Any] = {
        "dense accuracy": accuracy_on_test(model, data, TEST),
        "players": players.n,
        "calibration images": CALIBRATION,
        "seconds": seconds,
        "table": {name: {} for name in rankings},
    }
    every, streams = _streams(model, players, ours, curves, calibration, few, example)
    results["residual streams, too"] = {name: {} for name in streams}
    if "--ours" in sys.argv:
        old = json.loads(RESULTS.read_text())["results"]
        for table in ("table", "residual streams, too"):
            results[table] = old[table]
        rankings, streams = ({OURS: some[OURS]} for some in (rankings, streams))
    for kept in KEPT:
        for name, ranking in rankings.items():
            row, refitted, plan = _row(model, players, ranking, kept, data, calibration, example)
            if name in TUNED and "--no-training" not in sys.argv:
                row |= _tuned(refitted, model, plan, data, name)
            results["table"][name][f"{kept:.0%} of the multiply-adds"] = row
            say(name, kept, row)
        for name, ranking in streams.items():
            row, _, _ = _row(model, every, ranking, kept, data, calibration, example)
            results["residual streams, too"][name][f"{kept:.0%} of the multiply-adds"] = row
            say("streams", name, kept, row)
        write("compress", results, started)


def _streams(
    model: nn.Module,
    inner: sp.Players,
    ours: sp.Scores,
    curves: sp.metrics.Sensitivity,
    calibration: Any,
    few: Any,
    example: Any,
) -> tuple[sp.Players, dict[str, Ranking]]:
    """All players, and rankings of them; what is known of those inside the blocks is not measured again."""
    players = sp.find_players(model, example)
    stream = sp.find_players(model, example, exclude=[group.name for group in inner.groups])
    scores = sp.score(model, stream, calibration, "fidelity", method="reconstruction")
    scores = replace(ours, players=players, by_group={**scores.by_group, **ours.by_group})
    more = sp.sensitivity(model, stream, scores, few, "fidelity", points=POINTS, refit=True)
    every = replace(curves, curves={**more.curves, **curves.curves})
    subject = Calibration(model, calibration)
    return players, {
        "reconstruction, curves": (scores, "curves", {"curves": every}),
        "taylor, global": (criterion_scores(model, players, subject, "taylor"), "global", {}),
        "weight_norm, global": (criterion_scores(model, players, subject, "weight_norm"), "global", {}),
    }


def _row(
    model: nn.Module, players: sp.Players, ranking: Ranking, kept: float, data: Dataset, calibration: Any, example: Any
) -> tuple[dict[str, float], nn.Module, sp.Plan]:
    """A line of the table, the refitted network, and its plan."""
    scores, allocation, along = ranking
    plan = sp.plan(sp.Scores(players, dict(scores)), sp.Budget(macs=kept), allocation, **along)
    small = sp.prune(model, plan, example)
    refitted = sp.recover(small, model, plan, calibration, ("refit",))
    row = {
        "raw": accuracy_on_test(small, data, TEST),
        "refitted": accuracy_on_test(refitted, data, TEST),
        "players kept": int(plan.kept.sum()),
        "params kept": round(plan.cost["params"] / players.model_params, 3),
    }
    return row, refitted, plan


def _tuned(refitted: nn.Module, model: nn.Module, plan: sp.Plan, data: Dataset, name: str) -> dict[str, float]:
    """One epoch of fine-tuning; for some rows also distillation, and for ours the same epoch from scratch."""
    train = data.train.take(LABELLED).batches(128)
    labelled = Finetune(epochs=1, lr=3e-4)
    row = {"one epoch": accuracy_on_test(sp.recover(refitted, model, plan, train, (labelled,), seed=SEED), data, TEST)}
    if name in DISTILLED:
        unlabelled = [(x, None) for x, _ in data.held_out.take(UNLABELLED).batches(128)]
        follow = Finetune(epochs=3, lr=5e-4, loss="distill", augment=cropped)
        row["distilled, 3 epochs"] = accuracy_on_test(
            sp.recover(refitted, model, plan, unlabelled, (follow,)), data, TEST
        )
    if name == OURS:
        tuned = sp.recover(forgotten(refitted, SEED), model, plan, train, (Finetune(epochs=1, lr=2e-3),), seed=SEED)
        row["from scratch, one epoch"] = accuracy_on_test(tuned, data, TEST)
    return row


if __name__ == "__main__":
    main()
