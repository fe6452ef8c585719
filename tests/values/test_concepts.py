"""Solution concepts against their textbook definitions, summed over all coalitions; what they promise and refuse."""

import math
from collections.abc import Callable
from math import comb
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from testkit.games import TableGame, by_subsets, game_of, random_worth

from shaprune.errors import InputError
from shaprune.values.concepts import (
    CONCEPTS,
    Concept,
    banzhaf,
    beta,
    concept_of,
    leave_one_out,
    owen,
    partial,
    semivalue,
    shapley,
)
from shaprune.values.estimate import estimate
from shaprune.values.estimators.exact import LeaveOneOut, Partial
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.games.game import CountingGame, Game

REPETITIONS = 200
Coefficient = Callable[[int, int], float]  # (n, s) -> coefficient of one coalition of s others


def _rising(x: float, k: int) -> float:
    return math.prod(x + i for i in range(k))


def _beta(alpha: float, beta: float) -> Coefficient:
    """Kwon & Zou 2022: one coalition of s others, in the product form of their weights (j = s + 1)."""
    return lambda n, s: _rising(beta, s) * _rising(alpha, n - 1 - s) / _rising(alpha + beta, n - 1)


def _bernoulli(p: float) -> Coefficient:
    return lambda n, s: p**s * (1 - p) ** (n - 1 - s)


def _owen(low: float, high: float) -> Coefficient:
    """The mean of the weighted Banzhaf coefficient over p, by the midpoint rule."""
    p = low + (high - low) * (np.arange(20_000) + 0.5) / 20_000
    return lambda n, s: float((p**s * (1 - p) ** (n - 1 - s)).mean())


def _sizes(which: Callable[[int], set[int]]) -> Coefficient:
    """Every size of ``which(n)`` counts alike, and so do the coalitions of a size."""
    return lambda n, s: (s in which(n)) / len(which(n)) / comb(n - 1, s)


def _share(weights: list[float]) -> Coefficient:
    return lambda n, s: weights[s] / sum(weights) / comb(n - 1, s)


