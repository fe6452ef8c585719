"""Budgets: bytes and activations are predicted exactly, latency and floors are searched by measurement."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from testkit.networks import NETWORKS
from testkit.options import compression
from testkit.reported import made_up
from torch import Tensor, nn
from typer.testing import CliRunner

import shaprune as sp
from shaprune.builtin.models import MODELS
from shaprune.cli.app import app
from shaprune.cli.options.parse import budget_of
from shaprune.deploy.measure import Latency, size_bytes
from shaprune.network.layers.kinds import kind_of
from shaprune.pipeline import search
from shaprune.pipeline.cycles import cycle_budget
from shaprune.pipeline.run_config import RunConfig
from shaprune.planning.budget import MEASURED_RESOURCES
from shaprune.planning.plan import Plan
from shaprune.planning.resources import RESOURCES, costs
from shaprune.players.players import Players
from shaprune.recovery.finetune import Finetune

pytestmark = pytest.mark.filterwarnings("ignore:pruned does")  # so small a network need not be faster


def half(players: Players, seed: int = 0) -> Plan:
    """A plan that takes half of every group at random."""
    kept, rng = np.ones(players.n, dtype=bool), np.random.default_rng(seed)
    for group in players.groups:
        kept[rng.permutation(group.indices)[: len(group) // 2]] = False
    return Plan.from_coalition(players, kept)


def output_bytes(model: nn.Module, inputs: Tensor) -> float:
    """Bytes per example that convolutions, linear layers, norms, embeddings and PReLU give out."""
    seen: list[int] = []
    handles = [
        m.register_forward_hook(lambda _, __, out: seen.append(out.numel() * out.element_size()))
        for m in model.modules()
        if kind_of(m) is not None
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return sum(seen) / len(inputs)


# --- predicted ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_bytes_and_activations_are_predicted_from_the_players_alone(name: str, dtype: torch.dtype) -> None:
    make, inputs = NETWORKS[name]
    model, x = make().to(dtype), inputs().to(dtype)
    players = sp.find_players(model, x)
    assert players.model_bytes == size_bytes(model)
    assert players.model_activations == output_bytes(model, x)
    plan = half(players)
    small = sp.prune(model, plan, x)
    assert plan.cost["activations"] == pytest.approx(output_bytes(small, x))
    spare = plan.cost["bytes"] - size_bytes(small)
    assert 0 <= spare <= 8 * len(small.state_dict())  # never too little; digits of the header at most
    again = Players.from_json(json.loads(json.dumps(players.to_json())))
    assert Plan(again, plan.kept).cost == plan.cost


def test_blocks_cost_their_bytes_and_activations() -> None:
    _, inputs = NETWORKS["residual"]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.blocks = nn.Sequential(*(Block() for _ in range(2)))
            self.fc = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.blocks(self.stem(x)).mean((2, 3)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.bn(self.conv(x)))

    torch.manual_seed(0)
    model, x = Net().eval(), inputs()
    players = sp.find_players(model, x, unit="block")
    plan = Plan.from_coalition(players, [True, False])
    small = sp.prune(model, plan, x)
    assert plan.cost["activations"] == pytest.approx(output_bytes(small, x))
    own = sum(t.numel() * t.element_size() for t in model.blocks[1].state_dict().values())
    assert players.model_bytes - plan.cost["bytes"] == own
    assert size_bytes(small) <= plan.cost["bytes"]


def test_a_budget_of_bytes_and_activations_is_met_by_the_file_and_the_run() -> None:
    make, inputs = NETWORKS["residual"]
    model, x = make(), inputs()
    players = sp.find_players(model, x)
    scores = sp.score(model, players, [x], "fidelity", options=sp.options.Scoring(window=(0.5, 1.0)))
    plan = sp.plan(scores, sp.Budget(bytes=0.6, activations=0.7))
    small = sp.prune(model, plan, x)
    assert size_bytes(small) <= 0.6 * size_bytes(model)
    assert output_bytes(small, x) <= 0.7 * output_bytes(model, x)
    absolute = sp.plan(scores, sp.Budget(bytes=9_000))
    assert size_bytes(sp.prune(model, absolute, x)) <= 9_000


def test_energy_is_what_the_pruned_network_computes_and_moves() -> None:
    make, inputs = NETWORKS["residual"]
    model, x = make(), inputs()
    players = sp.find_players(model, x)
    scores = sp.score(model, players, [x], "fidelity", options=sp.options.Scoring(window=(0.5, 1.0)))
    dense = costs(players, np.ones(players.n, dtype=bool))
    plan = sp.plan(scores, sp.Budget(energy=0.6))
    small = sp.prune(model, plan, x)
    left = 4.6 * sp.find_players(small, x).model_macs + 160 * plan.cost["bytes"] + 320 * output_bytes(small, x)
    assert plan.cost["energy"] == pytest.approx(left)
    assert plan.cost["energy"] <= 0.6 * dense["energy"] == plan.budget["energy"]
    assert f"(budget {plan.budget['energy']:,.0f} pJ)" in plan.summary()


def test_the_weights_of_energy_are_the_users(tmp_path: Path) -> None:
    make, inputs = NETWORKS["residual"]
    players = sp.find_players(make(), inputs())
    scores = made_up(players)
    for text, same in (("0.6:1,0,0", "macs"), ("0.6:0,2,0", "bytes"), ("0.6:0,0,3", "activations")):
        plan = sp.plan(scores, sp.Budget(energy=text))
        other = sp.plan(scores, sp.Budget(**{same: 0.6}))
        assert (plan.kept == other.kept).all()
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json").cost == plan.cost
        half = cycle_budget(sp.Budget(energy=text), players, 1, 2)
        assert half.weights == sp.Budget(energy=text).weights
        assert half.absolute(players)["energy"] == pytest.approx(plan.budget["energy"] / 0.6 * 0.6**0.5)
    assert (
        sp.plan(scores, sp.Budget(energy="0.6:4.6,160,320")).kept == sp.plan(scores, sp.Budget(energy=0.6)).kept
    ).all()
    assert players.weights == {}


def test_weights_of_energy_come_through_every_door() -> None:
    own = sp.Budget(energy="0.5:1,2,3")
    assert own.limits == {"energy": 0.5}
    assert own.weights == {"energy": (1.0, 2.0, 3.0)}
    assert budget_of(["energy=0.5:1,2,3"]) == own
    assert budget_of(["energy=0.5"]) == sp.Budget(energy=0.5)
    config = {"model": "lenet5", "data": "digits", "budget": {"energy": "0.5:1,2,3"}}
    assert RunConfig(**config).budget_limits() == own


def test_players_of_an_older_version_have_no_bytes_and_say_so() -> None:
    make, inputs = NETWORKS["mlp"]
    players = sp.find_players(make(), inputs())
    data = players.to_json()
    del data["model_bytes"], data["model_activations"]
    for layer in data["layers"].values():
        del layer["itemsize"], layer["buffers"], layer["activation"]
    old = Players.from_json(data)
    assert set(costs(old, np.ones(old.n, dtype=bool))) == {"macs", "params", "players"}
    with pytest.raises(sp.InputError, match="do not say what bytes they cost; find and score"):
        sp.Budget(bytes=0.5).absolute(old)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"bytes": 1.5}, "bytes=1.5 is no budget"),
        ({"energy": "half"}, "energy='half' is no budget"),
        ({"energy": "1.5:1,1,1"}, "energy=1.5 is no budget"),
        ({"energy": "0.5:1,2"}, "a weight, 0 or above, for each of macs, bytes, activations: '0.5:4.6,160,320'"),
        ({"energy": "0.5:1,-2,3"}, "energy='0.5:1,-2,3' is no budget"),
        ({"energy": "0.5:"}, "energy='0.5:' is no budget"),
        ({"macs": "0.5:1,1,1"}, "macs='0.5:1,1,1' is no budget"),
        ({"latency": 0}, "latency=0 is no budget"),
        ({"latency": 1}, "latency=1 is no budget"),
        ({"latency": "fast"}, "latency='fast' is no budget.*'0.8 ms'"),
        ({"latency": "0 ms"}, "latency='0 ms' is no budget"),
        ({"drop": -0.1}, "drop=-0.1 is no budget"),
        ({"floor": float("nan")}, "floor=nan is no budget"),
        ({"floor": True}, "floor=True is no budget"),
        ({"floor": 0.9, "drop": 0.1}, "both a floor and a drop"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.Budget(**limits)


def test_a_latency_is_a_fraction_or_milliseconds() -> None:
    assert sp.Budget(latency=0.6).milliseconds is None
    assert sp.Budget(latency=12.5).milliseconds == 12.5
    assert sp.Budget(latency=" 0.8ms").milliseconds == 0.8
    assert sp.Budget(latency=0.6, macs=0.5).limits == {"macs": 0.5}
    assert sp.Budget(latency=0.6, drop=0.0).measured == {"latency": 0.6, "drop": 0.0}


# --- measured ---

Setting = tuple[nn.Module, Players, Callable[[sp.Budget], Plan], Tensor]


@pytest.fixture(scope="module")
def setting() -> Setting:
    make, inputs = NETWORKS["residual"]
    model, x = make(), inputs()
    players = sp.find_players(model, x)
    scores = sp.score(model, players, [x], "fidelity", options=sp.options.Scoring(window=(0.5, 1.0)))
    return model, players, partial(sp.plan, scores), x


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Latency as 1 ms per 1,000 parameters; the list holds how many networks were timed."""
    calls: list[int] = []

    def latency(models: dict[str, nn.Module], inputs: Tensor, *, timings: int) -> dict[str, Latency]:
        calls.append(timings)
        times = {name: parameters(model) / 1_000 for name, model in models.items()}
        return {name: Latency(t, t, t) for name, t in times.items()}  # type: ignore[call-arg]

    monkeypatch.setattr(search, "latency", latency)
    return calls


