"""A game that changes its answer is noticed and named, whichever estimator asks; one that only rounds is not."""

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from testkit.games import TableGame

from shaprune.errors import GameError
from shaprune.values.concepts import concept_of
from shaprune.values.estimate import METHODS, estimate, expected_evaluations
from shaprune.values.estimators.exact import LeaveOneOut, Partial
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.games.arrays import Coalitions, Examples, Orders, Start, Worths
from shaprune.values.games.game import CountingGame, Game

N = 4  # players
SWEEP = 300 * (N + 1)  # evaluations that walk each of 300 examples once


class Shaky(TableGame):
    """A table whose answers are off by noise, of all rows or of some; it notes what it is asked."""

    repeatable = False

    def __init__(self, n_examples: int = 1, noise: float = 0.1, scale: float = 1.0, relative: bool = False) -> None:
        super().__init__(N, n_examples, seed=1)
        self.rng, self.noise = np.random.default_rng(0), noise
        self.tables = scale * (self.tables + 5)
        self.asked: list[tuple[bytes, int]] = []

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        worths = super().__call__(coalitions, examples)
        whose = np.full(len(coalitions), -1) if examples is None else examples
        self.asked += [(row.tobytes(), int(example)) for row, example in zip(coalitions, whose, strict=True)]
        return worths * (1 + self.noise * self.rng.uniform(-1, 1, size=worths.shape))


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- noticed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_examples", [1, 7, 300])
def test_a_game_that_changes_its_answer_is_named_whichever_method_asks(method: str, n_examples: int) -> None:
    with pytest.raises(
        GameError, match=r"the game changes its answer: the (full|empty) coalition.* was worth"
    ) as error:
        estimate(Shaky(n_examples), method)
    one, other = (float(x) for x in re.findall(r"-?\d+\.\d+", str(error.value)))
    assert 1e-4 < abs(one - other) / abs(one) < 0.25
    assert "dropout" in str(error.value)


