"""How removals are shared out between groups: exact knapsacks, curves, layers, exchanges, cycles."""

from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.networks import NETWORKS
from testkit.options import compression

import shaprune as sp
from shaprune.pipeline.cycles import cycle_budget
from shaprune.pipeline.sensitivity import GroupsGame
from shaprune.planning.curve_allocation import GroupOptions
from shaprune.planning.knapsack import solve_knapsack
from shaprune.planning.limits import Limits
from shaprune.planning.plan import Plan
from shaprune.planning.removal_sequences import removal_sequences
from shaprune.planning.resources import costs
from shaprune.planning.sensitivity_curves import Sensitivity, SensitivityCurve
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Member, Players, number_groups
from shaprune.players.subset import remaining_players
from shaprune.values.result import Values


def values(numbers: list[float]) -> Values:
    array = np.array(numbers, dtype=float)
    return Values(array, np.zeros(len(array)), 1, "test", None, "test", None, None, np.ones(len(array), dtype=np.int64))


def mlp(widths: list[int], *, chained: bool) -> Players:
    """Linear layers of these widths with biases; ``chained``: each reads the last one, else each has its own reader."""
    layers: dict[str, Layer] = {}
    groups: list[tuple[str, list[Member]]] = []
    n_in = 5
    for i, width in enumerate(widths):
        ones = tuple((p,) for p in range(width))
        layers[f"l{i}"] = Layer("linear", n_in, width, 1, 1, True, 1.0, activation=4.0)
        reader = f"l{i + 1}" if chained else f"r{i}"
        layers.setdefault(reader, Layer("linear", width, 2, 1, 1, True, 1.0, activation=4.0))
        groups.append((f"l{i}", [Member(f"l{i}", "out", ones), Member(reader, "in", ones)]))
        n_in = width if chained else 5
        if chained and i + 1 < len(widths):
            del layers[reader]
    totals = [sum(f(x) for x in layers.values()) for f in (_params, _macs, _bytes, _outputs)]
    return Players(number_groups(groups), layers, (), int(totals[0]), totals[1], int(totals[2]), totals[3])


def shortcut() -> Players:
    """a: 5 -> 6, then b: 6 -> 6 with a shortcut around it, which has one group at its inputs and its outputs."""
    ones = tuple((p,) for p in range(6))
    layers = {name: Layer("linear", i, o, 1, 1, True, 1.0) for name, i, o in (("a", 5, 6), ("b", 6, 6), ("c", 6, 2))}
    members = [Member("a", "out", ones), Member("b", "in", ones), Member("b", "out", ones), Member("c", "in", ones)]
    totals = [sum(f(x) for x in layers.values()) for f in (_params, _macs, _bytes)]
    return Players(number_groups([("a", members)]), layers, (), int(totals[0]), totals[1], int(totals[2]))


def _params(layer: Layer) -> float:
    return layer.params(layer.n_in, layer.n_out)


def _macs(layer: Layer) -> float:
    return layer.macs(layer.n_in, layer.n_out)


def _bytes(layer: Layer) -> float:
    return layer.bytes(layer.n_in, layer.n_out)


def _outputs(layer: Layer) -> float:
    return layer.activations(layer.n_in, layer.n_out)


def drawn(players: Players, seed: int) -> tuple[dict[str, Values], Sensitivity]:
    """Random values, and random curves along their rankings that mostly fall."""
    rng = np.random.default_rng(seed)
    scores = {g.name: values(rng.normal(size=len(g)).tolist()) for g in players.groups}
    curves = {}
    for g in players.groups:
        worth = -np.cumsum([0.0, *(rng.exponential(size=len(g)) - 0.2) * rng.lognormal()])
        curves[g.name] = SensitivityCurve(scores[g.name].ranking(), np.arange(len(g) + 1), worth)
    return scores, Sensitivity(curves, "fidelity", 1)


def best_by_force(players: Players, scores: dict[str, Values], curves: Sensitivity, budget: sp.Budget) -> float | None:
    """The least total loss of all widths that meet the budget, one player staying in each group."""
    limits, least = budget.absolute(players), None
    for gone in product(*(range(len(g)) for g in players.groups)):
        kept = np.ones(players.n, dtype=bool)
        for g, n in zip(players.groups, gone, strict=True):
            kept[g.indices[scores[g.name].ranking()[:n]]] = False
        found = costs(budget.weigh(players), kept)
        if all(found[name] <= limit for name, limit in limits.items()):
            loss = loss_of(players, kept, curves)
            least = loss if least is None else min(least, loss)
    return least


