"""What every estimator of the registry keeps to: its budget, its seed, its result, its doubt, and its refusals."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from games import TableGame, by_sizes, game_of, random_worth
from numpy.testing import assert_allclose

from shaprune.errors import GameError, InputError
from shaprune.values.estimate import METHODS, estimate, expected_evaluations
from shaprune.values.game import Coalitions, CountingGame, Examples, Game, Orders, Worths
from shaprune.values.result import Values
from shaprune.values.stopping import relative_error_below, stderr_below

N = 4  # players
SINGLE = random_worth(N, seed=0)
BUDGET = {"exact": 2**N, "permutation": 333}
REPETITIONS = 200


def _game() -> Game:
    return game_of(SINGLE, N)


def _bits(values: Values) -> tuple[bytes, bytes, int]:
    return values.value.tobytes(), values.stderr.tobytes(), values.n_evaluations


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- every estimator ----------------------------------------------------------------------------------------------


def test_the_registry_has_no_estimator_that_this_file_does_not_know() -> None:
    assert set(METHODS) == set(BUDGET)


def test_a_budget_is_kept_and_every_evaluation_is_counted(method: str) -> None:
    game = CountingGame(_game())
    values = estimate(game, method, max_evaluations=BUDGET[method])
    assert game.evaluations == values.n_evaluations
    assert 0.9 * BUDGET[method] < values.n_evaluations <= BUDGET[method]


def test_a_budget_over_examples_is_kept_and_every_evaluation_is_counted(method: str) -> None:
    game = CountingGame(TableGame(N, 7, seed=1))
    values = estimate(game, method, max_evaluations=7 * BUDGET[method])
    assert game.evaluations == values.n_evaluations
    assert 0.9 * 7 * BUDGET[method] < values.n_evaluations <= 7 * BUDGET[method]


def test_the_expected_number_of_evaluations_is_what_is_paid_without_a_budget(method: str) -> None:
    for options in ({}, {"sizes": (0.5, 1.0)}):
        game = CountingGame(TableGame(N, 7, seed=1))
        expected = expected_evaluations(game, method, **options)
        assert game.evaluations == 0
        assert estimate(game, method, **options).n_evaluations == game.evaluations == expected


def test_the_same_seed_gives_the_same_bits(method: str) -> None:
    first, second = (estimate(TableGame(N, 7, seed=1), method, seed=11) for _ in range(2))
    assert _bits(first) == _bits(second)


def test_another_seed_gives_other_values_where_the_method_draws() -> None:
    first, second = (estimate(TableGame(N, 7, seed=1), "permutation", seed=seed) for seed in (11, 12))
    assert (first.value != second.value).all()


def test_a_game_of_one_player_works(method: str) -> None:
    values = estimate(TableGame(1, 7, seed=1), method)
    game = TableGame(1, 7, seed=1)
    assert_allclose(values.value, [game.tables[:, 1].mean() - game.tables[:, 0].mean()], atol=1e-12)
    assert values.n == 1


def test_values_stand_in_player_order_and_the_ranking_from_least_to_most(method: str) -> None:
    own = np.array([3.0, -1.0, 2.0, 0.0, 2.0])
    values = estimate(Game.from_function(lambda rows: rows @ own, 5), method)
    assert_allclose(values.value, own, atol=1e-12)
    assert values.ranking()[:2].tolist() == [1, 3]
    assert values.ranking()[-1] == 0


def test_ties_are_ranked_in_player_order(method: str) -> None:
    values = estimate(Game.from_function(lambda rows: rows[:, 1], 5), method)
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
    for name in names:
        assert getattr(values, name) == getattr(other, name), name


@pytest.mark.parametrize("sizes", [(0.0, 1.0), (0.5, 1.0)])
def test_json_brings_every_field_back(method: str, sizes: tuple[float, float]) -> None:
    values = estimate(_game(), method, sizes=sizes)
    text = json.dumps(values.to_json(), allow_nan=False)
    _assert_same(Values.from_json(json.loads(text)), values)


def test_json_brings_an_unknown_doubt_back() -> None:
    values = estimate(_game(), "permutation", max_evaluations=N + 1)  # one walk: no standard error
    assert np.isinf(values.stderr).all()
    text = json.dumps(values.to_json(), allow_nan=False)
    _assert_same(Values.from_json(json.loads(text)), values)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"value": [1.0]}, "differ in length"),
        ({"value": None}, "differ in length"),
        ({"counts": "x"}, "not values"),
        ({"options": 3}, "not values"),
    ],
)
def test_damaged_json_is_refused(change: dict[str, Any], word: str) -> None:
    data = {**estimate(_game()).to_json(), **change}
    with pytest.raises(InputError, match=word):
        Values.from_json(data)


def test_json_without_a_field_is_refused_by_its_name() -> None:
    for name in estimate(_game()).to_json():
        data = estimate(_game()).to_json()
        del data[name]
        with pytest.raises(InputError, match=name):
            Values.from_json(data)


# -- stopping -----------------------------------------------------------------------------------------------------


def test_a_rule_on_the_standard_error_stops_when_it_is_met_and_is_named() -> None:
    values = estimate(_game(), "permutation", stop=stderr_below(0.02))
    assert values.stopped_by == "stderr_below(0.02)"
    assert values.stderr.max() < 0.02
    longer = estimate(_game(), "permutation", stop=stderr_below(0.01))
    assert longer.n_evaluations > 2 * values.n_evaluations


def test_a_rule_on_the_relative_error_stops_when_it_is_met_and_is_named() -> None:
    values = estimate(TableGame(N, 7, seed=1), "permutation", stop=relative_error_below(0.05))
    assert values.stopped_by == "relative_error_below(0.05)"
    assert np.linalg.norm(values.stderr) < 0.05 * np.linalg.norm(values.value)
    assert estimate(TableGame(N, 7, seed=1), stop=relative_error_below(0.5)).n_evaluations < values.n_evaluations


def test_a_budget_ends_an_estimate_whose_rule_is_never_met() -> None:
    game = CountingGame(_game())
    values = estimate(game, "permutation", max_evaluations=4000, stop=stderr_below(1e-9))
    assert values.stopped_by == "max_evaluations"
    assert game.evaluations == values.n_evaluations == 4000


def test_a_rule_may_be_any_function_of_the_values() -> None:
    seen: list[Values] = []

    def third_time(values: Values) -> str | None:
        seen.append(values)
        return "enough" if len(seen) == 3 else None

    values = estimate(_game(), "permutation", stop=third_time)
    assert values.stopped_by == "enough"
    assert _bits(values) == _bits(seen[-1])
    assert seen[0].n_evaluations < seen[1].n_evaluations < seen[2].n_evaluations


def test_what_ended_an_estimate_without_a_rule_is_named() -> None:
    assert estimate(_game(), "exact").stopped_by == "enumerated"
    assert estimate(_game(), "permutation").stopped_by == "default"
    assert estimate(_game(), "permutation", max_evaluations=50).stopped_by == "max_evaluations"


@pytest.mark.parametrize("rule", [stderr_below, relative_error_below])
@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_that_cannot_be_met_is_refused(rule: Any, limit: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        rule(limit)


# -- one order per example ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("sweeps", [1, 2, 3, 4])
def test_a_budget_of_sweeps_walks_every_example_equally_often(sweeps: int, antithetic: bool) -> None:
    game = TableGame(N, 300, seed=1)  # more examples than one chunk
    walks = sweeps * (2 if antithetic else 1)
    values = estimate(game, max_evaluations=walks * 300 * (N + 1), antithetic=antithetic)
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

        def walk(self, orders: Orders, examples: Examples | None = None) -> Worths:
            self.orders = [*getattr(self, "orders", []), *map(tuple, orders.tolist())]
            return super().walk(orders, examples)

    game = Noted(7, 300, seed=1)
    estimate(game, max_evaluations=2 * 300 * 8)
    assert len(set(game.orders)) > 550  # of 5,040 orders, 600 draws meet some 35 twice
    estimate(game, max_evaluations=2 * 300 * 8, antithetic=True)
    pairs = game.orders[600:]
    assert len(pairs) == 600
    assert all(there == back[::-1] for there, back in zip(pairs[::2], pairs[1::2], strict=True))


def test_one_order_for_all_examples_costs_as_many_times_more_as_there_are_examples() -> None:
    game = CountingGame(TableGame(N, 50, seed=1))
    values = estimate(game, max_evaluations=50 * (N + 1) * 30, per_example=False)
    assert game.evaluations == values.n_evaluations == 50 * (N + 1) * 30
    assert values.counts.tolist() == [30] * N
    assert set(game.game.walked) == {-1}  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, {"antithetic": True}, {"per_example": False}], ids=str)
def test_estimates_converge_to_the_exact_values_of_the_mean_game(options: dict[str, Any]) -> None:
    game = TableGame(N, 20, seed=1)
    truth = game.truth()
    assert_allclose(estimate(game, "exact").value, truth, atol=1e-12)
    few, many = (estimate(game, max_evaluations=20 * (N + 1) * samples, seed=4, **options) for samples in (40, 1000))
    assert (np.abs(many.value - truth) <= 4.5 * many.stderr).all()
    assert (many.stderr < 0.3 * few.stderr).all()


def test_values_in_a_window_converge_over_examples_to_those_of_the_mean_game() -> None:
    game = TableGame(N, 20, seed=1)
    truth = by_sizes(game.mean_worth, N, 2, N)
    values = estimate(game, max_evaluations=20 * (N + 1) * 400, sizes=(0.5, 1.0))
    assert (np.abs(values.value - truth) <= 4.5 * values.stderr).all()
    assert values.stderr.max() < 0.03


# -- the standard error is the size of the error ------------------------------------------------------------------

# name -> (examples, spread, samples, options, least and most coverage of the 95 % interval)
COVERAGE: dict[str, tuple[int, float, int, dict[str, Any], tuple[float, float]]] = {
    "many walks of one example": (1, 0.0, 60, {}, (0.92, 0.98)),
    "many antithetic walks of one example": (1, 0.0, 60, {"antithetic": True}, (0.92, 0.98)),
    "one order for all examples": (10, 3.0, 60, {"per_example": False}, (0.92, 0.98)),
    "two sweeps": (40, 3.0, 80, {}, (0.92, 0.98)),
    "three sweeps": (40, 3.0, 120, {}, (0.92, 0.98)),
    "four sweeps": (40, 3.0, 160, {}, (0.92, 0.98)),
    "two antithetic sweeps": (40, 3.0, 80, {"antithetic": True}, (0.92, 0.98)),
    "one sweep": (40, 0.2, 40, {}, (0.93, 1.0)),
    "one sweep over very different examples": (40, 3.0, 40, {}, (0.93, 1.0)),
    "part of a sweep": (100, 3.0, 50, {}, (0.93, 1.0)),
    "a window of one example": (1, 0.0, 80, {"sizes": (0.5, 1.0)}, (0.92, 0.98)),
    "an antithetic window of one example": (1, 0.0, 80, {"sizes": (0.3, 1.0), "antithetic": True}, (0.92, 0.98)),
    "a window, two sweeps": (40, 0.0, 80, {"sizes": (0.5, 1.0)}, (0.92, 1.0)),
}


def _coverage(game: TableGame, truth: Any, options: dict[str, Any]) -> float:
    """How often the 95 % interval of a player's value holds the truth, over seeded repetitions."""
    hits = []
    for seed in range(REPETITIONS):
        values = estimate(game, "permutation", seed=seed, **options)
        assert np.isfinite(values.stderr).all()
        hits.append(np.abs(values.value - truth) <= 1.96 * values.stderr)
    return float(np.mean(hits))


