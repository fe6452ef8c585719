"""Stopping rules: each stops when it says, they combine, a settled cut is the right one, conflicts are refused."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from testkit.games import TableGame, game_of, random_worth

from shaprune.errors import InputError
from shaprune.values import stopping
from shaprune.values.estimate import estimate, expected_evaluations
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.games.arrays import Coalitions, Examples, Worths
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.result import Values
from shaprune.values.stopping import (
    Check,
    Rule,
    cut_settled,
    evaluations,
    evaluations_per_player,
    median_error_below,
    rank_stable,
    relative_error_below,
    seconds,
    stderr_below,
)

N = 4  # players
SINGLE = random_worth(N, seed=0)
REPETITIONS = 200


def _game() -> Game:
    return game_of(SINGLE, N)


def _bits(values: Values) -> tuple[bytes, bytes, int]:
    return values.value.tobytes(), values.stderr.tobytes(), values.n_evaluations


def _values(value: Any, stderr: Any = 0.1, n_evaluations: int = 100) -> Values:
    value = np.asarray(value, dtype=np.float64)
    return Values(
        value=value,
        stderr=np.broadcast_to(np.asarray(stderr, dtype=np.float64), value.shape).copy(),
        n_evaluations=n_evaluations,
        method="permutation",
        efficiency_gap=0.0,
        stopped_by="",
        worth_all=1.0,
        worth_none=0.0,
        counts=np.full(len(value), 10),
    )


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


# -- each rule ----------------------------------------------------------------------------------------------------


def test_a_rule_on_the_standard_error_stops_when_it_is_met_and_is_named() -> None:
    values = estimate(_game(), "permutation", stop=stderr_below(0.02))
    assert values.stopped_by == "stderr_below(0.02)"
    assert values.stderr.max() < 0.02
    longer = estimate(_game(), "permutation", stop=stderr_below(0.01))
    assert longer.n_evaluations > 2 * values.n_evaluations


def test_every_player_must_be_below_the_standard_error() -> None:
    reason = stderr_below(0.1).begin(3).reason
    assert reason(_values([1, 2, 3], [0.09, 0.09, 0.11])) is None
    assert reason(_values([1, 2, 3], [0.09, 0.09, math.inf])) is None
    assert reason(_values([1, 2, 3], [0.09, 0.09, 0.0])) == "stderr_below(0.1)"


def test_a_rule_on_the_relative_error_stops_when_it_is_met_and_is_named() -> None:
    values = estimate(TableGame(N, 7, seed=1), "permutation", stop=relative_error_below(0.05))
    assert values.stopped_by == "relative_error_below(0.05)"
    assert np.linalg.norm(values.stderr) < 0.05 * np.linalg.norm(values.value)
    assert estimate(TableGame(N, 7, seed=1), stop=relative_error_below(0.5)).n_evaluations < values.n_evaluations


def test_a_relative_error_of_a_game_without_any_value_is_below_every_limit() -> None:
    nothing = Game.from_function(lambda rows: np.zeros(len(rows)), N)
    assert estimate(nothing, stop=relative_error_below(0.1)).value.tolist() == [0] * N
    assert relative_error_below(0.1).begin(N).reason(_values([0, 0, 0, 0], math.inf)) is None


def test_a_rule_on_the_median_error_looks_at_the_players_that_are_worth_anything() -> None:
    reason = median_error_below(0.1).begin(6).reason
    assert reason(_values([0, 0, 0, 1, -2, 3], [0.0, 0.0, 0.0, 0.05, 0.1, 1.0])) == "median_error_below(0.1)"
    assert reason(_values([0, 0, 0, 1, -2, 3], [0.0, 0.0, 0.0, 0.05, 0.3, 1.0])) is None
    assert reason(_values([0, 0, 0, 1, -2, 3], [0.1, 0.1, 0.1, 0.05, 0.3, 0.2])) is None
    assert reason(_values([0] * 6, [0.0] * 6)) == "median_error_below(0.1)"


def test_a_rule_on_evaluations_stops_at_the_first_look_at_or_above() -> None:
    looks: list[int] = []
    estimate(_game(), stop=lambda values: looks.append(values.n_evaluations) or ("third" if len(looks) == 3 else None))
    for limit in (looks[0] + 1, looks[1]):
        values = estimate(_game(), stop=evaluations(limit))
        assert values.n_evaluations == looks[1]
        assert values.stopped_by == f"evaluations({limit})"


def test_a_rule_on_evaluations_per_player_counts_them_by_the_size_of_the_game() -> None:
    game = _game()
    looks: list[int] = []
    estimate(game, stop=lambda values: looks.append(values.n_evaluations) or ("third" if len(looks) == 3 else None))
    limit = looks[1] // game.n_players  # met at the second look; at the first, what was paid is less
    assert looks[0] < limit * game.n_players
    values = estimate(game, stop=evaluations_per_player(limit))
    assert values.n_evaluations == looks[1]
    assert values.stopped_by == f"evaluations_per_player({limit})"
    for players in (2, 20):
        check = evaluations_per_player(10).begin(players)
        assert check.reason(_values([1.0] * players, 0.1, 10 * players - 1)) is None
        assert check.reason(_values([1.0] * players, 0.1, 10 * players)) == "evaluations_per_player(10)"


def test_a_rule_on_seconds_stops_at_the_first_look_after_them(clock: Clock) -> None:
    class Slow(TableGame):
        def walk(self, *args: Any, **options: Any) -> Worths:
            clock.now += 0.4
            return super().walk(*args, **options)

    game = Slow(N, 1, seed=0)
    values = estimate(game, stop=seconds(1))
    assert values.stopped_by == "seconds(1)"
    assert len(game.walked) == 3 * 128  # 0.4 s a chunk
    clock.now += 1e6
    assert estimate(game, stop=seconds(1)).n_evaluations == values.n_evaluations  # the time of each estimate


def test_the_ranking_is_stable_after_so_many_looks_in_a_row() -> None:
    rng = np.random.default_rng(0)
    orders = [rng.permutation(20).astype(float) for _ in range(3)]
    nearly = orders[2].copy()
    nearly[[np.argsort(nearly)[0], np.argsort(nearly)[1]]] = nearly[[np.argsort(nearly)[1], np.argsort(nearly)[0]]]
    seen = [orders[0], orders[1], orders[2], nearly, orders[2], orders[0], orders[0], nearly]

    def oracle(correlation: float, looks: int) -> list[bool]:
        """Pearson's correlation of ranks, from one look to the next."""
        ranks = [np.argsort(np.argsort(value)) for value in seen]
        good = [False] + [np.corrcoef(a, b)[0, 1] >= correlation for a, b in pairwise(ranks)]
        return [i + 1 >= looks and all(good[i + 1 - looks : i + 1]) for i in range(len(good))]

    for correlation, looks in ((0.99, 1), (0.99, 2), (1.0, 1), (0.9999, 1), (0.99, 3)):
        reason = rank_stable(correlation, looks).begin(20).reason
        stops = [reason(_values(value)) for value in seen]
        assert [s is not None for s in stops] == oracle(correlation, looks), (correlation, looks)
        assert set(stops) - {None} <= {f"rank_stable({correlation:g}, {looks})"}
    assert any(oracle(0.99, 2))
    assert not any(oracle(0.99, 3))
    assert oracle(1.0, 1) != oracle(0.99, 1)


