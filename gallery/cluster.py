"""Several processes or machines: one run, computed by workers, ended, finished by somebody else; the same bits.

    python gallery/cluster.py [--workers 2] [--ray-address auto] [--quick] [--out DIR]

Every answer of the network is committed to a journal in the run's folder before it counts; whoever goes on, with
however many workers, finds it there. How long each took is there, too: enough to tell how well many workers are used.
"""

import argparse
import sqlite3
import tempfile
import time
from heapq import heappop, heappush
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import shaprune as sp
from shaprune.builtin import build_model, load_dataset
from shaprune.recovery import fit

WORKERS, CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128, 256), 3_584  # as many chunks as ResNet-56 has: 56 groups, 64 of each


def efficiency(chunks: list[float], driver: float, workers: int, *, trouble: bool) -> float:
    """The share of their time that workers compute, who get their chunks one by one from a driver (seconds for each).

    Trouble: every twentieth worker has half the speed, and one chunk in a hundred is lost at its end, and done again.
    """
    rng, waiting, ready, free = np.random.default_rng(0), list(chunks), [(0.0, i) for i in range(workers)], 0.0
    while waiting:
        since, worker = heappop(ready)
        free, chunk = max(free, since) + driver, waiting.pop()
        heappush(ready, (free + chunk * (2 if trouble and worker % 20 == 19 else 1), worker))
        if trouble and rng.random() < 0.01:
            waiting.append(chunk)
    return sum(chunks) / (workers * max(ready)[0])


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
    budget, played = 8_000 if options.quick else 200_000, []

    def score(name: str, run: Path, workers: int = 1, address: str | None = None) -> sp.Scores:
        started = time.perf_counter()
        how = sp.options.RunOptions(run, workers=workers, ray_address=address)
        scores = sp.score(model, players, examples, "fidelity", max_evaluations=budget, progress=False, run=how)
        played.append(time.perf_counter() - started)
        print(f"{name}: {played[-1]:.1f} s, {scores.n_evaluations:,} evaluations")
        return scores

    with tempfile.TemporaryDirectory() as folder:
        alone = score("one process", Path(folder, "alone"))
        many = score(f"{options.workers} workers", Path(folder, "many"), options.workers, options.ray_address)
        Path(folder, "many", "values.json").unlink()  # as if it had been ended before the values were written
        again = score("finished from the journal", Path(folder, "many"))
        journal = sqlite3.connect(Path(folder, "alone", "journal.sqlite"))
        recorded = [seconds for (seconds,) in journal.execute("SELECT seconds FROM answers")]
        journal.close()

    same = [all(np.array_equal(a.value, other[name].value) for name, a in alone.items()) for other in (many, again)]
    print(f"the same bits: with workers {same[0]}, from the journal {same[1]}")

    chunks, driver = np.random.default_rng(0).choice(recorded, CHUNKS).tolist(), played[-1] / len(recorded)
    print(f"seconds of a chunk: {np.mean(recorded):.3f} of a worker, {driver:.4f} of the driver")
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for name in ("nothing goes wrong", "5 % slow workers, 1 % lost chunks"):
        curve = [efficiency(chunks, driver, n, trouble="lost" in name) for n in WORKERS]
        print(f"{name:34s}" + "  ".join(f"{n}: {share:.0%}" for n, share in zip(WORKERS, curve, strict=True)))
        axis.plot(WORKERS, curve, "o-", label=name)
    axis.set(xlabel="workers", ylabel="efficiency", ylim=(0, 1.02), xscale="log", xticks=WORKERS, xticklabels=WORKERS)
    axis.minorticks_off()
    axis.legend()
    figure.savefig(options.out / "cluster.png", dpi=80)


if __name__ == "__main__":  # workers import this file
    main()
