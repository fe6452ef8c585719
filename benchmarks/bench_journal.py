"""What a run costs beside the network: the journal, resuming, and workers; ratios measured side by side.

LeNet-5 on MNIST, 1,000 images, one random order per image, the groups fc1 and conv2 (incremental and cheap: the
hardest case for the journal), and a group of ResNet-56 on 250 images of CIFAR-10, whose rows cost more.

- journal: seconds with ``run=`` over seconds without, alternating; and the share of this process's CPU seconds that is
  spent inside the journal (open, look up, digest, commit, close), which other processes on the machine do not disturb.
- resume: seconds to get the values of a finished run again, over seconds of the run.
- workers: evaluations per second of 2 spawned workers, single-threaded each, over those of 1, without what it takes to
  start them (which is told).

The order of rounds alternates. Everything runs on one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from common import mnist, resnet56, trained, write
from torch import nn

import shaprune as sp
from shaprune.run.journal import Journal, digest

EXAMPLES = 1_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    chosen = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    data = mnist()
    split = data.held_out.take(chosen.examples)
    results = {
        "lenet5": _network(trained("lenet5", data), [(split.inputs, split.targets)], "fc1", 4, chosen.rounds),
        "lenet5 conv2": _network(trained("lenet5", data), [(split.inputs, split.targets)], "conv2", 8, chosen.rounds),
    }
    model, cifar = resnet56()
    split = cifar.held_out.take(chosen.examples // 4)
    results["resnet56"] = _network(model, [(split.inputs, split.targets)], "layer3.0.conv1", 1, chosen.rounds)
    write("journal", {"examples": chosen.examples, "rounds": chosen.rounds, "networks": results}, started)


def _network(model: nn.Module, batches: Any, groups: str, walks: int, rounds: int) -> dict[str, Any]:
    model = model.eval()
    players = sp.find_players(model, batches[0][0][:2], include=groups)
    examples = len(batches[0][0])
    budget = walks * examples * (max(len(group) for group in players.groups) + 1)

    def seconds(**how: Any) -> tuple[float, sp.Scores]:
        clock = time.perf_counter()
        scores = sp.score(model, players, batches, "cross_entropy", max_evaluations=budget, progress=False, **how)
        return time.perf_counter() - clock, scores

    seconds()
    overhead, inside, resumed, plain = [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        for round_ in range(rounds):
            folder = Path(name) / str(round_)
            alone = seconds()[0] if round_ % 2 else 0.0
            with _watched() as spent:
                cpu = time.process_time()
                journaled, _ = seconds(run=folder)
                inside.append(sum(spent) / (time.process_time() - cpu))
            alone = alone or seconds()[0]
            overhead.append(journaled / alone)
            plain.append(alone)
            resumed.append(seconds(run=folder)[0] / journaled)
        bytes_ = (Path(name) / "0" / "journal.sqlite").stat().st_size
        _, scores = seconds()
        workers = [_workers(seconds, Path(name), round_, scores) for round_ in range(max(1, rounds // 2))]
    return {
        "players": players.n,
        "evaluations": scores.n_evaluations,
        "seconds": round(median(plain), 2),
        "journal over plain": _spread(overhead),
        "share of CPU inside the journal": _spread(inside),
        "journal bytes": bytes_,
        "resume over run": _spread(resumed),
        "two workers over one": _spread([ratio for ratio, _ in workers]),
        "seconds to start two workers": round(median(start for _, start in workers), 1),
    }


@contextmanager
def _watched() -> Iterator[list[float]]:
    """CPU seconds of every call into the journal."""
    spent: list[float] = []

    def timed(function: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            clock = time.process_time()
            try:
                return function(*args, **named)
            finally:
                spent.append(time.process_time() - clock)

        return call

    with ExitStack() as stack:
        for name in ("get", "put", "note", "close"):
            stack.enter_context(patch.object(Journal, name, timed(getattr(Journal, name))))
        stack.enter_context(patch.object(Journal, "open", staticmethod(timed(Journal.open))))
        stack.enter_context(patch("shaprune.run.executor.digest", timed(digest)))
        yield spent


def _workers(seconds: Any, folder: Path, round_: int, truth: sp.Scores) -> tuple[float, float]:
    """Throughput of two workers over one, and the seconds it takes to start them."""
    found = {}
    for workers in (1, 2) if round_ % 2 else (2, 1):
        wall, scores = seconds(run=folder / f"{round_}-{workers}", workers=workers)
        for group in truth:
            assert scores[group].value.tolist() == truth[group].value.tolist(), "other bits"
        found[workers] = wall
    nothing, _ = seconds(run=folder / f"{round_}-2", workers=2)  # all is known: what remains is the start
    again, _ = seconds(run=folder / f"{round_}-1")
    start = nothing - again
    return found[1] / (found[2] - start), start


def _spread(ratios: list[float]) -> dict[str, float]:
    return {name: round(of(ratios), 3) for name, of in (("median", median), ("min", min), ("max", max))}


if __name__ == "__main__":
    main()
