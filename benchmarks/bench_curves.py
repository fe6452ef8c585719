"""LeNet-5 (20-50-500) on MNIST: accuracy and loss as channels leave, every concept, estimator, mode and rival.

Three networks. Conv2 (50 channels): scored on 1,000 held-out images, worth = cross-entropy, everybody at the price of
greedy backward elimination, one player per round; measured on the 10,000 test images without any recovery. The modes
again with accuracy and margin as worth. Then network-wide: conv1, conv2 and fc1 (570 players), scored group by group on
200 images, a tenth of a group per round, and in one game over all with one order per image; one order by value,
measured on 2,000 test images.

The verdict compares the best mode with the best rival at 50, 70, 80 and 90 % of conv2 removed, by the mean over
networks and network by network.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np
from common import mnist, trained, write
from torch import nn

import shaprune as sp
from shaprune.builtin.splits import Dataset
from shaprune.experiments.contenders import Contest, choose, players_of
from shaprune.experiments.curves_study import SHARES, Entry, joined, measured, points_of, score_all, summary
from shaprune.network.forward.calibration import Calibration

NETWORKS = 3
IMAGES, IMAGES_WIDE, TEST_WIDE = 1_000, 200, 2_000
POINTS = range(0, 51, 5)
OTHER_WORTHS = {
    "accuracy": ["shapley", "iterated", "building", "greedy-backward"],
    "margin": ["shapley", "iterated", "building"],
}
WIDE = [
    *("shapley", "shapley:0.5,1", "beta:1,16", "mean+2std", "iterated", "building"),
    *(
        "taylor",
        "taylor_squared",
        "second_order",
        "hessian",
        "lamp",
        "weight_norm",
        "fpgm",
        "activation_mean",
        "random",
    ),
]


def main(networks: int = NETWORKS, images: int = IMAGES) -> None:
    warnings.simplefilter("ignore", sp.errors.ShapruneWarning)  # rivals that cannot tell some players apart
    started = time.perf_counter()
    data = mnist()
    layer, wide, dense, left_out, price = [], [], [], {}, 0
    for seed in range(networks):
        model = trained("lenet5", data, seed=seed)
        players = sp.find_players(model, data.test.inputs[:2])
        test = Calibration(model, data.test.batches())
        dense.append(float((test.outputs.argmax(1) == test.targets).float().mean()))
        conv2 = players_of(players, ["conv2"])
        contest = Contest(model, conv2, Calibration(model, data.held_out.take(images).batches()))
        price = contest.price
        entries, left_out = score_all(contest, choose(None), seed=seed)
        for worth, names in OTHER_WORTHS.items():
            other = Contest(model, conv2, contest.calibration, worth)
            more, _ = score_all(other, choose(names), seed=seed)
            entries |= {f"{name} ({worth})": entry for name, entry in more.items()}
        layer.append(measured(entries, model, conv2, test, points=list(POINTS)))
        _say(f"network {seed}, conv2", started)
        wide.append(_wide(model, players, data, seed))
        _say(f"network {seed}, network-wide", started)
    rows = summary(layer)
    results = {
        "networks": networks,
        "accuracy of the dense networks": dense,
        "conv2": {
            "worth": "cross_entropy, where no other is named",
            "images": images,
            "evaluations per image at most": price / images,
            "verdict": {f"{share:.0%} removed": _verdict(rows, f"{share:g}") for share in SHARES},
            "mode with the smallest area": next(name for name, row in rows.items() if row["kind"] == "mode"),
            "rival with the smallest area": next(name for name, row in rows.items() if row["kind"] == "rival"),
            "rows": _compact(rows, images),
            "left out": left_out,
        },
        "network-wide": {"images": IMAGES_WIDE, "rows": _compact(summary(wide), IMAGES_WIDE)},
    }
    write("curves", results, started)


def _wide(model: nn.Module, players: sp.Players, data: Dataset, seed: int) -> dict[str, Entry]:
    subject = Calibration(model, data.held_out.take(IMAGES_WIDE).batches())
    by_group = {}
    for group in players.groups:
        contest = Contest(model, players_of(players, [group.name]), subject, step=0.1)
        by_group[group.name], _ = score_all(contest, choose(WIDE), seed=seed)
    entries = joined(players, by_group)
    together, _ = score_all(
        Contest(model, players, subject, budget=IMAGES_WIDE * (players.n + 1)), choose(["shapley"]), seed=seed
    )
    entries |= {f"{name}, one game": entry for name, entry in together.items()}
    test = Calibration(model, data.test.take(TEST_WIDE).batches())
    return measured(entries, model, players, test, points=points_of(players.n, 11))


def _verdict(rows: dict[str, Any], share: str) -> dict[str, Any]:
    """The best rival at one share removed, and what of ours is ahead of it.

    Modes with rounds are compared apart from one-shot values; differences are network by network.
    """
    accuracy = {name: row["accuracy_at"][share] for name, row in rows.items()}
    kinds = {"mode with rounds": ("mode",), "one-shot": ("concept", "estimator", "aggregation"), "rival": ("rival",)}
    best = {
        what: max((n for n, row in rows.items() if row["kind"] in of), key=lambda n: accuracy[n]["mean"])
        for what, of in kinds.items()
    }
    mark = accuracy[best["rival"]]
    ahead = {
        what: [n for n, row in rows.items() if row["kind"] in kinds[what] and accuracy[n]["mean"] > mark["mean"]]
        for what in ("mode with rounds", "one-shot")
    }
    return {
        "best": {what: {name: round(accuracy[name]["mean"], 4)} for what, name in best.items()},
        "a mode with rounds is ahead of every rival": bool(ahead["mode with rounds"]),
        "difference to the best rival, by network": {
            what: np.subtract(accuracy[best[what]]["by_network"], mark["by_network"]).round(4).tolist()
            for what in ahead
        },
        "ahead of every rival": ahead,
    }


def _compact(rows: dict[str, Any], images: int) -> dict[str, Any]:
    """Rows with rounded numbers, and the mean curve only."""
    return {
        name: {
            "kind": row["kind"],
            "area, loss": _rounded(row["area_loss"]),
            "area, accuracy": _rounded(row["area_accuracy"]),
            "accuracy at": {share: _rounded(of) for share, of in row["accuracy_at"].items()},
            "evaluations per image": round(row["n_evaluations"] / images, 1),
            "seconds": round(row["seconds"], 2),
            "removed": row["curve"]["removed"],
            "mean accuracy": [round(x, 4) for x in row["curve"]["accuracy"]["mean"]],
            "mean loss": [round(x, 4) for x in row["curve"]["loss"]["mean"]],
        }
        for name, row in rows.items()
    }


def _rounded(of: dict[str, Any]) -> dict[str, Any]:
    return {
        "mean": round(of["mean"], 4),
        "95 % +-": None if of["reach"] is None else round(of["reach"], 4),
        "by network": [round(x, 4) for x in of["by_network"]],
    }


def _say(text: str, started: float) -> None:
    print(f"{text}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
