"""Parts of the sampling estimators: random coalitions, least squares, the surrogate, growth, and what is claimed."""

from collections import Counter
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from testkit.games import TableGame, by_all_orders, by_sizes, game_of, random_worth

from shaprune.errors import InputError
from shaprune.values.estimate import estimate
from shaprune.values.estimators.base import Method
from shaprune.values.estimators.coalition_sampling import SizeSampler, WalkSampler, blocks, prefixes, spread, subsets
from shaprune.values.estimators.gaussian_process import _Kernel, _own_effects, _own_variance, fit_gaussian_process
from shaprune.values.estimators.least_squares import fit
from shaprune.values.estimators.msr import MSR
from shaprune.values.estimators.regression import Regression
from shaprune.values.estimators.svarm import SVARM
from shaprune.values.games.arrays import Coalitions
from shaprune.values.games.game import Game
from shaprune.values.result import Values
from shaprune.values.stopping import evaluations, stderr_below

N = 8
RANDOM = random_worth(N, seed=3)


def _function(n: int, seed: int = 0) -> Any:
    """A smooth function of who is there: many interactions, none of them large."""
    rng = np.random.default_rng(seed)
    first, bias, last = rng.normal(size=(n, 20)) * 2 / np.sqrt(n), rng.normal(size=20) / 2, rng.normal(size=20)
    return lambda kept: np.tanh(kept @ first + bias) @ last


class Noted(Game):
    """A deterministic game that keeps what it is asked."""

    repeatable = True

    def __init__(self, function: Any, n_players: int) -> None:
        self.function, self.n_players = function, n_players
        self.asked: Coalitions = np.zeros((0, n_players), dtype=bool)

    def __call__(self, coalitions: Coalitions, examples: Any = None) -> NDArray[np.float64]:
        self.asked = np.concatenate([self.asked, coalitions])
        return np.asarray(self.function(coalitions), dtype=np.float64)


