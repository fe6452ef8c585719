"""The curves benchmark: curves against physically pruned networks, contenders at equal price, study and command."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from testkit.options import scoring
from torch import nn
from typer.testing import CliRunner

import shaprune as sp
from shaprune.builtin.datasets import load_dataset
from shaprune.builtin.demo_training import train
from shaprune.builtin.splits import Dataset, Split
from shaprune.cli.app import app
from shaprune.criteria.registry import CRITERIA
from shaprune.experiments.contenders import CONTENDERS, KINDS, Contest, choose, players_of
from shaprune.experiments.curves_study import (
    SCALED,
    Entry,
    curves_study,
    joined,
    measured,
    points_of,
    removal_order,
    score_all,
    summary,
)
from shaprune.experiments.removal_curves import (
    Curve,
    band,
    curve_of,
    mean_and_reach,
    quality,
    removal_curves,
)
from shaprune.network.forward.calibration import Calibration
from shaprune.report.figures.curve_bands import curve_bands_figure, names_to_draw
from shaprune.values.concepts import CONCEPTS
from shaprune.values.estimate import METHODS
from shaprune.values.rescoring import MODES

pytestmark = pytest.mark.usefixtures("one_thread")


def removal_curve(model: nn.Module, players: sp.Players, order: Any, data: Any, **options: Any) -> Curve:
    return removal_curves(model, players, np.asarray(order)[None], data, **options)[0]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", limit=300)


@pytest.fixture(scope="module")
def model(digits: Dataset) -> nn.Module:
    """Two layers of players, trained for a moment: right more often than not."""
    torch.manual_seed(0)
    layers = {"flatten": nn.Flatten(), "fc1": nn.Linear(64, 8), "relu1": nn.ReLU(), "fc2": nn.Linear(8, 6)}
    network = nn.Sequential(OrderedDict(layers | {"relu2": nn.ReLU(), "fc3": nn.Linear(6, 10)}))
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(digits.train.inputs), digits.train.targets).backward()
        optimiser.step()
    return network.eval()


@pytest.fixture(scope="module")
def players(model: nn.Module, digits: Dataset) -> sp.Players:
    return sp.find_players(model, digits.test.inputs[:2])


def by_hand(model: nn.Module, data: Split) -> tuple[float, float]:
    with torch.no_grad():
        outputs = model(data.inputs)
    right = (outputs.argmax(1) == data.targets).double().mean()
    return float(right), float(nn.functional.cross_entropy(outputs, data.targets))


def curve(accuracy: list[float], loss: list[float], n_players: int = 4) -> Curve:
    return Curve(np.arange(len(accuracy)), n_players, np.array(accuracy), np.array(loss), 10)


# -- curves ----------------------------------------------------------------------------------------------------------


def test_a_point_is_the_quality_of_the_network_cut_so_far(
    model: nn.Module, players: sp.Players, digits: Dataset
) -> None:
    order = np.array([9, 2, 13, 0, 8, 5])  # of both groups
    found = removal_curve(model, players, order, digits.test)
    assert found.removed.tolist() == list(range(7))
    for count in found.removed:
        kept = np.ones(players.n, dtype=bool)
        kept[order[:count]] = False
        plan = sp.Plan.from_coalition(players, kept)
        cut = sp.prune(model, plan, digits.test.inputs[:2]) if count else model
        right, loss = by_hand(cut, digits.test)
        assert found.accuracy[count] == pytest.approx(right, abs=1e-9)
        assert found.loss[count] == pytest.approx(loss, rel=1e-4)
        assert quality(cut, digits.test, batch_size=70) == pytest.approx((right, loss), rel=1e-4)
    assert found.n_examples == len(digits.test) == 300
    assert found.accuracy[0] > 0.7


def test_players_of_one_group_leave_while_the_others_stay(
    model: nn.Module, players: sp.Players, digits: Dataset
) -> None:
    fc2 = players.groups[1]
    one = removal_curve(model, players, fc2.indices[::-1], digits.test, group="fc2", points=[0, 2, 6])
    whole = removal_curve(model, players, fc2.indices[::-1], digits.test)
    assert (one.n_players, whole.n_players) == (6, 14)
    assert one.removed.tolist() == [0, 2, 6]
    assert one.loss == pytest.approx(whole.loss[[0, 2, 6]])
    assert one.share.tolist() == [0, 1 / 3, 1]
    alone = players_of(players, ["fc2"])
    assert removal_curve(model, alone, np.arange(6)[::-1], digits.test).loss[[0, 2, 6]] == pytest.approx(one.loss)


def test_several_orders_at_once_are_those_one_by_one(model: nn.Module, players: sp.Players, digits: Dataset) -> None:
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(players.n) for _ in range(3)] + [np.arange(players.n)])
    calibration = Calibration(model, digits.test.batches())
    points = [0, 1, 7, 14]
    for order, found in zip(orders, removal_curves(model, players, orders, calibration, points=points), strict=True):
        one = removal_curve(model, players, order, digits.test, points=points)
        assert found.accuracy.tolist() == one.accuracy.tolist()
        assert found.loss == pytest.approx(one.loss, rel=1e-5)


@pytest.mark.parametrize(
    ("order", "options", "message"),
    [
        ([0, 14], {}, "player 14 of 14"),
        ([0, -1], {}, "player -1 of 14"),
        ([3, 3], {}, "names a player twice"),
        ([9, 0], {"group": "fc2"}, "player 0 is to leave and is of another group"),
        ([0.5, 1.0], {}, "whole numbers"),
        ([0, 1], {"points": [0, 3]}, "between 0 and 2"),
        ([0, 1], {"points": [1, 1]}, "that rise"),
        ([0, 1], {"points": []}, "that rise"),
        ([0, 1], {"group": "fc22"}, "did you mean 'fc2'"),
    ],
)
def test_orders_that_mean_nothing_are_refused(
    model: nn.Module,
    players: sp.Players,
    digits: Dataset,
    order: list[float],
    options: dict,  # type: ignore[type-arg]
    message: str,
) -> None:
    with pytest.raises(sp.InputError, match=message):
        removal_curve(model, players, order, digits.test, **options)


def test_the_area_is_the_mean_height() -> None:
    line = curve([1.0, 0.75, 0.5, 0.25, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0])
    assert (line.area_accuracy, line.area_loss) == (0.5, 2.0)
    uneven = Curve(np.array([0, 1, 4]), 4, np.array([1.0, 1.0, 0.0]), np.array([0.0, 2.0, 2.0]), 10)
    assert uneven.area_accuracy == pytest.approx(0.25 * 1 + 0.75 * 0.5)
    assert uneven.area_loss == pytest.approx(0.25 * 1 + 0.75 * 2)
    flat = Curve(np.array([0, 2]), 4, np.array([0.9, 0.9]), np.array([0.3, 0.3]), 10)  # half of the players only
    assert (flat.area_accuracy, flat.area_loss) == pytest.approx((0.9, 0.3))
    assert curve([0.8], [0.4]).area_loss == 0.4
    assert line.at(0.5) == (0.5, 2.0)
    with pytest.raises(sp.InputError, match="no point at 3 of 4"):
        uneven.at(0.7)
    assert json.loads(json.dumps(line.to_json()))["area_loss"] == 2.0


def test_a_curve_of_networks_that_change_on_the_way() -> None:
    made = curve_of([0, 2, 3], [(1.0, 0.1), (0.5, 0.7), (0.25, 1.9)], n_players=4, n_examples=10)
    assert (made.accuracy.tolist(), made.loss.tolist()) == ([1.0, 0.5, 0.25], [0.1, 0.7, 1.9])
    with pytest.raises(sp.InputError, match="between 0 and 4"):
        curve_of([0, 5], [(1.0, 0.1), (0.5, 0.7)], n_players=4, n_examples=10)


def test_a_band_is_the_interval_of_the_mean_over_seeds() -> None:
    curves = [curve([0.9, a], [0.1, b]) for a, b in ((0.5, 1.0), (0.7, 0.4), (0.9, 0.1))]
    mean, low, high = band(curves)
    assert mean.accuracy.tolist() == pytest.approx([0.9, 0.7])
    reach = 4.302653 * 0.2 / np.sqrt(3)  # Student's t, two degrees of freedom
    assert low.accuracy == pytest.approx([0.9, 0.7 - reach], rel=1e-5)
    assert high.accuracy == pytest.approx([0.9, 1.0], rel=1e-5)  # 1.197 is no accuracy
    assert high.loss[1] == pytest.approx(0.5 + 4.302653 * np.std([1.0, 0.4, 0.1], ddof=1) / np.sqrt(3), rel=1e-5)
    assert low.loss[1] == 0.0
    one = band(curves[:1])
    assert all(c.loss.tolist() == curves[0].loss.tolist() for c in one)
    with pytest.raises(sp.InputError, match="at least one"):
        band([])
    with pytest.raises(sp.InputError, match="different points"):
        band([curves[0], curve([0.9], [0.1])])
    with pytest.raises(sp.InputError, match=r"confidence is 1\.5"):
        band(curves, 1.5)


@pytest.mark.parametrize(
    ("rows", "confidence", "quantile"),
    [(2, 0.95, 12.706205), (5, 0.95, 2.776445), (4, 0.99, 5.840909), (30, 0.9, 1.699127)],
)
def test_the_reach_follows_students_table(rows: int, confidence: float, quantile: float) -> None:
    drawn_ = np.random.default_rng(0).normal(size=(rows, 2))
    mean, reach = mean_and_reach(drawn_, confidence)
    assert mean.tolist() == pytest.approx(drawn_.mean(0).tolist())
    assert reach == pytest.approx(quantile * drawn_.std(0, ddof=1) / np.sqrt(rows), rel=1e-5)


# -- contenders ------------------------------------------------------------------------------------------------------


def test_every_registered_thing_is_a_contender() -> None:
    of_kind = {kind: {name for name, c in CONTENDERS.items() if c.kind == kind} for kind in KINDS}
    assert of_kind["rival"] == set(CRITERIA)
    assert {name.partition(":")[0] for name in of_kind["concept"]} == set(CONCEPTS) - {"semivalue"}  # a user's own
    assert set(METHODS) - {"permutation"} <= of_kind["estimator"]
    assert {name.partition(",")[0] for name in of_kind["mode"]} == set(MODES) - {"one-shot"}
    assert "mean+2std" in of_kind["aggregation"]
    assert all(name == contender.name for name, contender in CONTENDERS.items())


def test_contenders_are_chosen_by_name_and_by_kind() -> None:
    assert choose(None) == list(CONTENDERS.values())
    picked = choose(["taylor", "mode", "iterated"])
    assert [c.name for c in picked if c.kind == "rival"] == ["taylor"]
    assert {c.name for c in picked if c.kind == "mode"} == {c.name for c in CONTENDERS.values() if c.kind == "mode"}
    with pytest.raises(sp.InputError, match="did you mean 'taylor'"):
        choose(["tailor"])
    with pytest.raises(sp.InputError, match="no contender is named"):
        choose([])


def test_everybody_pays_the_same_at_most(model: nn.Module, players: sp.Players, digits: Dataset) -> None:
    calibration = Calibration(model, digits.held_out.take(20).batches())
    contest = Contest(model, players_of(players, ["fc1"]), calibration)
    assert contest.price == 20 * sum(range(2, 10))
    entries, left_out = score_all(contest, choose(None), seed=1)
    for name, entry in entries.items():
        kind = entry.contender.kind
        assert sorted(entry.values.ranking().tolist()) == list(range(8))
        if name == "exact":  # may cost more: it is the reference
            assert entry.values.n_evaluations == 20 * 2**8
        elif kind == "rival":
            assert entry.values.n_evaluations in (0, 20)
        else:
            assert entry.values.n_evaluations <= contest.price, name
        if kind == "concept":
            assert entry.values.n_evaluations > 0.6 * contest.price, name
    assert {"shapley", "exact", "greedy-backward", "iterated", "mean+2std", "taylor", "random"} <= set(entries)
    assert set(left_out) <= {"bn_scale", *METHODS}
    assert "no batch-norm" in left_out["bn_scale"]
    assert entries["partial"].values.options["k"] == 2  # 1 + 8 + 28 of 44 coalitions
    coarse = Contest(model, players_of(players, ["fc1"]), calibration, step=4)
    assert coarse.price == 20 * (9 + 5)
    assert CONTENDERS["iterated"].values(coarse).diagnostics["rounds"] == 2
    assert CONTENDERS["shapley"].values(Contest(model, coarse.players, calibration, budget=180)).n_evaluations == 180


def test_exact_values_of_many_players_are_left_out(model: nn.Module, players: sp.Players, digits: Dataset) -> None:
    calibration = Calibration(model, digits.held_out.take(5).batches())
    _, left_out = score_all(Contest(model, players, calibration), choose(["exact"]))
    assert "14 players cost 2^14 coalitions" in left_out["exact"]


def test_a_contender_is_what_the_registries_make_of_its_name(
    model: nn.Module, players: sp.Players, digits: Dataset
) -> None:
    batches = digits.held_out.take(20).batches()
    fc1 = players_of(players, ["fc1"])
    contest = Contest(model, fc1, Calibration(model, batches), "margin", step=2)
    how = {"max_evaluations": contest.price, "seed": 3, "progress": False}
    for name, options in {
        "banzhaf:0.7": {"concept": "banzhaf:0.7"},
        "building": {"mode": "building", "per_round": 2},
        "iterated, sizes 0.5 to 1": {"mode": "iterated", "per_round": 2, "window": (0.5, 1.0)},
        "mean+2std": {"aggregate": "mean+2std"},
    }.items():
        scores = sp.score(model, players, batches, "margin", **how, **scoring(**{"window": (0.0, 1.0), **options}))
        assert CONTENDERS[name].values(contest, 3).value.tolist() == scores["fc1"].value.tolist(), name
    taylor = sp.score(model, players, batches, "margin", "taylor", progress=False)
    assert CONTENDERS["taylor"].values(contest).value.tolist() == taylor["fc1"].value.tolist()
    together = CONTENDERS["taylor"].values(Contest(model, players, contest.calibration, "margin"))
    assert together.value.tolist() == [*taylor["fc1"].value, *taylor["fc2"].value]
    assert together.n_evaluations == 20  # every example is pushed once for both groups


# -- the study -------------------------------------------------------------------------------------------------------


def entry(value: list[float], name: str = "shapley", paid: int = 7) -> Entry:
    n = len(value)
    values = sp.Values(
        np.array(value), np.ones(n), paid, "permutation", 0.0, "default", 1.0, 0.0, np.ones(n, dtype=np.int64)
    )
    return Entry(CONTENDERS[name], values, seconds=2.0)


def test_values_of_groups_side_by_side_make_one_order_that_spares_the_best_of_each(players: sp.Players) -> None:
    fc1, fc2 = [8.0, 1, 2, 3, 4, 5, 6, 7], [0.5, 0.1, 0.2, 0.3, 0.4, 9]
    whole = joined(
        players, {"fc1": {"shapley": entry(fc1)}, "fc2": {"shapley": entry(fc2), "exact": entry(fc2, "exact")}}
    )
    assert list(whole) == ["shapley"]
    assert whole["shapley"].values.value.tolist() == fc1 + fc2
    assert (whole["shapley"].values.n_evaluations, whole["shapley"].seconds) == (14, 4.0)
    order = removal_order(players, np.array([0.8, 1, 2, 3, 4, 5, 6, 7, 0.5, 0.1, 0.2, 0.3, 0.4, 0.45]))
    assert order.tolist() == [9, 10, 11, 12, 13, 0, 1, 2, 3, 4, 5, 6, 8, 7]  # 8 is the best of fc2, 7 of fc1
    assert removal_order(players_of(players, ["fc2"]), np.array(fc2)).tolist() == [1, 2, 3, 4, 0, 5]


def test_rivals_without_a_unit_are_scaled_by_group_and_counted_once(players: sp.Players) -> None:
    fc1, fc2 = [10.0] * 7 + [90.0], [0.1] * 5 + [0.7]
    for name in ("weight_norm", "taylor"):
        whole = joined(players, {"fc1": {name: entry(fc1, name)}, "fc2": {name: entry(fc2, name)}})[name].values
        expected = np.array([0.5] * 7 + [4.5] + [0.5] * 5 + [3.5]) if name in SCALED else np.array(fc1 + fc2)
        assert whole.value == pytest.approx(expected)
        assert whole.n_evaluations == 7
    assert set(SCALED) <= set(CRITERIA)


def test_points_hold_the_shares_of_the_tables() -> None:
    assert points_of(8) == list(range(9))
    points = points_of(50)
    assert {0, 25, 35, 40, 45, 50} <= set(points)
    assert points == sorted(set(points))
    assert len(points_of(1000, most=5)) == 8


def test_a_summary_says_mean_reach_and_every_network(model: nn.Module, players: sp.Players, digits: Dataset) -> None:
    fc2 = players_of(players, ["fc2"])
    runs = [
        measured({"exact": entry(worst, "exact"), "shapley": entry(worst[::-1])}, model, fc2, digits.test)
        for worst in ([6.0, 5, 4, 3, 2, 1], [5.0, 6, 4, 3, 2, 1])
    ]
    found = summary(runs)
    assert set(found) == {"exact", "shapley"}
    areas = [row["area_loss"]["mean"] for row in found.values()]
    assert areas == sorted(areas)
    row = found["shapley"]
    by_network = [run["shapley"].curve.area_loss for run in runs]
    assert row["area_loss"]["by_network"] == by_network
    assert row["area_loss"]["mean"] == pytest.approx(np.mean(by_network))
    assert row["area_loss"]["reach"] == pytest.approx(12.7062 * abs(by_network[0] - by_network[1]) / 2, rel=1e-4)
    assert row["accuracy_at"]["0.5"]["by_network"] == [run["shapley"].curve.accuracy[3] for run in runs]
    assert (row["kind"], row["n_evaluations"], row["curve"]["n_players"]) == ("concept", 7, 6)
    assert summary(runs[:1])["shapley"]["area_loss"]["reach"] is None
    assert names_to_draw(found | {"random": {**row, "kind": "rival"}})["random"] == "random"
    better = {**row, "area_loss": {"mean": 0.0}}
    assert names_to_draw({"worse": row, "better": better, "rival": {**row, "kind": "rival"}}) == {
        "concept": "better",
        "rival": "rival",
    }
    assert curve_bands_figure({"fc2": found, "again": found}).startswith("<?xml")


def small_study(digits: Dataset, **options: object) -> dict:  # type: ignore[type-arg]
    contenders = choose(["shapley", "iterated", "weight_norm", "bn_scale", "random"])
    how = {"networks": 1, "examples": 20, "test_examples": 40, "step": 0.5, "layers": ["fc1", "conv3"], **options}
    return curves_study(digits, "digits", contenders, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def short_recipe() -> object:
    """Networks of the study train for one epoch only."""
    from dataclasses import replace

    from shaprune.builtin import demo_recipes

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo_recipes.RECIPES, "digits", replace(demo_recipes.RECIPES["digits"], epochs=1))
        yield


@pytest.mark.usefixtures("short_recipe")
def test_a_study_is_reproducible_and_says_who_was_left_out(digits: Dataset) -> None:
    said: list[str] = []
    found, again, other = (small_study(digits, seed=seed, say=said.append) for seed in (4, 4, 5))
    assert json.dumps(found["layers"]["fc1"]["shapley"]["area_loss"]) == json.dumps(
        again["layers"]["fc1"]["shapley"]["area_loss"]
    )
    assert found["network_wide"]["iterated"]["curve"] == again["network_wide"]["iterated"]["curve"]
    assert found["networks"][0]["test_loss"] != other["networks"][0]["test_loss"]
    assert list(found["layers"]) == ["conv3", "fc1"]
    assert set(found["layers"]["conv3"]) == {"shapley", "iterated", "weight_norm", "bn_scale", "random"}
    assert set(found["layers"]["fc1"]) == set(found["network_wide"]) == {"shapley", "iterated", "weight_norm", "random"}
    assert list(found["left_out"]) == ["bn_scale on fc1"]
    assert found["network_wide"]["shapley"]["curve"]["n_players"] == 128
    assert found["max_evaluations"] == {"conv3": 20 * (65 + 33), "fc1": 20 * (65 + 33)}
    assert any(line.startswith("network 1 of 1") for line in said)
    json.dumps(found, allow_nan=False)


@pytest.mark.usefixtures("short_recipe")
def test_one_group_has_no_network_wide_order_and_none_but_the_first_play_unasked(digits: Dataset) -> None:
    contenders = choose(["random"])
    assert small_study(digits, layers=["fc1"])["network_wide"] is None
    found = curves_study(digits, "digits", contenders, networks=1, examples=5, test_examples=5)
    assert list(found["layers"]) == ["conv2", "conv3", "fc1"]


@pytest.mark.usefixtures("short_recipe")
def test_a_study_scores_on_held_out_examples_and_measures_on_test_examples(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def noted(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Calibration:
        seen.append(torch.cat([inputs for inputs, _ in batches]))
        return Calibration(model, batches)

    monkeypatch.setattr("shaprune.experiments.curves_study.Calibration", noted)
    small_study(digits, layers=["fc1"])
    assert len(seen) == 2
    assert torch.equal(seen[0], digits.held_out.inputs[:20])
    assert torch.equal(seen[1], digits.test.inputs[:40])


@pytest.mark.parametrize("option", ["networks", "examples", "test_examples"])
def test_a_study_of_nothing_is_refused(digits: Dataset, option: str) -> None:
    with pytest.raises(sp.InputError, match=f"{option} is 0"):
        small_study(digits, **{option: 0})


@pytest.mark.usefixtures("short_recipe")
def test_training_is_a_matter_of_the_seed_alone(digits: Dataset) -> None:
    made = []
    for state, seed in ((11, 1), (12, 1), (12, 2)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        made.append(train("digits", digits, seed=seed).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    one, again, other = made
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["fc1.weight"], other["fc1.weight"])
    with pytest.raises(sp.InputError, match="did you mean 'lenet5'"):
        train("lenet", digits)


# -- the command -----------------------------------------------------------------------------------------------------

RUN = ["bench", "curves", "--seeds", "1", "--layer", "fc1", "--examples", "10", "--test-examples", "20"]


@pytest.mark.usefixtures("short_recipe")
def test_the_command_writes_its_numbers_and_a_figure(tmp_path: Path) -> None:
    out = tmp_path / "curves"
    run = [*RUN, "--only", "taylor", "--only", "shapley", "--out", str(out), "--json"]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.output
    answer, written = json.loads(done.stdout), json.loads((out / "curves.json").read_text())
    assert answer["artifacts"] == {"json": str(out / "curves.json"), "svg": str(out / "curves.svg")}
    assert {k: v for k, v in answer.items() if k != "artifacts"} == written
    assert set(written["layers"]["fc1"]) == {"taylor", "shapley"}
    assert "<svg" in (out / "curves.svg").read_text()
    assert CliRunner().invoke(app, run).exit_code == 2  # not empty
    shown = CliRunner().invoke(app, [*run[:-1], "--overwrite"])
    assert shown.exit_code == 0
    assert "area, loss" in shown.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "tailor"], "did you mean 'taylor'"),
        (["--data", "cifar10:."], "digits or mnist:DIR"),
        (["--arch", "lenet5"], "lenet5 is not for digits"),
        (["--worth", "accurracy"], "did you mean 'accuracy'"),
        (["--seeds", "0"], "seeds"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(tmp_path: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, [*RUN, "--out", str(tmp_path / "curves"), *options])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "curves").exists()