def test_a_rule_on_the_ranking_ends_an_estimate_and_starts_afresh_for_the_next() -> None:
    rule = rank_stable(0.9, 2)
    first, second = (estimate(TableGame(6, 1, seed=1), stop=rule) for _ in range(2))
    assert first.stopped_by == "rank_stable(0.9, 2)"
    assert _bits(first) == _bits(second)
    assert first.counts[0] >= 3 * 128  # three looks
    assert estimate(TableGame(1, 1, seed=1), stop=rule).stopped_by == "rank_stable(0.9, 2)"


def test_a_rule_may_be_any_function_of_the_values() -> None:
    seen: list[Values] = []

    def third_time(values: Values) -> str | None:
        seen.append(values)
        return "enough" if len(seen) == 3 else None

    values = estimate(_game(), "permutation", stop=third_time)
    assert values.stopped_by == "enough"
    assert _bits(values) == _bits(seen[-1])
    assert seen[0].n_evaluations < seen[1].n_evaluations < seen[2].n_evaluations


def test_a_budget_ends_an_estimate_whose_rule_is_never_met() -> None:
    game = CountingGame(_game())
    values = estimate(game, "permutation", max_evaluations=4000, stop=stderr_below(1e-9))
    assert values.stopped_by == "max_evaluations"
    assert game.evaluations == values.n_evaluations == 4000