def loss_of(players: Players, kept: np.ndarray, curves: Sensitivity) -> float:
    gone = {g.name: int((~kept[g.indices]).sum()) for g in players.groups}
    return float(sum(curves[name].loss(np.array([n]))[0] for name, n in gone.items()))


# --- the knapsack ---


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_the_knapsack_finds_what_enumeration_finds(seed: int, lanes: int, resources: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    shift = rng.choice([0, 3])  # also losses and costs without a negative
    losses = [rng.normal(shift, size=rng.integers(1, 5)) for _ in range(lanes)]
    costs_ = [rng.normal(1 + shift, 1, size=(len(loss), resources)) for loss in losses]
    if whole:  # ties
        losses, costs_ = [loss.round() for loss in losses], [cost.round() for cost in costs_]
    capacity = rng.uniform(-1, lanes * (1 + shift), size=resources).round(1)
    totals = [
        sum(loss[o] for loss, o in zip(losses, options, strict=True))
        for options in product(*(range(len(loss)) for loss in losses))
        if (np.sum([c[o] for c, o in zip(costs_, options, strict=True)], axis=0) <= capacity + 1e-9).all()
    ]
    found = solve_knapsack(losses, costs_, capacity)
    if not totals:
        assert found is None
        return
    assert found is not None
    assert found.gap == 0
    assert found.loss == pytest.approx(min(totals), abs=1e-9)
    assert found.loss == pytest.approx(sum(loss[o] for loss, o in zip(losses, found.options, strict=True)))
    assert (np.sum([c[o] for c, o in zip(costs_, found.options, strict=True)], axis=0) <= capacity + 1e-6).all()


def test_a_knapsack_that_gives_up_states_says_by_how_much_it_may_be_wrong() -> None:
    gaps = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        losses = [rng.normal(size=6) for _ in range(8)]
        costs_ = [rng.normal(1, 1, size=(6, 2)) for _ in range(8)]
        exact = solve_knapsack(losses, costs_, np.array([4.0, 4.0]))
        rough = solve_knapsack(losses, costs_, np.array([4.0, 4.0]), max_states=1)
        assert exact is not None
        assert rough is not None
        assert exact.gap == 0
        assert exact.loss <= rough.loss + 1e-9
        assert rough.loss - rough.gap <= exact.loss + 1e-9
        gaps.append(rough.gap)
    assert max(gaps) > 0


# --- curves ---


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.35, 0.9), st.sampled_from(["macs", "params", "players", "bytes"]))
def test_curves_give_the_least_loss_where_no_layer_lies_between_two_groups(seed: int, share: float, what: str) -> None:
    players = mlp([4, 6, 5], chained=False)
    scores, curves = drawn(players, seed)
    budget = sp.Budget(**{what: share})
    made = sp.plan(sp.Scores(players, scores), budget, "curves", curves=curves)
    assert made.cost[what] <= budget.absolute(players)[what]
    assert loss_of(players, made.kept, curves) == pytest.approx(best_by_force(players, scores, curves, budget))


def test_two_limits_at_once_are_exact_too() -> None:
    players = mlp([4, 6, 5], chained=False)
    for seed in range(20):
        scores, curves = drawn(players, seed)
        budget = sp.Budget(macs=0.6, players=0.7, activations=0.8, energy="0.7:1,50,3")
        made = sp.plan(sp.Scores(players, scores), budget, "curves", curves=curves)
        assert loss_of(players, made.kept, curves) == pytest.approx(best_by_force(players, scores, curves, budget))


def test_along_a_chain_of_layers_curves_meet_the_budget_and_mostly_reach_the_least_loss() -> None:
    """There costs are products of two widths; exchanges at true costs make up for the linearised knapsack."""
    players, reached = mlp([5, 6, 4], chained=True), []
    for seed in range(60):
        scores, curves = drawn(players, seed)
        budget = sp.Budget(macs=float(np.random.default_rng(seed).uniform(0.3, 0.9)))
        made = sp.plan(sp.Scores(players, scores), budget, "curves", curves=curves)
        assert made.cost["macs"] <= budget.absolute(players)["macs"]
        least = best_by_force(players, scores, curves, budget)
        assert least is not None
        assert loss_of(players, made.kept, curves) >= least - 1e-9
        reached.append(loss_of(players, made.kept, curves) <= least + 1e-9)
    assert np.mean(reached) >= 0.95


