"""Options as fields: flat and grouped are the same thing, and keywords that moved name their new place."""

import inspect
from dataclasses import dataclass, field

import pytest

import shaprune as sp
from shaprune.options.fields import changed, gathered, leaves, option, spread


@dataclass(frozen=True)
class Inner:
    depth: int = option(1, "How deep.")
    private: object = None


@dataclass(frozen=True)
class Outer:
    name: str = option("x", "Its name.")
    inner: Inner = field(default_factory=Inner)


def test_groups_are_gathered_from_a_flat_mapping_and_spread_into_one() -> None:
    made = gathered(Outer, {"depth": 3, "private": 4, "other": 5})
    assert made == Outer("x", Inner(3, 4))
    assert spread(made) == {"name": "x", "depth": 3}  # what has a help text
    assert [leaf.path for leaf in leaves(Outer)] == [("name",), ("inner", "depth"), ("inner", "private")]
    assert [leaf.name for leaf in changed(made.inner)] == ["depth", "private"]
    assert changed(Outer("x").inner) == []


@pytest.mark.parametrize(
    ("call", "place"),
    [
        (lambda: sp.score(None, None, None, together=True), "options=sp.options.Scoring(together=...)"),
        (lambda: sp.score(None, None, None, sizes=(0, 1)), "sizes=... is now options=sp.options.Scoring(window=...)"),
        (lambda: sp.score(None, None, None, workers=2), "workers=... is now run=sp.options.RunOptions(workers=...)"),
        (
            lambda: sp.compress(None, None, None, example_inputs=None, round_to=8),
            "options=sp.options.Compression(limits=sp.options.Limits(round_to=...))",
        ),
        (
            lambda: sp.compress(None, None, None, example_inputs=None, unit="head", validation=[]),
            "unit=... is now options=sp.options.Compression(units=sp.options.Units(unit=...)); "
            "validation=... is now options=sp.options.Compression(validation=...)",
        ),
        (
            lambda: sp.compress(None, None, None, example_inputs=None, rounds=2),
            "rounds=... is now options=sp.options.Compression(planning=sp.options.Planning(cycles=...))",
        ),
        (lambda: sp.plan(None, None, min_width=2), "min_width=... is now limits=sp.options.Limits(min_width=...)"),
        (lambda: sp.plan(None, None, exclude="a"), "exclude=... is now limits=sp.options.Limits(keep=...)"),
        (lambda: sp.search_plan(None, None, None, mend=None), "mend=... is now recover=..."),
        (lambda: sp.metrics.expected_cost(None, None, None, step=2), "step=... is now options=sp.options.Scoring(per"),
    ],
)
def test_a_keyword_that_moved_names_its_new_place(call, place: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError) as refused:
        call()
    assert isinstance(refused.value, sp.InputError)
    assert place in str(refused.value)


def test_a_keyword_that_never_was_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'metod'") as refused:
        sp.score(None, None, None, metod="exact")  # type: ignore[call-arg]
    assert not isinstance(refused.value, sp.InputError)


def test_players_before_the_scores_are_refused_with_the_new_form() -> None:
    players = sp.Players((), {}, (), 0, 0.0)
    with pytest.raises(sp.InputError, match=r"scores carry their players: plan\(scores, budget\)"):
        sp.plan(players, {}, sp.Budget(macs=0.5))  # type: ignore[arg-type]
    with pytest.raises(sp.InputError, match=r"scores is a dict; give the Scores of sp.score, or Scores\(players"):
        sp.plan({}, sp.Budget(macs=0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [sp.score, sp.compress, sp.plan, sp.search_plan, sp.metrics.expected_cost])
def test_signatures_say_what_is_taken_and_no_more(function: object) -> None:
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}  # type: ignore[arg-type]
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sp.plan(None, None, limits={"min_players": 2}), r"limits is a dict; give limits=sp.options.Limits\("),
        (
            lambda: sp.compress(None, None, None, example_inputs=None, options=sp.options.Scoring()),
            r"options is a Scoring; give options=sp.options.Compression\(",
        ),
        (
            lambda: sp.compress(None, None, None, example_inputs=None, options=sp.options.Compression(limits=8)),
            r"limits is a int; give limits=sp.options.Limits\(",
        ),
        (lambda: sp.score(None, None, None, options=sp.options.Scoring(max_memory="1GB")), "max_memory is '1GB'; give"),
        (lambda: sp.score(None, None, None, options=sp.options.Scoring(per_round=True)), "per_round is True; give a"),
    ],
)
def test_other_things_than_a_group_of_options_are_refused_by_name(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(sp.InputError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda scores: sp.search_plan(None, scores, sp.Budget(macs=0.5), example_inputs=None),
        lambda scores: sp.metrics.frontier(scores),
    ],
)
def test_scores_in_place_of_a_planner_name_the_planner(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(sp.InputError, match=r"planner is a dict; give functools.partial\(sp.plan, scores\)"):
        call({})


@pytest.mark.parametrize("budget", [0.5, "macs=0.5", {"macs": 0.5}])
def test_something_else_than_a_budget_is_refused(budget: object) -> None:
    with pytest.raises(sp.InputError, match=r"budget is a .*; give sp\.Budget"):
        sp.search_plan(None, None, budget, example_inputs=None)  # type: ignore[arg-type]