def quality(model: nn.Module) -> float:
    """Falls with the parameters: 1 for the dense network of 3,809."""
    return parameters(model) / 3_809


def test_a_drop_finds_the_smallest_network_whose_measured_quality_holds(setting: Setting) -> None:
    model, players, planner, x = setting
    found = sp.search_plan(model, planner, sp.Budget(drop=0.4), example_inputs=x, quality=quality, tolerance=0.002)
    assert found.dense_quality == 1.0
    left = found.plan.cost["params"] / players.model_params
    assert left >= 0.6
    sizes = np.linspace(0.05, 0.99, 95)
    plans = {
        sp.metrics.frontier(planner, "macs", [s]).points[0].plan.cost["params"] / players.model_params for s in sizes
    }
    assert left == pytest.approx(min(size for size in plans if size >= 0.6))
    assert any(not trial.good for trial in found.trials)
    assert all(trial.good == (trial.quality is not None and trial.quality >= 0.6) for trial in found.trials)
    assert f"{found.plan.cost['macs'] / players.model_macs:.2%}" in found.summary()
    assert found.by == "macs"
    floor = sp.search_plan(model, planner, sp.Budget(floor=0.6), example_inputs=x, quality=quality, tolerance=0.002)
    assert (floor.plan.kept == found.plan.kept).all()


