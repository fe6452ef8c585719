"""Values of single examples, and what is made of them: against numbers by hand, and against each example's own game."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from testkit.games import TableGame, by_all_orders, by_subsets

from shaprune.errors import InputError
from shaprune.values.aggregation import AGGREGATES, aggregate_of, aggregated, mean_std, per_group, quantile
from shaprune.values.estimate import METHODS, estimate
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.result import Values

N = 4  # players
SWEEP = 30 * (N + 1)  # evaluations that walk each of 30 examples once
METHODS_PER_EXAMPLE = (Permutation(), Permutation(antithetic=True), Permutation(truncate=0.0))


def _game(seed: int = 1) -> TableGame:
    return TableGame(N, 30, seed=seed, spread=1.0)


def _values(rows: Any) -> Values:
    rows = np.asarray(rows, dtype=np.float64)
    n = rows.shape[1]
    return Values(
        value=np.nanmean(rows, axis=0),
        stderr=np.full(n, 0.1),
        n_evaluations=100,
        method="permutation",
        efficiency_gap=0.0,
        stopped_by="default",
        worth_all=1.0,
        worth_none=0.0,
        counts=np.full(n, len(rows)),
        by_example=rows,
    )


# -- values of single examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("concept", ["shapley", "banzhaf:0.7", "beta:1,4"])
@pytest.mark.parametrize("sweeps", [2, 3, 8])
def test_the_mean_over_examples_that_walked_equally_often_is_the_value(sweeps: int, concept: str) -> None:
    for method in METHODS_PER_EXAMPLE[: 3 if concept == "shapley" else 2]:
        values = estimate(_game(), method, 2 * sweeps * SWEEP, concept=concept, keep_examples=True)
        assert values.by_example is not None
        assert values.by_example.shape == (30, N)
        assert_allclose(values.by_example.mean(0), values.value, atol=1e-12)


@pytest.mark.parametrize("concept", ["shapley", "banzhaf:0.7", "shapley:0.5,1"])
def test_the_values_of_an_example_are_those_of_its_own_game(concept: str) -> None:
    game = TableGame(N, 3, seed=5)
    values = estimate(game, max_evaluations=3 * 5 * 3000, concept=concept, keep_examples=True)
    coefficients = {
        "banzhaf:0.7": lambda s: 0.7**s * 0.3 ** (3 - s),
        "shapley:0.5,1": lambda s: [0, 0, 1 / 6, 1 / 2][s],
    }
    for example in range(3):
        worth = game.worth_of(example)
        truth = by_all_orders(worth, N) if concept == "shapley" else by_subsets(worth, N, coefficients[concept])
        assert_allclose(values.by_example[example], truth, atol=0.12)  # 4.5 standard errors of 3,000 walks
    assert np.abs(values.by_example[0] - values.by_example[1]).max() > 0.5


def test_one_walk_per_example_does_not_forget_the_concept() -> None:
    own = TableGame(N, 3000, seed=5)
    own.tables[:] = own.tables[0]  # examples that are all alike: their mean is the value of each
    for concept in ("banzhaf:0.9", "beta:1,8"):
        truth = estimate(own, "exact", concept=concept).value
        values = estimate(own, max_evaluations=3000 * (N + 1), concept=concept, keep_examples=True)
        assert (np.abs(values.by_example.mean(0) - truth) <= 4.5 * values.stderr).all()
        assert np.abs(truth - estimate(own, "exact").value).max() > 9 * values.stderr.max()


def test_examples_that_were_not_sampled_have_no_values() -> None:
    game = _game()
    values = estimate(game, max_evaluations=12 * (N + 1), keep_examples=True)
    sampled = np.isin(np.arange(30), game.walked)
    assert sampled.sum() == 12
    assert np.isfinite(values.by_example[sampled]).all()
    assert np.isnan(values.by_example[~sampled]).all()
    window = estimate(game, max_evaluations=30 * 3, sizes=(0.5, 1.0), keep_examples=True)
    assert (np.isfinite(window.by_example).sum(1) == 2).all()  # a walk down to half the players


def test_values_of_examples_are_kept_only_where_asked_for() -> None:
    assert estimate(_game()).by_example is None
    assert estimate(_game(), aggregate="mean+2std").by_example is None
    assert estimate(_game(), aggregate="mean+2std", keep_examples=True).by_example is not None
    one = estimate(TableGame(N, 1, seed=1), keep_examples=True)
    assert_allclose(one.by_example, [one.value], atol=1e-12)


def test_keeping_them_changes_no_bit() -> None:
    kept, plain = (estimate(_game(), seed=3, keep_examples=keep) for keep in (True, False))
    assert kept.value.tobytes() == plain.value.tobytes()
    assert kept.stderr.tobytes() == plain.stderr.tobytes()
    assert estimate(_game(), seed=3, aggregate="mean").value.tobytes() == plain.value.tobytes()


# -- aggregation by hand ------------------------------------------------------------------------------------------

ROWS = [[1.0, 0.0, 2.0], [3.0, 4.0, 2.0], [5.0, -8.0, 2.0], [7.0, 0.0, 10.0]]
LABELS = np.array([3, 3, 8, 8])
BY_HAND: dict[str, tuple[Any, list[float]]] = {
    "mean + std": ("mean+std", [4 + math.sqrt(5), -1 + math.sqrt(19), 4 + math.sqrt(12)]),
    "mean + 2 std": ("mean+2std", [4 + 2 * math.sqrt(5), -1 + 2 * math.sqrt(19), 4 + 2 * math.sqrt(12)]),
    "mean + half a std": ("mean+0.5std", [4 + 0.5 * math.sqrt(5), -1 + 0.5 * math.sqrt(19), 4 + 0.5 * math.sqrt(12)]),
    "median": ("quantile:0.5", [4, 0, 2]),
    "upper quartile": ("quantile:0.75", [5.5, 1, 4]),
    "maximum": ("quantile:1", [7, 4, 10]),
    "worst group": ("worst-group", [6, 2, 6]),  # means (2, 2, 2) and (6, -4, 6)
    "callable": (lambda rows: rows.max(0) - rows.min(0), [6, 12, 8]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_an_aggregation_is_what_it_is_by_hand(name: str) -> None:
    how, truth = BY_HAND[name]
    values = aggregated(_values(ROWS), how, LABELS)
    assert_allclose(values.value, truth, atol=1e-12)
    assert (values.stderr >= 0).all()
    assert (values.efficient, values.efficiency_gap) == (False, None)
    assert values.options["aggregate"] == (how if isinstance(how, str) else "<lambda>")


@pytest.mark.parametrize("name", BY_HAND)
def test_an_estimate_aggregates_the_values_of_its_examples(name: str) -> None:
    how, _ = BY_HAND[name]
    game = _game()
    game.labels = np.arange(30) % 3
    rows = estimate(game, max_evaluations=2 * SWEEP, seed=2, keep_examples=True).by_example
    groups = [rows[game.labels == label].mean(0) for label in range(3)]
    numpys = {
        "mean + std": lambda: rows.mean(0) + rows.std(0),
        "mean + 2 std": lambda: rows.mean(0) + 2 * rows.std(0),
        "mean + half a std": lambda: rows.mean(0) + rows.std(0) / 2,
        "median": lambda: np.median(rows, axis=0),
        "upper quartile": lambda: np.quantile(rows, 0.75, axis=0),
        "maximum": lambda: rows.max(0),
        "worst group": lambda: np.max(groups, axis=0),
        "callable": lambda: rows.max(0) - rows.min(0),
    }
    values = estimate(CountingGame(game), max_evaluations=2 * SWEEP, seed=2, aggregate=how)
    assert_allclose(values.value, numpys[name](), atol=1e-12)
    again = estimate(game, max_evaluations=2 * SWEEP, seed=2, aggregate=how)
    assert again.stderr.tobytes() == values.stderr.tobytes()


def test_examples_that_say_nothing_about_a_player_are_left_out_for_this_player_only() -> None:
    gaps = np.array(ROWS)
    gaps[0, 0] = gaps[2, 1] = gaps[1, 1] = np.nan
    values = aggregated(_values(gaps), "quantile:0.5", None)
    assert_allclose(values.value, [5, 0, 2])
    values = aggregated(_values(gaps), "worst-group", LABELS)
    assert_allclose(values.value, [6, 0, 6])  # means (3, 0, 2) and (6, 0, 6)
    none = np.array(ROWS)
    none[0] = np.nan  # an example that has not been walked at all
    assert_allclose(aggregated(_values(none), lambda rows: rows.min(0) + len(rows), None).value, [6, -5, 5])


def test_an_aggregation_works_in_a_window_where_no_walk_meets_all_players() -> None:
    game = TableGame(N, 400, seed=5, spread=1.0)
    values = estimate(game, max_evaluations=400 * 3, sizes=(0.5, 1.0), aggregate="mean+1std", keep_examples=True)
    rows = values.by_example
    assert not np.isfinite(rows).all(1).any()
    assert_allclose(values.value, np.nanmean(rows, axis=0) + np.nanstd(rows, axis=0), atol=1e-12)
    assert np.isfinite(values.stderr).all()


def test_the_doubt_of_an_aggregation_is_that_of_other_examples() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 3)) * [1, 2, 4]
    mean = aggregated(_values(rows), lambda rows: rows.mean(0), None)
    assert_allclose(mean.stderr, np.array([1, 2, 4]) / 20, rtol=0.3)  # sigma / sqrt(400), from 100 resamples
    median = aggregated(_values(rows), quantile(0.5), None)
    assert_allclose(median.stderr, np.array([1, 2, 4]) / 20 * math.sqrt(math.pi / 2), rtol=0.4)
    first, second, other = (aggregated(_values(rows), mean_std(2), None, seed=seed) for seed in (1, 1, 2))
    assert first.stderr.tobytes() == second.stderr.tobytes() != other.stderr.tobytes()
    assert first.value.tobytes() == other.value.tobytes()


def test_one_example_says_nothing_about_others() -> None:
    values = estimate(TableGame(N, 1, seed=1), aggregate="mean+2std")
    assert np.isinf(values.stderr).all()


# -- groups -------------------------------------------------------------------------------------------------------


def test_values_per_group_are_means_over_its_examples() -> None:
    groups = per_group(_values(ROWS), LABELS)
    assert list(groups) == [3, 8]
    assert groups[3].value.tolist() == [2, 2, 2]
    assert groups[8].value.tolist() == [6, -4, 6]
    assert_allclose(groups[3].stderr, [1, 2, 0])  # sigma / sqrt(2), sigma with one degree of freedom less
    assert_allclose(groups[8].stderr, [1, 4, 4])
    assert groups[8].counts.tolist() == [2, 2, 2]
    assert (groups[8].worth_all, groups[8].worth_none, groups[8].efficiency_gap) == (None, None, None)
    assert groups[8].by_example.tolist() == ROWS[2:]


def test_values_per_group_add_up_to_the_value() -> None:
    game, labels = _game(), np.repeat([0, 1, 2], [5, 10, 15])
    values = estimate(game, max_evaluations=2 * SWEEP, keep_examples=True)
    groups = per_group(values, labels)
    assert_allclose(sum(groups[g].value * (5 * (g + 1)) for g in range(3)) / 30, values.value, atol=1e-12)


def test_a_group_of_one_example_has_an_unknown_doubt() -> None:
    groups = per_group(_values(ROWS), np.array([0, 0, 0, 1]))
    assert np.isinf(groups[1].stderr).all()
    assert groups[1].value.tolist() == ROWS[3]


# -- refusals -----------------------------------------------------------------------------------------------------


def test_more_memory_than_allowed_is_refused_with_both_numbers_before_any_work() -> None:
    game = CountingGame(_game())
    needed = 2 * 8 * 30 * N  # sums and counts, 8 bytes each
    for options in ({"keep_examples": True}, {"aggregate": "mean+2std"}):
        with pytest.raises(InputError, match=rf"need {needed:,} bytes and max_memory is {needed - 1:,}"):
            estimate(game, max_memory=needed - 1, **options)
        assert game.evaluations == 0
    assert estimate(game, max_memory=needed, keep_examples=True).by_example is not None
    large = CountingGame(TableGame(1, 1, seed=0))
    large.n_players, large.n_examples = 10_000, 1_000_000
    with pytest.raises(InputError, match="need 160,000,000,000 bytes and max_memory is 1,073,741,824"):
        estimate(large, keep_examples=True)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("mean+2sd", r"unknown aggregate 'mean\+2sd'; did you mean 'mean\+2std'\?"),
        ("worst", r"unknown aggregate 'worst'; did you mean 'worst-group'\?"),
        ("mean+xstd", "unknown aggregate"),
        ("quantile", "unknown aggregate 'quantile'"),
        ("quantile:x", "unknown aggregate"),
        ("quantile:1.5", r"quantile is 1.5; it must lie in \[0, 1\]"),
        ("quantile:nan", "quantile is nan"),
        ("worst-group", "needs the class of each example"),
        (3, "aggregate is a int"),
        (None, "aggregate is a NoneType"),
    ],
)
def test_an_aggregation_that_cannot_work_is_refused_before_any_work(how: Any, words: str) -> None:
    game = CountingGame(_game())
    with pytest.raises(InputError, match=words):
        estimate(game, aggregate=how)
    assert game.evaluations == 0


def test_every_name_that_is_offered_works() -> None:
    for name in set(AGGREGATES) - {"mean", "worst-group"}:
        assert callable(aggregate_of(name))
    game = _game()
    game.labels = np.arange(30) % 2
    for name in AGGREGATES:
        assert np.isfinite(estimate(game, aggregate=name).value).all()


@pytest.mark.parametrize(
    "how",
    [lambda rows: rows, lambda rows: rows.mean(), lambda rows: rows.mean(0)[:2], lambda rows: rows.mean(0) * np.nan],
)
def test_a_callable_that_does_not_return_one_number_per_player_is_refused(how: Any) -> None:
    with pytest.raises(InputError, match=r"it must turn \(30, 4\) into \(4,\)"):
        estimate(_game(), max_evaluations=2 * SWEEP, aggregate=how)


def test_labels_of_another_length_are_refused() -> None:
    values = estimate(_game(), keep_examples=True)
    for labels in (np.zeros(29, dtype=int), np.zeros((30, 1), dtype=int), np.zeros(0, dtype=int)):
        with pytest.raises(InputError, match="give one for each of 30 examples"):
            per_group(values, labels)
        with pytest.raises(InputError, match="give one for each of 30 examples"):
            aggregated(values, "worst-group", labels)


def test_a_group_that_nobody_has_sampled_is_refused_by_name() -> None:
    gaps = np.array(ROWS)
    gaps[2:, 1] = np.nan
    with pytest.raises(InputError, match="no example of group 8 has a value for player 1; raise max_evaluations"):
        per_group(_values(gaps), LABELS)
    never = _values(ROWS)
    never.by_example[:, 1] = np.nan
    with pytest.raises(InputError, match="no example has a value for player 1; raise max_evaluations"):
        aggregated(never, "mean+2std", None)


def test_values_without_examples_are_refused_with_the_way_to_get_them() -> None:
    values = estimate(_game())
    for ask in (lambda: per_group(values, np.zeros(30, dtype=int)), lambda: aggregated(values, "mean+2std", None)):
        with pytest.raises(InputError, match="keep_examples=True"):
            ask()


def test_a_method_without_values_of_examples_is_refused_before_any_work() -> None:
    for name in METHODS:
        game = CountingGame(_game())
        if METHODS[name].by_example:
            assert estimate(game, name, keep_examples=True).by_example.shape == (30, N)
            continue
        for options in ({"keep_examples": True}, {"aggregate": "mean+2std"}):
            with pytest.raises(InputError, match=f"method '{name}' has no values per example"):
                estimate(game, name, **options)
        assert game.evaluations == 0


class Whole(Game):
    """A worth over all examples only, such as F1."""

    n_players, n_examples, separable, repeatable = N, 30, False, True

    def __call__(self, coalitions: NDArray[np.bool_], examples: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        if examples is not None:
            raise AssertionError("there are no worths of single examples")
        return np.sqrt(coalitions.sum(1))


def test_values_of_examples_need_an_order_per_example_and_worths_of_examples() -> None:
    for game, method in ((_game(), Permutation(per_example=False)), (Whole(), Permutation())):
        with pytest.raises(InputError, match="one order per example"):
            estimate(game, method, keep_examples=True)


def test_a_game_without_worths_of_examples_is_walked_as_a_whole_and_says_so() -> None:
    game = CountingGame(Whole())
    values = estimate(game, max_evaluations=30 * (N + 1) * 10 + 1)
    assert values.n_evaluations == game.evaluations == 30 * (N + 1) * 10
    assert values.counts.tolist() == [10] * N
    assert values.options["per_example"] is False
    assert_allclose(values.value.sum(), 2, atol=1e-12)
