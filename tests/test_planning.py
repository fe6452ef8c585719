"""Plans: budgets are met with as few removals as possible, and what cannot be done is said."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shaprune.errors import InputError
from shaprune.network.layers import Layer
from shaprune.network.players import Member, Players, number_groups
from shaprune.planning import Budget, Plan, plan
from shaprune.values.result import Values


def chain_of_two() -> Players:
    """Linear a: 8 -> 4, b: 4 -> 6, c: 6 -> 2 with biases; players: the 4 outputs of a and the 6 of b."""
    layers = {
        "a": Layer("linear", 8, 4, 1, 1, True, 1.0),
        "b": Layer("linear", 4, 6, 1, 1, True, 1.0),
        "c": Layer("linear", 6, 2, 1, 1, True, 1.0),
    }
    groups = number_groups(
        [
            (
                "a",
                [Member("a", "out", tuple((i,) for i in range(4))), Member("b", "in", tuple((i,) for i in range(4)))],
            ),
            (
                "b",
                [Member("b", "out", tuple((i,) for i in range(6))), Member("c", "in", tuple((i,) for i in range(6)))],
            ),
        ]
    )
    return Players(groups, layers, (), 8 * 4 + 4 + 4 * 6 + 6 + 6 * 2 + 2, 8 * 4 + 4 * 6 + 6 * 2)


def values(numbers: list[float]) -> Values:
    array = np.array(numbers, dtype=float)
    ones = np.ones(len(array), dtype=np.int64)
    return Values(array, np.zeros(len(array)), 1, "test", None, "test", None, None, ones)


SCORES = {"a": values([4.0, 1.0, 3.0, 2.0]), "b": values([0.1, 5.0, 0.2, 6.0, 0.3, 7.0])}


def test_costs_of_single_players_and_of_coalitions_are_those_derived_by_hand() -> None:
    players = chain_of_two()
    assert players.n == 10
    assert players.names[:5] == ("a[0]", "a[1]", "a[2]", "a[3]", "b[0]")
    # a player of a: 8 weights + 1 bias in a, 6 weights in b; one of b: 4 weights + 1 bias in b, 2 weights in c
    assert players.params.tolist() == [15] * 4 + [7] * 6
    assert players.macs.tolist() == [14.0] * 4 + [6.0] * 6
    kept = np.array([True, True, False, False] + [True] * 3 + [False] * 3)
    assert players.cost(kept) == ((8 * 2 + 2) + (2 * 3 + 3) + (3 * 2 + 2), 8 * 2 + 2 * 3 + 3 * 2)


def test_global_removes_the_least_valuable_of_all_groups_and_as_few_as_the_budget_needs() -> None:
    result = plan(chain_of_two(), SCORES, Budget(players=0.6))
    assert result.removed == ("a[1]", "b[0]", "b[2]", "b[4]")
    assert result.cost["players"] == 6
    assert plan(chain_of_two(), SCORES, Budget(players=7)).removed == ("b[0]", "b[2]", "b[4]")


def test_global_weighs_a_value_against_what_it_costs_of_the_budget() -> None:
    """A player of a costs 14 multiply-adds and one of b 6: at equal value a's leave first, harmful ones before all."""
    equal = {"a": values([1.0, 1.0, 1.0, 2.5]), "b": values([1.0, 1.0, 1.0, 1.0, 1.0, -0.1])}
    assert plan(chain_of_two(), equal, Budget(macs=0.75)).removed == ("a[0]", "b[5]")
    assert plan(chain_of_two(), equal, Budget(macs=0.3)).removed[:3] == ("a[0]", "a[1]", "a[2]")
    assert plan(chain_of_two(), equal, Budget(players=9)).removed == ("b[5]",)


def test_uniform_removes_the_same_share_of_every_group() -> None:
    result = plan(chain_of_two(), SCORES, Budget(players=0.5), "uniform")
    assert result.removed == ("a[1]", "a[3]", "b[0]", "b[2]", "b[4]")


def test_several_limits_are_all_met() -> None:
    players = chain_of_two()
    result = plan(players, SCORES, Budget(players=0.9, macs=0.5, params=70))
    assert result.cost["players"] <= 9
    assert result.cost["macs"] <= 0.5 * players.model_macs
    assert result.cost["params"] <= 70
    one_less = result.kept.copy()
    last = max(np.flatnonzero(~result.kept), key=lambda i: np.concatenate([SCORES["a"].value, SCORES["b"].value])[i])
    one_less[last] = True
    _, macs = players.cost(one_less)
    assert macs > 0.5 * players.model_macs  # the last removal was needed


def test_one_player_stays_in_every_group_unless_told_otherwise() -> None:
    scores = {"a": values([-1.0, -2.0, -3.0, -4.0]), "b": values([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])}
    players = chain_of_two()
    assert plan(players, scores, Budget(players=0.5)).kept[:4].sum() == 1
    assert plan(players, scores, Budget(players=0.5)).kept[0]  # the best of its group
    assert plan(players, scores, Budget(players=0.5), min_players=0).kept[:4].sum() == 0
    assert plan(players, scores, Budget(players=0.5), min_players=2).kept[:4].sum() == 2


