"""How much faster half of the multiply-adds are: ResNet-56 and LeNet-5, dense and pruned networks timed in turns.

Half of the multiply-adds stay, by weight norm: the same share of every layer (``uniform``), also with widths that are
multiples of eight, or by value per multiply-add over all layers (``global``). Batches of 1, 32 and 128 images, 1 and 2
threads; with ``--compiled`` also compiled (inductor). The goal is 1.4 times faster. Beside it, how much of the time the
convolutions and linear layers take: batch-norms, additions and calls do not become fewer with channels inside blocks.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from common import mnist, resnet56, trained, write
from torch import nn

import shaprune as sp
from shaprune.criteria.registry import criterion_scores
from shaprune.deploy.layer_timing import layer_times
from shaprune.deploy.measure import latency

BATCHES, THREADS, ROUNDS, KEPT = (1, 32, 128), (1, 2), 9, 0.5


def main() -> None:
    started = time.perf_counter()
    digits = mnist()
    photographs, data = resnet56()
    networks = {
        "ResNet-56": (photographs, data.test.inputs, "layer*.conv1"),
        "LeNet-5": (trained("lenet5", digits), digits.test.inputs, None),
    }
    results: dict[str, Any] = {}
    for name, (model, inputs, include) in networks.items():
        small = pruned(model, inputs[:2], include)
        rows = {}
        for n in BATCHES:
            for threads in THREADS:
                for compiled in (None, "inductor") if "--compiled" in sys.argv else (None,):
                    key = f"batch {n}, {threads} threads" + (", compiled" if compiled else "")
                    rows[key] = timed(model, small, inputs[:n], threads, compiled)
                    print(name, key, rows[key], file=sys.stderr, flush=True)
        results[name] = rows
    write("latency", results, started)


def pruned(model: nn.Module, example: torch.Tensor, include: str | None) -> dict[str, nn.Module]:
    """Networks with half of the multiply-adds."""
    players = sp.find_players(model, example, include=include)
    scores = criterion_scores(model, players, criterion="weight_norm")
    found = {}
    for name, allocation, widths in (
        ("uniform", "uniform", 1),
        ("uniform, eights", "uniform", 8),
        ("global", "global", 1),
    ):
        plan = sp.plan(scores, sp.Budget(macs=KEPT), allocation, limits=sp.options.Limits(round_to=widths))
        found[name] = sp.prune(model, plan, example)
    return found


def timed(
    model: nn.Module, small: dict[str, nn.Module], inputs: torch.Tensor, threads: int, compiled: str | None
) -> dict[str, Any]:
    """Times faster than the dense network treated alike, and the share of its time in layers that become smaller."""
    found = latency({"dense": model, **small}, inputs, timings=ROUNDS, threads=threads, compiled=compiled)
    row: dict[str, Any] = {name: round(found["dense"].median_ms / found[name].median_ms, 2) for name in small}
    row |= {f"{name} ms": [round(ms, 3) for ms in (t.low_ms, t.median_ms, t.high_ms)] for name, t in found.items()}
    if compiled is None and threads == torch.get_num_threads():
        row["share of layers"] = round(sum(layer_times(model, inputs).values()) / found["dense"].median_ms, 2)
    return row


if __name__ == "__main__":
    main()
