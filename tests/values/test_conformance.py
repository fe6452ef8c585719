"""What every estimator of the registry keeps to: its budget, its seed, its result, its doubt, and its refusals.

A new estimator needs one line in `CASES`.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from testkit.games import TableGame, by_sizes, game_of, random_worth

from shaprune.errors import GameError, InputError
from shaprune.values.estimate import METHODS, estimate, expected_evaluations
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.games.arrays import Coalitions, Examples, Orders, Start, Worths
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.result import Values
from shaprune.values.stopping import stderr_below

N = 4  # players
SINGLE = random_worth(N, seed=0)
REPETITIONS = 200


@dataclass(frozen=True)
class Case:
    """What this file must know of an estimator.

    Attributes:
        budget: evaluations for N players and one example, of which it spends more than nine tenths.
        draws: it samples, so that another seed gives other values.
        stops: it can be ended by a rule.
        concepts: it takes a concept; False = it has its own.
        windows: it takes a size window.
        sizes: of the coalitions of N players that it asks for without a concept.
        additive: it is exact where players do not interact, to so much; a sampler that is not is held to its own doubt.
    """

    budget: int
    draws: bool = True
    stops: bool = True
    concepts: bool = True
    windows: bool = True
    sizes: range = range(N + 1)
    additive: float | None = 1e-9


CASES = {
    "control-variate": Case(2_000, concepts=False, windows=False),
    "exact": Case(2**N, draws=False, stops=False),
    "leave-one-out": Case(N + 1, draws=False, stops=False, concepts=False, windows=False, sizes=range(N - 1, N + 1)),
    "partial": Case(2**N - 1, draws=False, stops=False, concepts=False, windows=False, sizes=range(1, N + 1)),  # k = 3
    "permutation": Case(333),
    "regression": Case(2**N, draws=False, windows=False),  # with 4 players it enumerates
    "msr": Case(2**N, draws=False),
    "svarm": Case(2**N, draws=False),
}


def _game() -> Game:
    return game_of(SINGLE, N)


def _bits(values: Values) -> tuple[bytes, bytes, int]:
    return values.value.tobytes(), values.stderr.tobytes(), values.n_evaluations


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _windows(method: str) -> list[dict[str, Any]]:
    return [{}, {"sizes": (0.5, 1.0)}] if CASES[method].windows else [{}]


# -- every estimator ----------------------------------------------------------------------------------------------


def test_the_registry_has_no_estimator_that_this_file_does_not_know() -> None:
    assert set(METHODS) == set(CASES)
    assert all(METHODS[name].name == name and METHODS[name].stops == CASES[name].stops for name in METHODS)


def test_a_budget_is_kept_and_every_evaluation_is_counted(method: str) -> None:
    game, budget = CountingGame(_game()), CASES[method].budget
    values = estimate(game, method, max_evaluations=budget)
    assert game.evaluations == values.n_evaluations
    assert 0.9 * budget < values.n_evaluations <= budget


def test_a_budget_over_examples_is_kept_and_every_evaluation_is_counted(method: str) -> None:
    game, budget = CountingGame(TableGame(N, 7, seed=1)), 7 * CASES[method].budget
    values = estimate(game, method, max_evaluations=budget)
    assert game.evaluations == values.n_evaluations
    assert 0.9 * budget < values.n_evaluations <= budget


def test_the_expected_number_of_evaluations_is_what_is_paid_without_a_budget(method: str) -> None:
    for options in _windows(method):
        game = CountingGame(TableGame(N, 7, seed=1))
        expected = expected_evaluations(game, method, **options)
        assert game.evaluations == 0
        assert expected is not None
        paid = estimate(game, method, **options).n_evaluations
        assert paid == game.evaluations
        assert 0.9 * expected < paid <= expected


def test_a_budget_below_the_least_is_refused_with_the_smallest_that_works(method: str) -> None:
    game = CountingGame(TableGame(N, 7, seed=1))
    with pytest.raises(InputError, match=r"smallest that works is [0-9]+$") as refused:
        estimate(game, method, max_evaluations=1)
    least = int(str(refused.value).rsplit(" ", 1)[1])
    for budget in (1, least - 1):
        with pytest.raises(InputError, match=rf"max_evaluations={budget} .* smallest that works is {least}$"):
            expected_evaluations(game, method, max_evaluations=budget)
    assert game.evaluations == 0
    assert estimate(game, method, max_evaluations=least).n_evaluations == game.evaluations <= least


def test_a_rule_is_kept_or_refused(method: str) -> None:
    def at_once(values: Values) -> str:
        return "at once"

    if CASES[method].stops:
        assert estimate(_game(), method, stop=at_once).stopped_by == "at once"
        assert expected_evaluations(_game(), method, stop=at_once) is None
    else:
        for asked in (estimate, expected_evaluations):
            with pytest.raises(InputError, match=f"method '{method}' has no option 'stop'"):
                asked(_game(), method, stop=at_once)


def test_a_method_with_a_concept_of_its_own_refuses_another(method: str) -> None:
    case = CASES[method]
    for options, taken in (({"concept": "banzhaf"}, case.concepts), ({"sizes": (0.5, 1.0)}, case.windows)):
        if taken:
            assert estimate(_game(), method, **options).concept in ("banzhaf:0.5", "shapley:0.5,1")
        else:
            with pytest.raises(
                InputError, match=f"method '{method}' has (a concept of its own|Shapley (and Banzhaf|values))"
            ):
                estimate(_game(), method, **options)


def test_which_coalitions_a_method_asks_for(method: str) -> None:
    asked = set()

    def noted(kept: frozenset[int]) -> float:
        asked.add(len(kept))
        return SINGLE(kept)

    estimate(game_of(noted, N), method)
    assert asked == set(CASES[method].sizes)


def test_the_same_seed_gives_the_same_bits(method: str) -> None:
    first, second = (estimate(TableGame(N, 7, seed=1), method, seed=11) for _ in range(2))
    assert _bits(first) == _bits(second)


def test_another_seed_gives_other_values_where_the_method_draws(method: str) -> None:
    budget = 7 * CASES[method].budget
    first, second = (estimate(TableGame(N, 7, seed=1), method, budget, seed=seed) for seed in (11, 12))
    assert (first.value != second.value).all() == CASES[method].draws


def test_a_game_of_one_player_works(method: str) -> None:
    values = estimate(TableGame(1, 7, seed=1), method)
    game = TableGame(1, 7, seed=1)
    assert_allclose(values.value, [game.tables[:, 1].mean() - game.tables[:, 0].mean()], atol=1e-12)
    assert values.n == 1


def test_values_stand_in_player_order_and_the_ranking_from_least_to_most(method: str) -> None:
    own = np.array([3.0, -1.0, 2.0, 0.0, 2.0])
    values = estimate(Game.from_function(lambda rows: rows @ own, 5), method)
    precision = CASES[method].additive
    assert (np.abs(values.value - own) <= (4.5 * values.stderr if precision is None else precision)).all()
    assert values.ranking()[:2].tolist() == [1, 3]
    assert values.ranking()[-1] == 0


def test_ties_are_ranked_in_player_order(method: str) -> None:
    values = estimate(Game.from_function(lambda rows: rows[:, 1], 5), method)
    assert values.ranking()[-1] == 1
    if method in ("exact", "permutation", "leave-one-out"):  # the others round
        assert values.ranking().tolist() == [0, 2, 3, 4, 1]


def test_the_arrays_of_a_result_cannot_be_written(method: str) -> None:
    values = estimate(_game(), method)
    for array in (values.value, values.stderr, values.counts):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def _assert_same(values: Values, other: Values) -> None:
    for name in ("value", "stderr", "counts"):
        assert getattr(values, name).tobytes() == getattr(other, name).tobytes(), name
        assert getattr(values, name).dtype == getattr(other, name).dtype
    names = ("n_evaluations", "method", "efficiency_gap", "stopped_by", "worth_all", "worth_none", "options")
    for name in (*names, "concept", "efficient", "diagnostics"):
        assert getattr(values, name) == getattr(other, name), name


def test_json_brings_every_field_back(method: str) -> None:
    for options in _windows(method):
        values = estimate(_game(), method, **options)
        text = json.dumps(values.to_json(), allow_nan=False)
        _assert_same(Values.from_json(json.loads(text)), values)


def test_json_has_every_field_but_the_values_of_examples(method: str) -> None:
    values = estimate(_game(), method)
    assert {*values.to_json(), "by_example"} == set(Values.__dataclass_fields__)


def test_diagnostics_come_back_from_json() -> None:
    values = estimate(TableGame(N, 7, seed=1), Permutation(truncate=0.1), keep_examples=True)
    assert values.diagnostics
    back = Values.from_json(json.loads(json.dumps(values.to_json(), allow_nan=False)))
    _assert_same(back, values)
    assert back.by_example is None


@pytest.mark.parametrize("options", [{}, {"sizes": (0.5, 1.0)}])
def test_files_from_before_concepts_had_names_still_load(options: dict[str, Any]) -> None:
    values = estimate(_game(), "permutation", **options)
    data = values.to_json()
    for name in ("concept", "efficient", "diagnostics"):
        del data[name]
    back = Values.from_json(data)
    assert back.value.tolist() == values.value.tolist()
    assert (back.concept, back.efficient, back.diagnostics) == ("shapley", not options, {})


@pytest.mark.parametrize(("walks", "reach"), [(9, 2.306004), (20, 2.093024), (3_000, 1.960755)])  # Student's table
def test_an_interval_reaches_as_many_standard_errors_as_student_says(walks: int, reach: float) -> None:
    values = estimate(_game(), "permutation", max_evaluations=walks * (N + 1))
    assert (values.counts == walks).all()
    ends = np.stack([values.value - reach * values.stderr, values.value + reach * values.stderr], axis=1)
    assert_allclose(values.interval(0.95), ends, atol=1e-3)
    narrow, wide = (np.ptp(values.interval(confidence), axis=1) for confidence in (0.5, 0.99))
    assert (narrow < wide).all()
    assert values.interval().tolist() == values.interval(0.95).tolist()
    exact = estimate(_game(), "exact")
    assert exact.interval().tolist() == np.stack([exact.value, exact.value], axis=1).tolist()


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 95, math.nan])
def test_a_confidence_outside_zero_and_one_is_refused(confidence: float) -> None:
    with pytest.raises(InputError, match="strictly between 0 and 1"):
        estimate(_game(), "exact").interval(confidence)


def test_json_brings_an_unknown_doubt_back() -> None:
    values = estimate(_game(), "permutation", max_evaluations=N + 1)  # one walk: no standard error
    assert np.isinf(values.stderr).all()
    text = json.dumps(values.to_json(), allow_nan=False)
    _assert_same(Values.from_json(json.loads(text)), values)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"value": [1.0]}, "differ in length"),
        ({"value": None}, "should be a valid list"),
        ({"counts": "x"}, "not values"),
        ({"options": 3}, "not values"),
    ],
)
def test_damaged_json_is_refused(change: dict[str, Any], word: str) -> None:
    data = {**estimate(_game()).to_json(), **change}
    with pytest.raises(InputError, match=word):
        Values.from_json(data)


def test_json_without_a_field_is_refused_by_its_name() -> None:
    for name in estimate(_game()).to_json().keys() - {"concept", "efficient", "diagnostics"}:
        data = estimate(_game()).to_json()
        del data[name]
        with pytest.raises(InputError, match=name):
            Values.from_json(data)


# -- one order per example ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("sweeps", [1, 2, 3, 4])
def test_a_budget_of_sweeps_walks_every_example_equally_often(sweeps: int, antithetic: bool) -> None:
    game = TableGame(N, 300, seed=1)  # more examples than one chunk
    walks = sweeps * (2 if antithetic else 1)
    values = estimate(game, max_evaluations=walks * 300 * (N + 1), method=Permutation(antithetic=antithetic))
    assert Counter(game.walked) == dict.fromkeys(range(300), walks)
    assert values.n_evaluations == walks * 300 * (N + 1)
    assert values.counts.tolist() == [sweeps * 300] * N


def test_what_is_left_of_a_budget_below_a_sweep_is_not_spent() -> None:
    game = TableGame(N, 300, seed=1)
    values = estimate(game, max_evaluations=2 * 300 * (N + 1) - 1)
    assert Counter(game.walked) == dict.fromkeys(range(300), 1)
    assert values.n_evaluations == 300 * (N + 1)


@pytest.mark.parametrize("walks", [1, 150, 299])
def test_a_budget_below_one_sweep_walks_an_example_at_most_once(walks: int) -> None:
    game = TableGame(N, 300, seed=1)
    values = estimate(game, max_evaluations=walks * (N + 1))
    assert len(game.walked) == len(set(game.walked)) == walks
    assert values.n_evaluations == walks * (N + 1)


def test_which_examples_a_small_budget_walks_depends_on_the_seed() -> None:
    games = [TableGame(N, 300, seed=1) for _ in range(3)]
    for game, seed in zip(games, (0, 0, 1), strict=True):
        estimate(game, max_evaluations=20 * (N + 1), seed=seed)
    assert games[0].walked == games[1].walked
    assert set(games[0].walked) != set(games[2].walked)


def test_every_example_walks_an_order_of_its_own() -> None:
    class Noted(TableGame):
        orders: list[tuple[int, ...]]

        def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
            self.orders = [*getattr(self, "orders", []), *map(tuple, orders.tolist())]
            return super().walk(orders, examples, start)

    game = Noted(7, 300, seed=1)
    estimate(game, max_evaluations=2 * 300 * 8)
    assert len(set(game.orders)) > 550  # of 5,040 orders, 600 draws meet some 35 twice
    estimate(game, Permutation(antithetic=True), max_evaluations=2 * 300 * 8)
    pairs = game.orders[600:]
    assert len(pairs) == 600
    assert all(there == back[::-1] for there, back in zip(pairs[::2], pairs[1::2], strict=True))


def test_one_order_for_all_examples_costs_as_many_times_more_as_there_are_examples() -> None:
    game = CountingGame(TableGame(N, 50, seed=1))
    values = estimate(game, Permutation(per_example=False), max_evaluations=50 * (N + 1) * 30)
    assert game.evaluations == values.n_evaluations == 50 * (N + 1) * 30
    assert values.counts.tolist() == [30] * N
    assert set(game.game.walked) == {-1}  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", [Permutation(), Permutation(antithetic=True), Permutation(per_example=False)])
def test_estimates_converge_to_the_exact_values_of_the_mean_game(method: Permutation) -> None:
    game = TableGame(N, 20, seed=1)
    truth = game.truth()
    assert_allclose(estimate(game, "exact").value, truth, atol=1e-12)
    few, many = (estimate(game, method, 20 * (N + 1) * samples, seed=4) for samples in (40, 1000))
    assert (np.abs(many.value - truth) <= 4.5 * many.stderr).all()
    assert (many.stderr < 0.3 * few.stderr).all()


def test_values_in_a_window_converge_over_examples_to_those_of_the_mean_game() -> None:
    game = TableGame(N, 20, seed=1)
    truth = by_sizes(game.mean_worth, N, 2, N)
    values = estimate(game, max_evaluations=20 * (N + 1) * 400, sizes=(0.5, 1.0))
    assert (np.abs(values.value - truth) <= 4.5 * values.stderr).all()
    assert values.stderr.max() < 0.03


# -- the standard error is the size of the error ------------------------------------------------------------------

ANTITHETIC = {"method": Permutation(antithetic=True)}
# name -> (examples, spread, samples, options, least and most coverage of the 95 % interval)
COVERAGE: dict[str, tuple[int, float, int, dict[str, Any], tuple[float, float]]] = {
    "many walks of one example": (1, 0.0, 60, {}, (0.92, 0.98)),
    "many antithetic walks of one example": (1, 0.0, 60, ANTITHETIC, (0.92, 0.98)),
    "one order for all examples": (10, 3.0, 60, {"method": Permutation(per_example=False)}, (0.92, 0.98)),
    "two sweeps": (40, 3.0, 80, {}, (0.92, 0.98)),
    "three sweeps": (40, 3.0, 120, {}, (0.92, 0.98)),
    "four sweeps": (40, 3.0, 160, {}, (0.92, 0.98)),
    "two antithetic sweeps": (40, 3.0, 80, ANTITHETIC, (0.92, 0.98)),
    "one sweep": (40, 0.2, 40, {}, (0.93, 1.0)),
    "one sweep over very different examples": (40, 3.0, 40, {}, (0.93, 1.0)),
    "part of a sweep": (100, 3.0, 50, {}, (0.93, 1.0)),
    "a window of one example": (1, 0.0, 80, {"sizes": (0.5, 1.0)}, (0.92, 0.98)),
    "an antithetic window of one example": (1, 0.0, 80, {"sizes": (0.3, 1.0), **ANTITHETIC}, (0.92, 0.98)),
    "a window, two sweeps": (40, 0.0, 80, {"sizes": (0.5, 1.0)}, (0.92, 1.0)),
}


def _coverage(game: TableGame, truth: Any, options: dict[str, Any]) -> float:
    """How often the 95 % interval of a player's value holds the truth, over seeded repetitions."""
    hits = []
    for seed in range(REPETITIONS):
        values = estimate(game, seed=seed, **options)
        assert np.isfinite(values.stderr).all()
        hits.append(np.abs(values.value - truth) <= 1.96 * values.stderr)
    return float(np.mean(hits))