@pytest.mark.parametrize("name", COVERAGE)
def test_the_interval_of_two_standard_errors_holds_the_truth_as_often_as_it_says(name: str) -> None:
    n_examples, spread, samples, options, (least, most) = COVERAGE[name]
    game, sizes = TableGame(N, n_examples, seed=6, spread=spread), options.get("sizes", (0.0, 1.0))
    truth = by_sizes(game.mean_worth, N, math.ceil(sizes[0] * N), N)
    walk = (N - math.ceil(sizes[0] * N) + 1) * (2 if options.get("antithetic") else 1)
    budget = samples * walk * (n_examples if options.get("per_example") is False else 1)
    assert least <= _coverage(game, truth, {"max_evaluations": budget, **options}) <= most


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_standard_error_covers_the_examples_that_a_rule_left_unwalked(antithetic: bool) -> None:
    game = TableGame(N, 1000, seed=6, spread=3.0)
    options = {"stop": lambda values: "first chunk", "antithetic": antithetic}
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


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_examples", [1, 7])
@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 5), ({"antithetic": True}, 10), ({"sizes": (0.5, 1.0)}, 3), ({"per_example": False}, 5)],
)
def test_a_budget_below_one_sample_is_refused_with_the_smallest_that_works(
    options: dict[str, Any], least: int, n_examples: int
) -> None:
    game = CountingGame(TableGame(N, n_examples, seed=1))
    least *= n_examples if "per_example" in options else 1
    with pytest.raises(InputError, match=rf"max_evaluations={least - 1} .* smallest that works is {least}$"):
        estimate(game, max_evaluations=least - 1, **options)
    assert game.evaluations == 0
    assert estimate(game, max_evaluations=least, **options).n_evaluations == game.evaluations == least