def test_what_ended_an_estimate_without_a_rule_is_named() -> None:
    assert estimate(_game(), "exact").stopped_by == "enumerated"
    assert estimate(_game(), "permutation").stopped_by == "default"
    assert estimate(_game(), "permutation", max_evaluations=50).stopped_by == "max_evaluations"


def test_nobody_knows_what_an_estimate_with_a_rule_alone_will_cost() -> None:
    assert expected_evaluations(_game(), stop=stderr_below(0.1)) is None
    assert expected_evaluations(_game(), stop=stderr_below(0.1), max_evaluations=77) == 77


# -- combinations -------------------------------------------------------------------------------------------------


def test_or_stops_when_one_rule_would_and_names_it() -> None:
    either = stderr_below(0.1) | evaluations(1000)
    assert either.name == "stderr_below(0.1) | evaluations(1000)"
    reason = either.begin(2).reason
    assert reason(_values([1, 2], 0.2, 10)) is None
    assert reason(_values([1, 2], 0.05, 10)) == "stderr_below(0.1)"
    assert reason(_values([1, 2], 0.2, 1000)) == "evaluations(1000)"
    assert reason(_values([1, 2], 0.05, 1000)) == "stderr_below(0.1) | evaluations(1000)"
    assert estimate(_game(), stop=stderr_below(1e-9) | evaluations(900)).stopped_by == "evaluations(900)"


def test_and_stops_when_both_rules_would_at_one_look() -> None:
    both = stderr_below(0.1) & evaluations(1000)
    assert both.name == "stderr_below(0.1) & evaluations(1000)"
    reason = both.begin(2).reason
    assert reason(_values([1, 2], 0.05, 10)) is None
    assert reason(_values([1, 2], 0.2, 1000)) is None  # what held before does not count
    assert reason(_values([1, 2], 0.05, 1000)) == "stderr_below(0.1) & evaluations(1000)"
    values = estimate(_game(), stop=stderr_below(0.03) & evaluations(900))
    assert values.n_evaluations >= 900
    assert values.stderr.max() < 0.03


def test_combinations_nest_and_their_names_say_how() -> None:
    one, two, three = stderr_below(0.1), evaluations(1000), seconds(60)
    assert (one & (two | three)).name == "stderr_below(0.1) & (evaluations(1000) | seconds(60))"
    assert ((one & two) | three).name == "stderr_below(0.1) & evaluations(1000) | seconds(60)"
    assert (one & (two | three)).begin(2).reason(_values([1, 2], 0.2, 1000)) is None
    assert ((one & two) | three).begin(2).reason(_values([1, 2], 0.2, 1000)) is None
    assert (one | (two & three)).begin(2).reason(_values([1, 2], 0.05, 10)) == "stderr_below(0.1)"


def test_every_part_of_a_combination_sees_every_look() -> None:
    reason = (evaluations(1000) & rank_stable(1.0, 2)).begin(2).reason
    assert [reason(_values([1, 2], 0.1, paid)) for paid in (10, 20)] == [None, None]
    assert reason(_values([1, 2], 0.1, 1000)) == "evaluations(1000) & rank_stable(1, 2)"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: stderr_below(0.1) & stderr_below(0.2), "the standard error"),
        (lambda: seconds(1) | seconds(2), "seconds"),
        (lambda: evaluations(5) | (seconds(1) & evaluations(6)), "evaluations"),
        (lambda: evaluations(5) | evaluations_per_player(6), "evaluations"),
        (lambda: cut_settled(1) & cut_settled(2), "the cut"),
        (lambda: rank_stable() | rank_stable(0.5), "the ranking"),
        (lambda: relative_error_below(0.1) & relative_error_below(0.2), "the relative error"),
    ],
)
def test_two_rules_about_one_thing_conflict(make: Callable[[], Rule], kind: str) -> None:
    with pytest.raises(InputError, match=f"conflict: both are about {kind}"):
        make()


