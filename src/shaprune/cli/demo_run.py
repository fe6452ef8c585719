"""The demo: train a small network on real digits, prune it, and show what was gained and lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from shaprune.builtin.datasets import load_dataset
from shaprune.builtin.demo_recipes import RECIPES, choose_architecture
from shaprune.builtin.demo_training import train
from shaprune.builtin.splits import Split
from shaprune.cli.inputs import parts_of
from shaprune.deploy.measure import Measurement
from shaprune.deploy.save import MANIFEST, WEIGHTS, save
from shaprune.network.borrow import preserve_globals
from shaprune.network.forward.batch_threads import torch_threads
from shaprune.options.groups import Compression
from shaprune.pipeline.compress import compress
from shaprune.pipeline.sensitivity import sensitivity
from shaprune.planning.budget import Budget
from shaprune.planning.scores import Scores
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.report.comparison import latency_setting, to_json
from shaprune.report.content import Content, Evidence
from shaprune.report.removal_curves import removal_curves
from shaprune.report.render import render_report
from shaprune.storage.atomic_files import check_free, replacing_directory, write_text

ARTIFACTS = {
    "report": "report.html",
    "plan": "plan.json",
    "values": "values.json",
    "curves": "curves.json",
    "dense": "dense.safetensors",
    "model": "model",
}
FILES = (*(name for name in ARTIFACTS.values() if name != "model"), f"model/{WEIGHTS}", f"model/{MANIFEST}")
SCORED, CURVED, BATCH = 1_000, 1_000, 128  # examples to score on, to draw curves on, and per latency measurement


@dataclass(frozen=True)
class Demo:
    """What the demo found: ``measurements`` of ``dense``, ``raw`` (before recovery) and ``pruned`` networks.

    ``setting``: how latency was measured.
    """

    measurements: dict[str, Measurement]
    setting: str
    seconds: dict[str, float]
    artifacts: dict[str, Path]

    def to_json(self) -> dict[str, Any]:
        """The JSON object of ``shaprune demo --json``."""
        return {
            "dense": to_json(self.measurements["dense"]),
            "pruned": to_json(self.measurements["pruned"]),
            "raw_accuracy": self.measurements["raw"].accuracy,
            "latency_of": self.setting,
            "seconds": self.seconds,
            "artifacts": {name: str(path) for name, path in self.artifacts.items()},
        }


def check_replaceable(out: Path) -> None:
    """The demo replaces what an earlier demo wrote, and nothing else.

    Raises:
        InputError: ``out`` is a file, or a folder with something else in it.
    """
    check_free(out, files=FILES, overwrite=True)


def run_demo(
    data: str = "digits",
    architecture: str | None = None,
    out: str | Path = "demo",
    *,
    budget: Budget | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Demo:
    """Train, score, plan, prune, recover, measure, and write a report, the plan, the values and both networks.

    Args:
        data: ``digits`` or ``mnist:DIR``.
        architecture: ``digits``, ``lenet5`` or ``lenet1``; None = the first that fits the data.
        out: the folder to write; an earlier demo in it is replaced.
        budget: what may stay; None = half of the multiply-adds.
        seed: seed of everything random.
        device: where it runs.
        say: callback for lines about the progress.

    Raises:
        InputError: unusable data, or a folder that holds something else.
    """
    out, budget = Path(out), budget or Budget(macs=0.5)
    name = choose_architecture(data, architecture)
    check_replaceable(out)
    seconds: dict[str, float] = {}
    with preserve_globals(), torch_threads(1):  # so small a network waits long for a second thread on a busy machine
        with _timed(seconds, "load"):
            dataset = load_dataset(data)
        say(f"training {name} on {len(dataset.train):,} images, epochs: {RECIPES[name].epochs} ...")
        with _timed(seconds, "train"):
            dense = train(name, dataset, seed=seed, device=device)
        say(f"scoring, planning, pruning and recovering ({seconds['train']:.1f} s so far for the training) ...")
        part, checks = parts_of(dataset.held_out, SCORED, floored=budget.floored)
        result = compress(
            dense,
            part.batches(),
            budget,
            example_inputs=dataset.held_out.inputs[:BATCH].to(device),
            test=dataset.test.batches(),
            seed=seed,
            options=Compression(validation=None if checks is None else checks.batches()),
        )
        seconds |= result.seconds
        say("drawing the report ...")
        with _timed(seconds, "report"):
            predicted = _predicted(dense, result.values, part)
            test = dataset.test.take(CURVED).batches()
            curves = removal_curves(dense, result.plan.players, result.values, test, seed=seed)
            setting = latency_setting(BATCH, str(device), torch.get_num_threads())
            title = f"{name} on {dataset.name}, pruned"
            content = Content(title, result.values, result.plan, curves, result.measurements, setting, seconds)
            html = render_report(content, Evidence(predicted), say=say)
        with replacing_directory(out, files=FILES, overwrite=True) as folder:
            write_text(folder / ARTIFACTS["report"], html)
            result.plan.save(folder / ARTIFACTS["plan"])
            result.values.save(folder / ARTIFACTS["values"])
            predicted.save(folder / ARTIFACTS["curves"])
            save_model(dense, str(folder / ARTIFACTS["dense"]))
            save(result.model, result.plan, folder / ARTIFACTS["model"])
    return Demo(result.measurements, setting, seconds, {key: out / file for key, file in ARTIFACTS.items()})


def _predicted(dense: nn.Module, scores: Scores, held_out: Split) -> Sensitivity:
    """What each group loses in accuracy, its consumers refitted as the pruned network's are."""
    found = sensitivity(dense, scores.players, scores, held_out.batches(), "accuracy", refit=True)
    return replace(found, worth="accuracy after the refit")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