def test_exact_values_are_refused_above_the_budget_before_any_work() -> None:
    game = CountingGame(TableGame(N, 7, seed=1))
    with pytest.raises(InputError, match=r"need 112 evaluations and max_evaluations is 111"):
        estimate(game, "exact", max_evaluations=111)
    assert game.evaluations == 0


@pytest.mark.timeout(20)  # without the refusal, a budget of NaN never ends
@pytest.mark.parametrize("budget", [0, -5, True, 100.5, 1e3, "100", math.nan])
def test_a_budget_that_is_no_whole_number_above_zero_is_refused(method: str, budget: Any) -> None:
    with pytest.raises(InputError, match="max_evaluations"):
        estimate(_game(), method, max_evaluations=budget)


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown method 'permutations'; did you mean 'permutation'\? Known: exact"):
        estimate(_game(), "permutations")


@pytest.mark.parametrize(
    ("n", "cost"), [(21, r"2\^21 .*2\.1\d?e\+0?6"), (100, r"2\^100 .*1\.(27|3)e\+30"), (5000, r"2\^5000")]
)
def test_exact_values_of_more_than_twenty_players_are_refused_with_the_cost(n: int, cost: str) -> None:
    game = CountingGame(Game.from_function(lambda rows: rows.sum(1), n))
    with pytest.raises(InputError, match=cost + r".*the limit is 20 players: use method='permutation'"):
        estimate(game, "exact")
    assert game.evaluations == 0


