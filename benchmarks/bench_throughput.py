"""Coalition rows per second against plain forward rows: of the whole network, and of the part behind the mask alone.

Coalitions: the rows that a walk asks for (one coalition and one example each), group by group, through
`NetworkGame.walk`; for transformers, whose walks are too long to be repeated here, rows with a random coalition each.
Plain: the dense network, and the operations behind the mask without any mask, in batches of as many rows as the game
runs at once. All three alternate in one run; medians of the ratios over rounds. The goal is .85 of the plain part
behind the mask. Models that cannot be taken apart run whole for every coalition; what lies behind the mask alone is
then not known. VGG-16 and ViT-S have random weights; MiniLM is left out where its package is missing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from common import mnist, resnet56, trained, write
from torch import nn

import shaprune as sp
from shaprune.bench.models import build_model
from shaprune.network.batches import Inputs, call, length
from shaprune.network.cut import Cut
from shaprune.network.state import gather, unfix

ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """A network, its examples, and what is asked of it.

    Attributes:
        examples: how many of the inputs are asked about.
        groups: which; None = all.
        rows: so many random rows instead of walks.
    """

    model: nn.Module
    inputs: Inputs
    examples: int
    groups: Sequence[str] | None = None
    rows: int | None = None


def main() -> None:
    started = time.perf_counter()
    results: dict[str, Any] = {}
    for name, make in CASES.items():
        case = make()
        if case is None:
            print(f"{name} is left out: its package is missing", file=sys.stderr)
            continue
        results[name] = measured(case)
        print(name, results[name], file=sys.stderr, flush=True)
        write("throughput", {"rounds": ROUNDS, "networks": results}, started)


def measured(case: Case) -> dict[str, Any]:
    players = sp.find_players(case.model, first(case.inputs, 2))
    subject = [(case.inputs, None)]
    found = {}
    for group in [g for g in players.groups if case.groups is None or g.name in case.groups]:
        game = sp.NetworkGame(case.model, players, subject, "fidelity", group.name)
        rows = game.judge.rows
        batch = min(rows.batch(rows.row_bytes), 256)
        every = torch.arange(batch) % length(case.inputs)
        ask = asked(game, case)
        ask()  # fills the cache of what lies in front of the mask
        steps = [ask, partial(forward, case.model, gather(case.inputs, every))]
        if isinstance(game.runner, Cut):
            steps.append(partial(behind, game, gather(game.runner.prepare(case.inputs), every), batch))
        rates = [[rate(step) for step in steps] for _ in range(ROUNDS + 1)][1:]
        coalitions, plain, *suffix = np.array(rates).T
        found[group.name] = {
            "players": game.n_players,
            "rows at once": batch,
            "coalition rows per second": round(float(np.median(coalitions))),
            "against the whole network": spread(coalitions / plain),
        }
        if suffix:
            found[group.name]["against the part behind the mask"] = spread(coalitions / suffix[0])
        else:
            found[group.name]["run whole because"] = game.whole_because
    return found


def asked(game: sp.NetworkGame, case: Case) -> Callable[[], int]:
    """What is timed; it returns how many rows it was."""
    rng = np.random.default_rng(0)
    if case.rows is not None:
        coalitions = rng.random((case.rows, game.n_players)) < 0.5
        examples = rng.integers(0, case.examples, case.rows)
        return lambda: game(coalitions, examples).size
    examples = np.arange(case.examples)
    orders = np.stack([rng.permutation(game.n_players) for _ in examples])
    return lambda: game.walk(orders, examples).size


def behind(game: sp.NetworkGame, state: Any, batch: int) -> int:
    """The operations behind the mask, without it."""
    assert isinstance(game.runner, Cut)
    with torch.no_grad():
        game.runner.suffix.run(unfix(state))
    return batch


def forward(model: nn.Module, inputs: Inputs) -> int:
    with torch.no_grad():
        call(model, inputs)
    return length(inputs)


def rate(step: Callable[[], int]) -> float:
    """Rows per second, over at least a tenth of a second."""
    clock, rows = time.perf_counter(), 0
    while time.perf_counter() - clock < 0.1:
        rows += step()
    return rows / (time.perf_counter() - clock)


def spread(ratios: np.ndarray) -> dict[str, float]:
    return {name: round(float(f(ratios)), 2) for name, f in (("median", np.median), ("min", np.min), ("max", np.max))}


def first(inputs: Inputs, n: int) -> Inputs:
    return {k: v[:n] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[:n]


# --- the networks ---


def lenet5() -> Case:
    data = mnist()
    return Case(trained("lenet5", data), data.held_out.take(256).inputs, 256)


def resnet() -> Case:
    model, data = resnet56()
    chosen = ("layer1.0.conv1", "layer1.8.conv1", "layer2.4.conv1", "layer3.0.conv1", "layer3.8.conv1")
    return Case(model, data.held_out.take(256).inputs, 64, chosen)


def vgg() -> Case:
    torch.manual_seed(0)
    return Case(
        build_model("vgg16").eval(), torch.randn(64, 3, 32, 32), 8, ("conv2", "conv5", "conv9", "conv13", "fc1")
    )


def vit() -> Case | None:
    """ViT-S/16: 12 layers, 6 heads, 384 wide."""
    try:
        from transformers import ViTConfig, ViTModel
    except ImportError:
        return None
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    model = Pooled(ViTModel(config, add_pooling_layer=False)).eval()
    names = [g.name for g in sp.find_players(model, torch.randn(2, 3, 224, 224)).groups]
    return Case(model, torch.randn(16, 3, 224, 224), 16, [names[0], names[1], names[-2], names[-1]], rows=48)


def minilm() -> Case | None:
    try:
        from bench_minilm import Embedder, folder
        from transformers import AutoModel
    except ImportError:
        return None
    try:
        model = Embedder(AutoModel.from_pretrained(folder(), attn_implementation="eager")).eval()
    except (SystemExit, OSError):
        return None
    tokens = {
        "input_ids": torch.randint(1000, 20_000, (64, 32)),
        "attention_mask": torch.ones(64, 32, dtype=torch.long),
    }
    names = [g.name for g in sp.find_players(model, first(tokens, 2)).groups]
    return Case(model, tokens, 64, [names[0], names[1], names[-2], names[-1]], rows=256)


class Pooled(nn.Module):
    """The mean over positions of what a transformer gives."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x).last_hidden_state.mean(1)


CASES: dict[str, Callable[[], Case | None]] = {
    "LeNet-5": lenet5,
    "ResNet-56": resnet,
    "VGG-16": vgg,
    "ViT-S": vit,
    "MiniLM": minilm,
}

if __name__ == "__main__":
    main()