def _everybody(n: int) -> Coalitions:
    return (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(bool)


def _off(values: Values, truth: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(values.value - truth) / np.linalg.norm(truth))


# -- random coalitions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "paired"), [(5, True), (6, True), (6, False)])
def test_a_sample_grows_without_repetition_until_everything_is_drawn(n: int, paired: bool) -> None:
    shares = np.ones(n + 1)
    shares[[0, n]] = 0
    for sampler in (SizeSampler(shares, paired=paired), WalkSampler(n, paired=paired)):
        rng, found = np.random.default_rng(0), set()
        for count in (3, 1, 7, 500):
            for row in sampler.draw(count, rng):
                unit = min(row.tobytes(), (~row).tobytes()) if paired else row.tobytes()
                assert unit not in found
                found.add(unit)
        assert len(found) == (2**n - 2) // (2 if paired else 1)
        assert sampler.left == 0
        assert sampler.draw(5, rng).shape == (0, n)


def test_a_sample_holds_the_sizes_in_proportion_to_their_shares_and_leaves_out_none() -> None:
    shares = np.array([0.0, 1.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0])  # sizes 5 to 8 are not wanted
    drawn = np.zeros(11)
    for seed in range(200):
        rows = SizeSampler(shares).draw(31, np.random.default_rng(seed))
        drawn += np.bincount(rows.sum(1), minlength=11)
    assert_allclose(drawn / 200, 31 / 6 * shares, atol=0.12)
    assert (drawn[shares == 0] == 0).all()


def test_all_coalitions_of_a_size_are_drawn_equally_often() -> None:
    shares = np.eye(7)[3]
    count = Counter[bytes]()
    for seed in range(1500):
        count.update(row.tobytes() for row in SizeSampler(shares).draw(4, np.random.default_rng(seed)))
    assert len(count) == comb(6, 3)
    assert max(abs(c - 300) for c in count.values()) < 4.5 * np.sqrt(300 * 0.8)


def test_a_size_with_too_many_coalitions_to_list_holds_none_twice_either() -> None:
    sampler, rng = SizeSampler(np.eye(21)[5]), np.random.default_rng(0)  # C(20, 5) = 15,504
    rows = np.concatenate([sampler.draw(1500, rng), sampler.draw(1500, rng), sampler.draw(3000, rng)])
    assert len({row.tobytes() for row in rows}) == 6000
    assert (rows.sum(1) == 5).all()


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_blocks_hold_all_players_equally_often(size: int) -> None:
    rng = np.random.default_rng(1)
    rows = blocks(10, size, 20, rng)
    assert (rows.sum(1) == size).all()
    assert np.ptp(rows.sum(0)) <= 1
    assert np.ptp(np.mean([blocks(7, size % 7, 4, rng).sum(0) for _ in range(2000)], axis=0)) < 0.12
    assert (subsets(10, size, 20, rng).sum(1) == size).all()


def test_prefixes_of_an_order_contain_each_other() -> None:
    rows = prefixes(6, 1, np.random.default_rng(0))
    assert sorted(rows.sum(1)) == [1, 2, 3, 4, 5]
    assert all((a <= b).all() or (b <= a).all() for a, b in combinations(rows, 2))


def test_what_a_small_class_cannot_take_goes_to_the_others() -> None:
    capacity, shares = np.array([1.0, 100, 3, 100]), np.array([1.0, 1, 1, 2])
    assert_allclose(spread(4, capacity, shares), [0.8, 0.8, 0.8, 1.6])
    assert_allclose(spread(12, capacity, shares), [1, 2.75, 2.75, 5.5])
    assert_allclose(spread(28, capacity, shares), [1, 8, 3, 16])
    assert_allclose(spread(1e9, capacity, shares), capacity)


# -- least squares ----------------------------------------------------------------------------------------------------


def test_the_linear_basis_solves_the_weighted_least_squares_under_the_constraint() -> None:
    """Against the equations of Lagrange, with the kernel of Adamczewski et al. 2024, Eq. 5, on the same coalitions."""
    n, game = 9, Noted(_function(9), 9)
    values = estimate(game, Regression(basis="linear", size_terms=0, paired=False), 120, seed=5)
    rows, worths = game.asked, game.function(game.asked)
    size = rows.sum(1)
    inner = (size > 0) & (size < n)
    worth_all, worth_none = worths[size == n][0], worths[size == 0][0]
    drawn = np.bincount(size[inner], minlength=n)
    kernel = np.array([(n - 1) / (comb(n, s) * s * (n - s)) * comb(n, s) / drawn[s] for s in size[inner]])
    x, y = rows[inner].astype(float), worths[inner] - worth_none
    equations = np.zeros((n + 1, n + 1))
    equations[:n, :n] = (x * kernel[:, None]).T @ x
    equations[n, :n] = equations[:n, n] = 1
    solution = np.linalg.solve(equations, np.append((x * kernel[:, None]).T @ y, worth_all - worth_none))[:n]
    assert_allclose(values.value, solution, atol=1e-9)


@pytest.mark.parametrize(("p", "paired"), [(0.5, True), (0.5, False), (0.8, True)])
def test_banzhaf_values_solve_least_squares_with_the_weights_of_independent_draws(p: float, paired: bool) -> None:
    """All coalitions but one pair: the regression is the one over all of them, but for what that pair would change."""
    game = game_of(RANDOM, N)
    truth = estimate(game, "exact", concept=f"banzhaf:{p}").value
    method = Regression(paired=paired, sampling="bernoulli")
    near = [estimate(game, method, 2**N - 2, seed=seed, concept=f"banzhaf:{p}").value for seed in range(5)]
    assert np.max(np.abs(np.mean(near, axis=0) - truth)) < 0.05
    assert np.max(np.abs(truth)) > 0.15


def test_pairs_are_complements() -> None:
    game = Noted(_function(10), 10)
    estimate(game, "regression", 100)
    asked = {row.tobytes() for row in game.asked}
    assert {(~row).tobytes() for row in game.asked} == asked
    assert len(asked) == 100


def test_a_regression_of_orthogonal_columns_is_well_posed_and_one_of_equal_columns_is_refused() -> None:
    columns = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    nothing, ones = np.zeros((4, 0)), np.ones(4)
    found = fit(columns, nothing, np.array([3.0, 1, -1, -3]), ones, ones, centred=False)
    assert found.condition_number == pytest.approx(1)
    assert_allclose(found.value, [2, 1])
    with pytest.raises(InputError, match=r"singular .* raise max_evaluations, or regularise"):
        fit(columns[:, [0, 0]], nothing, ones, ones, ones, centred=False)
    assert_allclose(fit(columns[:, [0, 0]], nothing, columns[:, 0], ones, ones, ridge=1e-9, centred=False).value, 0.5)


def test_the_standard_error_of_a_fit_is_hc3_without_what_is_known() -> None:
    x, y, unseen = np.array([1.0, 2, -1, 3]), np.array([1.5, 1, -2, 3.5]), np.array([1.0, 0.5, 1, 0.25])
    slope = (x @ y) / (x @ x)
    left = (y - slope * x) / (1 - x**2 / (x @ x))
    found = fit(x[:, None], np.zeros((4, 0)), y, np.full(4, 7.0), unseen, centred=False)
    assert found.value == pytest.approx(slope)
    assert found.stderr == pytest.approx(np.sqrt((x**2 * left**2 * unseen).sum()) / (x @ x))
    assert found.error == pytest.approx((left**2).mean())  # each left out in turn


def test_penalties_draw_towards_the_equal_share() -> None:
    game = Game.from_function(_function(10), 10)
    plain = estimate(game, Regression(basis="linear"), 100)
    equal = (plain.worth_all - plain.worth_none) / 10  # type: ignore[operator]
    spreads = [
        float(np.abs(estimate(game, Regression(basis="linear", **{name: size}), 100).value - equal).sum())
        for name, size in (("l1", 0.0), ("l1", 0.3), ("l1", 0.999), ("ridge", 0.5), ("ridge", 1e6))
    ]
    assert spreads[0] > spreads[1] > spreads[2] > -1
    assert spreads[2] < 0.02 * spreads[0]
    assert spreads[0] > spreads[3] > spreads[4]
    assert spreads[4] < 1e-3 * spreads[0]
    sparse = estimate(game, Regression(basis="linear", l1=0.5), 100).value
    assert max(Counter(np.round(sparse, 9)).values()) > 3  # players without a coefficient share one value


def test_worths_that_bend_with_the_size_are_no_noise() -> None:
    own = np.random.default_rng(0).normal(size=12)
    game = Game.from_function(lambda kept: kept @ own + 30 * np.tanh(kept.sum(1) - 4), 12)
    truth = own + 30 * (np.tanh(8) - np.tanh(-4)) / 12
    off = {k: [_off(estimate(game, Regression(basis="linear", size_terms=k), 100, seed=s), truth) for s in range(5)]
           for k in (0, 4)}  # fmt: skip
    assert np.median(off[4]) < 0.25 * np.median(off[0])


# -- the surrogate ----------------------------------------------------------------------------------------------------


def _by_orders(function: Any, n: int) -> NDArray[np.float64]:
    return by_all_orders(lambda kept: float(function(np.isin(np.arange(n), list(kept))[None])[0]), n)


def test_the_shapley_values_of_the_kernel_are_those_over_all_orders() -> None:
    """Every column of the kernel is a game; its Shapley values, and those of their own columns, by definition."""
    n, rows = 5, _everybody(5)
    inner = rows[1:-1]
    for parameters in ((-30.0, -30.0, 1.0, np.log(0.4)), (-30.0, -30.0, -30.0, np.log(0.05)), (-30.0, 2.0, -1.0, -0.2)):
        kernel = _Kernel(inner)
        columns = kernel.matrix(parameters)  # half differences of pairs, with no noise to speak of
        effects, prior = kernel.shapley(parameters)

        def by_orders(column: NDArray[np.float64]) -> NDArray[np.float64]:
            """Of the game that ``column`` (30,) tabulates; the full and the empty coalition are worth 0."""
            table = np.concatenate([[0.0], column, [0.0]])
            return _by_orders(lambda kept: table[kept @ (1 << np.arange(n))], n)

        for j in (0, 3, 11):
            assert_allclose(effects[:, j], by_orders(columns[:, j]), atol=1e-9)
        assert prior[2] == pytest.approx(by_orders(effects[2])[2], abs=1e-9)


def test_a_surrogate_that_has_seen_all_pairs_has_the_shapley_values_of_the_game() -> None:
    n, function = 6, lambda kept: _function(6)(kept / 4)
    rows = _everybody(n)[1 : 2 ** (n - 1)]  # one of each pair, without the empty and the full coalition
    halves = (function(rows) - function(~rows)) / 2
    total = float(np.diff(function(np.array([[False] * n, [True] * n])))[0])
    found = fit_gaussian_process(rows, halves, total, np.random.default_rng(0))
    truth = _by_orders(function, n)
    assert_allclose(found.value, truth, atol=2e-3 * np.abs(truth).max())
    assert found.value.sum() == pytest.approx(total, abs=1e-12)
    assert (found.spread < 0.02 * np.abs(truth).max()).all()


def test_a_surrogate_of_a_symmetric_game_gives_equal_shares() -> None:
    rows = subsets(9, 4, 20, np.random.default_rng(0))
    share = rows.mean(1)
    found = fit_gaussian_process(rows, 3 * (share - 0.5), 3.0, np.random.default_rng(0))
    assert_allclose(found.value, 1 / 3)
    assert found.rho == 0


def test_interactions_beat_the_linear_basis_where_players_interact_and_auto_takes_them() -> None:
    game = Game.from_function(_function(14, seed=2), 14)
    truth = estimate(game, "exact").value
    runs = {
        basis: [estimate(game, Regression(basis=basis), 280, seed=s) for s in range(9)]
        for basis in ("auto", "linear", "interactions")
    }
    off = {basis: np.median([_off(values, truth) for values in found]) for basis, found in runs.items()}
    assert off["auto"] == off["interactions"] < 0.9 * off["linear"]
    for values in runs["auto"]:
        assert values.diagnostics["error_interactions"] < values.diagnostics["error_linear"]
        assert values.efficiency_gap == pytest.approx(0, abs=1e-12)
        assert 0 < values.diagnostics["posterior_std"] < np.abs(truth).max()


def test_interactions_of_any_order_are_exact_once_all_coalitions_are_asked() -> None:
    n = 8

    def function(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        signs = 2.0 * kept - 1
        return 2 * signs[:, :4].prod(1) + signs[:, 2:7].prod(1) + signs[:, 1:8].prod(1) + kept @ np.linspace(-1, 1, n)

    game = Game.from_function(function, n)
    truth = estimate(game, "exact").value

    def off(budget: int) -> float:
        return float(np.mean([_off(estimate(game, "regression", budget, seed=s), truth) for s in range(6)]))

    few, some, nearly = off(60), off(160), off(254)
    assert nearly < 0.1 * few
    assert nearly < 0.5 * some < 0.5 * few


def test_the_noise_of_each_pair_has_the_shapley_values_of_its_own_game() -> None:
    n, rows = 5, _everybody(5)
    inner = rows[1:-1][rows[1:-1, 0]]
    own = _own_effects(inner)
    for j in (0, 4, 11):
        one, other = inner[j], ~inner[j]
        game = _by_orders(lambda kept: 1.0 * (kept == one).all(1) - 1.0 * (kept == other).all(1), n)  # noqa: B023
        assert_allclose(own[:, j], game, atol=1e-12)
    assert_allclose((own**2).sum(1), _own_variance(n))


def test_auto_is_linear_where_players_do_not_interact_and_where_a_rule_waits_for_standard_errors() -> None:
    own = np.random.default_rng(0).normal(size=20)
    values = estimate(Game.from_function(lambda kept: kept @ own, 20), "regression", 400)
    assert_allclose(values.value, own, atol=1e-12)
    assert values.stderr.max() < 1e-9
    game = Game.from_function(_function(14), 14)
    assert "error_interactions" not in estimate(game, "regression", stop=evaluations(300)).diagnostics


# -- maximum sample reuse and strata ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [MSR(), MSR(adjust=False), SVARM()], ids=str)
def test_any_semivalue_is_met_on_average(method: Method) -> None:
    game, found = game_of(RANDOM, N), []
    truth = by_sizes(RANDOM, N, 4, 8)
    for seed in range(80):
        found.append(estimate(game, method, 100, seed=seed, sizes=(0.5, 1.0)).value)
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - truth) < 4.5 * error + 0.01).all()
    assert error.max() < 0.05
    assert np.abs(truth).max() > 0.2


