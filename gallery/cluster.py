"""Several processes or machines: one run, computed by workers, ended, finished by somebody else; the same bits.

    python gallery/cluster.py [--workers 2] [--ray-address auto] [--quick] [--out DIR]

Every answer of the network is committed to a journal in the run's folder before it counts; whoever goes on, with
however many workers, finds it there.
"""

import argparse
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import shaprune as sp
from shaprune.bench.datasets import load_dataset
from shaprune.bench.models import build_model
from shaprune.recovery.fit import fit


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a network with workers, and go on after a crash.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray-address", help="of a Ray cluster (auto, host:port); needs shaprune[ray]")
    parser.add_argument("--quick", action="store_true", help="fewer evaluations")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for cluster.png")
    options = parser.parse_args()

    torch.manual_seed(0)
    data, model = load_dataset("digits"), build_model("digits")
    fit(model, data.train.batches(64), epochs=3, lr=2e-3, seed=0)
    model.eval()
    players = sp.find_players(model, data.test.inputs[:2])
    examples = data.held_out.take(100).batches()
    budget = 20_000 if options.quick else 200_000
    played: list[tuple[str, float]] = []

    def score(name: str, run: Path, workers: int = 1, address: str | None = None) -> sp.Scores:
        started = time.perf_counter()
        scores = sp.score(model, players, examples, "fidelity", max_evaluations=budget, run=run, workers=workers,
                          ray_address=address, progress=False)  # fmt: skip
        played.append((name, time.perf_counter() - started))
        print(f"{name}: {played[-1][1]:.1f} s, {scores.n_evaluations:,} evaluations")
        return scores

    with tempfile.TemporaryDirectory() as folder:
        alone = score("one process", Path(folder, "alone"))
        many = score(f"{options.workers} workers", Path(folder, "many"), options.workers, options.ray_address)
        Path(folder, "many", "values.json").unlink()  # as if it had been ended before the values were written
        again = score("finished from the journal", Path(folder, "many"))

    same = [all(np.array_equal(a.value, other[name].value) for name, a in alone.items()) for other in (many, again)]
    print(f"the same bits: with workers {same[0]}, from the journal {same[1]}")

    figure, axis = plt.subplots(figsize=(6, 2), layout="constrained")
    names, seconds = zip(*played, strict=True)
    axis.barh(names, seconds, color="#2563eb")
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    figure.savefig(options.out / "cluster.png", dpi=80)


if __name__ == "__main__":  # workers import this file
    main()
