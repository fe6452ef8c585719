"""Estimators of Shapley values against evaluations, seconds and their own claims; ours and shapiq's.

Errors: ||value - truth|| / ||truth|| at m = 2n, 5n, 10n, 20n coalitions, medians over seeds, on three synthetic games
and on the layers of trained LeNets (10, 20, 50, 500 channels or neurons; minus the cross-entropy on 200 held-out
images, every coalition on all images, as shapiq and published code ask). Truths: closed form, enumeration, or long runs
with one order per image, whose own standard error is given. Then one order per image, which only a mean over images
allows, at its own price and seconds.

Coverage: how often a 95 % interval holds the truth, over 1,000 seeded repetitions, on games of 10 players.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from common import error, mnist, trained, write

import shaprune as sp
from shaprune.values.estimators.base import Method
from shaprune.values.estimators.msr import MSR
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.estimators.regression import Regression
from shaprune.values.estimators.svarm import SVARM
from shaprune.values.games.arrays import Coalitions
from shaprune.values.games.game import Game

IMAGES = 200
SEEDS = 20
REPETITIONS = 1_000
MULTIPLES = (2, 5, 10, 20)  # coalitions per player
OURS: dict[str, Method] = {
    "permutation": Permutation(per_example=False),
    "permutation, antithetic": Permutation(per_example=False, antithetic=True),
    "regression": Regression(),
    "regression, linear": Regression(basis="linear"),
    "msr": MSR(),
    "svarm": SVARM(),
}
# With 500 players: 125,000 unknowns (order 2), or a Python loop over strata that did not end within minutes.
SMALL_ONLY = ("KernelSHAPIQ, order 2", "SVARM", "StratifiedSamplingSV", "OwenSamplingSV")
say = partial(print, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Subject:
    """A game, what is known of it, and the same game with worths per image where it has them."""

    game: Game
    truth: np.ndarray
    truth_error: float
    per_image: Game | None = None
    seeds: int = SEEDS


def unanimity(n: int, seed: int = 0) -> Subject:
    """Sixty unanimity games of random members and weights, added up."""
    rng = np.random.default_rng(seed)
    members = np.zeros((3 * n, n))
    for row in members:
        row[rng.choice(n, rng.integers(1, n // 2 + 1), replace=False)] = 1
    weight, size = rng.normal(size=3 * n), members.sum(1)
    game = Game.from_function(lambda kept: (kept @ members.T >= size) @ weight, n)
    return Subject(game, (weight / size) @ members, 0.0)


def voting(n: int, seed: int = 0) -> Subject:
    """A weighted majority."""
    weight = np.random.default_rng(seed).integers(1, 30, n)
    game = Game.from_function(lambda kept: kept @ weight > weight.sum() / 2, n)
    return Subject(game, sp.estimate(game, "exact").value, 0.0)


def perceptron(n: int, seed: int = 0) -> Subject:
    """The output of a random perceptron whose inputs are the players."""
    rng = np.random.default_rng(seed)
    first, bias, last = rng.normal(size=(n, 30)) * 2 / np.sqrt(n), rng.normal(size=30) / 2, rng.normal(size=30)
    game = Game.from_function(lambda kept: np.tanh(kept @ first + bias) @ last, n)
    return Subject(game, sp.estimate(game, "exact").value, 0.0)


class OverAll(Game):
    """A network's game with worths over all images only, from a table where there is one."""

    repeatable = True

    def __init__(self, game: Game, table: np.ndarray | None) -> None:
        self.game, self.table, self.n_players = game, table, game.n_players

    def __call__(self, coalitions: Coalitions, examples: Any = None) -> np.ndarray:
        if self.table is None:
            return self.game(coalitions)
        return self.table[coalitions @ (1 << np.arange(self.n_players))]


