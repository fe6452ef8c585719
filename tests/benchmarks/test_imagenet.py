"""The ImageNet script and config, on a folder of a few made images and a ResNet-50 with random weights."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from large_networks import resnet50
from PIL import Image
from typer.testing import CliRunner

import shaprune as sp
from shaprune.criteria.registry import criterion_scores
from shaprune.deploy.measure import count, size_bytes

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SHARES = (0.417, 0.406)  # of the multiply-adds: Adamczewski et al. 2024 remove 58.3 and 59.4 %


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Three classes, five images each, of different shapes; one is grey."""
    draw = np.random.default_rng(0)
    for part, n in (("train", 5), ("val", 2)):
        for name in ("n01", "n02", "n03"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                shape = (50 + 10 * i, 70) if i else (64, 48)
                pixels = draw.integers(0, 256, shape if i == 1 else (*shape, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.jpeg")
    monkeypatch.setenv("IMAGENET", str(tmp_path))
    monkeypatch.setenv("IMAGENET_SIDE", "64")
    monkeypatch.setenv("IMAGENET_EPOCHS", "1")
    monkeypatch.setenv("IMAGENET_WORKERS", "0")
    monkeypatch.chdir(BENCHMARKS)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield tmp_path
    sys.modules.pop("imagenet", None)


def test_images_are_cut_scaled_and_split_without_overlap(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import imagenet

    monkeypatch.setattr(imagenet, "CALIBRATION", 9)
    data = imagenet.images()
    assert data.held_out.inputs.shape == (9, 3, 64, 64)
    assert data.test.inputs.shape == (6, 3, 64, 64)
    assert sorted(data.test.targets.tolist()) == [0, 0, 1, 1, 2, 2]
    scored = {tuple(x.flatten()[:50].tolist()) for x in data.held_out.inputs}
    trained = np.random.default_rng(0).permutation(15)[9:]
    for x, _ in (imagenet.Photographs("train", trained)[i] for i in range(6)):
        assert tuple(x.flatten()[:50].tolist()) not in scored
    varied = imagenet.Photographs("train", varied=True)
    assert not torch.equal(varied[0][0], varied[0][0])
    monkeypatch.delenv("IMAGENET")
    with pytest.raises(sp.InputError, match="IMAGENET is not set"):
        imagenet.images()


@pytest.mark.slow
def test_resnet50_is_planned_and_cut_at_the_sizes_of_the_paper() -> None:
    torch.manual_seed(0)
    model, x = resnet50().eval(), torch.randn(1, 3, 64, 64)
    players = sp.find_players(model, x)
    published = 4.09e9 * (64 / 224) ** 2  # at 224 pixels
    assert players.model_macs == count(model, x)[1] == pytest.approx(published, rel=0.01)
    scores = sp.Scores(players, criterion_scores(model, players, criterion="weight_norm"))
    for share in SHARES:
        plan = sp.plan(scores, sp.Budget(macs=share), "uniform", limits=sp.options.Limits(round_to=8))
        small = sp.prune(model, plan, x)
        params, macs = count(small, x)
        assert macs == plan.cost["macs"] <= share * players.model_macs
        assert macs > (share - 0.06) * players.model_macs  # no more is removed than widths in eights ask for
        assert params == plan.cost["params"]
        assert size_bytes(small) == pytest.approx(plan.cost["bytes"], rel=1e-3)
        widths = [m.out_channels for m in small.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len(widths) == 53
        assert all(width % 8 == 0 for width in widths)
        with torch.no_grad():
            assert small(x).shape == (1, 1000)


@pytest.mark.slow
def test_the_config_runs_from_images_to_a_smaller_network(made: Path) -> None:
    from shaprune.cli.app import app

    torch.manual_seed(0)
    torch.save(resnet50().state_dict(), made / "resnet50.pth")
    changed = [
        "--model",
        "large_networks:resnet50",
        "--weights",
        str(made / "resnet50.pth"),
        "--out",
        str(made / "out"),
    ]
    quick = ["--method", "weight_norm", "--allocation", "uniform", "--examples", "8", "--batch-size", "2"]
    quick += ["--recover", "imagenet:finetune"]
    result = CliRunner().invoke(app, ["compress", "--config", "resnet50-imagenet.yaml", *changed, *quick])
    assert result.exit_code == 0, result.output
    measured = json.loads((made / "out" / "measurements.json").read_text())
    assert measured["pruned"]["macs"] <= 0.417 * measured["dense"]["macs"]
    small = sp.load(made / "out" / "model", resnet50)
    with torch.no_grad():
        assert small(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
