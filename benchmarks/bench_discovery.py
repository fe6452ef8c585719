"""Finding the players of networks at their real size: seconds and peak memory, each network in a process of its own.

ResNet-50 and DenseNet-121 on one image of 224 x 224 (goal: 10 s, 2 GiB), a 12-layer BERT on sentences of 32 and of 128
tokens (goal: 30 s), random weights. The time is that of `find_players` alone: tracing, coupling, and the proof that
masking each group is removing it. The memory is the peak of the whole process, PyTorch included; beside it that of a
process that only builds the model and runs it once.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from common import write
from large_networks import densenet121, resnet50
from torch import nn

import shaprune as sp

NAMES = ("resnet50", "densenet121", "bert12-32", "bert12-128")


def built(name: str) -> tuple[nn.Module, Any]:
    if name.startswith("bert12"):
        import transformers

        model = transformers.BertModel(transformers.BertConfig(attn_implementation="eager"))
        return model.eval(), {"input_ids": torch.randint(0, 30_000, (1, int(name.partition("-")[2])))}
    return {"resnet50": resnet50, "densenet121": densenet121}[name](), torch.randn(1, 3, 224, 224)


def one(name: str, look: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model, inputs = built(name)
    with torch.no_grad():
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    if not look:
        return {"peak GiB": _peak()}
    clock = time.perf_counter()
    players = sp.find_players(model, inputs)
    seconds = time.perf_counter() - clock
    return {
        "seconds": round(seconds, 1),
        "peak GiB": _peak(),
        "parameters": players.model_params,
        "groups": len(players.groups),
        "players": players.n,
        "skipped": len(players.skipped),
    }


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(one(sys.argv[1], look=sys.argv[2:] != ["--dry"])))
        return
    started = time.perf_counter()
    results: dict[str, Any] = {}
    for name in NAMES:
        runs = [[name, "--dry"], [name]]
        dry, found = (json.loads(_run(arguments)) for arguments in runs)
        results[name] = found | {"peak GiB without looking": dry["peak GiB"]}
        print(name, results[name], file=sys.stderr, flush=True)
    write("discovery", results, started)


def _run(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