@pytest.mark.parametrize("name", COVERAGE)
def test_the_interval_of_two_standard_errors_holds_the_truth_as_often_as_it_says(name: str) -> None:
    n_examples, spread, samples, options, (least, most) = COVERAGE[name]
    game, sizes = TableGame(N, n_examples, seed=6, spread=spread), options.get("sizes", (0.0, 1.0))
    truth = by_sizes(game.mean_worth, N, math.ceil(sizes[0] * N), N)
    method = options.get("method", Permutation())
    walk = (N - math.ceil(sizes[0] * N) + 1) * (2 if method.antithetic else 1)
    budget = samples * walk * (1 if method.per_example else n_examples)
    assert least <= _coverage(game, truth, {"max_evaluations": budget, **options}) <= most


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_standard_error_covers_the_examples_that_a_rule_left_unwalked(antithetic: bool) -> None:
    game = TableGame(N, 1000, seed=6, spread=3.0)
    options = {"stop": lambda values: "first chunk", "method": Permutation(antithetic=antithetic)}
    assert estimate(game, **options).n_evaluations < 1000 * (N + 1)
    assert _coverage(game, game.truth(), options) >= 0.92


def test_a_rule_is_not_met_by_a_few_examples_that_differ_much_from_the_rest() -> None:
    game = TableGame(N, 1000, seed=6, spread=3.0)
    estimate(game, stop=stderr_below(0.1))  # examples differ by 3: fewer than some 470 cannot tell
    assert len(set(game.walked)) > 400


