"""Plans: budgets are met with as few removals as possible, and what cannot be done is said."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shaprune.errors import InputError
from shaprune.planning.budget import Budget
from shaprune.planning.limits import Limits
from shaprune.planning.plan import Plan, plan
from shaprune.planning.scores import Scores
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Member, Players, number_groups
from shaprune.players.subset import Kept
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
    result = plan(Scores(chain_of_two(), SCORES), Budget(players=0.6))
    assert result.removed == ("a[1]", "b[0]", "b[2]", "b[4]")
    assert result.cost["players"] == 6
    assert plan(Scores(chain_of_two(), SCORES), Budget(players=7)).removed == ("b[0]", "b[2]", "b[4]")


def test_global_weighs_a_value_against_what_it_costs_of_the_budget() -> None:
    """A player of a costs 14 multiply-adds and one of b 6: at equal value a's leave first, harmful ones before all."""
    equal = {"a": values([1.0, 1.0, 1.0, 2.5]), "b": values([1.0, 1.0, 1.0, 1.0, 1.0, -0.1])}
    assert plan(Scores(chain_of_two(), equal), Budget(macs=0.75)).removed == ("a[0]", "b[5]")
    assert plan(Scores(chain_of_two(), equal), Budget(macs=0.3)).removed[:3] == ("a[0]", "a[1]", "a[2]")
    assert plan(Scores(chain_of_two(), equal), Budget(players=9)).removed == ("b[5]",)


def test_uniform_removes_the_same_share_of_every_group() -> None:
    result = plan(Scores(chain_of_two(), SCORES), Budget(players=0.5), "uniform")
    assert result.removed == ("a[1]", "a[3]", "b[0]", "b[2]", "b[4]")


def test_several_limits_are_all_met() -> None:
    players = chain_of_two()
    result = plan(Scores(players, SCORES), Budget(players=0.9, macs=0.5, params=70))
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
    assert plan(Scores(players, scores), Budget(players=0.5)).kept[:4].sum() == 1
    assert plan(Scores(players, scores), Budget(players=0.5)).kept[0]  # the best of its group
    assert (
        plan(Scores(players, scores), Budget(players=0.5), limits=Limits(min_players=0)).kept[:4].sum() == 1
    )  # no layer is emptied
    assert plan(Scores(players, scores), Budget(players=0.5), limits=Limits(min_players=2)).kept[:4].sum() == 2


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
    result = plan(Scores(players, scores), Budget(**{what: fraction}), allocation)
    assert result.cost[what] <= fraction * dense[what]
    for group in players.groups:  # players of one group cost alike, so the less valuable leave first
        value = scores[group.name].value
        kept = result.kept[group.indices]
        assert kept.any()
        if (~kept).any():
            assert value[kept].min() >= value[~kept].max()


# --- limits: rounding, least widths, largest shares, excluded groups ---

KINDS = ("chain", "heads", "residual")


def network(specs: list[tuple[str, int]]) -> Players:
    """Groups of these kinds and sizes, each read by a linear layer of two outputs.

    ``chain``: one linear layer of so many neurons. ``heads``: so many heads, of four channels in q and two in k.
    ``residual``: so many channels of c, the first half of which a makes, too, and the rest b (a concatenation added to
    c), so that no layer but c has a channel of every player.
    """
    layers: dict[str, Layer] = {}
    groups: list[tuple[str, list[Member]]] = []
    for i, (kind, n) in enumerate(specs):
        ones = tuple((p,) for p in range(n))
        if kind == "chain":
            made = {f"{i}.a": ones}
        elif kind == "heads":
            made = {f"{i}.q": tuple(tuple(range(4 * p, 4 * p + 4)) for p in range(n))}
            made[f"{i}.k"] = tuple((2 * p, 2 * p + 1) for p in range(n))
        else:
            half = n // 2
            made = {f"{i}.c": ones, f"{i}.a": tuple((p,) if p < half else () for p in range(n))}
            made[f"{i}.b"] = tuple(() if p < half else (p - half,) for p in range(n))
        first = next(iter(made))
        width = {name: sum(map(len, channels)) for name, channels in made.items()}
        layers |= {name: Layer("linear", 3, w, 1, 1, False, 1.0) for name, w in width.items()}
        layers[f"{i}.end"] = Layer("linear", width[first], 2, 1, 1, False, 1.0)
        members = [Member(name, "out", channels) for name, channels in made.items()]
        groups.append((first, [*members, Member(f"{i}.end", "in", made[first])]))
    macs = sum(layer.macs(layer.n_in, layer.n_out) for layer in layers.values())
    return Players(number_groups(groups), layers, (), int(macs), macs)


