"""The way down: for every budget the plan of `sp.plan`, with its costs to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from testkit.reported import Residual, made_up

import shaprune as sp
from shaprune.planning.budget_path import BudgetPath, budget_path, costs_along_path
from shaprune.planning.limits import Limits
from shaprune.planning.resources import costs
from shaprune.planning.sensitivity_curves import Sensitivity, SensitivityCurve

ALLOCATIONS = ("global", "value", "uniform", "shapley-layers")


@pytest.fixture(scope="module")
def players() -> sp.Players:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sp.find_players(Residual().eval(), torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize("within", [Limits(), Limits(min_width=2, round_to=2, max_removed={"inner": 0.5})])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("resource", ["macs", "params", "players", "bytes", "activations", "energy"])
def test_every_budget_gets_the_plan_of_sp_plan(
    players: sp.Players, resource: str, allocation: str, within: Limits
) -> None:
    scores = made_up(players)
    found = budget_path(players, scores, resource, allocation, within=within)
    dense, met = found.costs[resource][0], 0
    for share in np.linspace(0.02, 0.98, 33).tolist():
        if share * dense < found.costs[resource][-1]:
            continue
        theirs = sp.plan(
            sp.Scores(players, scores),
            sp.Budget(**{resource: share}),
            allocation,
            limits=sp.options.Limits(
                min_width=within.min_width, round_to=within.round_to, max_removed=within.max_removed
            ),
        )
        assert found.plan(resource, share * dense).to_json() == theirs.to_json()
        met += 1
    assert met > 5


def test_costs_along_the_way_are_those_of_each_coalition(players: sp.Players) -> None:
    found = budget_path(players, made_up(players), "params")
    assert len(found.steps) > 10
    for k in range(len(found.steps) + 1):
        assert {name: cost[k] for name, cost in found.costs.items()} == costs(players, found.kept(k))
        gone = [int((~found.kept(k)[g.indices]).sum()) for g in players.groups]
        assert found.gone()[k].tolist() == gone
    assert set(costs_along_path(replace(players, model_bytes=0), found.steps)) == {"macs", "params", "players"}


def test_a_budget_that_is_not_reached_is_refused(players: sp.Players) -> None:
    found = budget_path(players, made_up(players))
    with pytest.raises(sp.InputError, match="is the least"):
        found.plan("macs", 1)
    with pytest.raises(sp.InputError, match="decides anew"):
        budget_path(players, made_up(players), allocation="curves")


def test_the_predicted_worth_is_what_is_left_of_the_dense_networks(players: sp.Players) -> None:
    scores = made_up(players)
    curves = {
        name: SensitivityCurve(v.ranking(), np.array([0, v.n]), np.array([0.9, 0.9 - 0.1 * v.n]))
        for name, v in scores.items()
    }  # one tenth per player
    found: BudgetPath = budget_path(players, scores)
    predicted = found.predicted(Sensitivity(curves, "fidelity", 10))
    worst = 0.9 - 0.1 * max(v.n for v in scores.values())
    shares = np.prod(1 - 0.1 * found.gone() / (0.9 - worst), axis=1)
    np.testing.assert_allclose(predicted, worst + (0.9 - worst) * shares, rtol=1e-9)
    assert predicted[1] == pytest.approx(0.8)  # a single loss is itself
    assert (np.diff(predicted) <= 1e-12).all()
    assert predicted.min() >= worst - 1e-12


def test_the_predicted_worth_is_never_outside_of_what_was_measured(players: sp.Players) -> None:
    scores = made_up(players)
    ends = (0.1, 0.2, 0.97, 0.3)  # of an accuracy of .95; one group does harm
    curves = {
        name: SensitivityCurve(v.ranking(), np.array([0, v.n]), np.array([0.95, ends[i % 4]]))
        for i, (name, v) in enumerate(scores.items())
    }
    predicted = budget_path(players, scores).predicted(Sensitivity(curves, "accuracy", 10))
    assert predicted[0] == pytest.approx(0.95)
    assert predicted.min() >= 0.1 - 1e-12
    assert predicted.max() <= 0.97 + 1e-12


@pytest.mark.parametrize("spoil", ["nan", "missing"])
def test_values_that_do_not_fit_are_refused(players: sp.Players, spoil: str) -> None:
    scores = made_up(players)
    by_group = dict(scores.by_group)
    name = players.groups[0].name
    if spoil == "missing":
        del by_group[name]
    else:
        value = by_group[name].value.copy()
        value[1] = np.nan
        by_group[name] = replace(by_group[name], value=value)
    with pytest.raises(sp.InputError, match=name):
        budget_path(players, sp.Scores(players, by_group, "fidelity"))


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_fewer_steps_meet_the_same_limits(players: sp.Players, allocation: str) -> None:
    whole = budget_path(players, made_up(players), "macs", allocation)
    exact = np.array([players.n - 5, players.n - 2]) / players.n  # shares that a number of players meets to the bit
    shares, resources = np.sort([0.61, 0.7, *exact, 1.0]), ("macs", "params", "players")
    fewer = whole.at(shares, resources)
    assert 2 < len(fewer.steps) < len(whole.steps) <= players.n or allocation == "uniform"
    assert len(fewer.steps) <= len(shares) * len(resources)
    for resource in resources:
        dense, least = whole.costs[resource][[0, -1]]
        for limit in shares[shares * dense >= least] * dense:
            assert fewer.plan(resource, limit).to_json() == whole.plan(resource, limit).to_json()
        assert fewer.costs[resource][-1] == least
    for name, cost in fewer.costs.items():
        assert cost[-2] == costs(players, fewer.kept(len(fewer.steps) - 1))[name]
