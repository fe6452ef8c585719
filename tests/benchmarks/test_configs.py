"""The configs beside the benchmarks run; here on a few made images and with little training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import shaprune as sp
from shaprune.builtin.models import build_model
from shaprune.cli.app import app
from shaprune.pipeline.run_config import RunConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_means_something(path: Path) -> None:
    config = RunConfig.of(yaml.safe_load(path.read_text()))
    assert config.to_yaml()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(inputs to refit and the data give|no epoch of the fine-tuning)")  # few images
def test_resnet56_goes_to_the_smaller_size_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    for part, n in (("train", 3), ("test", 1)):
        for label in range(10):
            (tmp_path / "data" / part / str(label)).mkdir(parents=True)
            for i in range(n):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / str(label) / f"{i}.png")
    torch.manual_seed(0)
    torch.save(build_model("resnet56").state_dict(), tmp_path / "weights.pt")
    keys = yaml.safe_load((BENCHMARKS / "resnet56-cifar10.yaml").read_text())
    keys["recover"][1]["finetune"] |= {"epochs": 1}
    keys |= {
        "weights": str(tmp_path / "weights.pt"),
        "data": f"folder:{tmp_path / 'data'}",
        "out": str(tmp_path / "out"),
    }
    keys |= {"examples": 12, "batch_size": 2, "method": "weight_norm", "allocation": "uniform"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys))
    monkeypatch.chdir(BENCHMARKS)  # where augment.py is
    result = CliRunner().invoke(app, ["compress", "--config", str(tmp_path / "run.yaml")])
    assert result.exit_code == 0, result.output
    measured = json.loads((tmp_path / "out" / "measurements.json").read_text())
    assert 0.09 < measured["pruned"]["macs"] / measured["dense"]["macs"] <= 0.107
    small = sp.load(tmp_path / "out" / "model", lambda: build_model("resnet56"))
    with torch.no_grad():
        assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)
