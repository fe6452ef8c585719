"""ResNet-56 on CIFAR-10 (JPEG) at half of its multiply-adds with 0, 1, 10 and 100 images per class. No labels.

Where there are images, every row has the same recovery, a refit on them; ranking, widths and refit see these images
only. Three draws of images from the held-out training images. Ours: the reconstruction ranking, widths along curves
measured with refitted consumers on at most 100 of the images, or the same share of every layer; and, as a row of its
own, distillation from the dense network behind it, images mirrored and shifted. Taylor needs labels and gets them.
Without images, rows are raw, or refitted on noise with the spectrum of photographs. Accuracy on 2,000 test images.
``bench_lowdata.py 0 10`` measures these numbers of images per class only, and keeps the others in the results.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from statistics import mean

import torch
from augment import cropped, noise
from common import ROOT, accuracy_on_test, resnet56, write
from torch import nn

import shaprune as sp
from shaprune.builtin.datasets import Dataset
from shaprune.builtin.splits import Split
from shaprune.criteria.registry import criterion_scores
from shaprune.network.forward.calibration import Calibration
from shaprune.recovery.steps import Finetune

KEPT, TEST, NOISE = 0.5, 2000, 512
DRAWS = {1: 3, 10: 3, 100: 1}  # by images per class
EPOCHS = {1: 60, 10: 60, 100: 8}  # of distillation
RESULTS = ROOT / "benchmarks" / "results" / "lowdata.json"
POINTS, WATCHED = 8, 100
say = partial(print, file=sys.stderr, flush=True)


def main() -> None:
    started = time.perf_counter()
    model, data = resnet56()
    example = data.test.inputs[:2]
    players = sp.find_players(model, example, include="layer*.conv1")
    dense = accuracy_on_test(model, data, TEST)
    asked = [int(text) for text in sys.argv[1:]] or [0, *DRAWS]
    for per_class in asked:
        rows: dict[str, list[float]] = {}
        if not per_class:
            rows = {name: [found] for name, found in without_images(model, players, data).items()}
        for draw in range(DRAWS.get(per_class, 0)):
            images = drawn(data.held_out, per_class, draw)
            for name, found in with_images(model, players, images, data, EPOCHS[per_class]).items():
                rows.setdefault(name, []).append(found)
        old = json.loads(RESULTS.read_text())["results"]["images per class"] if RESULTS.exists() else {}
        new = {name: {"mean": round(mean(found), 4), "draws": found} for name, found in rows.items()}
        table = dict(sorted({**old, str(per_class): new}.items(), key=lambda item: int(item[0])))
        results = {"dense accuracy": dense, "multiply-adds kept": KEPT, "images per class": table}
        write("lowdata", results, started)


def without_images(model: nn.Module, players: sp.Players, data: Dataset) -> dict[str, float]:
    """Nothing but the weights."""
    example, made = data.test.inputs[:2], noise(NOISE, 3, 32)
    batches = [(x, None) for x in made.split(128)]
    ours = sp.score(model, players, batches, "fidelity", method="reconstruction")
    found = {}
    for name, scores in (
        ("reconstruction on noise", ours),
        ("weight norm", criterion_scores(model, players, criterion="weight_norm")),
    ):
        plan = sp.plan(sp.Scores(players, scores), sp.Budget(macs=KEPT), "uniform")
        small = sp.prune(model, plan, example)
        found[f"{name}, uniform, raw"] = accuracy_on_test(small, data, TEST)
        found[f"{name}, uniform, refitted on noise"] = accuracy_on_test(
            sp.recover(small, model, plan, batches, ("refit",)), data
        )
        say(found)
    return found


def with_images(model: nn.Module, players: sp.Players, images: Split, data: Dataset, epochs: int) -> dict[str, float]:
    """Every row for one draw of images."""
    example, batches, budget = data.test.inputs[:2], images.batches(128), sp.Budget(macs=KEPT)
    subject = Calibration(model, batches)
    ours = sp.score(model, players, subject, "fidelity", method="reconstruction")
    watched = images.take(WATCHED).batches()
    curves = sp.sensitivity(model, players, ours, watched, "fidelity", points=POINTS, refit=True)
    plans = {
        "reconstruction, curves": sp.plan(sp.Scores(players, ours), budget, "curves", curves=curves),
        "reconstruction, uniform": sp.plan(sp.Scores(players, ours), budget, "uniform"),
        "taylor (labels), global": sp.plan(
            sp.Scores(players, criterion_scores(model, players, subject, "taylor")), budget, "global"
        ),
        "weight norm, uniform": sp.plan(
            sp.Scores(players, criterion_scores(model, players, criterion="weight_norm")), budget, "uniform"
        ),
    }
    found = {}
    for name, plan in plans.items():
        refitted = sp.recover(sp.prune(model, plan, example), model, plan, batches, ("refit",))
        found[name] = accuracy_on_test(refitted, data, TEST)
        if name == "reconstruction, curves":
            step = Finetune(epochs=epochs, lr=1e-3, loss="distill", patience=epochs, augment=cropped)
            distilled = sp.recover(refitted, model, plan, batches, (step,))
            found[f"{name}, distilled"] = accuracy_on_test(distilled, data, TEST)
        say(len(images), name, found)
    return found


def drawn(held_out: Split, per_class: int, draw: int) -> Split:
    """As many images of each class."""
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(draw))
    labels = held_out.targets[order]
    rows = torch.cat([order[labels == label][:per_class] for label in labels.unique()])
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(draw))]
    return Split(held_out.inputs[rows], held_out.targets[rows])


if __name__ == "__main__":
    main()