@settings(max_examples=60, deadline=None)
@given(
    fraction=st.floats(0.3, 0.95),
    allocation=st.sampled_from(["global", "uniform"]),
    seed=st.integers(0, 1000),
    what=st.sampled_from(["macs", "params", "players"]),
)
def test_any_budget_that_can_be_met_is_met_and_not_by_more_than_the_last_removal(
    fraction: float, allocation: str, seed: int, what: str
) -> None:
    rng = np.random.default_rng(seed)
    scores = {"a": values(rng.normal(size=4).tolist()), "b": values(rng.normal(size=6).tolist())}
    players = chain_of_two()
    dense = {"macs": players.model_macs, "params": players.model_params, "players": players.n}
    result = plan(players, scores, Budget(**{what: fraction}), allocation)
    assert result.cost[what] <= fraction * dense[what]
    for group in players.groups:  # players of one group cost alike, so the less valuable leave first
        value = scores[group.name].value
        kept = result.kept[group.indices]
        assert kept.any()
        if (~kept).any():
            assert value[kept].min() >= value[~kept].max()


@pytest.mark.parametrize("ratio", [0, 1, -1, 1.0, 0.0, -0.5, 1.5, math.nan, math.inf, True, "half"])
def test_a_ratio_outside_zero_and_one_is_refused_by_name(ratio: object) -> None:
    with pytest.raises(InputError, match=r"macs=.*strictly between 0 and 1"):
        Budget(macs=ratio)  # type: ignore[arg-type]


def test_an_empty_budget_is_refused() -> None:
    with pytest.raises(InputError, match="budget is empty"):
        Budget()


def test_a_budget_that_cannot_be_met_names_the_nearest_that_can() -> None:
    with pytest.raises(InputError, match=r"cannot be met: macs <= 2 \(the smallest reachable is 11"):
        plan(chain_of_two(), SCORES, Budget(macs=2))  # 8 + 1 + 2 multiply-adds with one player per group
    assert plan(chain_of_two(), SCORES, Budget(macs=11)).cost["macs"] == 11


def test_a_budget_that_is_already_met_is_refused_because_nothing_would_leave() -> None:
    with pytest.raises(InputError, match="already meets the budget"):
        plan(chain_of_two(), SCORES, Budget(macs=1000))


def test_scores_of_other_players_are_refused() -> None:
    with pytest.raises(InputError, match="no values for group 'b'"):
        plan(chain_of_two(), {"a": SCORES["a"]}, Budget(macs=0.5))
    with pytest.raises(InputError, match="group 'b' has 6 players and 4 values"):
        plan(chain_of_two(), {"a": SCORES["a"], "b": SCORES["a"]}, Budget(macs=0.5))
    with pytest.raises(InputError, match="'a' is not finite"):
        plan(chain_of_two(), {"a": values([1.0, 2.0, math.nan, 3.0]), "b": SCORES["b"]}, Budget(macs=0.5))


def test_unknown_allocation_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'global'"):
        plan(chain_of_two(), SCORES, Budget(macs=0.5), "globl")


def test_a_plan_by_hand_takes_a_boolean_row_over_all_players() -> None:
    kept = [True] * 9 + [False]
    assert Plan.from_coalition(chain_of_two(), kept).removed == ("b[5]",)
    with pytest.raises(InputError, match="10 players"):
        Plan.from_coalition(chain_of_two(), [True] * 9)
    with pytest.raises(InputError, match="booleans"):
        Plan.from_coalition(chain_of_two(), [0.5] * 10)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    made = plan(chain_of_two(), SCORES, Budget(macs=0.5))
    made.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    assert read.kept.tolist() == made.kept.tolist()
    assert read.cost == made.cost
    assert read.removed == made.removed
    assert read.budget == made.budget
    assert read.players.summary() == made.players.summary()
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_damaged_and_newer_plan_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan(chain_of_two(), SCORES, Budget(macs=0.5)).save(path)
    text = path.read_text()
    document = json.loads(text)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="no complete JSON"):
        Plan.load(path)
    path.write_text(json.dumps(document | {"schema": 99}))
    with pytest.raises(InputError, match="schema 99, newer"):
        Plan.load(path)
    path.write_text(json.dumps({k: v for k, v in document.items() if k != "kept"}))
    with pytest.raises(InputError, match="'kept'"):
        Plan.load(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="no plan"):
        Plan.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        Plan.load(tmp_path / "missing.json")


def test_the_summary_says_what_goes_what_stays_and_the_cost() -> None:
    text = plan(chain_of_two(), SCORES, Budget(players=0.6)).summary()
    assert "a            4      3        1" in text
    assert "players: 10 -> 6, 60.0% stay (budget 6)" in text