def test_the_quality_is_that_of_the_recovered_network(setting: Setting) -> None:
    model, _, planner, x = setting
    mended: list[float] = []

    def mend(small: nn.Module, plan: Plan) -> nn.Module:
        assert parameters(small) == plan.cost["params"]
        mended.append(plan.cost["params"])
        return model  # as good as new

    found = sp.search_plan(model, planner, sp.Budget(drop=0.1), example_inputs=x, quality=quality, recover=mend)
    with pytest.raises(sp.errors.BudgetError) as refused:
        planner(sp.Budget(macs=2))
    assert mended
    assert found.plan.cost["macs"] == refused.value.reachable["macs"]  # everything may go


def test_a_latency_finds_the_largest_network_that_is_fast_enough(setting: Setting, timed: list[int]) -> None:
    model, players, planner, x = setting
    found = sp.search_plan(model, planner, sp.Budget(latency=0.5), example_inputs=x, tolerance=0.002, timings=3)
    assert set(timed) == {3}
    assert len(timed) == len(found.trials) < 15
    left = found.plan.cost["params"] / players.model_params
    assert left <= 0.5
    sizes = np.linspace(0.05, 0.99, 95)
    plans = {
        sp.metrics.frontier(planner, "macs", [s]).points[0].plan.cost["params"] / players.model_params for s in sizes
    }
    assert left == pytest.approx(max(size for size in plans if size <= 0.5))
    absolute = sp.search_plan(model, planner, sp.Budget(latency=f"{0.5 * 3.809} ms"), example_inputs=x, tolerance=0.002)
    assert (absolute.plan.kept == found.plan.kept).all()
    first = sp.search_plan(model, planner, sp.Budget(latency=0.9, params=0.3), example_inputs=x)
    assert (first.plan.kept == planner(sp.Budget(params=0.3)).kept).all()
    assert first.by == "params"


