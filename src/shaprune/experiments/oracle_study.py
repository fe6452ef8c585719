"""The oracle benchmark on trained networks: Table 2 of Adamczewski, Li, Van Gool 2024 (arXiv 2407.15875), and more.

Several networks are trained, all 2^N worths (accuracy on held-out examples) of each convolution are tabulated, and
every way to rank channels is scored against the oracle subsets of the table (see `shaprune.experiments.oracle`).
Estimators play on the table as on any deterministic game; rivals and estimates with one order per example see the
network.

Deviations: the paper says neither how its networks were trained nor over how many its numbers are means. Ours are
trained here by a fixed recipe; means and standard deviations are over networks, each the mean over seeds of the
estimator. On few examples many sets are equally good, and the paper does not say how it chose: scores are given against
the one with the lowest code, and (``any``) against the nearest of all best sets, the fairer of the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from shaprune.builtin.splits import Dataset
from shaprune.deploy.measure import accuracy
from shaprune.errors import InputError
from shaprune.experiments.oracle import (
    LARGEST,
    PAPER,
    QUESTIONS,
    SOURCE,
    Oracle,
    game_of_table,
    oracle,
    overlap,
    table_of,
)
from shaprune.experiments.oracle_networks import ARCHITECTURES, choose, trained
from shaprune.experiments.oracle_rows import OracleRow, TabulatedLayer, rows_of
from shaprune.network.borrow import preserve_globals
from shaprune.network.discovery.find_players import find_players
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import NetworkGame

LAYERS = ("conv1", "conv2")
MAX_PLAYERS_MANY_EXAMPLES, MANY_EXAMPLES, FEW_EXAMPLES = (
    12,
    1_000,
    250,
)  # default numbers of examples: MANY up to so many players, FEW above


def oracle_study(
    data: Dataset,
    architecture: str | None = None,
    *,
    networks: int = 5,
    examples: int | None = None,
    repeats: int = 3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train networks, tabulate their convolutions, and score every row; see the module.

    Args:
        data: ``digits`` or ``mnist``.
        architecture: a name in ``ARCHITECTURES``; None = the first that fits the data.
        networks: how many to train; network i has the seed ``seed + i``.
        examples: held-out examples behind a worth; None = 1,000 for layers of up to 12 players, 250 above.
        repeats: seeds per network of rows that draw.
        seed: of everything random.
        device: where networks run.
        say: callback for lines about the progress.

    Returns:
        A JSON-ready object. Under ``layers``, per layer: the ``networks`` with their oracle subsets, and the ``rows``
        with evaluations per example, seconds (mean of one run), the paper's number where there is one, and for
        ``keep`` and ``remove`` the mean and standard deviation over networks, each network's score, and ``of_oracle``,
        the mean share of what the Oracle rank scores; ``any`` holds the same for the nearest of all best sets.

    Raises:
        InputError: a number below 1, or data that no network here fits.
    """
    for name, number in (("networks", networks), ("repeats", repeats), ("examples", examples)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1")
    chosen = choose(data.name, architecture)
    found: dict[str, list[dict[str, Any]]] = {layer: [] for layer in LAYERS}
    runs = []
    started = time.perf_counter()
    with preserve_globals(), _one_thread() as threads:
        for number in range(networks):
            clock = time.perf_counter()
            model = trained(ARCHITECTURES[chosen], data, seed + number, torch.device(device))
            seconds = time.perf_counter() - clock
            test = accuracy(model, data.test.batches())
            runs.append({"seed": seed + number, "test_accuracy": test, "seconds": seconds})
            say(f"network {number + 1} of {networks}: trained in {seconds:.0f} s, test accuracy {test:.2%}")
            for layer in LAYERS:
                found[layer].append(_study_layer(model, layer, data, examples, repeats, threads, say))
    return {
        "benchmark": "oracle",
        "data": data.name,
        "architecture": chosen,
        "worth": "accuracy",
        "largest": LARGEST,
        "score": "sum_K K |O_K & R_K| / |O_K | R_K| / sum_K K, K = 1 .. largest",
        "repeats": repeats,
        "networks": runs,
        "paper": {"source": SOURCE, "table": PAPER} if data.name == "mnist" else None,
        "layers": {layer: _summary(runs, published=data.name == "mnist") for layer, runs in found.items()},
        "seconds": time.perf_counter() - started,
    }


def _study_layer(
    model: nn.Module,
    name: str,
    data: Dataset,
    examples: int | None,
    repeats: int,
    threads: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """One layer of one network: its table, its oracles, and the score of every row."""
    device = next(model.parameters()).device
    players = find_players(model, data.test.inputs[:2].to(device), include=[name])
    n = players.n
    images = data.held_out.take(examples or (MANY_EXAMPLES if n <= MAX_PLAYERS_MANY_EXAMPLES else FEW_EXAMPLES))
    calibration = Calibration(model, images.batches())
    clock = time.perf_counter()
    torch.set_num_threads(1 if n <= MAX_PLAYERS_MANY_EXAMPLES else threads)
    table = table_of(NetworkGame(model, players, calibration, "accuracy", name))
    torch.set_num_threads(1)
    seconds = time.perf_counter() - clock
    say(f"  {name}: {1 << n:,} coalitions on {len(images):,} examples tabulated in {seconds:.1f} s")
    oracles = {question: oracle(table, question) for question in QUESTIONS}
    layer = TabulatedLayer(name, model, players, calibration, game_of_table(table))
    rows, left_out = {}, {}
    for label, row in rows_of(n).items():
        try:
            rows[label] = _scored(row, layer, oracles, repeats)
        except InputError as error:
            if not row.optional:
                raise
            left_out[label] = str(error)
    return {
        "players": n,
        "examples": len(images),
        "seconds_to_tabulate": seconds,
        "worth_all": float(table[-1]),
        "worth_none": float(table[0]),
        "oracles": oracles,
        "rows": rows,
        "left_out": left_out,
    }


def _scored(row: OracleRow, layer: TabulatedLayer, oracles: dict[str, Oracle], repeats: int) -> dict[str, Any]:
    """The mean score over seeds of one row on one layer, with the evaluations and seconds of one run."""
    seeds = range(repeats if row.drawn else 1)
    clock = time.perf_counter()
    ranked = [row.order(layer, seed) for seed in seeds]
    seconds = (time.perf_counter() - clock) / len(seeds)
    scores = {
        question: [float(np.mean([overlap(order, found, ties=ties) for order, _ in ranked])) for ties in (False, True)]
        for question, found in oracles.items()
    }
    return {"evaluations": ranked[0][1], "seconds": seconds, "paper": row.paper, **scores}


def _summary(runs: list[dict[str, Any]], *, published: bool) -> dict[str, Any]:
    """One layer over all networks."""
    n = runs[0]["players"]
    ceiling = {q: [[run["oracles"][q].score, run["oracles"][q].any_score] for run in runs] for q in QUESTIONS}
    rows: dict[str, Any] = {}
    for label in (name for name in rows_of(n) if all(name in run["rows"] for run in runs)):
        of = [run["rows"][label] for run in runs]
        rows[label] = {
            "evaluations": of[0]["evaluations"],
            "seconds": round(float(np.mean([one["seconds"] for one in of])), 4),
            "paper_column": of[0]["paper"],
            **{q: _cell([one[q] for one in of], ceiling[q]) for q in QUESTIONS},
        }
    rows["Oracle"] = {
        "evaluations": 1 << n,
        "seconds": None,
        "paper_column": "Oracle",
        **{q: _cell(ceiling[q], ceiling[q]) for q in QUESTIONS},
    }
    for row in rows.values():
        for q in QUESTIONS:
            row[q]["paper"] = PAPER.get(f"{q}, {n}", {}).get(row["paper_column"]) if published else None
    return {
        "players": n,
        "examples": runs[0]["examples"],
        "networks": [
            {
                **{key: run[key] for key in ("seconds_to_tabulate", "worth_all", "worth_none")},
                "oracle": {q: run["oracles"][q].to_json() for q in QUESTIONS},
            }
            for run in runs
        ],
        "rows": rows,
        "left_out": {label: why for run in runs for label, why in run["left_out"].items()},
    }


def _cell(scores: list[list[float]], ceiling: list[list[float]]) -> dict[str, Any]:
    """Scores of networks against the lowest of the best sets, and against the nearest of them: each (networks, 2)."""
    one, every = [_spread(*each) for each in zip(zip(*scores, strict=True), zip(*ceiling, strict=True), strict=True)]
    return {**one, "any": every}


def _spread(scores: tuple[float, ...], ceiling: tuple[float, ...]) -> dict[str, Any]:
    """Mean and standard deviation over networks; the deviation is unknown for a single one."""
    return {
        "mean": round(float(np.mean(scores)), 4),
        "std": round(float(np.std(scores, ddof=1)), 4) if len(scores) > 1 else None,
        "of_oracle": round(float(np.mean(np.divide(scores, ceiling))), 4),
        "by_network": [round(score, 4) for score in scores],
    }


@contextmanager
def _one_thread() -> Iterator[int]:
    """Networks this small gain little from a second thread, and wait long for it where the machine is busy.

    Yields the number of threads before.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
