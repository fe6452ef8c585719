"""Derivatives as control variates: right on average, honest, much cheaper where the worth is smooth, never wrong."""

import numpy as np
import pytest
from numpy.typing import NDArray
from testkit.games import TableGame, by_all_orders

import shaprune.values.games.game as game_module
from shaprune.errors import GameError, InputError
from shaprune.values.estimate import estimate, expected_evaluations
from shaprune.values.estimators.control_variate import ControlVariate, _EvaluationCosts
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.games.arrays import Coalitions, Examples, Worths
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.games.subgame import Subgame
from shaprune.values.rescoring import estimate_in_rounds
from shaprune.values.stopping import median_error_below, relative_error_below

N = 5


class Smooth(Game):
    """A smooth function of the mask per example, and its true derivatives, times ``slope``, plus noise."""

    repeatable = True

    def __init__(self, n_examples: int, spread: float = 1.0, slope: float = 1.0, noise: float = 0.0) -> None:
        rng = np.random.default_rng(3)
        self.n_players, self.n_examples, self.slope, self.noise = N, n_examples, slope, noise
        self.own = 1 + spread * rng.normal(size=(n_examples, N))
        self.bend = rng.normal(size=(n_examples, N)) / 2
        self.rng = np.random.default_rng(4)

    @property
    def derivative_price(self) -> int:
        return 2

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        return self._at(coalitions, examples)[:, 0]

    def derivatives(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        found = self._at(coalitions, examples)
        found[:, 1:] = self.slope * found[:, 1:] + self.noise * self.rng.normal(size=found[:, 1:].shape)
        return found

    def _at(self, coalitions: Coalitions, examples: Examples | None) -> NDArray[np.float64]:
        if examples is None:
            every = np.arange(self.n_examples)
            return np.array([self._at(np.tile(row, (len(every), 1)), every).mean(0) for row in coalitions])
        own, bend = self.own[examples], self.bend[examples]
        left, bent = ((1 - coalitions) * own).sum(1), np.tanh((coalitions * bend).sum(1))
        slopes = 2 * left[:, None] * own + (1 - bent**2)[:, None] * bend
        return np.column_stack([-(left**2) + bent, slopes])

    def truth(self) -> NDArray[np.float64]:
        every = np.arange(self.n_examples)

        def worth(kept: frozenset[int]) -> float:
            row = np.isin(np.arange(N), list(kept))
            return float(self._at(np.tile(row, (len(every), 1)), every)[:, 0].mean())

        return by_all_orders(worth, N)


@pytest.mark.parametrize(
    ("n_examples", "budget", "repetitions"),
    [(1, 3_000, 200), (7, 3_000, 200), (40, 3_000, 200), (300, 1_500, 400), (300, 6_000, 1_000)],
)
@pytest.mark.parametrize("derivatives", ["good", "half", "noisy", "none"])
def test_the_interval_holds_the_truth_as_often_as_it_says(
    n_examples: int, budget: int, repetitions: int, derivatives: str
) -> None:
    options = {"good": {}, "half": {"slope": 0.5}, "noisy": {"noise": 2.0}, "none": {"slope": 0.0}}[derivatives]
    game = Smooth(n_examples, **options)
    truth = game.truth()
    found = [estimate(game, "control-variate", budget, seed=seed) for seed in range(repetitions)]
    error = np.array([values.value - truth for values in found])
    doubt = np.array([values.stderr for values in found])
    assert np.mean(np.abs(error) <= 1.96 * doubt) >= 0.92
    ratio = np.median(error.std(0) / doubt.mean(0))
    assert ratio <= 1.2
    if n_examples in (1, 40) and derivatives in ("good", "noisy"):  # elsewhere the difference between examples counts
        assert ratio >= 0.8
    assert (np.abs(error.mean(0)) <= 4 * error.std(0) / np.sqrt(repetitions)).all()
    assert all(values.n_evaluations <= budget for values in found)


def test_smooth_games_need_a_small_part_of_the_evaluations_of_walks() -> None:
    game = Smooth(300)
    truth, budget = game.truth(), 2_000
    errors = {
        method: np.mean([(estimate(game, method, budget, seed=seed).value - truth) ** 2 for seed in range(50)])
        for method in (ControlVariate(), Permutation(), Permutation(antithetic=True))
    }
    ours = errors.pop(ControlVariate())
    assert all(10 * ours < theirs for theirs in errors.values()), (ours, errors)


def test_derivatives_that_say_nothing_are_not_paid_for() -> None:
    silent, good = (estimate(Smooth(300, slope=slope), "control-variate", 4_000) for slope in (0.0, 1.0))
    assert silent.diagnostics["variance_left"] == pytest.approx(1)
    assert good.diagnostics["variance_left"] < 0.05
    assert silent.diagnostics["derivatives"] == 32  # those of the beginning
    assert good.diagnostics["derivatives"] > 250


@pytest.mark.parametrize(
    ("walks", "first", "further"), [(1.0, 1.0, 0.1), (0.01, 1.0, 0.1), (0.001, 1.0, 0.5), (5, 0.1, 0)]
)
def test_a_budget_is_shared_out_so_that_the_variance_is_smallest(walks: float, first: float, further: float) -> None:
    prices, evaluations = _EvaluationCosts(100, 4, 24), 5_000

    def variance(coalitions: int) -> float:
        met = min(1.0, coalitions / 100)
        pairs = (evaluations - coalitions * 4) / 24
        return ((1 - met) * first + met * further) / coalitions + walks / pairs

    allowed = [c for c in range(1, 1_240) if c <= 100 or c % 100 == 0]
    count, pairs = prices.share(evaluations, walks, first, further)
    assert count in allowed
    assert count * 4 + pairs * 24 <= evaluations
    assert variance(count) <= 1.1 * min(map(variance, allowed))


def test_beyond_the_first_sweep_every_example_is_differentiated_equally_often() -> None:
    class Noted(Smooth):
        asked: list[int]

        def derivatives(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
            assert examples is not None
            if len(coalitions) % (2 * (N + 1)):  # no walks
                self.asked = [*getattr(self, "asked", []), *examples.tolist()]
            return super().derivatives(coalitions, examples)

    game = Noted(37)
    values = estimate(game, "control-variate", 6_000)
    assert values.diagnostics["derivatives"] % 37 == 0
    assert values.diagnostics["derivatives"] > 37


def test_a_game_without_derivatives_of_its_own_gives_differences_and_counts_them() -> None:
    game = CountingGame(TableGame(4, 6, seed=2))
    rows = np.array([[True, False, True, True], [False] * 4])
    found = game.derivatives(rows, np.array([3, 5]))
    assert game.evaluations == 2 * 5
    tables = game.game.tables  # type: ignore[attr-defined]
    assert found[0].tolist() == [
        tables[3][13],
        tables[3][13] - tables[3][12],
        tables[3][15] - tables[3][13],
        tables[3][13] - tables[3][9],
        tables[3][13] - tables[3][5],
    ]
    assert found[1].tolist() == [tables[5][0], *(tables[5][[1, 2, 4, 8]] - tables[5][0])]


def test_a_worth_over_all_examples_works_and_costs_as_many_times_more() -> None:
    class Whole(Smooth):
        separable = False

        def derivatives(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
            assert examples is None
            return super().derivatives(coalitions, examples)

    game = CountingGame(Whole(6))
    budget = expected_evaluations(game, "control-variate")
    values = estimate(game, "control-variate")
    assert 0.9 * budget < values.n_evaluations == game.evaluations <= budget
    assert (np.abs(values.value - Smooth(6).truth()) <= 4.5 * values.stderr).all()


def test_rules_end_it_at_the_first_look_that_meets_them() -> None:
    values = estimate(Smooth(300), "control-variate", stop=median_error_below(0.05))
    assert values.stopped_by == "median_error_below(0.05)"
    assert np.median(values.stderr / np.abs(values.value)) < 0.05
    stricter = estimate(Smooth(300), "control-variate", stop=relative_error_below(0.01))
    assert stricter.n_evaluations > values.n_evaluations
    short = estimate(Smooth(300), "control-variate", 1_000, stop=median_error_below(1e-9))
    assert short.stopped_by == "max_evaluations"
    assert 700 < short.n_evaluations <= 1_000


def test_rounds_and_games_over_some_players_ask_for_the_derivatives_of_those_who_play() -> None:
    game = Smooth(10)
    some, base = np.array([0, 3]), np.array([False, True, False, False, True])
    part = Subgame(game, some, base)
    rows = np.array([[True, False]])
    whole = game.derivatives(np.array([[True, True, False, False, True]]), np.array([4]))
    assert part.derivatives(rows, np.array([4])).tolist() == whole[:, [0, 1, 4]].tolist()
    values = estimate_in_rounds(game, "iterated", "control-variate")
    assert values.options["mode"] == "iterated"
    assert values.ranking()[0] == estimate(game, "control-variate").ranking()[0]


def test_with_a_rule_what_a_sweep_needs_is_saved_up_for_it() -> None:
    game = Smooth(2_000, spread=0.2)  # here walks cannot replace sweeps
    at_once = estimate(game, "control-variate", 60_000)
    looked = estimate(game, "control-variate", 60_000, stop=lambda values: None)
    assert at_once.diagnostics["derivatives"] > 2_000
    assert looked.diagnostics["derivatives"] >= 0.5 * at_once.diagnostics["derivatives"]
    assert looked.stderr.max() < 1.3 * at_once.stderr.max()


@pytest.mark.parametrize("memory", [1 << 24, 20])
def test_differences_do_not_write_to_what_a_game_returned(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(game_module, "MAX_TOGGLED_ENTRIES", memory)
    table = np.arange(16.0)
    table.setflags(write=False)
    game = Game.from_function(lambda rows: table[rows @ [1, 2, 4, 8]], 4)
    rows = np.array([[True, False, True, True], [False] * 4, [True] * 4])
    assert game.derivatives(rows).tolist() == [[13, 1, 2, 4, 8], [0, 1, 2, 4, 8], [15, 1, 2, 4, 8]]
    kept = table[:5]
    again = Game.from_function(lambda rows: kept[: len(rows)], 4)
    assert again.derivatives(rows[:1]).tolist() == again.derivatives(rows[:1]).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_derivative_that_is_not_finite_is_an_error_that_names_player_and_coalition(bad: float) -> None:
    class Broken(Smooth):
        def derivatives(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
            found = super().derivatives(coalitions, examples)
            found[~coalitions.any(1), 3] = bad
            return found

    with pytest.raises(GameError, match=rf"by player 2 is {bad} at the empty coalition.*method='permutation'"):
        estimate(Broken(50), "control-variate")


def test_what_it_cannot_do_is_refused_with_what_can() -> None:
    game = Smooth(50)
    with pytest.raises(InputError, match=r"Shapley values over all sizes only, not 'banzhaf:0.5'.*permutation"):
        estimate(game, "control-variate", concept="banzhaf")
    with pytest.raises(InputError, match=r"walk of 5 players take 1,008 bytes and max_memory is 1,000; raise it"):
        estimate(game, "control-variate", max_memory=1000)
    with pytest.raises(InputError, match="no values per example"):
        estimate(game, "control-variate", keep_examples=True)