def network(name: str, group: str, walks: int) -> Subject:
    """A layer of a trained LeNet; ``walks`` per image for the truth, 0 = enumeration."""
    data = mnist()
    model = trained(name, data)
    players = sp.find_players(model, data.test.inputs[:2], include=group)
    game = sp.NetworkGame(model, players, data.held_out.take(IMAGES).batches(), "cross_entropy")
    n = game.n_players
    if walks:
        truth = sp.estimate(game, Permutation(antithetic=True), walks * IMAGES * (n + 1), seed=1_000)
        off = float(np.linalg.norm(truth.stderr) / np.linalg.norm(truth.value))
        return Subject(OverAll(game, None), truth.value, off, game, seeds=3)
    codes = np.arange(1 << n)
    table = np.concatenate(
        [
            game((part[:, None] >> np.arange(n) & 1).astype(bool))
            for part in np.array_split(codes, max(1, len(codes) >> 16))
        ]
    )
    tabled = OverAll(game, table)
    return Subject(tabled, sp.estimate(tabled, "exact").value, 0.0, game)


def theirs() -> dict[str, Callable[[int, int], Any]]:
    """What shapiq has to approximate Shapley values: (n, seed) -> approximator."""
    import shapiq.approximator as a

    return {
        "KernelSHAP": lambda n, seed: a.KernelSHAP(n=n, random_state=seed),
        "KernelSHAP, paired": lambda n, seed: a.KernelSHAP(n=n, pairing_trick=True, random_state=seed),
        "KernelSHAP, paired, leverage": lambda n, seed: a.KernelSHAP(
            n=n, pairing_trick=True, sampling_weights=np.ones(n + 1), random_state=seed
        ),
        "UnbiasedKernelSHAP": lambda n, seed: a.UnbiasedKernelSHAP(n=n, pairing_trick=True, random_state=seed),
        "SVARM": lambda n, seed: a.SVARM(n=n, pairing_trick=True, random_state=seed),
        "StratifiedSamplingSV": lambda n, seed: a.StratifiedSamplingSV(n=n, random_state=seed),
        "PermutationSamplingSV": lambda n, seed: a.PermutationSamplingSV(n=n, random_state=seed),
        "OwenSamplingSV": lambda n, seed: a.OwenSamplingSV(n=n, n_anchor_points=3, random_state=seed),
        "KernelSHAPIQ, order 2": lambda n, seed: a.KernelSHAPIQ(
            n=n, max_order=2, index="k-SII", pairing_trick=True, random_state=seed
        ),
    }


def run_ours(method: str | Method, game: Game, budget: int, seed: int) -> np.ndarray:
    return sp.estimate(game, method, budget, seed=seed).value


def run_theirs(make: Callable[[int, int], Any], game: Game, budget: int, seed: int) -> np.ndarray:
    n = game.n_players
    found = make(n, seed).approximate(budget=budget, game=lambda kept: game(np.atleast_2d(kept).astype(bool)))
    return np.array([found.dict_values.get((i,), 0.0) for i in range(n)])


def errors(subject: Subject) -> dict[str, Any]:
    n = subject.game.n_players
    rows: dict[str, Any] = {}
    for multiple in MULTIPLES:
        budget = min(multiple * n, 1 << n)
        runs = {f"ours: {name}": partial(run_ours, method, subject.game, budget) for name, method in OURS.items()}
        runs |= {
            f"shapiq: {name}": partial(run_theirs, make, subject.game, budget)
            for name, make in theirs().items()
            if n < 500 or name not in SMALL_ONLY
        }
        for name, run in runs.items():
            cell = _measured(run, subject)
            if cell is not None:
                rows.setdefault(name, {})[f"{multiple}n"] = cell
    best = {}
    for multiple in (f"{m}n" for m in MULTIPLES):
        named = {
            who: [
                (row[multiple]["error"], name) for name, row in rows.items() if name.startswith(who) and multiple in row
            ]
            for who in ("ours", "shapiq")
        }
        ours, shapiq = (min(named[who]) for who in ("ours", "shapiq"))
        best[multiple] = {"ours": ours, "shapiq": shapiq, "ahead or level": ours[0] <= shapiq[0]}
    result: dict[str, Any] = {
        "players": n,
        "relative stderr of the truth": subject.truth_error,
        "best": best,
        "rows": rows,
    }
    if subject.per_image is not None:
        result["one order per image"] = per_image = {}
        for sweeps in (1, 2, 10):
            budget = sweeps * IMAGES * (n + 1)
            cell = _measured(partial(run_ours, "permutation", subject.per_image, budget), subject)
            assert cell is not None
            per_image[f"{sweeps} per image, {sweeps * (n + 1)} coalitions"] = cell
        result["seconds ratio at equal error"] = _ratio(rows, per_image, subject)
    return result


