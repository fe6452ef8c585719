"""Estimators against games with values in closed form, slow oracles written independently, and shapiq."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from testkit.games import TableGame, Worth, by_all_orders, by_sizes, game_of, random_worth, unanimity, unanimity_values

from shaprune.errors import InputError
from shaprune.values.estimate import estimate
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.result import Values

WALKS = 400
SIZES = ((0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (0.2, 0.8), (0.8, 1.0), (0.3, 1.0))


def _glove() -> tuple[Worth, list[float]]:
    return lambda kept: float(0 in kept and len(kept) > 1), [2 / 3, 1 / 6, 1 / 6]  # one left glove, two right ones


def _voting() -> tuple[Worth, list[float]]:
    weights = [3, 2, 1]  # quota 4: the first voter is pivotal in 4 of the 6 orders, the others in one each
    return lambda kept: float(sum(weights[p] for p in kept) >= 4), [4 / 6, 1 / 6, 1 / 6]


def _airport() -> tuple[Worth, list[float]]:
    lengths = [1.0, 2.5, 2.5, 4.0, 7.0]  # every stretch of the runway is shared alike by all who need it
    shares = [(b - a) / (len(lengths) - k) for k, (a, b) in enumerate(pairwise([0.0, *lengths]))]
    return lambda kept: -max((lengths[p] for p in kept), default=0.0), (-np.cumsum(shares)).tolist()


def _additive() -> tuple[Worth, list[float]]:
    own = [0.5, -1.25, 0.0, 3.0]
    return lambda kept: 7.0 + sum(own[p] for p in kept), own


def _alone() -> tuple[Worth, list[float]]:
    return lambda kept: 2.5 if kept else -1.0, [3.5]


def _unanimities() -> tuple[Worth, list[float]]:
    rng, n = np.random.default_rng(3), 7
    members = [frozenset(rng.choice(n, size=rng.integers(1, n + 1), replace=False).tolist()) for _ in range(12)]
    coefficients = {m: float(rng.normal()) for m in members}
    return unanimity(coefficients), unanimity_values(coefficients, n).tolist()


KNOWN = {
    "glove": _glove(),
    "voting": _voting(),
    "airport": _airport(),
    "additive": _additive(),
    "one player": _alone(),
    "unanimity sums": _unanimities(),
}


def _assert_within_its_own_doubt(values: Values, truth: NDArray[np.float64] | list[float]) -> None:
    assert np.isfinite(values.stderr).all()
    assert (np.abs(values.value - truth) <= 4.5 * values.stderr + 1e-12).all(), (values.value, truth, values.stderr)


@pytest.mark.parametrize("name", KNOWN)
def test_exact_values_are_the_closed_form(name: str) -> None:
    worth, truth = KNOWN[name]
    values = estimate(game_of(worth, len(truth)), "exact")
    assert_allclose(values.value, truth, atol=1e-12)
    assert values.stderr.tolist() == [0.0] * len(truth)
    assert values.n_evaluations == 2 ** len(truth) + 1  # no coalition was asked for twice, so one is asked for again


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("name", KNOWN)
def test_estimates_from_random_orders_are_within_their_standard_errors_of_the_closed_form(
    name: str, antithetic: bool
) -> None:
    worth, truth = KNOWN[name]
    budget = WALKS * (len(truth) + 1)
    method = Permutation(antithetic=antithetic)
    values = estimate(game_of(worth, len(truth)), method, max_evaluations=budget, seed=5)
    _assert_within_its_own_doubt(values, truth)
    assert values.stderr.max() <= 0.1 * max(1.0, float(np.abs(truth).max()))  # the doubt is not an excuse


@pytest.mark.parametrize("name", ["additive", "one player"])
def test_random_orders_have_no_doubt_where_the_order_does_not_matter(name: str) -> None:
    worth, truth = KNOWN[name]
    values = estimate(game_of(worth, len(truth)), "permutation", max_evaluations=10 * (len(truth) + 1))
    assert_allclose(values.value, truth, atol=1e-12)
    assert values.stderr.max() < 1e-7


def test_exact_values_of_the_security_council_are_those_of_the_textbook() -> None:
    weights = np.array([7] * 5 + [1] * 10)  # five vetoes, 39 votes needed
    values = estimate(Game.from_function(lambda rows: rows @ weights >= 39, 15), "exact")
    assert_allclose(values.value, [421 / 2145] * 5 + [4 / 2145] * 10, atol=1e-12)


@pytest.mark.parametrize("n", range(1, 7))
def test_exact_values_of_a_random_game_are_the_mean_over_all_orders(n: int) -> None:
    worth = random_worth(n, seed=n)
    values = estimate(game_of(worth, n), "exact")
    assert_allclose(values.value, by_all_orders(worth, n), atol=1e-12)
    assert values.worth_all == worth(frozenset(range(n)))
    assert values.worth_none == worth(frozenset())


def test_exact_values_of_more_coalitions_than_one_chunk_are_in_player_order() -> None:
    own = np.linspace(-1, 2, 16)
    values = estimate(Game.from_function(lambda rows: rows @ own + rows[:, 0] * rows[:, 15], 16), "exact")
    truth = own.copy()
    truth[[0, 15]] += 0.5
    assert_allclose(values.value, truth, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("n", [5, 6])
def test_exact_values_in_a_window_look_at_no_other_size(n: int, sizes: tuple[float, float]) -> None:
    low, high = int(np.ceil(sizes[0] * n - 1e-6)), int(np.floor(sizes[1] * n + 1e-6))
    worth, asked = random_worth(n, seed=10 + n), set()

    def noted(kept: frozenset[int]) -> float:
        asked.add(len(kept))
        return worth(kept)

    values = estimate(game_of(noted, n), "exact", sizes=sizes)
    assert_allclose(values.value, by_sizes(worth, n, low, high), atol=1e-12)
    assert asked == set(range(low, high + 1))


def test_the_oracles_agree_on_the_whole_window() -> None:
    worth = random_worth(5, seed=1)
    assert_allclose(by_sizes(worth, 5, 0, 5), by_all_orders(worth, 5), atol=1e-12)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_random_orders_in_a_window_are_within_their_standard_errors(
    sizes: tuple[float, float], antithetic: bool
) -> None:
    n = 10
    low, high = int(np.ceil(sizes[0] * n - 1e-6)), int(np.floor(sizes[1] * n + 1e-6))
    own = np.linspace(0.5, 2, n)
    # A player adds the more the more players are there, so values differ from size to size.
    values = estimate(
        Game.from_function(lambda rows: (rows @ own) ** 2, n),
        Permutation(antithetic=antithetic),
        max_evaluations=8000 * (n + 1),
        sizes=sizes,
    )
    truth = by_sizes(lambda kept: float(sum(own[p] for p in kept) ** 2), n, low, high)
    _assert_within_its_own_doubt(values, truth)
    assert (values.stderr < 0.02 * truth).all()


def test_a_window_of_large_coalitions_differs_from_the_shapley_value() -> None:
    worth = random_worth(6, seed=2)
    large, every = (estimate(game_of(worth, 6), "exact", sizes=s).value for s in ((0.5, 1.0), (0.0, 1.0)))
    assert np.abs(large - every).max() > 0.05


def test_exact_values_are_those_of_shapiq() -> None:
    shapiq = pytest.importorskip("shapiq")
    n, worth = 6, random_worth(6, seed=4)
    game = game_of(worth, n)
    theirs = shapiq.ExactComputer(n_players=n, game=lambda rows: game(np.asarray(rows, dtype=bool)))("SV")
    assert_allclose(estimate(game, "exact").value, [theirs.dict_values[player,] for player in range(n)], atol=1e-10)


# -- truncated walks ----------------------------------------------------------------------------------------------


class _Collapsing(TableGame):
    """Worths are 0 below some players; some examples are worth less than nothing above."""

    def __init__(self, n_players: int, n_examples: int, alive: int, below: bool) -> None:
        super().__init__(n_players, n_examples, seed=2)
        size = np.bitwise_count(np.arange(2**n_players))
        sign = np.where(below & (np.arange(n_examples) % 2 == 1), -1, 1)[:, None]
        self.tables = sign * np.where(size < alive, 0, 1 + np.abs(self.tables))


@pytest.mark.parametrize("n_examples", [1, 20])
@pytest.mark.parametrize("options", [{}, {"antithetic": True}, {"per_example": False}], ids=str)
def test_a_truncated_walk_loses_nothing_where_the_rest_is_worth_nothing(
    options: dict[str, bool], n_examples: int
) -> None:
    n, walks = 9, 40
    below = options.get("per_example", True)  # their mean might be 0 on the way
    whole, cut = (CountingGame(_Collapsing(n, n_examples, 6, below)) for _ in range(2))
    budget = walks * n_examples * (n + 1)
    full = estimate(whole, Permutation(**options), max_evaluations=budget, seed=4)
    short = estimate(cut, Permutation(**options, truncate=0.0), max_evaluations=budget, seed=4)
    assert short.value.tobytes() == full.value.tobytes()
    assert short.stderr.tobytes() == full.stderr.tobytes()
    assert (short.worth_all, short.worth_none) == (full.worth_all, full.worth_none)
    assert whole.evaluations == full.n_evaluations == budget
    assert cut.evaluations == short.n_evaluations
    assert short.diagnostics == {"evaluations_saved": budget - cut.evaluations}
    # pairs of players leave between looks; the walk is over at 5 players, nobody's worth is asked for apart
    assert cut.evaluations == walks * n_examples * 7
    assert full.diagnostics == {}


@pytest.mark.parametrize("truncate", [0.0, 0.5, 0.9])
def test_truncated_walks_still_sum_to_the_worth_of_all_minus_the_worth_of_none(truncate: float) -> None:
    game = TableGame(10, 20, seed=3)
    values = estimate(game, Permutation(truncate=truncate), max_evaluations=20 * 11 * 8)
    assert_allclose(values.value.sum(), game.tables[:, -1].mean() - game.tables[:, 0].mean(), atol=1e-12)
    assert abs(values.efficiency_gap) < 1e-12
    assert values.efficient
    assert values.diagnostics["evaluations_saved"] == 20 * 11 * 8 - values.n_evaluations > 0


def test_a_walk_is_cut_where_the_worth_has_fallen_to_its_share_by_hand() -> None:
    game = CountingGame(Game.from_function(lambda rows: 3 + rows.sum(1), 8))  # from 11 down to 3; half way is 7
    values = estimate(game, Permutation(truncate=0.5), max_evaluations=1000 * 9)
    assert game.evaluations == values.n_evaluations == 1000 * (1 + 5)  # nobody; then 11, 10, 9, 8, 7
    assert values.diagnostics == {"evaluations_saved": 3000}
    # The first four to leave find 1 each, the fifth what is left, the others nothing: 4/8 * 1 + 1/8 * 4 on average.
    assert (np.abs(values.value - 1) <= 4.5 * values.stderr).all()
    assert_allclose(values.stderr, np.sqrt((4 * 1 + 16) / 8 - 1) / np.sqrt(1000), rtol=0.15)


def test_the_larger_the_share_the_cheaper_the_walks() -> None:
    game = Game.from_function(lambda rows: rows.sum(1), 16)
    paid = [
        estimate(game, Permutation(truncate=t), max_evaluations=17 * 100).n_evaluations for t in (0.0, 0.3, 0.6, 0.9)
    ]
    # Looks are two players apart, at 15, 13, 11, ...; 30 % of 16 is 4.8, met at 3: 14 worths, and that of nobody.
    assert paid == [1700, 1500, 900, 500]


@pytest.mark.parametrize("truncate", [-0.1, 1.0, 2.0, float("nan")])
def test_a_share_that_is_none_is_refused(truncate: float) -> None:
    with pytest.raises(InputError, match=r"truncate is .* in \[0, 1\)"):
        estimate(game_of(random_worth(4, 0), 4), Permutation(truncate=truncate))


@pytest.mark.parametrize("options", [{"concept": "banzhaf"}, {"sizes": (0.5, 1.0)}, {"concept": "beta:1,4"}])
def test_only_whole_walks_can_be_truncated(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"truncate needs whole walks, and .* looks at some sizes only"):
        estimate(game_of(random_worth(4, 0), 4), Permutation(truncate=0.1), **options)


# -- concepts of many players -------------------------------------------------------------------------------------


def test_walks_of_a_concept_end_where_smaller_coalitions_no_longer_count() -> None:
    n, own = 400, np.linspace(-1, 1, 400)
    game = CountingGame(Game.from_function(lambda rows: rows @ own, n))
    values = estimate(game, "permutation", concept="banzhaf:0.9", stop=lambda values: "one look")
    assert game.evaluations < 128 * 0.3 * n  # 6 standard deviations below 360 players there are still 324
    assert_allclose(values.value, own, atol=1e-9)
    assert values.worth_none is None