def drawn(players: Players, seed: int) -> dict[str, Values]:
    rng = np.random.default_rng(seed)
    return {group.name: values(rng.normal(size=len(group)).tolist()) for group in players.groups}


def fits(
    players: Players, group: int, kept: Kept, *, min_players: int, min_width: int, round_to: int, max_removed: float
) -> bool:
    """Whether a group is whole, or all its limits are met."""
    of = players.groups[group]
    stays = kept[of.indices]
    left = players.widths(kept)
    widths = [(left[m.module][1], players.layers[m.module].n_out) for m in of.producers]
    return bool(stays.all()) or (
        stays.sum() >= min_players
        and 1 - stays.mean() <= max_removed + 1e-9
        and all(w >= min(min_width, dense) and 1 - w / dense <= max_removed + 1e-9 for w, dense in widths)
        and all(w == dense or w % round_to == 0 for w, dense in widths)
    )


def states(players: Players, group: int, scores: dict[str, Values], limits: dict[str, Any]) -> list[Kept]:
    """All coalitions of a group of like players that its limits allow, the worst players leaving first."""
    of = players.groups[group]
    rows = []
    for n in range(len(of) + 1):
        row = np.ones(players.n, dtype=bool)
        row[of.indices[scores[of.name].ranking()[:n]]] = False
        rows += [row] if fits(players, group, row, **limits) else []
    return rows


@st.composite
def some_limits(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "min_players": draw(st.integers(0, 3)),
        "min_width": draw(st.integers(1, 9)),
        "round_to": draw(st.sampled_from([1, 2, 3, 4, 8])),
        "max_removed": draw(st.floats(0.2, 1.0)),
    }


some_networks = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(2, 24)), min_size=1, max_size=4)
some_budgets = st.tuples(st.sampled_from(["macs", "params", "players"]), st.floats(0.2, 0.95))
some_allocations = st.sampled_from(["global", "uniform"])


@settings(max_examples=200, deadline=None)
@given(some_networks, some_budgets, some_allocations, some_limits(), st.booleans(), st.integers(0, 1000))
def test_no_plan_passes_a_limit(
    specs: list[tuple[str, int]],
    budget: tuple[str, float],
    allocation: str,
    limits: dict[str, Any],
    excluding: bool,
    seed: int,
) -> None:
    players, (what, fraction) = network(specs), budget
    limits |= {"keep": [players.groups[0].name] if excluding else []}
    result = decided(players, drawn(players, seed), Budget(**{what: fraction}), allocation, limits)
    if result is None:
        return
    assert result.cost[what] <= fraction * cost_of(players, what)
    assert not limits.pop("keep") or result.kept[players.groups[0].indices].all()
    assert all(fits(players, g, result.kept, **limits) for g in range(len(specs)))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["chain", "heads"]), st.integers(2, 24)), min_size=1, max_size=4),
    some_budgets,
    some_allocations,
    some_limits(),
    st.integers(0, 1000),
)
def test_within_limits_the_least_valuable_leave_and_as_few_as_the_budget_needs(
    specs: list[tuple[str, int]], budget: tuple[str, float], allocation: str, limits: dict[str, Any], seed: int
) -> None:
    players, (what, fraction) = network(specs), budget
    scores, limit = drawn(players, seed), fraction * cost_of(players, what)
    allowed = [states(players, g, scores, limits) for g in range(len(specs))]  # each from whole to the smallest

    def cost(*rows: Kept) -> float:
        return Plan.from_coalition(players, np.logical_and.reduce(rows)).cost[what]

    result = decided(players, scores, Budget(**{what: fraction}), allocation, limits)
    if result is None:
        assert cost(*(rows[-1] for rows in allowed)) > limit
        return
    at = [
        next(i for i, row in enumerate(rows) if (row[g.indices] == result.kept[g.indices]).all())
        for rows, g in zip(allowed, players.groups, strict=True)
    ]
    now = [rows[i] for rows, i in zip(allowed, at, strict=True)]
    one_more = [rows[max(i - 1, 0)] for rows, i in zip(allowed, at, strict=True)]
    if allocation == "global":
        assert any(cost(*now[:g], one_more[g], *now[g + 1 :]) > limit for g in range(len(specs)))
    assert cost(*one_more) > limit