def _measured(run: Callable[[int], np.ndarray], subject: Subject) -> dict[str, Any] | None:
    found, seconds = [], []
    for seed in range(subject.seeds):
        clock = time.perf_counter()
        try:
            value = run(seed)
        except (sp.InputError, ValueError, np.linalg.LinAlgError):
            return None  # a budget below what the estimator needs
        seconds.append(time.perf_counter() - clock)
        found.append(error(value, subject.truth))
    return {
        "error": round(median(found), 5),
        "min": round(min(found), 5),
        "max": round(max(found), 5),
        "seconds": round(median(seconds), 4),
    }


def _ratio(rows: dict[str, Any], per_image: dict[str, Any], subject: Subject) -> dict[str, float]:
    """Seconds of shapiq's best row over ours, at the error of ours.

    Not where worths come from a table. A row's seconds grow with the inverse square of the error that is asked for: the
    law of independent samples, by which each row is extrapolated from its largest budget.
    """
    if isinstance(subject.game, OverAll) and subject.game.table is not None:
        return {}
    ratios = {}
    for name, cell in per_image.items():
        needed = [
            row[f"{MULTIPLES[-1]}n"]["seconds"] * max(1.0, (row[f"{MULTIPLES[-1]}n"]["error"] / cell["error"]) ** 2)
            for who, row in rows.items()
            if who.startswith("shapiq") and f"{MULTIPLES[-1]}n" in row
        ]
        ratios[name] = round(min(needed) / cell["seconds"], 1)
    return ratios


def coverage(repetitions: int = REPETITIONS) -> dict[str, Any]:
    """Share of 95 % intervals that hold the truth, over players and repetitions; by player the least and the most."""
    games = {"unanimity": unanimity(10), "perceptron": perceptron(10)}
    result: dict[str, Any] = {}
    for name, subject in games.items():
        for method in ("permutation", "permutation, antithetic", "regression, linear", "msr", "svarm"):
            for budget in (200, 400):
                inside = []
                for seed in range(repetitions):
                    values = sp.estimate(subject.game, OURS[method], budget, seed=seed)
                    if np.isfinite(values.stderr).all():
                        interval = values.interval(0.95)
                        inside.append((interval[:, 0] <= subject.truth) & (subject.truth <= interval[:, 1]))
                shares = np.mean(inside, axis=0) if inside else np.full(subject.game.n_players, np.nan)
                result[f"{method}, {name}, {budget} coalitions"] = {
                    "repetitions with a claim": len(inside),
                    "coverage": round(float(shares.mean()), 4) if inside else None,
                    "least of a player": round(float(shares.min()), 4) if inside else None,
                    "most of a player": round(float(shares.max()), 4) if inside else None,
                }
        say(f"coverage, {name}")
    return result


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    subjects: dict[str, Callable[[], Subject]] = {
        "unanimity, 20": lambda: unanimity(20),
        "weighted voting, 20": lambda: voting(20),
        "perceptron, 10": lambda: perceptron(10),
        "LeNet-5 reduced, conv1, 10": lambda: network("lenet5-reduced", "conv1", 0),
        "LeNet-5 reduced, conv2, 20": lambda: network("lenet5-reduced", "conv2", 0),
        "LeNet-5, conv2, 50": lambda: network("lenet5", "conv2", 500),
        "LeNet-5, fc1, 500": lambda: network("lenet5", "fc1", 100),
    }
    results: dict[str, Any] = {"images": IMAGES, "games": {}}
    for name in names or subjects:
        results["games"][name] = errors(subjects[name]())
        say(f"{name}: {time.perf_counter() - started:.0f} s, {results['games'][name]['best']}")
    results["coverage"] = coverage()
    write("estimators", results, started)


if __name__ == "__main__":
    main(sys.argv[1:])  # names of games; none = all
