"""Effort: what it stands for, what was given stays, what it did is in the result; it ends with its time."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from recovery.test_finetune import case, same, weights
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import shaprune as sp
from shaprune.cli.app import app
from shaprune.options.effort import effort_of
from shaprune.options.groups import Compression
from shaprune.pipeline import recipe as recipes
from shaprune.pipeline.recipe import recipe_of
from shaprune.pipeline.run_config import RunConfig
from shaprune.recovery.distillation import Distill
from shaprune.recovery.step_training import TooFewSecondsError
from shaprune.recovery.steps import Refit

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:pruned does")]

BUDGET = sp.Budget(macs=0.5)
CURVES = Compression(planning=sp.options.Planning(allocation="uniform"))


def chosen(effort: Any, **given: Any) -> recipes.Recipe:
    known = {"budget": BUDGET, "worth": "fidelity", "method": None, "recover": None}
    return recipe_of(effort, **{**known, "options": Compression(), **given})


def test_the_first_batch_is_the_example_where_none_is_given() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    x = torch.randn(60, 8)
    data = [(x, None)]
    given = sp.compress(model, data, BUDGET, example_inputs=x)
    taken = sp.compress(model, data, BUDGET)
    assert taken.plan.to_json() == given.plan.to_json()
    assert taken.measurements["dense"].latency.examples == 60
    assert same(weights(taken.model), weights(given.model))
    with pytest.raises(sp.InputError, match="data hold no batch"):
        sp.compress(model, [], BUDGET)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_STEPS", {"minutes": 20, "hour": 20})


@pytest.mark.parametrize(
    ("effort", "method", "allocation", "steps"),
    [
        ("seconds", "permutation", "global", [Refit]),
        (5, "permutation", "global", [Refit]),
        ("minutes", "permutation", "global", [Refit, Distill]),
        (600, "permutation", "global", [Refit, Distill]),
        ("hour", "reconstruction", "curves", [Refit, Distill]),
        (1e5, "reconstruction", "curves", [Refit, Distill]),
    ],
)
def test_what_an_effort_stands_for(effort: Any, method: str, allocation: str, steps: list[type]) -> None:
    found = chosen(effort)
    assert (found.method, found.allocation, [type(step) for step in found.recover]) == (method, allocation, steps)
    assert f"effort {found.effort}: {method}, {allocation}, refit" in found.told()


@pytest.mark.parametrize(
    ("given", "method", "allocation", "steps"),
    [
        ({"method": "taylor"}, "taylor", "global", [Refit, Distill]),
        ({"recover": ()}, "reconstruction", "curves", []),
        ({"options": CURVES}, "permutation", "uniform", [Refit, Distill]),
        ({"options": Compression(max_evaluations=5000)}, "permutation", "global", [Refit, Distill]),
        ({"budget": sp.Budget(latency=0.5)}, "permutation", "global", [Refit]),
    ],
)
def test_what_was_given_stays(given: dict[str, Any], method: str, allocation: str, steps: list[type]) -> None:
    found = chosen("hour", **given)
    assert (found.method, found.allocation, [type(step) for step in found.recover]) == (method, allocation, steps)


@pytest.mark.parametrize("wrong", ["day", "", "-5", 0, True, None, [1], float("nan"), "inf", "minute"])
def test_what_is_no_effort_is_refused(wrong: Any) -> None:
    with pytest.raises(sp.InputError, match="effort"):
        effort_of(wrong)
    with pytest.raises(sp.InputError, match="effort"):
        chosen(wrong)


def distance(model: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float(
            F.kl_div(model(x).log_softmax(1), teacher(x).log_softmax(1), log_target=True, reduction="batchmean")
        )


def test_more_effort_comes_nearer_and_says_how(short: None) -> None:
    model, _, _, x, _ = case(n=400)
    few, more = (
        sp.compress(model, [x], BUDGET, example_inputs=x[:2], effort=effort, progress=False)
        for effort in ("seconds", "minutes")
    )
    assert [went.step for went in few.recovery] == ["refit"]
    assert [went.step for went in more.recovery] == ["refit", "distill"]
    last = more.recovery[1]
    assert last.taken == 20
    assert last.before is not None
    assert last.after is not None
    assert last.after <= last.before
    assert distance(more.model, model, x) <= distance(few.model, model, x)
    notes = more.table().notes
    assert any(note.startswith("effort minutes: permutation, global, refit + distill") for note in notes)
    assert any("20 steps; loss on the examples watched" in note for note in notes)


def test_by_hand_and_by_effort_are_the_same_bits(short: None) -> None:
    model, _, _, x, _ = case(n=400)
    once = sp.compress(model, [x], BUDGET, example_inputs=x[:2], effort="minutes", progress=False)
    raw = sp.prune(model, once.plan, x[:2])
    by_hand = sp.recover(raw, model, once.plan, [x], ("refit", Distill(steps=20)))
    assert same(weights(once.model), weights(by_hand))


def test_where_no_time_is_left_the_refitted_network_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _, x, _ = case(n=400)
    plain = sp.compress(model, [x], BUDGET, example_inputs=x[:2], progress=False)

    def late(*_: Any, **__: Any) -> Any:
        raise TooFewSecondsError("max_seconds=1 is too little")

    with monkeypatch.context() as patch:
        patch.setattr("shaprune.recovery.steps.distill", late)
        done = sp.compress(model, [x], BUDGET, example_inputs=x[:2], effort="minutes", progress=False)
    assert same(weights(done.model), weights(plain.model))
    assert "no time was left for it" in done.recovery[1].told()
    assert recipes.Recipe("minutes", "permutation", "global", (Refit(), Distill()), "", True).within(-1) == (Refit(),)


def test_effort_in_a_file_and_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    keys = {"model": "a:b", "data": "digits", "budget": {"macs": 0.5}, "effort": 90}
    config = RunConfig.of(keys)
    assert config.effort == 90.0
    assert config.steps(lambda name: None) is None
    with pytest.raises(sp.InputError, match=r"effort: unknown effort 'minute'.*minutes"):
        RunConfig.of({**keys, "effort": "minute"})
    (tmp_path / "efforts.py").write_text(
        "import torch\nfrom torch import nn\n\ndef network():\n    torch.manual_seed(0)\n    return nn.Sequential("
        "nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).eval()\n\n\ndef data():\n    x = torch.randn(900, 6, "
        "generator=torch.Generator().manual_seed(0))\n    y = x[:, :4].argmax(1)\n    return (x[:800], y[:800]), "
        "(x[800:], y[800:])\n"
    )
    monkeypatch.chdir(tmp_path)
    names = ["--model", "efforts:network", "--data", "efforts:data", "--budget", "macs=0.5", "--out", "small"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sp.errors.ShapruneWarning)
        result = CliRunner().invoke(app, ["compress", *names, "--effort", "minutes", "--json"], prog_name="shaprune")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["recipe"][0].startswith("effort minutes: permutation")
    assert "effort: minutes" in (tmp_path / "small" / "config.yaml").read_text()
