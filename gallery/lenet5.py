"""LeNet-5 on MNIST: how accuracy falls with the multiply-adds, for Shapley values and two rivals, cut and refitted.

    python gallery/lenet5.py --data MNIST_FOLDER [--weights FILE.safetensors] [--out DIR]
    python gallery/lenet5.py --quick        # no data: scikit-learn's digits, enlarged

Without weights the network is trained for two epochs.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate

import shaprune as sp
from shaprune.builtin import Dataset, Split, build_model, load_dataset
from shaprune.metrics import accuracy
from shaprune.recovery import fit

SHARES = (0.6, 0.4, 0.25, 0.15, 0.1)
RIVALS = {"Shapley": "permutation", "weight norm": "weight_norm", "random": "random"}


def enlarged(data: Dataset) -> Dataset:
    """8x8 images as 28x28."""
    parts = [Split(interpolate(s.inputs, size=(28, 28)), s.targets) for s in (data.train, data.held_out, data.test)]
    return Dataset("digits", *parts, data.classes)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune LeNet-5 to several budgets.")
    parser.add_argument("--data", type=Path, help="folder with the IDX files of MNIST")
    parser.add_argument("--weights", type=Path, help="trained LeNet-5 (20-50-500)")
    parser.add_argument("--quick", action="store_true", help="digits of scikit-learn instead of MNIST")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for lenet5.png")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.quick == (options.data is not None):
        parser.error("give --data MNIST_FOLDER, or --quick without it")

    data = enlarged(load_dataset("digits")) if options.quick else load_dataset(f"mnist:{options.data}")
    model = build_model("lenet5")
    if options.weights is not None:
        model.load_state_dict(load_file(options.weights))
    else:
        fit(model, data.train.batches(128), epochs=8 if options.quick else 2, lr=2e-3, seed=0)
    model.eval()
    test, example = data.test.take(2_000).batches(), data.test.inputs[:2]
    calibration = data.held_out.take(1_000).batches()
    players = sp.find_players(model, example)
    dense = accuracy(model, test)
    print(f"{players.n} players in {len(players.groups)} groups; dense accuracy {dense:.2%}")

    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    print("multiply-adds kept " + "".join(f"{share:>18.0%}" for share in SHARES))
    for name, method in RIVALS.items():
        window = {"sizes": (0.5, 1.0)} if method == "permutation" else {}
        scores = sp.score(model, players, calibration, "fidelity", method, progress=False, **window)
        raw, refitted = [], []
        for share in SHARES:
            plan = sp.plan(scores, sp.Budget(macs=share))
            small = sp.prune(model, plan, example)
            raw.append(accuracy(small, test))
            refitted.append(accuracy(sp.recover(small, model, plan, calibration, ("refit",)), test))
        print(f"{name:18s} " + "".join(f"{a:>9.1%} ->{b:>6.1%}" for a, b in zip(raw, refitted, strict=True)))
        (line,) = axis.plot(SHARES, refitted, "o-", label=f"{name}, refitted")
        axis.plot(SHARES, raw, "o:", color=line.get_color(), alpha=0.6, label=f"{name}, cut")
    axis.axhline(dense, color="grey")
    axis.set(xlabel="share of multiply-adds kept", ylabel="test accuracy", ylim=(0, 1.02))
    axis.legend(fontsize=7)
    figure.savefig(options.out / "lenet5.png", dpi=80)


if __name__ == "__main__":
    main()
