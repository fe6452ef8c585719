"""Coalition rows per second against plain forward rows: of the whole network, and of the part behind the mask alone.

Coalitions: the rows that a walk asks for (one coalition and one example each), group by group, through
`NetworkGame.walk`; for transformers, whose walks are too long to be repeated here, rows with a random coalition each.
Plain: the dense network, and the operations behind the mask without any mask, in batches of as many rows as the game
runs at once. All three alternate in one run; medians of the ratios over rounds. The goal is .85 of the plain part
behind the mask. What lies behind the mask of a model that torch.fx takes apart are the traced operations; for ViT-S and
MiniLM it is written down here (their own layers, run on values that are computed once), and compared with the model.
VGG-16 and ViT-S have random weights; MiniLM is left out where its package is missing.

Networks are named on the command line (none = all); the results of the others are kept. With ``--device cuda`` all runs
on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import CPU, ROOT, mnist, resnet56, settled, trained, write
from torch import Tensor, nn

import shaprune as sp
from shaprune.builtin.models import build_model
from shaprune.network.batches import Inputs, call, length, tensors, transform
from shaprune.network.forward.cached_state import as_environment, gather_rows
from shaprune.network.forward.suffix import SuffixRunner

ROUNDS = 5
RESULTS = ROOT / "benchmarks" / "results" / "throughput.json"
Behind = Callable[[nn.Module, str, Inputs], Callable[[], Tensor]]  # (model, group, inputs) -> what gives the outputs


@dataclass(frozen=True)
class Case:
    """A network, its examples, and what is asked of it.

    Attributes:
        examples: how many of the inputs are asked about.
        groups: which; None = all.
        rows: so many random rows instead of walks.
        behind: makes the plain part behind a group's mask; None = the traced operations.
    """

    model: nn.Module
    inputs: Inputs
    examples: int
    groups: Sequence[str] | None = None
    rows: int | None = None
    behind: Behind | None = None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", help="none = all")
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda")
    chosen = parser.parse_args()
    names, device = chosen.networks, chosen.device
    started = time.perf_counter()
    results: dict[str, Any] = json.loads(RESULTS.read_text())["results"]["networks"] if names else {}
    for name in names or CASES:
        case = CASES[name]()
        if case is None:
            print(f"{name} is left out: its package is missing", file=sys.stderr)
            continue
        results[name] = measured(replace(case, model=case.model.to(device), inputs=moved(case.inputs, device)))
        print(name, results[name], file=sys.stderr, flush=True)
        write("throughput", {"rounds": ROUNDS, "networks": results}, started, device)


def measured(case: Case) -> dict[str, Any]:
    players = sp.find_players(case.model, first(case.inputs, 2))
    subject = [(case.inputs, None)]
    found = {}
    for group in [g for g in players.groups if case.groups is None or g.name in case.groups]:
        game = sp.NetworkGame(case.model, players, subject, "fidelity", group.name)
        rows = game.evaluator.rows
        batch = min(rows.batches.largest(rows.row_bytes), 256)
        every = torch.arange(batch) % length(case.inputs)
        ask = asked(game, case)
        ask()  # fills the cache of what lies in front of the mask
        inputs = gather_rows(case.inputs, every.to(game.evaluator.rows.device))
        steps = [ask, partial(forward, case.model, inputs), behind(game, case, inputs, batch)]
        rates = [[rate(step) for step in steps] for _ in range(ROUNDS + 1)][1:]
        coalitions, plain, suffix = np.array(rates).T
        found[group.name] = {
            "players": game.n_players,
            "rows at once": batch,
            "coalition rows per second": round(float(np.median(coalitions))),
            "against the whole network": spread(coalitions / plain),
            "against the part behind the mask": spread(coalitions / suffix),
        }
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


def behind(game: sp.NetworkGame, case: Case, inputs: Inputs, batch: int) -> Callable[[], int]:
    """The operations behind the mask, without it."""
    if case.behind is not None:
        with torch.no_grad():
            plain = case.behind(case.model, game.groups[0].name, inputs)
            torch.testing.assert_close(
                plain(), case.model(**inputs) if isinstance(inputs, dict) else case.model(inputs)
            )
    else:
        assert isinstance(game.runner, SuffixRunner)
        plain = partial(traced, game.runner, game.runner.prepare(inputs))

    def step() -> int:
        with torch.no_grad():
            plain()
        settled(game.evaluator.rows.device)
        return batch

    return step


def traced(cut: SuffixRunner, state: Any) -> None:
    cut.suffix.run(as_environment(state))


def forward(model: nn.Module, inputs: Inputs) -> int:
    with torch.no_grad():
        call(model, inputs)
    settled(tensors(inputs)[0].device)
    return length(inputs)


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    return transform(inputs, lambda tensor: tensor.to(device))


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


# --- what lies behind the mask in transformers ---


def behind_vit(model: Pooled, group: str, inputs: Tensor) -> Callable[[], Tensor]:
    number = int(group.split(".")[2])
    layer, later = model.encoder.layers[number], model.encoder.layers[number + 1 :]
    heads = group.endswith("q_proj")
    consumer = layer.attention.o_proj if heads else layer.mlp.fc2
    (read,), (residual,) = (
        given(model, inputs, consumer),
        given(model, inputs, layer if heads else layer.layernorm_after)[:1],
    )

    def run() -> Tensor:
        x = residual + consumer(read)
        if heads:
            x = x + layer.mlp(layer.layernorm_after(x))
        for each in later:
            x = each(x)
        return model.encoder.layernorm(x).mean(1)

    return run


def behind_minilm(model: Any, group: str, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    number = int(group.split(".")[3])
    layer, later = model.encoder.encoder.layer[number], model.encoder.encoder.layer[number + 1 :]
    heads = group.endswith("query")
    output = layer.attention.output if heads else layer.output
    read, residual = given(model, inputs, output)
    attended = given(model, inputs, layer)[1]  # the mask that all layers share
    counted = inputs["attention_mask"]

    def run() -> Tensor:
        x = output(read, residual)
        if heads:
            x = layer.output(layer.intermediate(x), x)
        for each in later:
            x = each(x, attended)
        return F.normalize((x * counted[..., None]).sum(1), dim=-1)

    return run


def given(model: nn.Module, inputs: Inputs, module: nn.Module) -> tuple[Any, ...]:
    """The positional arguments of a module in a dense run."""
    found: list[tuple[Any, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args))
    call(model, inputs)
    handle.remove()
    return found[0]


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
    return Case(model, torch.randn(16, 3, 224, 224), 16, [names[0], names[1], names[-2], names[-1]], 48, behind_vit)


def minilm() -> Case | None:
    try:
        from bench_minilm import Embedder, folder
        from transformers import AutoModel
    except ImportError:
        return None
    try:
        model = Embedder(
            AutoModel.from_pretrained(folder(), add_pooling_layer=False, attn_implementation="eager")
        ).eval()
    except (SystemExit, OSError):
        return None
    tokens = {
        "input_ids": torch.randint(1000, 20_000, (64, 32)),
        "attention_mask": torch.ones(64, 32, dtype=torch.long),
    }
    names = [g.name for g in sp.find_players(model, first(tokens, 2)).groups]
    return Case(model, tokens, 64, [names[0], names[1], names[-2], names[-1]], 256, behind_minilm)


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