@pytest.mark.parametrize("other", [None, 3, "seconds", lambda values: None])
def test_only_rules_combine(other: Any) -> None:
    for combine in (lambda: seconds(1) & other, lambda: seconds(1) | other):
        with pytest.raises(InputError, match="only stopping rules combine"):
            combine()


@pytest.mark.parametrize("stop", [evaluations(500), evaluations(500) | seconds(9), stderr_below(1) & evaluations(500)])
def test_a_budget_and_a_rule_on_evaluations_conflict(stop: Rule) -> None:
    game = CountingGame(_game())
    with pytest.raises(InputError, match="max_evaluations and a stopping rule evaluations"):
        estimate(game, max_evaluations=500, stop=stop)
    assert game.evaluations == 0


# -- the cut ------------------------------------------------------------------------------------------------------


class CloseGame(Game):
    """Players of graded value that interact; examples differ, and every example sees the players in its own way."""

    repeatable = True

    def __init__(self, n_players: int, n_examples: int, spread: float = 2.0) -> None:
        rng = np.random.default_rng(1)
        self.n_players, self.n_examples = n_players, n_examples
        own = spread * rng.normal(size=(n_examples, n_players))
        self.own = own - own.mean(0) + np.linspace(0, 2, n_players)
        self.mixing = rng.normal(size=(n_players, 8))

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        own = self.own.mean(0)[None] if examples is None else self.own[examples]
        return (coalitions * own).sum(1) + 2 * np.sin(coalitions @ self.mixing).sum(1)


CUTS = {"one example": (12, 1, 4), "many examples": (12, 150, 6)}  # players, examples, how many leave


def _looked_at(check: Check, looks: list[Values], focused: bool = True) -> Rule:
    """The rule of a check, whose looks are noted; unfocused, everybody is sampled to the end."""

    def reason(values: Values) -> str | None:
        looks.append(values)
        return check.reason(values)

    return Rule("noted", ("noted",), lambda n: Check(reason, check.undecided) if focused else Check(reason))


@pytest.mark.parametrize("name", CUTS)
def test_the_set_below_a_settled_cut_is_the_true_one_and_cheaper_than_without_focus(name: str) -> None:
    n, n_examples, leaving = CUTS[name]
    game = CloseGame(n, n_examples)
    truth = set(estimate(game, "exact").ranking()[:leaving].tolist())
    right, paid, without = [], [], []
    for seed in range(REPETITIONS if name == "one example" else 30):
        values = estimate(game, stop=cut_settled(leaving), seed=seed)
        assert values.stopped_by == f"cut_settled({leaving}, 0.95)"
        right.append(set(values.ranking()[:leaving].tolist()) == truth)
        paid.append(values.n_evaluations)
        if seed < 10:
            rule = _looked_at(cut_settled(leaving).begin(n), [], focused=False)
            without.append(estimate(game, stop=rule, seed=seed).n_evaluations)
    assert np.mean(right) >= 0.95
    assert np.mean(paid) < 0.8 * np.mean(without)