def test_really_measured_latency_is_within_the_budget_when_it_says_so(setting: Setting) -> None:
    model, _, planner, x = setting
    found = sp.search_plan(model, planner, sp.Budget(latency=1e6), example_inputs=x, timings=2, tolerance=0.3)
    chosen = next(trial for trial in found.trials if trial.plan is found.plan)
    assert chosen.good
    assert chosen.milliseconds is not None
    assert 0 < chosen.milliseconds <= 1e6  # of a machine however busy


def test_what_cannot_be_met_is_said_with_the_nearest_that_can(setting: Setting, timed: list[int]) -> None:
    model, players, planner, x = setting
    run = partial(sp.search_plan, model, planner, example_inputs=x, quality=quality)
    with pytest.raises(sp.errors.BudgetError, match=r"floor 1\.2 is above the dense network's measured quality 1,"):
        run(sp.Budget(floor=1.2))
    with pytest.raises(
        sp.errors.BudgetError, match=r"the smallest network, 2\.6% of the macs, takes 0\.086 ms, 2\.3% of"
    ):
        run(sp.Budget(latency=0.01))
    assert len(timed) == 1  # the smallest network only
    with pytest.raises(
        sp.errors.BudgetError, match=r"contradicts itself \(macs=0\.3, drop=0\.2\).*keeps \d+\.\d% of the macs"
    ):
        run(sp.Budget(macs=0.3, drop=0.2))
    with pytest.raises(sp.errors.BudgetError, match=r"contradicts itself \(latency=0\.4, drop=0\.2\)"):
        run(sp.Budget(latency=0.4, drop=0.2))
    with pytest.raises(sp.errors.BudgetError, match=r"no pruned network holds the floor 1: the dense one has 1"):
        run(sp.Budget(drop=0.0))
    before = len(timed)
    with pytest.raises(sp.errors.BudgetError, match="the smallest reachable is") as refused:
        run(sp.Budget(macs=0.001, latency=0.5))
    assert len(timed) == before
    assert refused.value.reachable["macs"] / players.model_macs == pytest.approx(0.0258, abs=1e-4)


def test_the_nearest_that_is_named_does_hold_the_floor(setting: Setting) -> None:
    model, players, planner, x = setting
    with pytest.raises(sp.errors.BudgetError) as refused:
        sp.search_plan(model, planner, sp.Budget(macs=0.3, drop=0.2), example_inputs=x, quality=quality)
    found = planner(sp.Budget(macs=refused.value.reachable["macs"]))
    assert 0.8 <= quality(sp.prune(model, found, x)) < 0.95
    assert found.cost["macs"] > 0.3 * players.model_macs


def test_options_of_the_search_that_mean_nothing_are_refused(setting: Setting) -> None:
    model, _, planner, x = setting
    with pytest.raises(sp.InputError, match=r"a floor needs quality"):
        sp.search_plan(model, planner, sp.Budget(drop=0.1), example_inputs=x)
    with pytest.raises(sp.InputError, match="did you mean 'macs'"):
        sp.search_plan(model, planner, sp.Budget(latency=0.5), example_inputs=x, by="mac")
    with pytest.raises(sp.InputError, match="tolerance is 0"):
        sp.search_plan(model, planner, sp.Budget(latency=0.5), example_inputs=x, tolerance=0)
    with pytest.raises(sp.errors.GameError, match=r"quality\(model\) returned nan"):
        sp.search_plan(model, planner, sp.Budget(drop=0.1), example_inputs=x, quality=lambda _: float("nan"))
    with pytest.raises(sp.InputError, match=r"latency and drop must be measured on the network; use sp\.search_plan"):
        planner(sp.Budget(latency=0.5, drop=0.1))


