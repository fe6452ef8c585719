"""What the Shapley value promises for every game: the axioms, checked on games that hypothesis makes up."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from shaprune.values.concepts import shapley
from shaprune.values.estimate import estimate
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.games.arrays import Coalitions
from shaprune.values.games.game import Game
from shaprune.values.result import Values

quick = settings(deadline=None, max_examples=40, derandomize=True, database=None)

SAMPLED = (Permutation(), Permutation(antithetic=True), Permutation(per_example=False), Permutation(truncate=0.0))
WALKS = 24
Table = NDArray[np.float64]  # (2^n,) worth by binary code, player 0 the lowest bit


def _game(table: Table) -> Game:
    n = len(table).bit_length() - 1
    return Game.from_function(lambda rows: table[rows @ (1 << np.arange(n))], n)


def _exact(table: Table, sizes: tuple[float, float] = (0.0, 1.0)) -> Values:
    return estimate(_game(table), "exact", sizes=sizes)


def _sampled(table: Table, method: Permutation) -> Values:
    game = _game(table)
    return estimate(game, method, max_evaluations=WALKS * (game.n_players + 1), seed=3)


def _relabelled(table: Table, to: NDArray[np.int64]) -> Table:
    """The same game in which player i is called ``to[i]``."""
    n = len(to)
    codes = np.arange(len(table))
    renamed = sum((codes >> i & 1) << to[i] for i in range(n))
    result = np.empty_like(table)
    result[renamed] = table
    return result


@st.composite
def tables(draw: st.DrawFn, least: int = 1, most: int = 6) -> Table:
    n = draw(st.integers(least, most))
    numbers = st.floats(-100, 100, allow_nan=False, width=32)
    return np.array(draw(st.lists(numbers, min_size=2**n, max_size=2**n)))


@st.composite
def windows(draw: st.DrawFn) -> tuple[Table, tuple[float, float]]:
    table = draw(tables(least=2))
    n = len(table).bit_length() - 1
    low = draw(st.integers(0, n - 1))
    return table, (low / n, draw(st.integers(low + 1, n)) / n)


@quick
@given(tables())
def test_exact_values_sum_to_the_worth_of_all_minus_the_worth_of_none(table: Table) -> None:
    values = _exact(table)
    assert_allclose(values.value.sum(), table[-1] - table[0], atol=1e-10)
    assert values.efficiency_gap is not None
    assert abs(values.efficiency_gap) < 1e-10
    assert (values.worth_all, values.worth_none) == (table[-1], table[0])


@pytest.mark.parametrize("method", SAMPLED, ids=str)
@quick
@given(table=tables())
def test_sampled_values_sum_to_the_worth_of_all_minus_the_worth_of_none(table: Table, method: Permutation) -> None:
    values = _sampled(table, method)
    assert_allclose(values.value.sum(), table[-1] - table[0], atol=1e-10)
    assert values.efficiency_gap is not None
    assert abs(values.efficiency_gap) < 1e-10
    assert_allclose((values.worth_all, values.worth_none), (table[-1], table[0]), atol=1e-10)


@quick
@given(tables(least=2), st.data())
def test_players_that_can_be_swapped_have_equal_exact_values(table: Table, data: st.DataObject) -> None:
    n = len(table).bit_length() - 1
    i, j = data.draw(st.permutations(range(n)))[:2]
    swap = np.arange(n)
    swap[[i, j]] = j, i
    value = _exact((table + _relabelled(table, swap)) / 2).value
    assert abs(value[i] - value[j]) < 1e-10


def _with_null_player(table: Table, player: int) -> Table:
    """The game with one more player, who never changes anything, put in at ``player``."""
    codes = np.arange(2 * len(table))
    below, above = codes & ((1 << player) - 1), codes >> (player + 1) << player
    return table[above | below]


@quick
@given(tables(most=5), st.data())
def test_a_null_player_has_no_value_and_changes_no_other(table: Table, data: st.DataObject) -> None:
    n = len(table).bit_length() - 1
    player = data.draw(st.integers(0, n))
    larger = _with_null_player(table, player)
    value = _exact(larger).value
    assert value[player] == 0
    assert_allclose(np.delete(value, player), _exact(table).value, atol=1e-10)
    for method in SAMPLED[:3]:  # a truncated walk gives what is left to whoever leaves at its end
        sampled = _sampled(larger, method)
        assert (sampled.value[player], sampled.stderr[player]) == (0, 0)


@quick
@given(st.integers(1, 5), st.floats(-5, 5, width=32), st.floats(-5, 5, width=32), st.integers(0, 2**32 - 1))
def test_values_are_linear_in_the_game(n: int, a: float, b: float, seed: int) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, 2**n))
    mixed = a * first + b * second
    assert_allclose(_exact(mixed).value, a * _exact(first).value + b * _exact(second).value, atol=1e-12)
    for method in SAMPLED[:3]:  # the same seed walks the same orders
        parts = [_sampled(table, method).value for table in (first, second)]
        assert_allclose(_sampled(mixed, method).value, a * parts[0] + b * parts[1], atol=1e-12)


@quick
@given(st.integers(2, 6), st.integers(0, 2**32 - 1), st.sampled_from([(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)]))
def test_relabelling_the_players_relabels_their_exact_values(n: int, seed: int, sizes: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    table, to = rng.normal(size=2**n), rng.permutation(n)
    assert_allclose(_exact(_relabelled(table, to), sizes).value[to], _exact(table, sizes).value, atol=1e-12)


@quick
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_relabelling_the_players_moves_sampled_values_by_no_more_than_their_doubt(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, to = rng.normal(size=2**n), rng.permutation(n)
    before, after = (
        estimate(_game(t), "permutation", max_evaluations=400 * (n + 1), seed=3)
        for t in (table, _relabelled(table, to))
    )
    doubt = np.hypot(before.stderr, after.stderr[to])
    assert (np.abs(after.value[to] - before.value) <= 5 * doubt + 1e-12).all()


@quick
@given(tables(), st.floats(-50, 50, width=32))
def test_a_constant_added_to_every_worth_changes_no_value(table: Table, constant: float) -> None:
    assert_allclose(_exact(table + constant).value, _exact(table).value, atol=1e-10)


@quick
@given(windows())
def test_values_in_a_window_do_not_depend_on_worths_outside(drawn: tuple[Table, tuple[float, float]]) -> None:
    table, sizes = drawn
    n = len(table).bit_length() - 1
    size = np.bitwise_count(np.arange(len(table)))
    low, high = round(sizes[0] * n), round(sizes[1] * n)
    other = np.where((size < low) | (size > high), 1e6, table)
    assert _exact(other, sizes).value.tolist() == _exact(table, sizes).value.tolist()


@quick
@given(windows())
def test_values_of_an_additive_game_are_the_same_in_every_window(drawn: tuple[Table, tuple[float, float]]) -> None:
    table, sizes = drawn
    n = len(table).bit_length() - 1
    own = table[1 << np.arange(n)]
    additive = (np.arange(len(table))[:, None] >> np.arange(n) & 1) @ own
    assert_allclose(_exact(additive, sizes).value, own, atol=1e-9)
    walked = estimate(_game(additive), "permutation", max_evaluations=400 * (n + 1), sizes=sizes)
    assert_allclose(walked.value, own, atol=1e-9)


@quick
@given(windows())
def test_only_the_whole_window_promises_efficiency(drawn: tuple[Table, tuple[float, float]]) -> None:
    table, sizes = drawn
    promised = sizes == (0.0, 1.0)
    exact = _exact(table, sizes)
    walked = estimate(_game(table), "permutation", max_evaluations=10 * len(table), sizes=sizes)
    for values in (exact, walked):
        assert values.efficient == promised
        assert (values.efficiency_gap is not None) == promised
        assert values.worth_none == (pytest.approx(table[0], abs=1e-9) if sizes[0] == 0 else None)
    assert exact.worth_all == (table[-1] if sizes[1] == 1 else None)
    assert walked.worth_all == pytest.approx(table[-1], abs=1e-9)  # every walk leaves from the full coalition


@quick
@given(st.integers(1, 40), st.integers(0, 100), st.integers(0, 100))
def test_a_window_holds_exactly_the_sizes_between_its_fractions(n: int, one: int, two: int) -> None:
    low, high = sorted((one, two))
    inside = [size for size in range(n + 1) if low * n <= 100 * size <= high * n]
    assume(len(inside) >= 2)
    weights = shapley((low / 100, high / 100)).weights(n)
    assert_allclose(weights[inside[:-1]], 1 / (len(inside) - 1))  # somebody may join at every size but the largest
    assert np.count_nonzero(weights) == len(inside) - 1
    assert shapley((low / 100, high / 100)).efficient(n) == (inside == list(range(n + 1)))


def test_every_player_of_a_sampled_walk_is_asked_for_as_often() -> None:
    asked = np.zeros(5, dtype=np.int64)

    def worth(rows: Coalitions) -> list[float]:
        asked[:] += rows.sum(0)
        return [0.0] * len(rows)

    estimate(Game.from_function(worth, 5), Permutation(antithetic=True), max_evaluations=2 * 6 * 300)
    assert len(set(asked.tolist())) == 1  # an order and its reverse: n coalitions with each player, per pair
