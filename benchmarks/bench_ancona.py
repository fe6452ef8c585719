"""The experiments of Ancona, Öztireli & Gross 2020 (arXiv 2006.01795, TorchPruner): layers, untrained, low data.

Layers. A small VGG with batch-norm on CIFAR-10 (JPEG) in place of their VGG16. As in their notebook: each layer alone,
the others whole, from the last to the first; scored on 1,000 images, units leave one by one from the lowest, no
fine-tuning; *mean increase of test loss* = loss above the dense network's on 1,000 test images, summed over the removal
of 1, 2, ... and all units of every layer, divided by the number of units of all layers. The loss is measured at 13
points per layer and interpolated linearly. They score on training images, we on held-out ones. Their Shapley values
have 5 orders, the same for all images; ours one order per image (a fifth of their price), and mean + 2 std is taken of
the same values as the mean.

Untrained. Their 784-2024-2024-10 perceptron for MNIST as initialised: fc2 and then fc1 loses all units with negative
values, no training. Theirs: 1,000 images, 5 shared orders, one network; ours: one order per image. Beside it what needs
no game: the first-order values (taylor_signed) and the Shapley values of the second-order expansion; and random units,
as many in each layer as Shapley removes. Pixels are standardised here and in [0, 1] there.

Low data. The same VGG: every layer loses the same share of its units, from the output to the input with re-scoring;
then fine-tuning on n training images per class with one fixed recipe. Theirs was VGG16 on birds (CUB-200). "On par
with random" names where a method is not ahead of random units by two standard errors.

Spread: standard deviation over seeds of scoring, random units, initial weights (untrained) and fine-tuning images; the
trained VGG is one and the same.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ancona_protocols import cut_backwards, few_per_class, mean_increase
from common import CACHE, DATA, mnist, trained, write
from torch import manual_seed, nn

import shaprune as sp
from shaprune.builtin.datasets import Dataset, load_dataset
from shaprune.builtin.models import build_model
from shaprune.experiments.removal_curves import quality, removal_curves
from shaprune.network.forward.calibration import Calibration
from shaprune.recovery.training import fit
from shaprune.values.aggregation import aggregated

EPOCHS = 6
SCORING, TEST = 1000, 1000
SEEDS = range(3)
RIVALS = ("weight_norm", "random", "sensitivity", "taylor", "taylor_signed", "apoz")
POINTS = 13
PAPER = {
    "weight_norm": 0.47,
    "random": 0.48,
    "sensitivity": 0.47,
    "taylor": 0.47,
    "taylor_signed": 0.64,
    "apoz": 0.56,
    "shapley": 0.35,
    "shapley, mean+2std": 0.31,
}

Keep = Callable[[nn.Module, sp.Players], Any]


def main() -> None:
    started = time.perf_counter()
    cifar = load_dataset(f"cifar10:{DATA / 'cifar10-jpeg'}", cache=CACHE)
    clock = time.perf_counter()
    vgg = trained("vgg-small", cifar, epochs=EPOCHS)
    seconds = {"training or loading": time.perf_counter() - clock}
    results: dict[str, Any] = {}
    for name, part in (
        ("layers", lambda: layers(vgg, cifar)),
        ("untrained", lambda: untrained(mnist())),
        ("low data", lambda: low_data(vgg, cifar)),
    ):
        clock = time.perf_counter()
        results[name] = part()
        seconds[name] = time.perf_counter() - clock
    write("ancona", {"seconds": {k: round(v, 1) for k, v in seconds.items()}, **results}, started)


# -- every layer alone -----------------------------------------------------------------------------------------------


def layers(model: nn.Module, data: Dataset) -> dict[str, Any]:
    players = sp.find_players(model, data.test.inputs[:2])
    held_out, test = (
        Calibration(model, part.batches()) for part in (data.held_out.take(SCORING), data.test.take(TEST))
    )
    rivals = {name: [_rival(held_out, players, name, seed) for seed in _seeds(name)] for name in RIVALS}
    curves: dict[str, list[list[Any]]] = {}  # method -> run -> curve of each layer, the last layer first
    for group in reversed(players.groups):
        rankings = {name: [scores[group.name] for scores in runs] for name, runs in rivals.items()}
        pairs = [_shapley(held_out, players, group.name, seed) for seed in SEEDS]
        rankings["shapley"], rankings["shapley, mean+2std"] = ([pair[i] for pair in pairs] for i in (0, 1))
        orders = [group.indices[values.ranking()] for runs in rankings.values() for values in runs]
        points = np.unique(np.linspace(0, len(group), POINTS).round().astype(int)).tolist()
        found = iter(removal_curves(model, players, orders, test, group=group.name, points=points))
        for name, runs in rankings.items():
            for of_layers in curves.setdefault(name, [[] for _ in runs]):
                of_layers.append(next(found))
    accuracy, loss = quality(model, data.test)
    return {
        "dense": {"accuracy, 10000 test images": round(accuracy, 4), "loss": round(loss, 4)},
        "units": {g.name: len(g) for g in players.groups},
        "scoring images": SCORING,
        "test images": TEST,
        "orders per image": 1,
        "mean increase of test loss per removed unit": {
            name: {
                **_spread([mean_increase(run) for run in runs]),
                "theirs, VGG16": PAPER[name],
                "by layer": {
                    g.name: _mean([mean_increase([r[-1 - i]]) for r in runs]) for i, g in enumerate(players.groups)
                },
            }
            for name, runs in curves.items()
        },
        "accuracy at half of a layer removed, mean over layers": {
            name: _spread([np.mean([c.at(0.5)[0] for c in run]) for run in runs]) for name, runs in curves.items()
        },
    }


def _shapley(subject: Calibration, players: sp.Players, group: str, seed: int) -> tuple[sp.Values, sp.Values]:
    """The mean, and mean + 2 std, of the same values of single images."""
    game = sp.NetworkGame(subject.model, players, subject, "cross_entropy", group)
    values = sp.estimate(game, max_evaluations=SCORING * (game.n_players + 1), seed=seed, keep_examples=True)
    return values, aggregated(values, "mean+2std", game.labels, seed)


def _rival(subject: Calibration, players: sp.Players, name: str, seed: int) -> sp.Scores:
    return sp.score(subject.model, players, subject, "cross_entropy", name, seed=seed)


def _seeds(name: str) -> range:
    return SEEDS if name == "random" else range(1)  # the other rivals have no random part


# -- networks that were never trained ----------------------------------------------------------------------------------

UNTRAINED = {  # images, worth, method
    "shapley of cross-entropy": (1000, "cross_entropy", "permutation"),
    "shapley of accuracy": (200, "accuracy", "permutation"),
    "taylor_signed": (1000, "cross_entropy", "taylor_signed"),
    "second_order": (1000, "cross_entropy", "second_order"),
}


def untrained(data: Dataset) -> dict[str, Any]:
    networks: dict[str, list[nn.Module]] = {}
    for seed in SEEDS:
        manual_seed(seed)
        dense = build_model("mlp-mnist").eval()
        found = {
            name: _swept(dense, data, _positive(data.held_out.take(images).batches(), worth, method, seed))
            for name, (images, worth, method) in UNTRAINED.items()
        }
        ours = found["shapley of cross-entropy"]
        found["random, as many as shapley of cross-entropy"] = _swept(dense, data, _chance(ours, seed))
        for name, model in {"as initialised": dense, **found}.items():
            networks.setdefault(name, []).append(model)
    rows = {}
    for name, models in networks.items():
        accuracy, loss = zip(*(quality(model, data.test) for model in models), strict=True)
        parameters = [sum(p.numel() for p in model.parameters()) for model in models]
        rows[name] = {
            "accuracy": _spread(accuracy),
            "runs": _rounded(accuracy),
            "loss": _spread(loss),
            "parameters": parameters,
        }
    return {
        "images": {name: images for name, (images, _, _) in UNTRAINED.items()},
        "theirs": {"accuracy before": 0.0716, "accuracy": 0.5094, "parameters": [2_421_737]},
        "rows": rows,
    }


def _positive(images: Any, worth: str, method: str, seed: int) -> Keep:
    def keep(small: nn.Module, part: sp.Players) -> Any:
        every = sp.options.Scoring(window=(0, 1))
        (values,) = sp.score(small, part, images, worth, method, seed=seed, progress=False, options=every).values()
        return values.value >= 0

    return keep


def _chance(like: nn.Module, seed: int) -> Keep:
    """Random units, as many in each layer as in the network ``like``."""
    rng = np.random.default_rng(seed)

    def keep(small: nn.Module, part: sp.Players) -> Any:
        width = getattr(like, part.groups[0].name).out_features
        return np.isin(np.arange(part.n), rng.permutation(part.n)[:width])

    return keep


def _swept(model: nn.Module, data: Dataset, keep: Keep) -> nn.Module:
    return cut_backwards(model, data.test.inputs[:2], ["fc1", "fc2"], keep)


# -- fine-tuning on few images -----------------------------------------------------------------------------------------

LOW_DATA_IMAGES, LOW_DATA_TEST = 300, 2000
SHARES = {0.7: (0, 1, 5, 10, 50, 500), 0.3: (0, 10)}  # removed of every layer: images per class
STEPS, BATCH, RATE = 40, 64, 1e-3
LOW_DATA = {
    "shapley": ("permutation", "mean"),
    "shapley, mean+2std": ("permutation", "mean+2std"),
    "taylor": ("taylor", "mean"),
    "weight_norm": ("weight_norm", "mean"),
    "random": ("random", "mean"),
}


def low_data(model: nn.Module, data: Dataset) -> dict[str, Any]:
    names = [g.name for g in sp.find_players(model, data.test.inputs[:2]).groups]
    images, test = data.held_out.take(LOW_DATA_IMAGES).batches(), data.test.take(LOW_DATA_TEST)
    tables: dict[str, Any] = {}
    for share, per_class in SHARES.items():
        table: dict[str, Any] = {}
        for name, (method, aggregate) in LOW_DATA.items():
            found: dict[int, list[float]] = {n: [] for n in per_class}
            for seed in SEEDS:
                keep = _highest(1 - share, images, method, aggregate, seed)
                cut = cut_backwards(model, data.test.inputs[:2], names, keep)
                for n in per_class:
                    found[n].append(quality(_tuned(cut, data, n, seed), test)[0])
            table[name] = {f"{n} per class": _spread(values) for n, values in found.items()}
        tables[f"{share:.0%} of every layer removed"] = {**table, "on par with random": _on_par(table)}
    return {
        "scoring images": LOW_DATA_IMAGES,
        "test images": LOW_DATA_TEST,
        "fine-tuning": f"AdamW, warm-up and cosine, lr {RATE}, about {STEPS} steps of at most {BATCH} images, "
        "at least one epoch; 0 per class: none",
        "accuracy": tables,
    }


def _on_par(table: dict[str, Any]) -> dict[str, list[str]]:
    """Where a method is within two standard errors (of the difference of two means) of random units, or below."""

    def within(ours: dict[str, float], theirs: dict[str, float]) -> bool:
        error = np.sqrt((ours["std"] ** 2 + theirs["std"] ** 2) / len(SEEDS))
        return bool(ours["mean"] - theirs["mean"] <= 2 * error)

    return {
        name: [n for n, cell in row.items() if within(cell, table["random"][n])]
        for name, row in table.items()
        if name != "random"
    }


def _highest(share: float, images: Any, method: str, aggregate: str, seed: int) -> Keep:
    """The most valuable ``share`` of the units stays."""

    def keep(small: nn.Module, part: sp.Players) -> Any:
        (values,) = sp.score(
            small,
            part,
            images,
            "cross_entropy",
            method,
            seed=seed,
            progress=False,
            options=sp.options.Scoring(aggregate=aggregate, window=(0, 1)),
        ).values()
        return np.isin(np.arange(part.n), values.ranking()[part.n - round(share * part.n) :])

    return keep


def _tuned(cut: nn.Module, data: Dataset, per_class: int, seed: int) -> nn.Module:
    if not per_class:
        return cut
    few = few_per_class(data.train, per_class, seed=seed)
    batch = min(BATCH, len(few))
    small = copy.deepcopy(cut)
    fit(small, few.batches(), epochs=max(1, round(STEPS * batch / len(few))), lr=RATE, batch_size=batch, seed=seed)
    return small


def _spread(runs: Sequence[float]) -> dict[str, Any]:
    row: dict[str, Any] = {"mean": _mean(runs)}
    return row if len(runs) == 1 else {**row, "std": round(float(np.std(runs, ddof=1)), 4), "runs": len(runs)}


def _rounded(runs: Sequence[float]) -> list[float]:
    return [round(float(x), 4) for x in runs]


def _mean(runs: Sequence[float]) -> float:
    return round(float(np.mean(runs)), 4)


if __name__ == "__main__":
    main()
