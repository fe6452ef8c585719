"""Exact Shapley values of a 20-channel layer: 2^20 coalitions x 1,000 MNIST images (1.05e9 evaluations).

The layer is conv2 of the reduced LeNet-5 (10-20 channels); Adamczewski et al. 2024 left its exact row empty. Time and
peak memory of the whole process are reported, and permutation estimates of the same game are judged against it.
"""

from __future__ import annotations

import resource
import time

import numpy as np
from common import error, mnist, trained, write

import shaprune as sp

IMAGES = 1000


def main() -> None:
    started = time.perf_counter()
    data = mnist()
    model = trained("lenet5-reduced", data)
    players = sp.find_players(model, data.test.inputs[:2])
    results = {}
    for worth in ("accuracy", "cross_entropy"):
        game = sp.NetworkGame(model, players, data.held_out.take(IMAGES).batches(), worth, "conv2")
        clock = time.perf_counter()
        exact = sp.estimate(game, "exact")
        seconds = time.perf_counter() - clock
        row = {
            "players": exact.n,
            "evaluations": exact.n_evaluations,
            "seconds": round(seconds, 1),
            "evaluations_per_second": round(exact.n_evaluations / seconds),
            "efficiency_gap": exact.efficiency_gap,
            "values": np.round(exact.value, 6).tolist(),
        }
        for sweeps in (1, 4, 16):
            clock = time.perf_counter()
            values = sp.estimate(game, max_evaluations=sweeps * IMAGES * 21)
            row[f"permutation, {sweeps} per image"] = {
                "error": round(error(values.value, exact.value), 4),
                "seconds": round(time.perf_counter() - clock, 3),
                "evaluations": values.n_evaluations,
            }
        results[worth] = row
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write("exact", {"images": IMAGES, "worths": results, "peak_memory_GiB": round(peak, 2)}, started)


if __name__ == "__main__":
    main()