def test_what_a_fitted_function_explains_needs_no_samples() -> None:
    own = np.random.default_rng(0).normal(size=12)
    game = Game.from_function(lambda kept: kept @ own + 0.1 * kept.sum(1) ** 2, 12)
    truth = own + 0.1 * 12
    plain, adjusted = (estimate(game, MSR(adjust=adjust), 150) for adjust in (False, True))
    assert _off(plain, truth) > 0.05
    assert_allclose(adjusted.value, truth, atol=1e-6)
    for concept in ("banzhaf:0.3", "beta:4,1"):
        exact = estimate(game, "exact", concept=concept).value
        assert_allclose(estimate(game, "msr", 150, concept=concept).value, exact, atol=1e-6)


def test_coalitions_on_single_examples_count_one_evaluation_each_and_meet_the_mean_game() -> None:
    game = TableGame(5, 40, seed=2, spread=2.0)
    truth = game.truth()
    asked: list[int] = []

    class Watching(TableGame):
        def __call__(self, coalitions: Coalitions, examples: Any = None) -> NDArray[np.float64]:
            asked.extend([-1] * len(coalitions) if examples is None else examples.tolist())
            return super().__call__(coalitions, examples)

    watching = Watching(5, 40, seed=2, spread=2.0)
    values = estimate(watching, MSR(per_example=True), 80 + 400)
    assert len(asked) == values.n_evaluations == 480
    assert set(Counter(asked).values()) == {12}  # the two ends, and ten coalitions each
    looks: list[Counter[int]] = []

    def third_look(values: Values) -> str | None:
        looks.append(Counter(asked))
        return "enough" if len(looks) == 3 else None

    asked.clear()
    estimate(watching, MSR(per_example=True), stop=third_look)
    assert all(max(look.values()) - min(look.values()) <= 1 for look in looks)
    assert looks[0].total() < looks[1].total() < looks[2].total()
    inside, found = [], []
    for seed in range(80):
        values = estimate(game, MSR(per_example=True), 80 + 800, seed=seed)
        inside.append(np.abs(values.value - truth) < 1.96 * values.stderr)
        found.append(values.value)
    assert (np.abs(np.mean(found, axis=0) - truth) < 4.5 * np.std(found, axis=0) / np.sqrt(80) + 0.01).all()
    assert 0.90 < np.mean(inside) < 0.99