def decided(
    players: Players, scores: dict[str, Values], budget: Budget, allocation: str, limits: dict[str, Any]
) -> Plan | None:
    """The plan; None where the budget cannot be met."""
    try:
        return plan(Scores(players, scores), budget, allocation, limits=Limits(**limits))
    except InputError as error:
        if "cannot be met" not in str(error):
            raise
        return None


def cost_of(players: Players, what: str) -> float:
    return Plan.from_coalition(players, [True] * players.n).cost[what]


def test_a_width_is_left_whole_or_a_multiple() -> None:
    players = network([("chain", 12), ("chain", 20), ("heads", 6), ("chain", 7)])
    scores = {g.name: values(list(range(len(g)))) for g in players.groups}
    smallest = plan(Scores(players, scores), Budget(players=27), limits=Limits(round_to=8, min_players=0))
    assert [int(smallest.kept[g.indices].sum()) for g in players.groups] == [8, 8, 4, 7]  # k of 4 heads is 8 wide
    with pytest.raises(InputError, match=r"smallest reachable is 27.*round_to=8"):
        plan(Scores(players, scores), Budget(players=26), limits=Limits(round_to=8))


def test_several_kinds_of_players_leave_together_where_only_that_fits() -> None:
    """Widths 12 and 16 behind a padded shortcut: four of the first 12 and four of the rest must go at once."""
    ones = tuple((p,) for p in range(16))
    first = tuple((p,) if p < 12 else () for p in range(16))
    layers = {
        "stage1": Layer("conv", 3, 12, 1, 9, False, 1.0),
        "stage2": Layer("conv", 3, 16, 1, 9, False, 1.0),
        "fc": Layer("linear", 16, 2, 1, 1, False, 1.0),
    }
    members = [Member("stage1", "out", first), Member("stage2", "out", ones), Member("fc", "in", ones)]
    players = Players(number_groups([("stage1", members)]), layers, (), 9 * 3 * 28 + 32, 9.0 * 3 * 28 + 32)
    result = plan(Scores(players, {"stage1": values(list(range(16)))}), Budget(players=15), limits=Limits(round_to=8))
    assert np.flatnonzero(~result.kept).tolist() == [0, 1, 2, 3, 12, 13, 14, 15]


def test_no_layer_is_emptied_however_many_players_its_group_keeps() -> None:
    """All of a's channels are among the worst players of a group whose other players a does not have."""
    players = network([("residual", 8)])
    scores = {"0.c": values([0, 1, 2, 3, 10, 11, 12, 13])}
    result = plan(Scores(players, scores), Budget(players=3))
    assert players.widths(result.kept)["0.a"][1] == 1
    assert result.removed == ("0.c[0]", "0.c[1]", "0.c[2]", "0.c[4]", "0.c[5]")
    wide = plan(Scores(players, scores), Budget(players=6), limits=Limits(min_width=3))
    assert players.widths(wide.kept)["0.a"][1] == players.widths(wide.kept)["0.b"][1] == 3


def test_the_largest_share_may_differ_between_groups() -> None:
    players = chain_of_two()
    result = plan(Scores(players, SCORES), Budget(players=0.6), limits=Limits(max_removed={"*": 0.75, "b": 0.2}))
    assert result.removed == ("a[1]", "a[2]", "a[3]", "b[0]")
    with pytest.raises(InputError, match=r"smallest reachable is 5.*max_removed=0.5"):
        plan(Scores(players, SCORES), Budget(players=4), limits=Limits(max_removed=0.5))