def test_quality_on_is_the_worth_of_the_network() -> None:
    make, inputs = NETWORKS["plain"]
    model, x = make(), inputs()
    with torch.no_grad():
        y = model(x).argmax(1)
    wrong = torch.where(torch.arange(len(y)) < 1, (y + 1) % 5, y)
    assert sp.metrics.quality_on(model, [(x, y)])(model) == 1
    assert sp.metrics.quality_on(model, [(x[:2], wrong[:2]), (x[2:], wrong[2:])])(model) == pytest.approx(
        1 - 1 / len(y)
    )
    assert sp.metrics.quality_on(model, [x], "fidelity")(model) == 0
    assert sp.metrics.quality_on(model, [(x, y)], "perplexity")(model) < -1
    assert sp.metrics.quality_on(model, [x], sp.Evaluate(lambda m: 7.0))(model) == 7
    with pytest.raises(sp.InputError, match="needs targets"):
        sp.metrics.quality_on(model, [x])


def test_compress_keeps_a_floor_and_checks_budgets_before_it_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = NETWORKS["residual"]
    model, x = make(), torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)

    def run(budget: sp.Budget, **options: Any) -> Any:
        return sp.compress(model, [x[:20]], budget, example_inputs=x[:2], **compression(**options))

    result = run(sp.Budget(drop=0.2), validation=[(x[20:], y[20:])], test=[(x[20:], y[20:])])
    assert result.measurements["pruned"].accuracy is not None
    assert result.measurements["pruned"].accuracy >= 0.8
    assert result.trials
    monkeypatch.setattr("shaprune.pipeline.compress.score", None)
    with pytest.raises(sp.InputError, match=r"a floor needs options=sp\.options\.Compression\(validation="):
        run(sp.Budget(drop=0.2))
    with pytest.raises(sp.errors.BudgetError, match="cannot be met"):
        run(sp.Budget(macs=0.001))
    for allocation in ("global", "curves"):
        with pytest.raises(sp.errors.BudgetError, match=r"floor 1.5 is above the dense network's measured quality 1,"):
            run(sp.Budget(floor=1.5), validation=[(x[20:], y[20:])], allocation=allocation)
        with pytest.raises(sp.errors.BudgetError, match="the latency budget cannot be met: the smallest network"):
            run(sp.Budget(macs=0.9, latency=1e-6), allocation=allocation)
    narrow, doubles = x[20:, :2], x[20:].double()
    for name, batch in (("train", narrow), ("train", doubles), ("test", narrow), ("test", doubles)):
        with pytest.raises(sp.InputError, match=f"the dense network does not run on {name}: "):
            run(sp.Budget(macs=0.5), **{name: [(batch, y[20:])]})
    with pytest.raises(sp.InputError, match="accuracy needs class indices as targets, and a batch has no targets"):
        run(sp.Budget(macs=0.5), test=[x[20:]])
    with pytest.raises(sp.InputError, match="float32; this one has float64 weights"):
        sp.compress(
            model.double(),
            [doubles],
            sp.Budget(macs=0.5),
            example_inputs=doubles,
            recover=("refit", Finetune(precision="bfloat16")),
        )


# --- the frontier ---


def test_the_frontier_is_the_plan_of_every_size(setting: Setting) -> None:
    _, players, planner, _ = setting
    found = sp.metrics.frontier(planner, "bytes", [0.5, 0.9, 0.7, 0.01], quality=lambda plan: plan.cost["macs"])
    assert [point.size for point in found.points] == [0.9, 0.7, 0.5, 0.01]
    for point in found.points[:3]:
        assert (point.plan.kept == planner(sp.Budget(bytes=point.size)).kept).all()
        assert point.shares["bytes"] <= point.size
        assert point.quality == point.plan.cost["macs"]
    assert found.points[-1].plan.cost["players"] == len(players.groups)  # out of reach: the smallest there is
    assert len(found.summary().splitlines()) == 5
    assert json.loads(json.dumps(found.rows()))[0]["kept"]
    with pytest.raises(sp.InputError, match="give at least one share"):
        sp.metrics.frontier(planner, "macs", [1.5])
    with pytest.raises(sp.InputError, match="did you mean 'bytes'"):
        sp.metrics.frontier(planner, "byte")