def test_how_examples_differ_as_a_whole_does_not_blur_the_values() -> None:
    class Shifted(TableGame):
        def __call__(self, coalitions: Coalitions, examples: Any = None) -> NDArray[np.float64]:
            worths = super().__call__(coalitions, examples)
            return worths if examples is None else worths + 1e3 * (examples - 19.5)  # the mean stays

    plain, shifted = (estimate(kind(5, 40, seed=2), MSR(per_example=True), 880) for kind in (TableGame, Shifted))
    assert_allclose(shifted.value, plain.value, atol=1e-6)


def test_a_game_without_worths_of_single_examples_is_asked_for_all_of_them() -> None:
    game = TableGame(5, 4, seed=2)
    game.separable = False
    values = estimate(game, MSR(per_example=True), 4 * 20)
    assert values.n_evaluations == 80
    assert values.options["per_example"] is False


def test_the_warm_up_fills_all_strata() -> None:
    edges, blocks_needed = 26, 6 + 4 + 3 + 3 + 2 + 3 + 3 + 4 + 6  # ceil(12 / min(s, 12 - s)) of the sizes 2..10
    game = Game.from_function(_function(12), 12)
    for seed in range(5):
        assert estimate(game, "svarm", edges + blocks_needed, seed=seed).diagnostics["borrowed_strata"] == 0
        assert estimate(game, "svarm", edges + blocks_needed // 2, seed=seed).diagnostics["borrowed_strata"] > 0


def test_strata_that_stay_empty_borrow_and_say_so() -> None:
    game = Game.from_function(_function(12), 12)
    few, many = (estimate(game, "svarm", budget) for budget in (30, 600))
    assert few.diagnostics["borrowed_strata"] > 0
    assert np.isinf(few.stderr).all()
    assert many.diagnostics["borrowed_strata"] == 0
    assert np.isfinite(many.stderr).all()
    symmetric = Game.from_function(lambda kept: kept.sum(1) ** 2.0, 12)
    assert_allclose(
        estimate(symmetric, "svarm", 40).value, 12, atol=2.5
    )  # with the mean of its size everybody is alike


# -- growth and claims ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [Regression(), Regression(basis="interactions"), MSR(), SVARM()], ids=lambda m: m.name
)
def test_a_rule_lets_the_sample_grow_and_nothing_is_paid_twice(method: Method) -> None:
    sizes: list[int] = []

    def fourth_look(values: Values) -> str | None:
        sizes.append(values.n_evaluations)
        return "enough" if len(sizes) == 4 else None

    game = Noted(_function(12), 12)
    values = estimate(game, method, stop=fourth_look)
    assert values.stopped_by == "enough"
    assert sizes == sorted(set(sizes))
    assert values.n_evaluations == sizes[-1] == len(game.asked) == len({row.tobytes() for row in game.asked})
    again = estimate(
        Noted(_function(12), 12), method, stop=lambda v: "enough" if v.n_evaluations >= sizes[-1] else None
    )
    assert again.value.tobytes() == values.value.tobytes()


