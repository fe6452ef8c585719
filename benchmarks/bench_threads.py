"""Batches side by side, one thread of torch each, against torch's threads sharing every operation.

ResNet-56 in bfloat16, all threads of the machine: rows with a coalition each, and their derivatives. Ratios of rows per
second, side by side over shared, alternating in one run; on a machine where nothing else runs, and beside a process
that keeps one core busy. Worths must have the same bits either way. About two minutes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bench_throughput import spread
from common import resnet56, write

import shaprune as sp
from shaprune.network.forward.batch_threads import n_parallel_batches
from shaprune.network.forward.calibration import Calibration

GROUPS = ("layer1.0.conv1", "layer2.4.conv1", "layer3.2.conv1")
IMAGES, ROWS, ROUNDS = 256, 384, 5


def main() -> None:
    started = time.perf_counter()
    model, data = resnet56()
    players = sp.find_players(model, data.test.inputs[:2])
    subject = Calibration(model, data.held_out.take(IMAGES).batches())
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for group in GROUPS:
        game = sp.NetworkGame(model, players, subject, "fidelity", group, precision="bfloat16")
        rows = rng.random((ROWS, game.n_players)) < 0.5, rng.integers(0, IMAGES, ROWS)
        asks: dict[str, Callable[..., Any]] = {"rows": game, "derivatives": game.derivatives}
        for what, ask in asks.items():
            quiet = compared(ask, rows)
            with neighbour():
                busy = compared(ask, rows)
            found[f"{group}, {what}"] = {"alone": quiet, "beside a busy process": busy}
            print(group, what, found[f"{group}, {what}"], file=sys.stderr, flush=True)
    write("threads", {"threads": torch.get_num_threads(), "rows": ROWS, "rounds": ROUNDS, "games": found}, started)


def compared(ask: Callable[..., Any], rows: tuple[Any, Any]) -> dict[str, Any]:
    """Rows per second side by side, and their ratio to those with shared operations."""
    rates: list[list[float]] = []
    answers = []
    for _ in range(ROUNDS + 1):
        rates.append([])
        for threads in (n_parallel_batches, alone):
            with patch("shaprune.network.forward.row_batches.n_parallel_batches", threads):
                clock = time.perf_counter()
                answers.append(ask(*rows))
                rates[-1].append(ROWS / (time.perf_counter() - clock))
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    ours, shared = np.array(rates[1:]).T
    return {"rows per second": round(float(np.median(ours))), "over shared operations": spread(ours / shared)}


def alone(batches: int) -> int:
    """One batch after the other, in all of torch's threads."""
    return 1


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(1)
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    main()
