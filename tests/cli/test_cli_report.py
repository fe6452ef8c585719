"""``shaprune report``: folders and files, with and without plotly, the network looked into, wrong usage."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from testkit.reported import FRONTIER, curves_of, made_up
from typer.testing import CliRunner, Result

import shaprune as sp
from shaprune.builtin.models import build_model
from shaprune.cli.app import app
from shaprune.report import plotly_bundle

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)], prog_name="shaprune")
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def told(result: Result) -> str:
    return re.sub(r"[\s│╭╮╰╯─]+", " ", result.stderr)


def data_of(html: Path) -> Any:
    found = re.search(r'id="data">(.*?)</script>', html.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the values of an untrained network for digits, a plan, curves, and the network's weights."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model("digits").eval()
    scores = made_up(sp.find_players(model, torch.randn(2, 1, 8, 8)))
    scores.save(folder / "values.json")
    sp.plan(scores, sp.Budget(macs=0.6)).save(folder / "plan.json")
    curves_of(scores).save(folder / "curves.json")
    (folder / "frontier.json").write_text(json.dumps(FRONTIER))
    save_file(model.state_dict(), folder / "dense.safetensors")
    return folder


@pytest.fixture(scope="module")
def network(scored: Path) -> list[object]:
    return ["--model", "digits", "--weights", scored / "dense.safetensors", "--data", "digits", "--examples", 20]


def test_a_folder_brings_all_that_it_holds(scored: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    out = tmp_path / "report.html"
    run(scored, "--out", out, "--frontier", f"rival={scored / 'frontier.json'}", "--keep", "conv1")
    data = data_of(out)
    assert next(iter(data["paths"])) == "plan"
    assert data["quality"] == "fidelity"
    assert list(data["frontiers"]) == ["this run", "rival"]
    first = data["groups"][0]
    assert first["name"] == "conv1"
    gone = {player for step in data["paths"]["global:macs"]["steps"] for player in step}
    assert not gone & set(range(first["first"], first["size"]))
    only = tmp_path / "only.html"
    run(scored / "values.json", "--out", only)
    assert "plan" not in data_of(only)["paths"]


def test_the_network_is_looked_into(scored: Path, network: list[object], tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    out = tmp_path / "report.html"
    run(scored, "--out", out, *network, "--images", "0,3")
    text = out.read_text(encoding="utf-8")
    assert "What the network sees" in text
    assert text.count("Grad-CAM, without the most valuable: ") == 2
    assert "Accuracy as players leave" in text


def test_the_images_of_a_folder(scored: Path, network: list[object], tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 80 * i, dtype=np.uint8)).save(images / f"{i}.png")
    run(scored, "--out", tmp_path / "r.html", *network, "--images", images)
    assert (tmp_path / "r.html").read_text(encoding="utf-8").count("Grad-CAM, dense: ") == 3
    (images / "9.png").write_bytes(b"no image")
    answer = told(run(scored, "--out", tmp_path / "s.html", *network, "--images", images, code=2))
    assert "9.png cannot be decoded" in answer
    assert not (tmp_path / "s.html").exists()


def test_without_plotly_it_draws_pictures_and_says_so(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plotly_bundle, "has_plotly", lambda: False)
    answer = told(run(scored, "--out", tmp_path / "r.html"))
    assert "pip install 'shaprune[plotly]'" in answer
    assert "leaves out the curves and frontiers" in answer
    assert "<script" not in (tmp_path / "r.html").read_text(encoding="utf-8")
    answer = told(run(scored, "--out", tmp_path / "s.html", "--frontier", scored / "frontier.json", code=2))
    assert "pip install 'shaprune[plotly]'" in answer
    assert not (tmp_path / "s.html").exists()


def test_pictures_only_where_that_is_asked_for(scored: Path, tmp_path: Path) -> None:
    answer = told(run(scored / "values.json", "--out", tmp_path / "r.html", "--static"))
    assert "plotly" not in answer
    assert "<script" not in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["RUN", "--images", "0"], "only together with --model"),
        (["RUN", "--redundancy", "conv1"], "only together with --model"),
        (["RUN", "--static", "--round-to", "8"], "--static has no place for it"),
        (["RUN", "NETWORK", "--images", "0,x"], "neither a folder nor numbers"),
        (["RUN", "NETWORK", "--images", "100000"], "from 0 to 496"),
        (["RUN", "NETWORK", "--images", "EMPTY"], "holds 0 images"),
        (["RUN", "NETWORK", "--redundancy", "conv9"], "did you mean"),
        (["RUN", "NETWORK", "--redundancy", "conv2"], "at most 30 of a group"),
        (["RUN", "--frontier", "RUN/plan.json"], "this is no frontier"),
        (["RUN", "--frontier", "RUN/frontier.json", "--frontier", "RUN/frontier.json"], "two are called"),
        (["RUN/nothing"], "does not exist"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_written(
    scored: Path, network: list[object], tmp_path: Path, arguments: list[str], reason: str
) -> None:
    pytest.importorskip("plotly")
    (tmp_path / "empty").mkdir()
    given: list[object] = []
    for argument in arguments:
        text = argument.replace("RUN", str(scored)).replace("EMPTY", str(tmp_path / "empty"))
        given += network if argument == "NETWORK" else [text]
    answer = told(run(*given, "--out", tmp_path / "r.html", code=2))
    assert reason in answer
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("damage", ["empty", "nan", "missing", "newer"])
def test_values_that_cannot_be_used_are_named(scored: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    scores = sp.Scores.load(scored / "values.json")
    expected = {
        "empty": "holds no values.json",
        "nan": "should be a finite number",
        "missing": "no values for group",
        "newer": "newer",
    }
    if damage == "nan":
        first = scores["conv1"]
        spoilt = replace(first, value=np.where(np.arange(first.n) == 1, np.nan, first.value))
        scores = sp.Scores(scores.players, {**scores.by_group, "conv1": spoilt}, scores.worth)
    if damage == "missing":
        scores = sp.Scores(scores.players, {n: v for n, v in scores.items() if n != "conv1"}, scores.worth)
    if damage != "empty":
        document = scores.to_json()
        document["schema"] += damage == "newer"
        (folder / "values.json").write_text(json.dumps(document))
    assert expected[damage] in told(run(folder, "--out", tmp_path / "r.html", code=1))
    assert not (tmp_path / "r.html").exists()