@pytest.mark.parametrize("name", ["chain", "shortcut", "residual", "depthwise", "grouped"])
def test_what_an_option_adds_is_what_the_whole_network_costs_more(name: str) -> None:
    if name == "chain":
        players = mlp([4, 6, 5], chained=True)
    elif name == "shortcut":
        players = shortcut()
    else:
        make, inputs = NETWORKS[name]
        players = sp.find_players(make(), inputs())
    scores, _ = drawn(players, 0)
    value = np.concatenate([scores[g.name].value for g in players.groups])
    resources = ["macs", "params", "players", "bytes", "activations"]
    lanes = GroupOptions(players, removal_sequences(players, value, Limits()), resources)
    assert lanes.additive == (name == "shortcut")
    now = [len(steps) // 2 for steps in lanes.steps]
    here = costs(players, lanes.kept(now))
    for lane, added in enumerate(lanes.around(now)):
        for option, row in enumerate(added):
            there = costs(players, lanes.kept([*now[:lane], option, *now[lane + 1 :]]))
            assert row.tolist() == pytest.approx([there[name] - here[name] for name in resources])


def test_limits_hold_with_curves_too() -> None:
    players = mlp([8, 12, 9], chained=True)
    scores, curves = drawn(players, 3)
    made = sp.plan(
        sp.Scores(players, scores),
        sp.Budget(macs=0.6),
        "curves",
        curves=curves,
        limits=sp.options.Limits(round_to=4, keep="l2", max_removed={"l0": 0.5}),
    )
    kept = [int(made.kept[g.indices].sum()) for g in players.groups]
    assert kept[0] in (4, 8)
    assert kept[1] % 4 == 0
    assert kept[2] == 9


def test_curves_that_do_not_belong_are_refused() -> None:
    players = mlp([4, 6], chained=True)
    scores, curves = drawn(players, 0)
    other, _ = drawn(players, 1)
    with pytest.raises(sp.InputError, match="'l0' was measured along another ranking"):
        sp.plan(sp.Scores(players, other), sp.Budget(macs=0.5), "curves", curves=curves)
    with pytest.raises(sp.InputError, match=r"'curves' needs curves=sp\.sensitivity"):
        sp.plan(sp.Scores(players, scores), sp.Budget(macs=0.5), "curves")
    with pytest.raises(sp.InputError, match="'global' does not look at curves"):
        sp.plan(sp.Scores(players, scores), sp.Budget(macs=0.5), curves=curves)
    with pytest.raises(sp.InputError, match="'uniform' does not look at layers"):
        sp.plan(sp.Scores(players, scores), sp.Budget(macs=0.5), "uniform", layers=values([1.0, 2.0]))
    with pytest.raises(sp.InputError, match="no curve of group 'l1'"):
        sp.plan(
            sp.Scores(players, scores),
            sp.Budget(macs=0.5),
            "curves",
            curves=Sensitivity({"l0": curves["l0"]}, "fidelity", 1),
        )


def test_a_curve_is_linear_between_its_points_and_starts_at_no_loss() -> None:
    curve = SensitivityCurve(np.arange(8), np.array([0, 4, 8]), np.array([1.0, 0.8, 0.0]))
    assert curve.loss(np.array([0, 2, 4, 6, 8])).tolist() == pytest.approx([0, 0.1, 0.2, 0.6, 1.0])
    with pytest.raises(sp.InputError, match="rise from 0 to all its players"):
        SensitivityCurve(np.arange(8), np.array([0, 4]), np.array([1.0, 0.8]))
    with pytest.raises(sp.InputError, match="a finite worth"):
        SensitivityCurve(np.arange(2), np.array([0, 2]), np.array([1.0, np.nan]))


# --- by value, by layers ---


def test_value_ranks_by_the_value_alone_and_global_by_value_per_cost() -> None:
    players = mlp([2, 2], chained=False)  # a player of either costs 5 + 2 multiply-adds
    wide = mlp([2, 2], chained=True)  # l0: 5 + 2, l1: 2 + 2
    scores = {"l0": values([1.0, 9.0]), "l1": values([0.9, 9.0])}
    assert sp.plan(sp.Scores(players, scores), sp.Budget(players=3), "value").removed == ("l1[0]",)
    assert sp.plan(sp.Scores(wide, scores), sp.Budget(macs=0.99), "value").removed == ("l1[0]",)
    assert sp.plan(sp.Scores(wide, scores), sp.Budget(macs=0.99), "global").removed == ("l0[0]",)


def test_layers_keep_shares_in_proportion_to_their_values() -> None:
    players = mlp([12, 12, 12], chained=False)
    scores = {g.name: values(list(range(12))) for g in players.groups}
    made = sp.plan(sp.Scores(players, scores), sp.Budget(players=21), "shapley-layers", layers=values([4.0, 2.0, 1.0]))
    assert [int(made.kept[g.indices].sum()) for g in players.groups] == [12, 6, 3]
    assert made.kept[-3:].all()  # the most valuable of each group
    none = sp.plan(sp.Scores(players, scores), sp.Budget(players=24), "shapley-layers", layers=values([4.0, -1.0, 4.0]))
    assert [int(none.kept[g.indices].sum()) for g in players.groups] == [11, 1, 12]
    summed = scores | {"l0": values([x * 3.0 for x in range(12)])}
    default = sp.plan(sp.Scores(players, summed), sp.Budget(players=20), "shapley-layers")
    assert [int(default.kept[g.indices].sum()) for g in players.groups] == [12, 4, 4]
    with pytest.raises(sp.InputError, match="layers has 2 values"):
        sp.plan(sp.Scores(players, scores), sp.Budget(players=20), "shapley-layers", layers=values([1.0, 1.0]))


def test_the_game_of_layers_takes_the_least_valuable_share_of_an_absent_group() -> None:
    players = mlp([4, 2], chained=True)
    scores = {"l0": values([3.0, 1.0, 2.0, 4.0]), "l1": values([2.0, 1.0])}
    seen: list[list[int]] = []

    def worth(rows: np.ndarray) -> np.ndarray:
        seen.extend(rows.astype(int).tolist())
        return rows.sum(1).astype(float)

    game = GroupsGame(sp.Game.from_function(worth, 6), players, scores, 0.5)
    assert game(np.array([[True, True], [False, True], [True, False]])).tolist() == [6, 4, 5]
    assert seen == [[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
    found = sp.estimate(game, "exact")
    assert found.value.tolist() == [2, 1]


# --- measured ---


@pytest.fixture(scope="module")
def residual() -> tuple[torch.nn.Module, Players, list[tuple[torch.Tensor, torch.Tensor]], sp.Scores]:
    model, _ = NETWORKS["residual"][0](), None
    x = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        data = [(x, model(x).argmax(1))]
    players = sp.find_players(model, x[:2])
    return (
        model,
        players,
        data,
        sp.score(model, players, data, "fidelity", options=sp.options.Scoring(window=(0.5, 1.0))),
    )


def test_curves_are_the_worth_of_the_pruned_network(residual, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, players, data, scores = residual
    found = sp.sensitivity(model, players, scores, data, points=4)
    quality = sp.metrics.quality_on(model, data, "fidelity")
    for group in players.groups:
        curve = found[group.name]
        assert len(curve.removed) == 5
        for n, worth in list(zip(curve.removed.tolist(), curve.worth.tolist(), strict=True))[1:-1]:
            kept = np.ones(players.n, dtype=bool)
            kept[group.indices[scores[group.name].ranking()[:n]]] = False
            small = sp.prune(model, Plan.from_coalition(players, kept), data[0][0][:2])
            assert quality(small) == pytest.approx(worth, rel=1e-4, abs=1e-6)
    found.save(tmp_path / "curves.json")
    again = Sensitivity.load(tmp_path / "curves.json")
    assert again.to_json() == found.to_json()
    assert again.summary() == found.summary()
    assert all(name in found.summary() for name in found)
    with pytest.raises(sp.InputError, match="at least 1 is needed"):
        sp.sensitivity(model, players, scores, data, points=0)


def test_exchanges_never_make_a_plan_worse_and_stay_within_its_budget(residual) -> None:  # type: ignore[no-untyped-def]
    model, players, data, scores = residual
    game = sp.NetworkGame(model, players, data, "fidelity")
    curves = sp.sensitivity(model, players, scores, data)
    better = 0
    for allocation in ("global", "uniform", "curves"):
        made = sp.plan(
            sp.Scores(players, scores),
            sp.Budget(macs=0.6),
            allocation,
            curves=curves if allocation == "curves" else None,
        )
        found = sp.metrics.refine(made, scores, game, curves=curves, tries=16, exchanges=4)
        assert found.plan.cost["macs"] <= made.budget["macs"]
        assert list(found.worths) == sorted(found.worths)
        assert found.worths[-1] == pytest.approx(float(game(found.plan.kept[None].copy())[0]))
        assert found.n_measured <= 1 + 16 * 4
        better += len(found.worths) > 1
        assert ("refined" in found.plan.allocation) == (len(found.worths) > 1)
    assert better
    with pytest.raises(sp.InputError, match="does not follow these values"):
        sp.metrics.refine(Plan.from_coalition(players, made.kept[::-1].copy()), scores, game)
    with pytest.raises(sp.InputError, match="the game has 8 players"):
        sp.metrics.refine(made, scores, sp.NetworkGame(model, players, data, "fidelity", players.groups[0].name))


# --- cycles ---


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_remaining_players_are_those_found_in_the_pruned_network(name: str) -> None:
    make, inputs = NETWORKS[name]
    model, x = make(), inputs()
    players = sp.find_players(model, x)
    kept, rng = np.ones(players.n, dtype=bool), np.random.default_rng(0)
    for group in players.groups:
        kept[rng.permutation(group.indices)[: len(group) // 2]] = False
    left = remaining_players(players, kept)
    found = sp.find_players(sp.prune(model, Plan.from_coalition(players, kept), x), x)
    for group in found.groups:  # discovery leaves out a group of one player
        if (name, group.name) == ("grouped", "conv1"):
            continue  # where each group of the convolution has one input channel left, it leaves with its outputs
        assert left.group(group.name).members == group.members
    assert {len(left.group(n).indices) for n in {g.name for g in left.groups} - {g.name for g in found.groups}} <= {
        1,
        2 if name == "grouped" else 1,
    }
    assert (left.model_params, left.model_macs) == (found.model_params, found.model_macs)
    assert left.model_activations == found.model_activations


def test_schedules_lead_to_the_budget() -> None:
    players = mlp([10, 10], chained=False)
    budget = sp.Budget(macs=0.25, players=16)
    shares = [cycle_budget(budget, players, k, 2, s).limits for s in ("geometric", "linear") for k in (1, 2)]
    assert shares[0] == {"macs": pytest.approx(0.5), "players": pytest.approx(0.8**0.5)}
    assert shares[2] == {"macs": pytest.approx(0.625), "players": pytest.approx(0.9)}
    assert shares[1] == shares[3] == budget.limits
    with pytest.raises(sp.InputError, match="did you mean 'linear'"):
        cycle_budget(budget, players, 1, 2, "lineal")
    with pytest.raises(sp.InputError, match="drop cannot be approached in cycles"):
        cycle_budget(sp.Budget(drop=0.1), players, 1, 2)


@pytest.mark.filterwarnings("ignore:pruned does")  # so small a network need not be faster
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_cycles_score_the_network_that_is_left(residual, allocation: str) -> None:  # type: ignore[no-untyped-def]
    model, players, data, _ = residual
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = sp.compress(
        model,
        data,
        sp.Budget(macs=0.4),
        example_inputs=data[0][0][:2],
        recover=(),
        options=sp.options.Compression(
            planning=sp.options.Planning(allocation=allocation, cycles=3, schedule="linear")
        ),
    )
    assert result.plan.cost["macs"] <= 0.4 * players.model_macs
    assert sum(p.numel() for p in result.model.parameters()) == result.plan.cost["params"]
    direct = sp.prune(model, result.plan, data[0][0][:2])  # nothing was recovered: both are cut from the dense one
    with torch.no_grad():
        assert torch.allclose(direct(data[0][0]), result.model(data[0][0]), atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    once = sp.compress(
        model,
        data,
        sp.Budget(macs=0.4),
        example_inputs=data[0][0][:2],
        recover=(),
        options=sp.options.Compression(planning=sp.options.Planning(allocation=allocation)),
    )
    assert result.plan.removed != once.plan.removed


def test_what_does_not_go_with_cycles_is_refused_before_any_work(residual) -> None:  # type: ignore[no-untyped-def]
    model, _, data, _ = residual
    run = partial(sp.compress, model, data, example_inputs=data[0][0][:2])
    with pytest.raises(sp.InputError, match="'curves' measures the dense network"):
        run(sp.Budget(macs=0.5), **compression(allocation="curves", cycles=2))
    with pytest.raises(sp.InputError, match="latency cannot be approached in cycles"):
        run(sp.Budget(latency=0.5), **compression(cycles=2))
    with pytest.raises(sp.InputError, match="cycles is 0"):
        run(sp.Budget(macs=0.5), **compression(cycles=0))
    with pytest.raises(sp.InputError, match="did you mean 'linear'"):
        run(sp.Budget(macs=0.5), **compression(cycles=2, schedule="liner"))