# -- games --------------------------------------------------------------------------------------------------------


def test_a_walk_meets_the_coalitions_in_the_order_in_which_players_leave() -> None:
    game = Game.from_function(lambda rows: rows @ [1, 10, 100, 1000], 4)
    orders = np.array([[2, 0, 3, 1], [1, 3, 2, 0]])
    assert game.walk(orders).tolist() == [[1111, 1011, 1010, 10, 0], [1111, 1101, 101, 1, 0]]
    assert game.walk(orders[:, :2]).tolist() == [[1111, 1011, 1010], [1111, 1101, 101]]


def test_a_walk_over_examples_asks_each_example_along_its_own_order() -> None:
    game = TableGame(3, 4, seed=2)
    worths = game.walk(np.array([[0, 1, 2], [2, 1, 0]]), np.array([3, 1]))
    assert worths.tolist() == [game.tables[3][[7, 6, 4, 0]].tolist(), game.tables[1][[7, 3, 1, 0]].tolist()]


def test_a_walk_from_a_coalition_starts_there_and_the_others_stay_away() -> None:
    game = Game.from_function(lambda rows: rows @ [1, 10, 100, 1000], 4)
    start = np.array([True, False, True, True])
    assert game.walk(np.array([[3, 0, 2], [0, 2, 3]]), start=start).tolist() == [
        [1101, 101, 100, 0],
        [1101, 1100, 1000, 0],
    ]


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_examples", [1, 7])
@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 5),
        ({"method": Permutation(antithetic=True)}, 10),
        ({"sizes": (0.5, 1.0)}, 3),
        ({"method": Permutation(per_example=False)}, 5),
    ],
)
def test_a_budget_below_one_sample_is_refused_with_the_smallest_that_works(
    options: dict[str, Any], least: int, n_examples: int
) -> None:
    game = CountingGame(TableGame(N, n_examples, seed=1))
    least *= 1 if options.get("method", Permutation()).per_example else n_examples
    with pytest.raises(InputError, match=rf"max_evaluations={least - 1} .* smallest that works is {least}$"):
        estimate(game, max_evaluations=least - 1, **options)
    assert game.evaluations == 0
    assert estimate(game, max_evaluations=least, **options).n_evaluations == game.evaluations == least


