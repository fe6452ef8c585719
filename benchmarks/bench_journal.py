"""What a run costs beside the network: the journal, resuming, and workers; ratios measured side by side.

LeNet-5 on MNIST, 1,000 images, one random order per image, the groups fc1 and conv2 (incremental and cheap: the
hardest case for the journal), and a group of ResNet-56 on 250 images of CIFAR-10, whose rows cost more.

- journal: seconds with ``run=`` over seconds without, alternating; and the share of this process's CPU seconds that is
  spent inside the journal (open, look up, digest, commit, close), which other processes on the machine do not disturb.
- resume: seconds to get the values of a finished run again, over seconds of the run.
- workers: evaluations per second of 2 workers, single-threaded each, over those of 1 of the same kind (Ray actors of a
  cluster started here, where ray is installed; spawned processes), conv2 with eight times as many walks, without what
  it takes to start them (which is told: the seconds of a run of which all is known). Bits are compared.

The order of rounds alternates. Everything runs on one thread; about four minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from common import mnist, resnet56, trained, write
from torch import nn

import shaprune as sp
from shaprune.runs.journal import Journal, digest
from shaprune.runs.ray_workers import connect_ray

EXAMPLES = 1_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--quick", action="store_true", help="LeNet-5 only")
    chosen = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    data = mnist()
    split = data.held_out.take(chosen.examples)
    lenet5, batches = trained("lenet5", data), [(split.inputs, split.targets)]
    results: dict[str, Any] = {
        "lenet5 fc1": _network(lenet5, batches, "fc1", 4, chosen.rounds),
        "lenet5 conv2": _network(lenet5, batches, "conv2", 8, chosen.rounds),
    }
    workers = _workers(lenet5, batches, "conv2", 64, max(1, chosen.rounds // 2))
    if not chosen.quick:
        model, cifar = resnet56()
        few = cifar.held_out.take(chosen.examples // 4)
        results["resnet56"] = _network(
            model, [(few.inputs, few.targets)], "layer3.0.conv1", 1, max(1, chosen.rounds // 2)
        )
    found = {"examples": chosen.examples, "rounds": chosen.rounds, "networks": results, "two workers over one": workers}
    write("journal", found, started)


def _runner(model: nn.Module, batches: Any, groups: str, walks: int) -> tuple[Any, sp.Players]:
    """A function that scores, and gives its seconds and the scores."""
    model = model.eval()
    players = sp.find_players(model, batches[0][0][:2], include=groups)
    budget = walks * len(batches[0][0]) * (max(len(group) for group in players.groups) + 1)

    def seconds(**how: Any) -> tuple[float, sp.Scores]:
        clock = time.perf_counter()
        run = sp.options.RunOptions(**how) if how else None
        scores = sp.score(
            model,
            players,
            batches,
            "cross_entropy",
            max_evaluations=budget,
            run=run,
            progress=False,
            options=sp.options.Scoring(window=(0, 1)),
        )
        return time.perf_counter() - clock, scores

    return seconds, players


def _network(model: nn.Module, batches: Any, groups: str, walks: int, rounds: int) -> dict[str, Any]:
    seconds, players = _runner(model, batches, groups, walks)
    seconds()
    overhead, inside, resumed, plain = [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        for round_ in range(rounds):
            folder = Path(name) / str(round_)
            alone = seconds()[0] if round_ % 2 else 0.0
            with _watched() as spent:
                cpu = time.process_time()
                journaled, _ = seconds(folder=folder)
                inside.append(sum(spent) / (time.process_time() - cpu))
            alone = alone or seconds()[0]
            overhead.append(journaled / alone)
            plain.append(alone)
            resumed.append(seconds(folder=folder)[0] / journaled)
        bytes_ = (Path(name) / "0" / "journal.sqlite").stat().st_size
        _, scores = seconds()
    return {
        "players": players.n,
        "evaluations": scores.n_evaluations,
        "seconds": round(median(plain), 2),
        "journal over plain": _spread(overhead),
        "share of CPU inside the journal": _spread(inside),
        "journal bytes": bytes_,
        "resume over run": _spread(resumed),
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
        stack.enter_context(patch("shaprune.runs.executor.digest", timed(digest)))
        yield spent


def _workers(model: nn.Module, batches: Any, groups: str, walks: int, rounds: int) -> dict[str, Any]:
    """Throughput of two workers over one, by the kind of worker."""
    seconds, _ = _runner(model, batches, groups, walks)
    _, truth = seconds()
    kinds = {"ray": "local", "processes": None} if find_spec("ray") else {"processes": None}
    found: dict[str, Any] = {}
    for kind, address in kinds.items():
        ratios, starts = [], []
        with tempfile.TemporaryDirectory() as folder:
            if address is not None:  # the cluster is there before the clock runs
                connect_ray(address, 2)
            for round_ in range(rounds):
                work, start = {}, {}
                for workers in (1, 2) if round_ % 2 else (2, 1):
                    how = {"folder": Path(folder) / f"{round_}-{workers}", "workers": workers, "ray_address": address}
                    wall, scores = seconds(**how)
                    assert [v.value.tolist() for v in scores.values()] == [v.value.tolist() for v in truth.values()]
                    start[workers], _ = seconds(**how)  # all is known: what remains is the start
                    work[workers] = wall - start[workers]
                starts.append(start[2])
                ratios.append(work[1] / work[2])
        found[kind] = _spread(ratios) | {"seconds to start": round(median(starts), 1)}
    return found


def _spread(ratios: list[float]) -> dict[str, float]:
    return {name: round(of(ratios), 3) for name, of in (("median", median), ("min", min), ("max", max))}


if __name__ == "__main__":
    main()
