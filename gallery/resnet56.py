"""ResNet-56 on CIFAR-10: what its channels contribute, layer by layer, and a network without a quarter of them.

python gallery/resnet56.py --data CIFAR_FOLDER --weights FILE.safetensors [--cache DIR] [--out DIR]
python gallery/resnet56.py --quick      # no data: a ResNet-8, trained here on scikit-learn's digits
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file

import shaprune as sp
from shaprune.builtin import Dataset, ResNet, Split, load_dataset
from shaprune.metrics import accuracy
from shaprune.recovery import fit

KEPT = 0.75  # of the players


def as_pictures(data: Dataset) -> Dataset:
    """8x8 grey images as 3x16x16."""
    parts = [Split(s.inputs.repeat(1, 3, 2, 2), s.targets) for s in (data.train, data.held_out, data.test)]
    return Dataset("digits", *parts, data.classes)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score and prune a residual network.")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10, see `shaprune score --help`")
    parser.add_argument("--weights", type=Path, help="a trained ResNet-56")
    parser.add_argument("--cache", type=Path, help="folder that keeps decoded images")
    parser.add_argument("--images", type=int, default=192, help="to score on")
    parser.add_argument("--quick", action="store_true", help="a small network and digits instead")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for resnet56.png")
    options = parser.parse_args()
    if options.quick == (options.data is not None and options.weights is not None):
        parser.error("give --data and --weights, or --quick without them")

    torch.manual_seed(0)
    if options.quick:
        data, model = as_pictures(load_dataset("digits")), ResNet(1)
        fit(model, data.train.batches(64), epochs=4, lr=3e-3, seed=0)
    else:
        data, model = load_dataset(f"cifar10:{options.data}", cache=options.cache), ResNet(9)
        model.load_state_dict(load_file(options.weights))
    model.eval()
    test, example = data.test.take(2_000).batches(), data.test.inputs[:2]
    players = sp.find_players(model, example)
    scores = sp.score(model, players, data.held_out.take(options.images).batches(), "fidelity", progress=False)
    print(f"{players.n:,} players in {len(players.groups)} groups, {scores.n_evaluations:,} evaluations")
    plan = sp.plan(scores, sp.Budget(players=KEPT))
    small = sp.prune(model, plan, example)
    calibration = data.held_out.take(768).batches()
    refitted = sp.recover(small, model, plan, calibration, ("refit",))
    macs, params = plan.cost["macs"] / players.model_macs, plan.cost["params"] / players.model_params
    print(f"{KEPT:.0%} of the players, {macs:.1%} of the multiply-adds and {params:.1%} of the parameters stay")
    print(f"accuracy: dense {accuracy(model, test):.2%}, cut {accuracy(small, test):.2%}, "
          f"refitted {accuracy(refitted, test):.2%}")  # fmt: skip

    groups = players.groups
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 4.6), sharex=True, layout="constrained")
    spread = [scores[group.name].value for group in groups]
    above.boxplot(spread, positions=range(len(groups)), widths=0.7, whis=(0, 100), manage_ticks=False)
    above.set(ylabel="values of the channels", yscale="symlog")
    below.bar(range(len(groups)), [len(group) for group in groups], color="#cbd5e1", label="dense")
    below.bar(range(len(groups)), [plan.kept[group.indices].sum() for group in groups], color="#2563eb", label="kept")
    below.set(ylabel="channels", xlabel="groups of coupled channels, from the input to the output")
    below.set_xticks(range(len(groups)), [group.name for group in groups], rotation=90, fontsize=6)
    below.legend()
    figure.savefig(options.out / "resnet56.png", dpi=80)


if __name__ == "__main__":
    main()