def test_exact_values_are_refused_above_the_budget_before_any_work() -> None:
    game = CountingGame(TableGame(N, 7, seed=1))
    with pytest.raises(InputError, match=r"max_evaluations=111 is too small .*the smallest that works is 112$"):
        estimate(game, "exact", max_evaluations=111)
    assert game.evaluations == 0


@pytest.mark.parametrize("budget", [0, -5, True, 100.5, 1e3, "100", math.nan])
def test_a_budget_that_is_no_whole_number_above_zero_is_refused(method: str, budget: Any) -> None:
    with pytest.raises(InputError, match="max_evaluations"):
        estimate(_game(), method, max_evaluations=budget)


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"unknown method 'permutations'; did you mean 'permutation'\? Known: control-v"
    ):
        estimate(_game(), "permutations")


@pytest.mark.parametrize(
    ("n", "cost"), [(25, r"2\^25 .*3\.4\d?e\+0?7"), (100, r"2\^100 .*1\.(27|3)e\+30"), (5000, r"2\^5000")]
)
def test_exact_values_of_more_than_24_players_are_refused_with_the_cost(n: int, cost: str) -> None:
    game = CountingGame(Game.from_function(lambda rows: rows.sum(1), n))
    with pytest.raises(InputError, match=cost + r".*the limit is 24 players: use method='permutation'"):
        estimate(game, "exact")
    assert game.evaluations == 0


