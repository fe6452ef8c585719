"""LeNet-5 (20-50-500) on MNIST: every player of every group, error against evaluations and seconds.

Three games (conv1: 20 players, conv2: 50, fc1: 500), 1,000 held-out images, worth = cross-entropy. The truth of each
game is a long run with another seed. Compared at the same game: one order shared by all images (the published
practice), one order per image, antithetic pairs, a size window (judged against the truth of its own window), and the
incremental first consumer against recomputing every coalition. Seconds are those of the whole estimate, medians of
three runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from common import error, mnist, trained, write

import shaprune as sp
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.games.game import Game
from shaprune.values.result import Values

IMAGES = 1000
TRUTH_WALKS = {"conv1": 100_000, "conv2": 200_000, "fc1": 100_000}
SHARED = {"conv1": (1, 10, 100), "conv2": (1, 10, 100, 500), "fc1": (1, 10, 50)}


class Recomputed(Game):
    """The same game without incremental walks: every coalition of a walk runs the suffix from the mask on."""

    def __init__(self, game: sp.NetworkGame) -> None:
        self.game, self.n_players, self.n_examples = game, game.n_players, game.n_examples

    def __call__(self, coalitions: Any, examples: Any = None) -> Any:
        return self.game(coalitions, examples)


def main() -> None:
    started = time.perf_counter()
    data = mnist()
    model = trained("lenet5", data)
    players = sp.find_players(model, data.test.inputs[:2])
    batches = data.held_out.take(IMAGES).batches()
    clock = time.perf_counter()
    scores = sp.score(
        model, players, batches, "cross_entropy", progress=False, options=sp.options.Scoring(window=(0, 1))
    )
    whole = time.perf_counter() - clock
    games = {name: sp.NetworkGame(model, players, batches, "cross_entropy", name) for name in scores}
    results: dict[str, Any] = {}
    for name, game in games.items():
        n = game.n_players
        truth = _truth(game, TRUTH_WALKS[name], (0.0, 1.0))
        window = _truth(game, TRUTH_WALKS[name] // 2, (0.5, 1.0))
        rows: dict[str, Any] = {}
        for k in SHARED[name]:
            run = _shared(game, k)
            rows[f"shared orders, {k}"] = _measure(run, truth.value, repeats=1 if k > 10 else 3)
        for k in (1, 2, 4):
            budget = k * IMAGES * (n + 1)
            rows[f"one per image, {k}"] = _measure(_per_image(game, budget), truth.value)
        rows["one per image, recomputed"] = _measure(_per_image(Recomputed(game), IMAGES * (n + 1)), truth.value, 1)
        rows["antithetic pair per image"] = _measure(
            _per_image(game, 2 * IMAGES * (n + 1), Permutation(antithetic=True)), truth.value
        )
        steps = n - int(np.ceil(n / 2))
        rows["window (0.5, 1), one per image"] = _measure(
            _per_image(game, IMAGES * (steps + 1), sizes=(0.5, 1.0)), window.value
        )
        results[name] = {
            "players": n,
            "truth": {
                "walks": truth.n_evaluations // (n + 1),
                "relative stderr": float(np.linalg.norm(truth.stderr) / np.linalg.norm(truth.value)),
            },
            "default score, error": round(error(scores[name].value, truth.value), 4),
            "estimators": rows,
            "ratio": _ratio(rows, n),
        }
    summary = {
        "images": IMAGES,
        "worth": "cross_entropy",
        "players": players.n,
        "seconds to score all players by default": round(whole, 2),
        "largest error of the default score": max(r["default score, error"] for r in results.values()),
        "groups": results,
    }
    write("lenet5", summary, started)


def _truth(game: Game, walks: int, sizes: tuple[float, float]) -> Values:
    low = int(np.ceil(sizes[0] * game.n_players))
    budget = walks * (game.n_players - low + 1)
    return sp.estimate(game, Permutation(), budget, seed=1000, sizes=sizes)


def _shared(game: Game, orders: int) -> Callable[[int], Values]:
    budget = orders * (game.n_players + 1) * IMAGES
    return lambda seed: sp.estimate(game, Permutation(per_example=False), budget, seed=seed)


def _per_image(
    game: Game, budget: int, method: str | Permutation = "permutation", *, sizes: tuple[float, float] = (0.0, 1.0)
) -> Callable[[int], Values]:
    return lambda seed: sp.estimate(game, method, budget, seed=seed, sizes=sizes)


def _measure(run: Callable[[int], Values], truth: np.ndarray, repeats: int = 3) -> dict[str, float]:
    errors, seconds, evaluations = [], [], 0
    for seed in range(repeats):
        clock = time.perf_counter()
        values = run(seed)
        seconds.append(time.perf_counter() - clock)
        errors.append(error(values.value, truth))
        evaluations = values.n_evaluations
    return {
        "evaluations per image": evaluations / IMAGES,
        "seconds": round(median(seconds), 3),
        "error": round(median(errors), 4),
        "error min": round(min(errors), 4),
        "error max": round(max(errors), 4),
        "runs": repeats,
    }


def _ratio(rows: dict[str, Any], n: int) -> dict[str, float]:
    """How many times more evaluations shared orders need for the error of one order per image.

    The error of independent orders falls with the square root of their number; the last measured count is extrapolated
    by that law, and the fitted exponent over the measured counts is given beside it.
    """
    ours = rows["one per image, 1"]
    shared = [r for name, r in rows.items() if name.startswith("shared")]
    counts = np.array([r["evaluations per image"] for r in shared])
    errors = np.array([r["error"] for r in shared])
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    needed = counts[-1] * (errors[-1] / ours["error"]) ** 2
    return {
        "evaluations at equal error": round(float(needed / ours["evaluations per image"]), 1),
        "fitted exponent of shared orders": round(float(slope), 3),
        "law used for the last step": -0.5,
    }


if __name__ == "__main__":
    main()