@pytest.mark.parametrize("method", [Regression(), MSR(), SVARM()], ids=lambda m: m.name)
def test_a_rule_that_is_never_met_ends_with_exact_values_or_the_budget(method: Method) -> None:
    game = Game.from_function(_function(N), N)
    values = estimate(game, method, stop=stderr_below(1e-12))
    assert values.stopped_by == "stderr_below(1e-12)"
    assert_allclose(values.value, estimate(game, "exact").value, atol=1e-12)
    assert estimate(game, method, stop=lambda values: None).stopped_by == "enumerated"
    limited = estimate(game, method, 120, stop=stderr_below(1e-12))
    assert limited.stopped_by == "max_evaluations"
    assert 110 < limited.n_evaluations <= 120


@pytest.mark.parametrize(
    ("method", "claimed"),
    [
        (Regression(basis="linear"), True),
        (Regression(basis="linear", sampling="kernel"), True),
        (Regression(basis="linear", sampling="walks"), False),
        (Regression(basis="linear", sampling="bernoulli"), False),
        (Regression(ridge=0.1), False),
        (Regression(l1=0.1), False),
        (Regression(basis="interactions"), False),
        (MSR(), True),
        (SVARM(), True),
    ],
    ids=str,
)
def test_a_standard_error_is_claimed_only_where_intervals_were_found_to_hold(method: Method, claimed: bool) -> None:
    game = Game.from_function(_function(10), 10)
    assert np.isfinite(estimate(game, method, 300).stderr).all() == claimed
    assert np.isinf(estimate(game, method, 60).stderr).all()