@pytest.mark.parametrize("options", [{"antithetic": True}, {"per_example": False}, {"samples": 3}])
def test_options_of_a_method_are_not_options_of_estimate(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        estimate(_game(), "permutation", **options)


def test_a_method_is_a_name_or_a_method() -> None:
    assert estimate(_game(), Permutation()).value.tolist() == estimate(_game(), "permutation").value.tolist()
    for wrong in (Permutation, 3, None):
        with pytest.raises(InputError, match="unknown method"):
            estimate(_game(), wrong)  # type: ignore[arg-type]


def test_what_is_no_game_is_refused_with_the_way_to_make_one() -> None:
    with pytest.raises(InputError, match=r"game is a function; wrap a callable with Game.from_function"):
        estimate(lambda rows: rows.sum(1), "exact")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sizes", [(0.5, 0.5), (0.9, 0.1), (0, 2), (-0.1, 1), "x", None, 0.5, (0.2, 0.4, 0.6), (math.nan, 1.0), ("a", "b")]
)
def test_sizes_that_are_no_window_are_refused(method: str, sizes: Any) -> None:
    with pytest.raises(InputError, match="window of sizes is"):
        estimate(_game(), method, sizes=sizes)


@pytest.mark.parametrize("sizes", [(0.3, 0.4), (0.26, 0.74), (0.8, 1.0)])
def test_a_window_without_two_sizes_is_refused(method: str, sizes: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"no two neighbouring coalition sizes in a game of 4 players; widen"):
        estimate(_game(), method, sizes=sizes)


