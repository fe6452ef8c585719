"""One default per step: the steps by hand, `compress` and `shaprune compress` give the same bits."""

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import shaprune as sp
from shaprune.builtin.datasets import load_dataset
from shaprune.builtin.factories import call_factory
from shaprune.cli.app import app

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:pruned does"),  # so small a network need not be faster
]

MODULE = """
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(),
                         nn.Linear(16, 3)).eval()


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2100, 1, 6, 6, generator=generator)
    y = x.mean((1, 2, 3)).mul(20).long().clamp(-1, 1) + 1
    return (x[:2000], y[:2000]), (x[2000:], y[2000:])
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's module in the folder where the shell is."""
    name = f"doors_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def shaprune(*arguments: str) -> None:
    result = CliRunner().invoke(app, list(arguments), prog_name="shaprune")
    assert result.exit_code == 0, result.output


def test_by_hand_by_compress_and_on_the_command_line(here: str) -> None:
    model, dataset = call_factory(f"{here}:network", what="model"), load_dataset(f"{here}:data")
    x, batches = dataset.held_out.inputs[:128], list(dataset.held_out.batches())
    budget = sp.Budget(macs=0.6)

    players = sp.find_players(model, x)
    scores = sp.score(model, players, batches, progress=False)
    plan = sp.plan(scores, budget)
    raw = sp.prune(model, plan, x)
    by_hand = sp.recover(raw, model, plan, batches)
    assert plan.removed
    assert bits(by_hand) != bits(raw)  # the refit did something

    once = sp.compress(model, batches, budget, example_inputs=x, progress=False)
    assert {n: v.value.tobytes() for n, v in once.values.items()} == {n: v.value.tobytes() for n, v in scores.items()}
    assert (once.plan.kept == plan.kept).all()
    assert bits(once.model) == bits(by_hand)

    names = ["--model", f"{here}:network", "--data", f"{here}:data"]
    shaprune("compress", *names, "--budget", "macs=0.6", "--out", "at-once")
    build = lambda: call_factory(f"{here}:network", what="model")  # noqa: E731
    assert bits(sp.load("at-once/model", build=build)) == bits(by_hand)

    shaprune("score", *names, "--out", "scores")
    shaprune("plan", "scores/values.json", "--budget", "macs=0.6", "--out", "plan")
    shaprune("prune", *names, "--plan", "plan/plan.json", "--out", "small")
    assert (sp.Plan.load("plan/plan.json").kept == plan.kept).all()
    assert bits(sp.load("small", build=build)) == bits(by_hand)


def test_a_floor_is_searched_alike_through_every_door(here: str) -> None:
    model, dataset = call_factory(f"{here}:network", what="model"), load_dataset(f"{here}:data")
    x, half = dataset.held_out.inputs[:128], len(dataset.held_out) // 2
    seen, rest = (
        [(dataset.held_out.inputs[part], dataset.held_out.targets[part])]
        for part in (slice(None, half), slice(half, None))
    )
    with torch.no_grad():
        rest = [(x, model(x).argmax(1)) for x, _ in rest]
    budget, recovered = sp.Budget(drop=0.02), list[nn.Module]()

    def noted(raw: nn.Module, plan: sp.Plan) -> nn.Module:
        recovered.append(sp.recover(raw, model, plan, seen))
        return recovered[-1]

    scores = sp.score(model, sp.find_players(model, x), seen, progress=False)
    found = sp.search_plan(
        model,
        lambda asked: sp.plan(scores, asked),
        budget,
        example_inputs=x,
        quality=sp.metrics.quality_on(model, rest),
        recover=noted,
    )
    assert len(recovered) == len(found.trials) > 1  # once per candidate, and not once more for the one that is returned
    assert any(found.model is network for network in recovered)
    options = sp.options.Compression(validation=rest)
    once = sp.compress(model, seen, budget, example_inputs=x, progress=False, options=options)
    assert bits(once.model) == bits(found.model)
    assert sp.metrics.quality_on(model, rest)(once.model) >= 0.98
    assert (once.plan.kept == found.plan.kept).all()
