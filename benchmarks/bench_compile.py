"""Whether `torch.compile` would pay: how much faster a network is then, and after how many rows that has paid.

Coalitions are run through what lies behind a mask, another part of the network for every group, and each would have to
be compiled. Here the whole network is, once for each precision, without what torch has kept of earlier compilations:
seconds to compile it (the first call, less a later one); how many times as fast it is then (median, lowest and highest
of the rounds, in turns); and the rows after which the seconds are won back. To compare: the rows that a run asks of a
group on average (`speed.json`, ResNet-56, 260 evaluations per player).

On a CPU one thread, as the rows of a batch have there; on a GPU (``--device cuda``) with CUDA graphs
(``mode="reduce-overhead"``), beside what our own recordings gain (`shaprune.network.forward.cuda_graphs`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from common import ROOT, mnist, resnet56, settled, trained, write
from torch import Tensor, nn
from torch._inductor import config as inductor

from shaprune.builtin.models import build_model
from shaprune.network.forward.cuda_graphs import USES_BEFORE_RECORDING, Recordings, recorder_for
from shaprune.network.precision import RowPrecision, in_precision

ROUNDS, ROWS = 7, 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    started = time.perf_counter()
    torch.set_num_threads(1)
    inductor.force_disable_caches = True
    digits, (resnet, images) = mnist(), resnet56()
    torch.manual_seed(0)
    networks: dict[str, tuple[nn.Module, Tensor]] = {
        "LeNet-5": (trained("lenet5", digits), digits.held_out.take(ROWS).inputs),
        "ResNet-56": (resnet, images.held_out.take(ROWS).inputs),
        "VGG-16": (build_model("vgg16"), torch.randn(ROWS, 3, 32, 32)),
    }
    asked = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())["results"]["ResNet-56"]
    results: dict[str, Any] = {
        "device": str(device),
        "rows of a batch": ROWS,
        "rows asked of a group": round(asked["control variates"]["evaluations"] / 28),
        "networks": {},
    }
    for name, (model, rows) in networks.items():
        found = {one: compiled(model.eval().to(device), rows.to(device), one) for one in ("float32", "bfloat16")}
        results["networks"][name] = found
        print(name, found, file=sys.stderr, flush=True)
        write("compile", results, started, device)


@torch.no_grad()
def compiled(model: nn.Module, rows: Tensor, precision: RowPrecision) -> dict[str, Any]:
    torch.compiler.reset()
    mode = None if rows.device.type == "cpu" else "reduce-overhead"
    plain = partial(in_precision(model, rows.device, precision), rows)
    faster = partial(in_precision(torch.compile(model, dynamic=False, mode=mode), rows.device, precision), rows)
    plain()
    first = seconds(faster, rows.device)
    faster()  # where graphs are recorded, the second call does it
    pairs = [(seconds(plain, rows.device), seconds(faster, rows.device)) for _ in range(ROUNDS)]
    before, after = np.median(pairs, axis=0)
    found = {
        "seconds to compile": round(float(first - after), 1),
        "times as fast": spread([a / b for a, b in pairs]),
        "pays after rows": round((first - after) / (before - after) * len(rows)) if before > after else None,
        "largest difference": float(f"{(plain() - faster()).abs().max():.1e}"),
    }
    recorder = recorder_for(rows.device)
    if recorder is not None:
        recordings = Recordings(recorder, 1 << 33, [t.detach() for t in (*model.parameters(), *model.buffers())])
        run = partial(recordings.run, in_precision(model, rows.device, precision), [rows], "network", 1)
        for _ in range(USES_BEFORE_RECORDING):
            run()
        pairs = [(seconds(plain, rows.device), seconds(run, rows.device)) for _ in range(ROUNDS)]
        found["recorded, times as fast"] = spread([a / b for a, b in pairs])
    return found


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    settled(device)
    clock = time.perf_counter()
    run()
    settled(device)
    return time.perf_counter() - clock


def spread(ratios: list[float]) -> dict[str, float]:
    return {name: round(float(of(ratios)), 2) for name, of in (("median", np.median), ("min", min), ("max", max))}


if __name__ == "__main__":
    main()
