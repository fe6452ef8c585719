"""How long good values take: LeNet-5 against the published practice, ResNet-56, and peak memory under a bound.

- LeNet-5, 570 players, 1,000 images, cross-entropy: seconds to score all by default; then, group by group, seconds to
  a relative error of .1 with one order per image and with the published practice: the same orders for all images,
  every coalition a full forward pass of the network. One such order is timed; the error of ten of them is computed by
  the faster path, which gives the same worths, and both errors are carried to .1 by the square-root law.
- ResNet-56, all groups, 1,000 images, fidelity, bfloat16: seconds from start to end, by derivatives as control
  variates, until the median player of a group has a standard error of a tenth of its value. Once with at most 260
  evaluations for each player of a group, after which the median over all players is about as much, and once with
  at most 12,000 for a group, which brings nearly every group there; the share of players on which two seeds agree
  within their 95 % intervals, joined (.95 or a little more if these are right); and seconds of 64 walks per group, and
  their median error, carried to .1 by the square-root law. Channels whose value is exactly 0 are left out.
- Memory: ResNet-56's first block on 12,000 images, whose activations at the mask take 1.6 GB, under bounds of 0.5, 1
  and 2 GiB: the highest anonymous memory of a process beyond what it has with the network and torch loaded. Files of
  mapped activations are not in it; the system takes them back when it needs to.

All threads of the machine. With ``--device cuda`` the networks run on a GPU, and the memory is not looked at.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CPU, error, mnist, resnet56, trained, write
from torch import nn

import shaprune as sp
from shaprune.builtin.models import build_model
from shaprune.network.batches import call
from shaprune.network.forward.calibration import Calibration
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.stopping import Rule, evaluations, evaluations_per_player, median_error_below

IMAGES, ERROR, SHARED, WALKS = 1000, 0.1, 10, 64
PER_PLAYER, PER_GROUP = 260, 12_000  # evaluations at most
TRUTH_WALKS = {"conv1": 50_000, "conv2": 100_000, "fc1": 50_000}
BOUNDS = (0.5, 1, 2)  # GiB
MANY = 12_000  # images


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bound", type=float, help="only score under this bound (GiB), and print the peak")
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda")
    chosen = parser.parse_args()
    if chosen.bound is not None:
        print(json.dumps(bounded(chosen.bound)))
        return
    started = time.perf_counter()
    results: dict[str, Any] = {"memory": {}}
    for gib in BOUNDS if chosen.device == CPU else ():
        ran = subprocess.run(
            [sys.executable, __file__, "--bound", str(gib)], check=True, capture_output=True, text=True
        )
        results["memory"][f"{gib} GiB"] = json.loads(ran.stdout)
    print(results, file=sys.stderr, flush=True)
    results |= {"LeNet-5": lenet5(chosen.device)}
    write("speed", results, started, chosen.device)
    results |= {"ResNet-56": resnet(chosen.device)}
    write("speed", results, started, chosen.device)


def lenet5(device: torch.device) -> dict[str, Any]:
    data = mnist()
    model = trained("lenet5", data).to(device)
    players = sp.find_players(model, data.test.inputs[:2])
    batches = data.held_out.take(IMAGES).batches()
    clock = time.perf_counter()
    every = sp.options.Scoring(window=(0, 1))
    sp.score(model, players, batches, "cross_entropy", progress=False, options=every)
    found: dict[str, Any] = {"players": players.n, "seconds to score all by default": since(clock)}
    subject = Calibration(model, batches)
    for group in players.groups:
        n = len(group)
        game = sp.NetworkGame(model, players, subject, "cross_entropy", group.name)
        truth = sp.estimate(game, Permutation(), TRUTH_WALKS[group.name] * (n + 1), seed=1000).value
        clock = time.perf_counter()
        ours = sp.estimate(game, Permutation(), IMAGES * (n + 1))
        seconds = since(clock)
        shared = sp.estimate(game, Permutation(per_example=False), SHARED * IMAGES * (n + 1))
        full = sp.NetworkGame(model, players, batches, "cross_entropy", group.name, forward=whole)
        clock = time.perf_counter()
        sp.estimate(full, Permutation(per_example=False), IMAGES * (n + 1))
        order = since(clock)
        errors = error(ours.value, truth), error(shared.value, truth)
        to_error = seconds * (errors[0] / ERROR) ** 2, SHARED * order * (errors[1] / ERROR) ** 2
        found[group.name] = {
            "players": n,
            "one order per image": {"seconds": seconds, "error": round(errors[0], 4)},
            f"{SHARED} shared orders, full forward passes": {
                "seconds": round(SHARED * order, 1),
                "error": round(errors[1], 4),
            },
            "seconds to .1": [round(to_error[0], 3), round(to_error[1], 1)],
            "times faster": round(to_error[1] / to_error[0]),
        }
        print(group.name, found[group.name], file=sys.stderr, flush=True)
    return found


def resnet(device: torch.device) -> dict[str, Any]:
    model, data = resnet56()
    model.to(device)
    players = sp.find_players(model, data.test.inputs[:2])
    batches = data.held_out.take(IMAGES).batches()
    found: dict[str, Any] = {"players": players.n}
    found["control variates"] = controlled(model, players, batches, evaluations_per_player(PER_PLAYER), seeds=2)
    found["control variates, every group"] = controlled(model, players, batches, evaluations(PER_GROUP), seeds=1)
    return found | {"walks": walked(model, players, Calibration(model, batches))}


def controlled(model: nn.Module, players: sp.Players, batches: Any, limit: Rule, seeds: int) -> dict[str, Any]:
    """The whole network by control variates, with one seed or with two."""
    rule = median_error_below(ERROR) | limit
    options: dict[str, Any] = {"stop": rule, "progress": False, "options": sp.options.Scoring(precision="bfloat16")}
    runs = [
        sp.score(model, players, batches, "fidelity", "control-variate", seed=seed, **options) for seed in range(seeds)
    ]
    first = runs[0]
    medians = {name: float(np.median(relative(values))) for name, values in first.items()}
    worst = max(medians, key=lambda name: medians[name])
    left = [values.diagnostics["variance_left"] for values in first.values()]
    found = {
        "seconds": [round(run.seconds, 1) for run in runs],
        "evaluations": first.n_evaluations,
        "median relative standard error": round(float(np.median(np.concatenate([*map(relative, first.values())]))), 3),
        "median group": round(float(np.median([*medians.values()])), 3),
        "worst group": [worst, round(medians[worst], 3)],
        "groups at the limit": sum("evaluations" in values.stopped_by for values in first.values()),
        "variance left by the derivatives, median group": round(float(np.median(left)), 3),
    }
    print(found, file=sys.stderr, flush=True)
    if seeds == 1:
        return found
    agree = [
        np.abs(values.value - runs[1][name].value) <= np.hypot(reach(values), reach(runs[1][name]))
        for name, values in first.items()
    ]
    return found | {"players on which two seeds agree": round(float(np.mean(np.concatenate(agree))), 3)}


def walked(model: nn.Module, players: sp.Players, subject: Calibration) -> dict[str, Any]:
    """A few walks of every group, carried to the same error."""
    asked, seconds, ratios = 0, 0.0, list[float]()
    to_error = 0.0
    for group in players.groups:
        game = sp.NetworkGame(model, players, subject, "fidelity", group.name, precision="bfloat16")
        clock = time.perf_counter()
        values = sp.estimate(game, Permutation(), WALKS * (len(group) + 1))
        took = time.perf_counter() - clock
        ratios += relative(values).tolist()
        to_error += took * (float(np.median(relative(values))) / ERROR) ** 2
        seconds, asked = seconds + took, asked + values.n_evaluations
        print(group.name, round(took, 1), round(float(np.median(relative(values))), 3), file=sys.stderr, flush=True)
    return {
        "walks of every group": WALKS,
        "evaluations": asked,
        "seconds": round(seconds, 1),
        "median relative standard error": round(float(np.median(ratios)), 3),
        "seconds to .1 in the median of every group": round(to_error),
    }


def reach(values: sp.Values) -> np.ndarray[Any, Any]:
    """Half of the 95 % interval of every player."""
    return np.diff(values.interval(0.95), axis=1)[:, 0] / 2


def relative(values: sp.Values) -> np.ndarray[Any, Any]:
    """Standard errors over values, of players that are worth anything."""
    alive = values.value != 0
    found: np.ndarray[Any, Any] = values.stderr[alive] / np.abs(values.value[alive])
    return found


def bounded(gib: float) -> dict[str, Any]:
    """Peak memory of scoring under a bound."""
    model = build_model("resnet56").eval()
    players = sp.find_players(model, torch.randn(2, 3, 32, 32), include="layer1.0.conv1")
    sp.score(model, players, batches(512), "fidelity", max_evaluations=64 * 17, progress=False)  # torch's own buffers
    before, peak, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    clock = time.perf_counter()
    bound = int(gib * 2**30)
    sp.score(
        model,
        players,
        batches(MANY),
        "fidelity",
        max_evaluations=64 * 17,
        progress=False,
        options=sp.options.Scoring(max_memory=bound, window=(0, 1)),
    )
    seconds = since(clock)
    done.set()
    thread.join()
    took = (peak - before) / 2**30
    return {"GiB": round(took, 3), "share of the bound": round(took / gib, 3), "seconds": seconds}


def batches(n: int) -> Any:
    """Random images, made one batch at a time."""
    generator = torch.Generator().manual_seed(0)
    return ((torch.randn(250, 3, 32, 32, generator=generator), None) for _ in range(max(1, n // 250)))


def anonymous() -> int:
    """Bytes of this process's memory that is no file."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) * 1024


def whole(model: nn.Module, inputs: Any) -> Any:
    """A forward of one's own: the network is then run whole for every coalition."""
    return call(model, inputs)


def since(clock: float) -> float:
    return round(time.perf_counter() - clock, 3)


if __name__ == "__main__":
    main()