GIVEN = [3.0, 0.0, 1.0, 0.5, 2.0, 1.0]
TEXTBOOK: dict[str, tuple[str | Concept, Coefficient, range]] = {  # with the numbers of players it is checked for
    "shapley": ("shapley", lambda n, s: math.factorial(s) * math.factorial(n - 1 - s) / math.factorial(n), range(1, 7)),
    "banzhaf": ("banzhaf", lambda n, s: 0.5 ** (n - 1), range(1, 7)),
    "banzhaf, p = 0.7": ("banzhaf:0.7", _bernoulli(0.7), range(1, 7)),
    "banzhaf, p = 0.05": (banzhaf(0.05), _bernoulli(0.05), range(1, 7)),
    "owen": ("owen:0.3,0.9", _owen(0.3, 0.9), range(1, 7)),
    "owen, one end": ("owen:0.5", _owen(0.5, 1.0), range(1, 7)),
    "owen, whole": ("owen", _owen(0.0, 1.0), range(1, 7)),
    "beta": ("beta", _beta(16, 1), range(1, 7)),
    "beta, large coalitions": ("beta:1,16", _beta(1, 16), range(1, 7)),
    "beta, no whole numbers": (beta(0.5, 2.5), _beta(0.5, 2.5), range(1, 7)),
    "semivalue": (semivalue(GIVEN), _share(GIVEN), range(6, 7)),
    "semivalue by name": ("semivalue:1,2,3", _share([1, 2, 3]), range(3, 4)),
    "leave-one-out": (leave_one_out(), _sizes(lambda n: {n - 1}), range(1, 7)),
    "partial": (partial(2), _sizes(lambda n: {n - 2, n - 1}), range(2, 7)),
    "partial, empty side": (partial(2, "empty"), _sizes(lambda n: {0, 1}), range(2, 7)),
    "partial, both sides": (partial(2, "both"), _sizes(lambda n: {0, 1, n - 2, n - 1}), range(2, 7)),
    "window": ("shapley:0.5,1", _sizes(lambda n: set(range((n + 1) // 2, n))), range(2, 7)),
    "window, small coalitions": (shapley((0.0, 0.5)), _sizes(lambda n: set(range(n // 2))), range(2, 7)),
    "window, inner": (shapley((0.2, 0.8)), _sizes(lambda n: set(range(1, n - 1))), range(4, 6)),
}


@pytest.mark.parametrize("name", TEXTBOOK)
def test_exact_values_are_the_textbook_sum_over_all_coalitions(name: str) -> None:
    concept, coefficient, players = TEXTBOOK[name]
    for n in players:
        worth = random_worth(n, seed=100 + n)
        values = estimate(game_of(worth, n), "exact", concept=concept)
        assert_allclose(
            values.value, by_subsets(worth, n, lambda s, n=n: coefficient(n, s)), atol=1e-7 if "owen" in name else 1e-12
        )
        assert values.stderr.tolist() == [0.0] * n


@pytest.mark.parametrize("name", TEXTBOOK)
def test_random_orders_converge_to_every_concept(name: str) -> None:
    concept, coefficient, players = TEXTBOOK[name]
    n = players[-1]
    worth = random_worth(n, seed=7)
    truth = by_subsets(worth, n, lambda s: coefficient(n, s))
    few, many = (
        estimate(game_of(worth, n), Permutation(antithetic=True), walks * 2 * (n + 1), seed=2, concept=concept)
        for walks in (100, 2000)
    )
    assert (np.abs(many.value - truth) <= 4.5 * many.stderr + 1e-9).all()
    assert (many.stderr <= 0.35 * few.stderr + 1e-9).all()


@pytest.mark.parametrize("n_examples", [1, 10])
@pytest.mark.parametrize("concept", ["banzhaf:0.7", "beta:1,4", "owen:0.5,1"])
def test_the_interval_of_a_concept_holds_the_truth_as_often_as_it_says(concept: str, n_examples: int) -> None:
    game = TableGame(4, n_examples, seed=6)
    truth = estimate(game, "exact", concept=concept).value
    inside = []
    for seed in range(REPETITIONS):
        interval = estimate(game, max_evaluations=120 * 5, seed=seed, concept=concept).interval()
        inside.append((interval[:, 0] <= truth) & (truth <= interval[:, 1]))
    assert 0.91 <= np.mean(inside) <= (0.98 if n_examples == 1 else 1.0)  # over examples the doubt is on the safe side


@pytest.mark.parametrize("n", [1, 2, 3, 10, 500])
def test_owen_over_all_p_and_beta_one_one_are_the_shapley_value(n: int) -> None:
    for concept in (owen(), owen(0.0, 1.0), beta(1, 1), concept_of("beta:1,1"), semivalue(np.full(n, 3.0)), shapley()):
        assert_allclose(concept.weights(n), np.full(n, 1 / n), rtol=1e-9)
        assert concept.efficient(n)


SPREAD = (banzhaf(), banzhaf(0.01), banzhaf(0.99), owen(0.6, 0.9), owen(0, 0.01), beta(), beta(1, 16), beta(0.5, 0.5))


@pytest.mark.parametrize("concept", [*SPREAD, shapley((0.4, 0.6)), partial(3, "both"), leave_one_out()], ids=str)
def test_weights_are_shares_of_all_sizes_also_for_many_players(concept: Concept) -> None:
    for n in (20, 500, 1000):
        weights = concept.weights(n)
        assert weights.shape == (n,)
        assert np.isfinite(weights).all()
        assert (weights >= 0).all()
        assert math.isclose(weights.sum(), 1, rel_tol=1e-9)
        assert not concept.efficient(n)


def test_the_weights_of_many_players_lie_where_the_concept_looks() -> None:
    sizes = np.arange(1000)
    for p in (0.1, 0.5, 0.7):
        weights = banzhaf(p).weights(1000)
        mean = weights @ sizes
        assert math.isclose(mean, 999 * p, rel_tol=1e-6)
        assert math.isclose(weights @ (sizes - mean) ** 2, 999 * p * (1 - p), rel_tol=1e-6)
    assert math.isclose(owen(0.5, 1.0).weights(1000) @ sizes, 999 * 0.75, rel_tol=1e-6)
    assert math.isclose(beta(1, 3).weights(1000) @ sizes, 999 * 0.75, rel_tol=1e-6)  # of large coalitions
    assert math.isclose(beta(3, 1).weights(1000) @ sizes, 999 * 0.25, rel_tol=1e-6)


@pytest.mark.parametrize("method", ["exact", "permutation"])
@pytest.mark.parametrize("name", TEXTBOOK)
def test_only_the_shapley_value_promises_a_sum(name: str, method: str) -> None:
    n = TEXTBOOK[name][2][-1]
    worth = random_worth(n, seed=3)
    values = estimate(game_of(worth, n), method, concept=TEXTBOOK[name][0])
    promised = name in ("shapley", "owen, whole")
    assert values.efficient == promised
    assert (values.efficiency_gap is not None) == promised
    if promised:
        assert values.value.sum() == pytest.approx(worth(frozenset(range(n))) - worth(frozenset()), abs=1e-9)
    else:
        assert abs(values.value.sum() - (worth(frozenset(range(n))) - worth(frozenset()))) > 1e-3


def test_the_concept_is_noted_with_its_parameters() -> None:
    labels = {"shapley": "shapley", "banzhaf": "banzhaf:0.5", "banzhaf:0.7": "banzhaf:0.7", "owen": "owen:0,1"}
    for given, label in {**labels, "beta": "beta:16,1", "semivalue:1,0,0,1": "semivalue:1,0,0,1"}.items():
        values = estimate(game_of(random_worth(4, 0), 4), "exact", concept=given)
        assert values.concept == values.options["concept"] == label
        assert concept_of(label) == concept_of(given)
    assert estimate(game_of(random_worth(4, 0), 4), "exact", sizes=(0.5, 1.0)).concept == "shapley:0.5,1"
    assert estimate(game_of(random_worth(4, 0), 4), Partial(2, "both")).options["concept"] == "partial:2,both"
    many = semivalue(np.arange(1, 40)), semivalue(np.arange(2, 41))
    assert many[0].label != many[1].label


def test_a_window_is_the_same_by_sizes_and_by_name() -> None:
    game = game_of(random_worth(5, 0), 5)
    one, other = estimate(game, sizes=(0.4, 1.0), seed=3), estimate(game, concept="shapley:0.4,1", seed=3)
    assert one.value.tobytes() == other.value.tobytes()
    assert one.n_evaluations == other.n_evaluations


# -- enumerations that bring their own concept --------------------------------------------------------------------


@pytest.mark.parametrize("side", ["full", "empty", "both"])
@pytest.mark.parametrize(("n", "k"), [(6, 1), (6, 2), (6, 6), (2, 1), (30, 2)])
def test_partial_looks_at_the_coalitions_near_its_side_and_at_no_other(n: int, k: int, side: str) -> None:
    rng = np.random.default_rng(n)
    own, pairs = rng.normal(size=n), rng.normal(size=(n, n))
    asked: list[np.ndarray] = []

    def worth(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.copy())
        return rows @ own + ((rows @ pairs) * rows).sum(1) + np.sin(rows.sum(1))

    game = Game.from_function(worth, n)
    game.repeatable = True
    values = estimate(game, Partial(k, side))
    rows = np.concatenate(asked)
    ends = {"full": rows.sum(1) >= n - k, "empty": rows.sum(1) <= k}
    near = ends["full"] | ends["empty"] if side == "both" else ends[side]
    assert near.all()
    assert len(np.unique(rows, axis=0)) == len(rows) == values.n_evaluations
    one_side = sum(comb(n, size) for size in range(k + 1))
    assert len(rows) == (one_side if side != "both" else min(2 * one_side, 2**n))
    if n <= 6:
        which = {"full": {*range(n - k, n)}, "empty": {*range(k)}, "both": {*range(k), *range(n - k, n)}}[side]
        truth = by_subsets(lambda kept: float(worth(_row(kept, n))[0]), n, lambda s: _sizes(lambda n: which)(n, s))
    else:  # two players removed or kept: the mean over the others, written out
        truth = _near_ends(lambda kept: float(worth(_row(kept, n))[0]), n, side)
    assert_allclose(values.value, truth, atol=1e-10)


def _row(kept: frozenset[int], n: int) -> np.ndarray:
    row = np.zeros((1, n), dtype=bool)
    row[0, list(kept)] = True
    return row


def _near_ends(worth: Callable[[frozenset[int]], float], n: int, side: str) -> list[float]:
    """Partial-2 by hand: sizes 0 and 1 from below, n - 2 and n - 1 from above."""
    everybody, result = frozenset(range(n)), []
    for player in range(n):
        me, others = frozenset({player}), [frozenset({p}) for p in range(n) if p != player]
        above = [worth(everybody) - worth(everybody - me)]
        above.append(float(np.mean([worth(everybody - o) - worth(everybody - o - me) for o in others])))
        below = [worth(me) - worth(frozenset())]
        below.append(float(np.mean([worth(o | me) - worth(o) for o in others])))
        result.append(float(np.mean({"full": above, "empty": below, "both": above + below}[side])))
    return result


def test_leave_one_out_is_what_the_full_coalition_loses() -> None:
    worth, everybody = random_worth(6, seed=4), frozenset(range(6))
    values = estimate(game_of(worth, 6), "leave-one-out")
    assert_allclose(values.value, [worth(everybody) - worth(everybody - {p}) for p in range(6)], atol=1e-12)
    assert values.worth_all == worth(everybody)
    assert values.worth_none is None
    assert (values.concept, values.efficient, values.efficiency_gap) == ("leave-one-out", False, None)


@pytest.mark.parametrize("n", [25, 2000])
def test_leave_one_out_of_many_players_costs_one_coalition_each(n: int) -> None:
    own = np.linspace(-1, 1, n)
    game = CountingGame(Game.from_function(lambda rows: rows @ own + rows.all(1), n))
    values = estimate(game, LeaveOneOut(), max_evaluations=n + 1)
    assert game.evaluations == values.n_evaluations == n + 1
    assert_allclose(values.value, own + 1, atol=1e-9)


def test_the_default_k_of_partial_fits_small_games_and_is_noted() -> None:
    worth = random_worth(2, seed=4)
    values = estimate(game_of(worth, 2), "partial")
    assert values.concept == "partial:2,full"
    assert_allclose(values.value, estimate(game_of(worth, 2), "exact").value, atol=1e-12)


def test_an_enumeration_that_never_ends_is_refused_before_any_work() -> None:
    game = CountingGame(Game.from_function(lambda rows: rows.sum(1), 1000))
    with pytest.raises(InputError, match=r"would enumerate 1\.67e\+08 coalitions of 1000 players; lower k"):
        estimate(game, "partial")
    assert game.evaluations == 0


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf, "x", None, True])
def test_a_probability_outside_zero_and_one_is_refused(p: Any) -> None:
    with pytest.raises(InputError, match=r"p is .*strictly between 0 and 1"):
        banzhaf(p)


@pytest.mark.parametrize("ends", [(0.5, 0.5), (0.7, 0.3), (-0.1, 0.5), (0.5, 1.1), (math.nan, 1.0)])
def test_a_range_of_probabilities_that_is_none_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="0 <= low < high <= 1"):
        owen(*ends)


@pytest.mark.parametrize(("alpha", "b"), [(0, 1), (1, 0), (-1, 2), (math.nan, 1), (math.inf, 1)])
def test_parameters_of_beta_that_are_not_above_zero_are_refused(alpha: float, b: float) -> None:
    with pytest.raises(InputError, match="both must be above 0"):
        beta(alpha, b)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [math.nan, 1], [math.inf, 1], [[1, 2]]])
def test_weights_that_are_no_semivalue_are_refused(weights: Any) -> None:
    with pytest.raises(InputError, match="weights of a semivalue"):
        semivalue(weights)


@pytest.mark.parametrize("method", ["exact", "permutation"])
def test_a_semivalue_of_another_number_of_players_is_refused_before_any_work(method: str) -> None:
    game = CountingGame(game_of(random_worth(4, 0), 4))
    with pytest.raises(InputError, match="the semivalue has 3 weights and the game 4 players"):
        estimate(game, method, concept="semivalue:1,1,1")
    assert game.evaluations == 0


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "2", None])
def test_a_k_that_is_no_whole_number_is_refused(k: Any) -> None:
    with pytest.raises(InputError, match=r"k is .*1 or above"):
        partial(k)
    with pytest.raises(InputError, match=r"k is .*1 or above"):
        estimate(game_of(random_worth(4, 0), 4), Partial(k=k))


def test_a_k_above_the_players_and_an_unknown_side_are_refused() -> None:
    game = game_of(random_worth(4, 0), 4)
    with pytest.raises(InputError, match="k=5 is above the 4 players"):
        estimate(game, Partial(k=5))
    with pytest.raises(InputError, match=r"unknown side 'ful'; did you mean 'full'\?"):
        estimate(game, Partial(k=1, side="ful"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("banzaf", r"unknown concept 'banzaf'; did you mean 'banzhaf'\?"),
        ("Shapley", r"unknown concept 'Shapley'; did you mean 'shapley'\?"),
        ("banzhaf:x", "concept 'banzhaf:x' cannot be read"),
        ("banzhaf:0.5,0.5", "concept 'banzhaf:0.5,0.5' cannot be read"),
        ("beta:1,2,3", "concept 'beta:1,2,3' cannot be read"),
        ("banzhaf:2", "p is 2.0"),
        ("owen:0.9,0.1", "0 <= low < high <= 1"),
        ("beta:0,1", "both must be above 0"),
        ("semivalue", "weights of a semivalue"),
        ("shapley:0.5", "window of sizes is"),
        (0.5, "concept is a float"),
        (None, "concept is a NoneType"),
    ],
)
def test_a_concept_that_cannot_be_read_is_refused(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        estimate(game_of(random_worth(4, 0), 4), "exact", concept=given)


@pytest.mark.parametrize("concept", ["banzhaf", "beta:1,16", "shapley:0.5,1"])
def test_sizes_together_with_another_concept_are_refused(concept: str) -> None:
    with pytest.raises(InputError, match=r"sizes=\(0.5, 1.0\) is a window of the Shapley value and concept is"):
        estimate(game_of(random_worth(4, 0), 4), "exact", concept=concept, sizes=(0.5, 1.0))


def test_a_window_that_holds_nothing_is_refused_by_name_too() -> None:
    with pytest.raises(InputError, match="no two neighbouring coalition sizes in a game of 4 players"):
        estimate(game_of(random_worth(4, 0), 4), "exact", concept="shapley:0.8,1")


def test_every_concept_of_the_registry_is_known_to_this_file() -> None:
    assert set(CONCEPTS) == {concept_of(c).name for c, _, _ in TEXTBOOK.values()} - {"partial", "leave-one-out"}
    for name in CONCEPTS.keys() - {"semivalue"}:
        assert concept_of(name).name == name