@pytest.mark.parametrize("seed", [-1, 1.0, True, "0", None])
def test_a_seed_that_is_no_whole_number_from_zero_on_is_refused(method: str, seed: Any) -> None:
    with pytest.raises(InputError, match="seed is"):
        estimate(_game(), method, seed=seed)


@pytest.mark.parametrize("n", [0, -3])
def test_a_game_without_players_is_refused(n: int) -> None:
    with pytest.raises(InputError, match=f"n_players is {n}"):
        Game.from_function(lambda rows: rows.sum(1), n)


@pytest.mark.parametrize("answer", [lambda rows: rows, lambda rows: 1.0, lambda rows: rows.sum(1)[:-1]])
def test_a_function_that_does_not_return_one_number_per_row_is_refused(method: str, answer: Any) -> None:
    with pytest.raises(GameError, match="one number per row"):
        estimate(Game.from_function(answer, N), method)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ([1], "without player 1"),
        ([0, 1, 2, 3], "the empty coalition"),
        ([], "the full coalition"),
        ([0, 1, 2], "with only player 3"),
    ],
)
def test_a_worth_that_is_not_finite_is_an_error_that_names_the_coalition(
    method: str, bad: float, gone: list[int], words: str
) -> None:
    kept = np.ones(N, dtype=bool)
    kept[gone] = False
    game = Game.from_function(lambda rows: np.where((rows == kept).all(1), bad, rows.sum(1)), N)
    if N - len(gone) not in CASES[method].sizes:  # nobody asks
        assert np.isfinite(estimate(game, method).value).all()
        return
    with pytest.raises(GameError, match=f"{bad} for .*{words}"):
        estimate(game, method)


class _Own(Game):
    """A game of the user's own class, which nobody has checked yet."""

    n_players = N

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        return self.answer(coalitions)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("where", "words"),
    [
        (lambda rows: rows[:, 0] & ~rows[:, 1], "the coalition with(out| only) player"),
        (lambda rows: rows.all(1), "the full coalition"),
        (lambda rows: rows.sum(1) > -1, "the (full|empty) coalition|the coalition with"),
    ],
)
def test_a_game_of_ones_own_that_answers_nan_is_an_error_and_never_a_value(
    method: str, bad: float, where: Any, words: str
) -> None:
    with pytest.raises(GameError, match=f"worth is {bad} for ({words})"):
        estimate(_Own(lambda rows: np.where(where(rows), bad, 1.0)), method)


@pytest.mark.parametrize("answer", [lambda rows: np.ones(1), lambda rows: np.float64(1), lambda rows: rows.sum(1)[:-1]])
def test_a_game_of_ones_own_that_answers_in_another_shape_is_an_error(method: str, answer: Any) -> None:
    with pytest.raises(GameError, match="shape"):
        estimate(_Own(answer), method)