# --- the command line ---


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Values of an untrained network on digits, and the options that name it."""
    folder = tmp_path_factory.mktemp("scored")
    torch.manual_seed(0)
    model = MODELS["digits"].factory().eval()
    save_file(model.state_dict(), folder / "dense.safetensors")
    x = torch.randn(4, 1, 8, 8)
    players = sp.find_players(model, x)
    sp.score(model, players, [x], "fidelity", "weight_norm").save(folder / "values.json")
    return folder, ["--model", "digits", "--weights", str(folder / "dense.safetensors"), "--data", "digits"]


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def test_the_plan_command_takes_every_budget(scored: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, network = scored
    out = tmp_path / "a"
    run("plan", folder / "values.json", "--budget", "bytes=100kB", "--budget", "activations=0.8", "--out", out)
    assert Plan.load(out / "plan.json").cost["bytes"] <= 100_000
    search_ = ["--recover", "none", "--batch-size", 2, "--json"]
    found = run("plan", folder / "values.json", *network, "--budget", "drop=0.9", *search_, "--out", tmp_path / "b")
    summary = json.loads(found.stdout)
    assert summary["trials"]
    assert summary["dense"]["quality"] is not None
    made = Plan.load(tmp_path / "b" / "plan.json")
    assert made.cost["players"] == len(made.players.groups)  # an untrained network holds this floor at any size
    late = run("plan", folder / "values.json", "--budget", "latency=0.5", "--out", tmp_path / "c", code=2)
    assert "latency must be measured" in " ".join(late.stderr.split())
    assert set(RESOURCES) | set(MEASURED_RESOURCES) == {f.name for f in sp.Budget.__dataclass_fields__.values()}


def test_a_sweep_prints_and_draws_the_frontier(scored: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = scored
    shown = run("plan", folder / "values.json", "--sweep", "macs", "--out", tmp_path / "sweep").stdout
    rows = json.loads((tmp_path / "sweep" / "frontier.json").read_text())["points"]
    assert len(rows) > 10
    assert all(row["shares"]["macs"] <= row["asked"] for row in rows[:10])
    assert f"{rows[0]['cost']['bytes']:,.0f}" in shown
    assert (tmp_path / "sweep" / "frontier.svg").read_text().startswith("<svg xmlns")
    run("plan", folder / "values.json", "--sweep", "energy", "--out", tmp_path / "energy")
    rows = json.loads((tmp_path / "energy" / "frontier.json").read_text())["points"]
    assert all(row["shares"]["energy"] <= row["asked"] for row in rows[:10])
    run("plan", folder / "values.json", "--budget", "energy=0.5:1,2,3", "--out", tmp_path / "own")
    made = Plan.load(tmp_path / "own" / "plan.json")
    weighed = sum(w * made.cost[part] for w, part in zip((1, 2, 3), ("macs", "bytes", "activations"), strict=True))
    assert made.cost["energy"] == pytest.approx(weighed)
    both = ["--sweep", "macs", "--budget", "macs=0.5"]
    assert "--budget" in run("plan", folder / "values.json", *both, "--out", tmp_path / "x", code=2).stderr


def test_curves_are_measured_once_and_decide_any_budget(scored: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, network = scored
    few = ["--points", 3, "--examples", 20]
    shown = run("sensitivity", folder / "values.json", *network, *few, "--out", tmp_path / "curves").stdout
    assert "loss in fidelity" in shown
    assert (tmp_path / "curves" / "curves.svg").read_text().startswith("<svg xmlns")
    how = ["--allocation", "curves", "--curves", tmp_path / "curves" / "curves.json"]
    run("plan", folder / "values.json", *how, "--budget", "macs=0.4", "--out", tmp_path / "plan")
    made = Plan.load(tmp_path / "plan" / "plan.json")
    assert made.allocation == "curves"
    assert made.cost["macs"] <= 0.4 * made.players.model_macs