@pytest.mark.parametrize("name", CUTS)
def test_only_undecided_players_are_sampled_further(name: str) -> None:
    n, n_examples, leaving = CUTS[name]
    looks: list[Values] = []
    check = cut_settled(leaving).begin(n)
    estimate(CloseGame(n, n_examples), stop=_looked_at(check, looks), seed=3)
    sampled: list[set[int]] = []
    for before, after in pairwise(looks):
        more = after.counts > before.counts
        new = set(np.flatnonzero(more).tolist())
        undecided = set(np.flatnonzero(check.undecided(before)).tolist())
        assert undecided <= new  # nobody is forgotten
        if len(new) < n:
            assert len(set((after.counts - before.counts)[more].tolist())) == 1
            each = (after.counts - before.counts)[more][0]
            assert after.n_evaluations - before.n_evaluations == 2 * len(new) * each  # with and without each of them
            frozen = np.flatnonzero(~more)
            assert after.value[frozen].tobytes() == before.value[frozen].tobytes()
        sampled.append(new)
    assert len(sampled[-1]) <= 4
    assert looks[-1].counts.max() > 2 * looks[-1].counts.min()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("one example", Permutation()),
        ("one example", Permutation(per_example=False)),
        ("many examples", Permutation()),
        ("many examples", Permutation(antithetic=True)),
    ],
)
def test_focused_sampling_gives_the_same_bits_for_the_same_seed(name: str, method: Permutation) -> None:
    n, n_examples, leaving = CUTS[name]
    first, second, other = (
        estimate(CloseGame(n, n_examples), method, 200_000, stop=cut_settled(leaving), seed=seed) for seed in (1, 1, 2)
    )
    assert first.counts.max() > first.counts.min()
    assert _bits(first) == _bits(second)
    assert _bits(first) != _bits(other)


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_doubt_of_focused_values_is_the_size_of_their_error(antithetic: bool) -> None:
    game = CloseGame(12, 150, spread=5.0)  # one chunk and a small rest: half-walked sweeps would show
    truth = estimate(game, "exact").value
    inside = [
        np.abs(values.value - truth) <= 1.96 * values.stderr
        for seed in range(REPETITIONS // 2)
        for values in [estimate(game, Permutation(antithetic=antithetic), stop=cut_settled(6, 0.8), seed=seed)]
    ]
    assert 0.91 <= np.mean(inside) <= 0.99
    assert np.mean(inside, axis=0).min() >= 0.85


@pytest.mark.parametrize("options", [{}, {"concept": "banzhaf:0.8"}, {"sizes": (0.25, 1.0)}], ids=str)
@pytest.mark.parametrize("n_examples", [1, 150])
def test_focused_sampling_keeps_to_the_concept(n_examples: int, options: dict[str, Any]) -> None:
    game, few = CloseGame(12, n_examples), np.isin(np.arange(12), [2, 5, 6])
    truth = estimate(game, "exact", **options).value

    def paid(values: Values) -> str | None:
        return "enough" if values.n_evaluations > 60_000 else None

    values = estimate(game, stop=Rule("few", ("few",), lambda n: Check(paid, lambda values: few)), seed=2, **options)
    assert (np.abs(values.value - truth) <= 4.5 * values.stderr).all()
    assert values.stderr[few].max() < 0.5 * values.stderr[~few].min()


def test_a_fraction_of_the_players_may_be_cut() -> None:
    half, six = (estimate(CloseGame(12, 1), max_evaluations=9000, stop=cut_settled(cut), seed=1) for cut in (0.5, 6))
    assert _bits(half) == _bits(six)
    assert half.counts.max() > half.counts.min()
    four = estimate(CloseGame(12, 1), stop=cut_settled(1 / 3), seed=1)
    assert _bits(four) == _bits(estimate(CloseGame(12, 1), stop=cut_settled(4), seed=1))
    assert four.stopped_by == "cut_settled(0.333333, 0.95)"


def test_a_cut_is_settled_where_every_player_is_beyond_it_by_its_doubt() -> None:
    value = [0.0, 1.0, 2.0, 3.0]
    check = cut_settled(2, 0.95).begin(4)  # the cut is at 1.5
    reach = 2.4977  # the normal quantile of 1 - 0.05 / 4 / 2
    assert check.undecided(_values(value, 0.4)).tolist() == [False, True, True, False]
    assert check.undecided(_values(value, 0.5 / reach * 1.001)).tolist() == [False, True, True, False]
    assert not check.undecided(_values(value, 0.5 / reach * 0.999)).any()
    assert check.undecided(_values(value, [9, 0.1, 0.1, 0.1])).tolist() == [True, False, False, False]
    assert check.undecided(_values(value, math.inf)).all()
    assert check.reason(_values(value, 0.4)) is None
    assert check.reason(_values(value, 0.1)) == "cut_settled(2, 0.95)"


def test_players_of_equal_value_at_the_cut_never_settle() -> None:
    game = Game.from_function(lambda rows: rows @ [0.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 8)
    values = estimate(game, max_evaluations=5000, stop=cut_settled(2))
    assert values.stopped_by == "max_evaluations"
    assert 4900 < values.n_evaluations <= 5000
    assert values.counts[1] == values.counts[2] > 3 * values.counts[0]
    assert estimate(game, stop=cut_settled(1)).stopped_by == "cut_settled(1, 0.95)"  # no doubt at all
    assert estimate(game, stop=cut_settled(2) | evaluations(5000)).stopped_by == "evaluations(5000)"


def test_the_other_rule_of_an_and_still_looks_at_everybody() -> None:
    game = CloseGame(12, 1)
    both = estimate(game, stop=cut_settled(4) & stderr_below(0.3), seed=1)
    assert len(set(both.counts.tolist())) == 1
    either = estimate(game, stop=cut_settled(4) | stderr_below(1e-9), seed=1)
    alone = estimate(game, stop=cut_settled(4), seed=1)
    assert len(set(either.counts.tolist())) > 1
    assert _bits(either) == _bits(alone)


def test_a_player_who_is_undecided_again_is_sampled_again() -> None:
    masks: list[NDArray[np.bool_]] = [np.arange(12) == 0] * 2 + [np.arange(12) == 7] * 2 + [np.arange(12) < 9] * 2

    def begin(n: int) -> Check:
        looks: Iterator[NDArray[np.bool_]] = iter(masks)
        left = [len(masks)]

        def undecided(values: Values) -> NDArray[np.bool_]:
            left[0] -= 1
            return next(looks)

        return Check(lambda values: "done" if left[0] == 0 else None, undecided)

    noted: list[Values] = []

    def noting(n: int) -> Check:
        check = begin(n)
        return Check(lambda values: noted.append(values) or check.reason(values), check.undecided)

    values = estimate(CloseGame(12, 1), stop=Rule("by hand", ("by hand",), noting))
    assert values.stopped_by == "done"
    sampled = [set(np.flatnonzero(b.counts - a.counts).tolist()) for a, b in pairwise(noted)]
    assert sampled == [{0}, {0}, {7}, {7}, set(range(12)), set(range(12))]  # nine alone would cost more than a walk


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [stderr_below, relative_error_below, seconds, evaluations])
@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_that_cannot_be_met_is_refused(rule: Any, limit: float) -> None:
    with pytest.raises(InputError, match=f"{rule.__name__}.*above 0"):
        rule(limit)


@pytest.mark.parametrize("given", [(0.0,), (1.1,), (math.nan,), (-0.5,), (0.9, 0)])
def test_a_ranking_that_cannot_be_stable_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="rank_stable"):
        rank_stable(*given)


@pytest.mark.parametrize("remove", [0, -1, math.nan, True, False])
def test_a_cut_that_is_no_number_of_players_is_refused(remove: Any) -> None:
    with pytest.raises(InputError, match="give how many players leave"):
        cut_settled(remove)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(InputError, match="strictly between 0 and 1"):
        cut_settled(2, confidence)


@pytest.mark.parametrize(("remove", "leaving"), [(4, 4), (7, 7), (0.05, 0), (0.95, 4)])
def test_a_cut_with_nobody_on_one_side_is_refused_before_any_work(remove: float, leaving: int) -> None:
    game = CountingGame(_game())
    with pytest.raises(InputError, match=f"lets {leaving} of 4 players leave"):
        estimate(game, stop=cut_settled(remove))
    assert game.evaluations == 0


@pytest.mark.parametrize("stop", [3, "seconds", [seconds(1)]])
def test_what_is_no_rule_is_refused(stop: Any) -> None:
    with pytest.raises(InputError, match=r"stop is a (int|str|list); give a rule"):
        estimate(_game(), stop=stop)