@pytest.mark.parametrize("option", ["stop", "antithetic", "per_example"])
def test_exact_refuses_options_that_it_does_not_have(option: str) -> None:
    given = {"stop": stderr_below(0.1), "antithetic": True, "per_example": False}[option]
    with pytest.raises(InputError, match=f"method='exact' has no option '{option}'"):
        estimate(_game(), "exact", **{option: given})


@pytest.mark.parametrize(
    "sizes", [(0.5, 0.5), (0.9, 0.1), (0, 2), (-0.1, 1), "x", None, 0.5, (0.2, 0.4, 0.6), (math.nan, 1.0), ("a", "b")]
)
def test_sizes_that_are_no_window_are_refused(method: str, sizes: Any) -> None:
    with pytest.raises(InputError, match="sizes is"):
        estimate(_game(), method, sizes=sizes)


@pytest.mark.parametrize("sizes", [(0.3, 0.4), (0.26, 0.74), (0.8, 1.0)])
def test_a_window_without_two_sizes_is_refused(method: str, sizes: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"no two neighbouring coalition sizes in a game of 4 players"):
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
def test_a_game_of_ones_own_that_answers_nan_is_an_error_and_never_a_value(method: str, bad: float) -> None:
    with pytest.raises(GameError, match=r"the coalition with(out| only) player"):
        estimate(_Own(lambda rows: np.where(rows[:, 1] | ~rows[:, 0], 1.0, bad)), method)


@pytest.mark.parametrize("answer", [lambda rows: np.ones(1), lambda rows: np.float64(1), lambda rows: rows.sum(1)[:-1]])
def test_a_game_of_ones_own_that_answers_in_another_shape_is_an_error(method: str, answer: Any) -> None:
    with pytest.raises(GameError, match="shape"):
        estimate(_Own(answer), method)