@pytest.mark.parametrize("options", [{"sizes": (0.25, 0.75)}, {"sizes": (0.0, 0.5)}, {"concept": "banzhaf"}])
@pytest.mark.parametrize("name", ["exact", "permutation"])
def test_it_is_noticed_in_every_window(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(GameError, match="the game changes its answer"):
        estimate(Shaky(7), name, **options)


@pytest.mark.parametrize(
    "given",
    [
        Permutation(antithetic=True),
        Permutation(per_example=False),
        Permutation(truncate=0.1),
        Partial(1),
        LeaveOneOut(),
    ],
)
def test_it_is_noticed_with_every_option(given: Any) -> None:
    with pytest.raises(GameError, match="the game changes its answer"):
        estimate(Shaky(7), given)


def test_the_example_is_named() -> None:
    class One(Shaky):
        """Only example 123 is shaky."""

        def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
            sure = TableGame.__call__(self, coalitions, examples)
            return np.where(np.asarray(examples) == 123, super().__call__(coalitions, examples), sure)

    for sweeps in (1, 2):
        with pytest.raises(GameError, match="the full coalition on example 123 was worth"):
            estimate(One(300), max_evaluations=(sweeps + 1) * SWEEP - 1)


def test_a_game_that_drifts_from_call_to_call_is_noticed() -> None:
    calls = []

    def drifting(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        calls.append(len(rows))
        return rows.sum(1) + 0.01 * len(calls)

    with pytest.raises(GameError, match=r"the full coalition was worth 4\.01 and then 4\.02"):
        estimate(Game.from_function(drifting, N), "exact")
    assert calls == [2**N, 1]


# -- not noticed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounding_is_no_change(method: str, scale: float) -> None:
    game = Shaky(7, noise=1e-6, scale=scale)
    sure = TableGame(N, 7, seed=1)
    sure.tables = game.tables
    values = estimate(game, method)
    assert np.abs(values.value - estimate(sure, method).value).max() < 1e-4 * scale


def test_a_game_that_is_known_to_repeat_is_not_asked_again(method: str) -> None:
    game = Shaky(7, noise=0.0)
    game.repeatable = True
    values = estimate(game, method)
    expected = expected_evaluations(game, method)
    assert expected is not None
    assert 0.9 * expected < values.n_evaluations == _cells(game, 7) <= expected
    trusted = Shaky(7, noise=0.1)
    trusted.repeatable = True
    assert np.isfinite(estimate(trusted, method).value).all()


def _cells(game: Shaky, n_examples: int) -> int:
    """(coalition, example) rows that were asked for."""
    return sum(n_examples if example < 0 else 1 for _, example in game.asked)


# -- what it costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exact", "partial", "leave-one-out"])
def test_an_enumeration_asks_for_the_full_coalition_once_more(name: str) -> None:
    game = CountingGame(Shaky(7, noise=0.0))
    expected = expected_evaluations(game, name)
    values = estimate(game, name)
    assert values.n_evaluations == game.evaluations == expected + 7
    asked = [row for row, _ in game.game.asked]  # type: ignore[attr-defined]
    assert asked[-1] == np.ones(N, dtype=bool).tobytes()
    assert len(set(asked)) == len(asked) - 1


@pytest.mark.parametrize(("more", "paid"), [(0, 0), (6, 0), (7, 7), (100, 7)])
def test_the_budget_comes_first(more: int, paid: int) -> None:
    values = estimate(Shaky(7, noise=0.0), "exact", max_evaluations=7 * 2**N + more)
    assert values.n_evaluations == 7 * 2**N + paid
    if not paid:  # nothing is asked twice, so nothing can be noticed
        estimate(Shaky(7, noise=0.1), "exact", max_evaluations=7 * 2**N + more)


@pytest.mark.parametrize(
    ("budget", "again"), [(SWEEP, 0), (SWEEP + 10, 10), (2 * SWEEP - 1, 300), (2 * SWEEP, 0), (None, 300)]
)
def test_one_sweep_asks_every_example_again_as_far_as_the_budget_goes(budget: int | None, again: int) -> None:
    game = Shaky(300, noise=0.0)
    values = estimate(game, max_evaluations=budget)
    sweeps = 1 if budget is None else budget // SWEEP
    assert values.n_evaluations == sweeps * SWEEP + again == _cells(game, 300)
    full = [example for row, example in game.asked if row == np.ones(N, dtype=bool).tobytes()]
    assert len(full) == 300 * sweeps + again
    assert len(set(full)) == 300
    if again:
        assert len(set(full[-again:])) == again


def test_a_walk_that_was_repeated_anyway_costs_nothing_more() -> None:
    game = Shaky(1, noise=0.0)
    assert estimate(game, max_evaluations=10 * (N + 1) + 3).n_evaluations == 10 * (N + 1)


@pytest.mark.parametrize(("sizes", "again"), [((0.25, 0.75), None), ((0.0, 0.5), 0)])
def test_no_coalition_outside_a_window_is_asked_for(sizes: tuple[float, float], again: int | None) -> None:
    game = Shaky(1, noise=0.0)
    values = estimate(game, "exact", sizes=sizes)
    rows = [np.frombuffer(row, dtype=bool) for row, _ in game.asked]
    assert values.n_evaluations == len(rows) == len({row.tobytes() for row in rows}) + 1
    assert all(sizes[0] * N <= row.sum() <= sizes[1] * N for row in rows)
    assert rows[-1].tobytes() in {row.tobytes() for row in rows[:-1]}
    if again is not None:
        assert rows[-1].sum() == again


# -- games of one's own that answer nonsense are named for what they do -------------------------------------------


class Nonsense(Game):
    n_players, n_examples = N, 3

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        return np.zeros(len(coalitions))

    def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
        return self.shape(len(orders), orders.shape[1])


@pytest.mark.parametrize(
    "shape",
    [
        lambda walks, steps: np.zeros((walks, steps)),
        lambda walks, steps: np.zeros((walks - 1, steps + 1)),
        lambda walks, steps: np.zeros((walks, 0)),
        lambda walks, steps: np.zeros(walks),
        lambda walks, steps: np.float64(0),
    ],
)
def test_a_walk_in_another_shape_is_refused_by_its_shape(shape: Any) -> None:
    with pytest.raises(GameError, match="the game's walk returned shape"):
        estimate(Nonsense(shape))


def test_a_walk_that_meets_nan_is_no_changed_answer() -> None:
    with pytest.raises(GameError, match="worth is nan for the full coalition"):
        estimate(Nonsense(lambda walks, steps: np.full((walks, steps + 1), np.nan)))


def test_the_concepts_that_stop_short_of_nobody_are_checked_at_the_full_coalition() -> None:
    game = Shaky(7, noise=0.1)
    assert concept_of("semivalue:0,0,1,1").weights(N).tolist() == [0, 0, 0.5, 0.5]
    with pytest.raises(GameError, match="the full coalition"):
        estimate(game, concept="semivalue:0,0,1,1")