def test_excluded_groups_stay_whole() -> None:
    result = plan(Scores(chain_of_two(), SCORES), Budget(players=0.7), limits=Limits(keep="b"))
    assert result.removed == ("a[1]", "a[2]", "a[3]")
    with pytest.raises(InputError, match=r"smallest reachable is 7.*keep='b'"):
        plan(Scores(chain_of_two(), SCORES), Budget(players=0.5), limits=Limits(keep="b"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"round_to": 0}, "round_to is 0; it must be a whole number, 1 or above"),
        ({"round_to": 2.0}, "round_to is 2.0"),
        ({"min_width": 0}, "min_width is 0"),
        ({"min_players": -1}, "min_players is -1"),
        ({"max_removed": 50}, r"max_removed is 50 for '\*'; it must be a share between 0 and 1"),
        ({"max_removed": {"a": -0.1}}, "max_removed is -0.1 for 'a'"),
        ({"max_removed": {"conv": 0.5}}, "max_removed='conv' matches no group of players. Known: a, b"),
        ({"keep": ["bb"]}, "keep='bb' matches no group of players; did you mean 'b'"),
    ],
)
def test_limits_that_mean_nothing_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(Scores(chain_of_two(), SCORES), Budget(macs=0.5), limits=Limits(**limits))


@pytest.mark.parametrize("ratio", [0, 1, -1, 1.0, 0.0, -0.5, 1.5, math.nan, math.inf, True, "half"])
def test_a_ratio_outside_zero_and_one_is_refused_by_name(ratio: object) -> None:
    with pytest.raises(InputError, match=r"macs=.*strictly between 0 and 1"):
        Budget(macs=ratio)  # type: ignore[arg-type]


def test_an_empty_budget_is_refused() -> None:
    with pytest.raises(InputError, match="budget is empty"):
        Budget()


def test_a_budget_that_cannot_be_met_names_the_nearest_that_can() -> None:
    with pytest.raises(InputError, match=r"cannot be met: macs <= 2 \(the smallest reachable is 11"):
        plan(Scores(chain_of_two(), SCORES), Budget(macs=2))  # 8 + 1 + 2 multiply-adds with one player per group
    assert plan(Scores(chain_of_two(), SCORES), Budget(macs=11)).cost["macs"] == 11


def test_a_budget_that_is_already_met_is_refused_because_nothing_would_leave() -> None:
    with pytest.raises(InputError, match="already meets the budget"):
        plan(Scores(chain_of_two(), SCORES), Budget(macs=1000))


def test_scores_of_other_players_are_refused() -> None:
    with pytest.raises(InputError, match="no values for group 'b'"):
        plan(Scores(chain_of_two(), {"a": SCORES["a"]}), Budget(macs=0.5))
    with pytest.raises(InputError, match="group 'b' has 6 players and 4 values"):
        plan(Scores(chain_of_two(), {"a": SCORES["a"], "b": SCORES["a"]}), Budget(macs=0.5))
    with pytest.raises(InputError, match="'a' is not finite"):
        plan(Scores(chain_of_two(), {"a": values([1.0, 2.0, math.nan, 3.0]), "b": SCORES["b"]}), Budget(macs=0.5))


def test_unknown_allocation_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'global'"):
        plan(Scores(chain_of_two(), SCORES), Budget(macs=0.5), "globl")


def test_a_plan_by_hand_takes_a_boolean_row_over_all_players() -> None:
    kept = [True] * 9 + [False]
    assert Plan.from_coalition(chain_of_two(), kept).removed == ("b[5]",)
    with pytest.raises(InputError, match="10 players"):
        Plan.from_coalition(chain_of_two(), [True] * 9)
    with pytest.raises(InputError, match="booleans"):
        Plan.from_coalition(chain_of_two(), [0.5] * 10)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    made = plan(Scores(chain_of_two(), SCORES), Budget(macs=0.5))
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
    plan(Scores(chain_of_two(), SCORES), Budget(macs=0.5)).save(path)
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
    text = plan(Scores(chain_of_two(), SCORES), Budget(players=0.6)).summary()
    assert ["a", "4", "3", "1"] in [line.split() for line in text.splitlines()]
    assert "players: 10 -> 6, 60.0% stay (budget 6)" in text


def test_a_plan_by_hand_takes_tensors_and_lists_alike() -> None:
    players = chain_of_two()
    kept = [i >= 3 for i in range(players.n)]
    by_tensor = Plan.from_coalition(players, torch.tensor(kept))
    assert by_tensor.kept.tolist() == Plan.from_coalition(players, kept).kept.tolist() == kept
