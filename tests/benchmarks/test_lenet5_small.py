"""The best pruned LeNet-5, which stands beside the benchmarks, is as small and as good as they say."""

import json
from pathlib import Path

import torch

import shaprune as sp
from shaprune.builtin.datasets import load_dataset
from shaprune.builtin.models import build_model
from shaprune.deploy.measure import accuracy, count

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
SIZE = "4.5K, 131K"


def test_it_is_as_small_as_the_paper_asks_for() -> None:
    model = sp.load(RESULTS / "lenet5-small", lambda: build_model("lenet5"))
    params, macs = count(model, torch.zeros(1, 1, 28, 28))
    assert params <= 4500
    assert macs <= 131_000
    assert sum(path.stat().st_size for path in (RESULTS / "lenet5-small").iterdir()) < 1e6


def test_its_error_is_the_one_that_is_reported(shared_data: Path) -> None:
    model = sp.load(RESULTS / "lenet5-small", lambda: build_model("lenet5"))
    data = load_dataset(f"mnist:{shared_data / 'mnist'}")
    error = 100 * (1 - accuracy(model, data.test.batches()))
    table = json.loads((RESULTS / "lenet5-small.json").read_text())["results"]["table"]
    assert abs(error - min(table[SIZE]["reconstruction, curves"]["error"])) < 0.015  # an image may round either way
    assert error <= 1.0
