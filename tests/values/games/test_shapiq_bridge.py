"""Interplay with shapiq, and redundancy: interactions against their definitions, closed forms and shapiq's own."""

import json
import re
import sys
from collections.abc import Mapping
from itertools import combinations
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import Untouched
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from testkit.games import TableGame, Worth, by_all_orders, game_of, random_worth, unanimity
from torch import Tensor, nn

import shaprune as sp
from shaprune.errors import GameError, InputError
from shaprune.report.figures.redundancy import redundancy_figure
from shaprune.values.games.arrays import Coalitions, Examples, Worths
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.interactions import MIN_DEGREES_OF_FREEDOM, _block
from shaprune.values.redundancy import Redundancy, redundancy

Matrix = NDArray[np.float64]
SIX = random_worth(6, seed=3)


@pytest.fixture(scope="module")
def shapiq() -> ModuleType:
    return pytest.importorskip("shapiq")


class AllTogether(Game):
    """A game over 7 examples that has no worth of a single one (as F1 or AUROC)."""

    separable, n_examples = False, 7

    def __init__(self, worth: Worth, n: int) -> None:
        self.worth, self.n_players = worth, n

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        assert examples is None
        return np.array([self.worth(frozenset(np.flatnonzero(row).tolist())) for row in coalitions])


def by_merging(worth: Worth, n: int) -> Matrix:
    """Interactions by the recursion of Grabisch and Roubens: I(i, j) = value of i and j as one player, less the value
    of i where j does not exist, less the value of j where i does not exist."""

    def value(players: list[tuple[int, ...]], who: int) -> float:
        def of(kept: frozenset[int]) -> float:
            return worth(frozenset(member for player in kept for member in players[player]))

        return float(by_all_orders(of, len(players))[who])

    matrix = np.zeros((n, n))
    for i, j in combinations(range(n), 2):
        others = [(p,) for p in range(n) if p not in (i, j)]
        both, first, second = ([member, *others] for member in ((i, j), (i,), (j,)))
        matrix[i, j] = matrix[j, i] = value(both, 0) - value(first, 0) - value(second, 0)
    return matrix


def unanimity_interactions(coefficients: Mapping[frozenset[int], float], n: int) -> Matrix:
    """Closed form: every pair inside a unanimity game of t players has its weight / (t - 1)."""
    matrix = np.zeros((n, n))
    for members, weight in coefficients.items():
        for i, j in combinations(members, 2):
            matrix[i, j] += weight / (len(members) - 1)
            matrix[j, i] = matrix[i, j]
    return matrix


def some_unanimity(n: int, seed: int) -> dict[frozenset[int], float]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, 3 * n)
    return {frozenset(rng.choice(n, size, replace=False).tolist()): float(rng.normal()) for size in sizes}


def relative_error(found: Matrix, truth: Matrix) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


# -- our games at shapiq ----------------------------------------------------------------------------------------------


def test_shapiq_sees_our_worths_over_all_examples(shapiq: ModuleType) -> None:
    game = TableGame(4, 5, seed=0)
    theirs = game.to_shapiq(player_names=["a", "b", "c", "d"])
    assert isinstance(theirs, shapiq.Game)
    assert theirs.n_players == 4
    kept = [frozenset(), frozenset({1, 3}), frozenset({0, 1, 2, 3})]
    truth = [game.mean_worth(s) for s in kept]
    rows = np.array([[player in s for player in range(4)] for s in kept])
    assert_allclose(theirs(rows), truth)
    assert_allclose(theirs(rows.astype(int)), truth)
    assert_allclose(theirs([(), (1, 3), (0, 1, 2, 3)]), truth)
    assert_allclose(theirs([("d", "b")]), truth[1:2])
    assert_allclose(theirs(rows[1]), truth[1:2])


def test_their_exact_values_of_our_game_are_ours(shapiq: ModuleType) -> None:
    game = game_of(SIX, 6)
    theirs = game.to_shapiq().exact_values("SII", 2)
    ours, pairs = sp.estimate(game, "exact"), redundancy(game)
    assert_allclose([theirs[(i,)] for i in range(6)], ours.value, atol=1e-12)
    for i, j in combinations(range(6), 2):
        assert pairs.matrix[i, j] == pytest.approx(theirs[(i, j)], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "budget"), [("KernelSHAPIQ", 32), ("SVARMIQ", 32), ("SHAPIQ", 32), ("PermutationSamplingSII", 500)]
)
def test_their_approximators_accept_our_games(shapiq: ModuleType, name: str, budget: int) -> None:
    coefficients = {frozenset({0, 1}): 2.0, frozenset({2}): 1.0, frozenset({3, 4}): -1.5, frozenset(): 0.7}
    game = CountingGame(game_of(unanimity(coefficients), 5))
    approximator = getattr(shapiq, name)(5, max_order=2, index="SII", random_state=0)
    found = approximator.approximate(budget, game.to_shapiq())
    assert found[(0, 1)] == pytest.approx(2.0, abs=1e-6)
    assert found[(3, 4)] == pytest.approx(-1.5, abs=1e-6)
    assert found[(0, 2)] == pytest.approx(0.0, abs=1e-6)
    assert 0 < game.evaluations <= budget


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "a"]])
def test_names_that_are_not_one_per_player_are_refused(shapiq: ModuleType, names: list[str]) -> None:
    with pytest.raises(InputError, match=r"give 3 different ones, one per player"):
        game_of(len, 3).to_shapiq(player_names=names)


def test_a_missing_shapiq_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapiq", None)
    with pytest.raises(InputError, match=r"pip install 'shaprune\[shapiq\]'"):
        game_of(len, 3).to_shapiq()
    counted = CountingGame(game_of(len, 13))
    with pytest.raises(InputError, match=r"pip install 'shaprune\[shapiq\]'"):
        redundancy(counted)  # 13 players without examples: theirs to estimate
    assert counted.evaluations == 0
    assert redundancy(game_of(len, 3)).method == "exact"
    assert redundancy(TableGame(4, 3, seed=0), method="permutation").n == 4


# -- shapiq's games here ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("precomputed", [False, True])
def test_a_shapiq_game_is_a_game(shapiq: ModuleType, normalised: bool, precomputed: bool) -> None:
    class Theirs(shapiq.Game):  # type: ignore[misc, name-defined]
        def value_function(self, coalitions: NDArray[Any]) -> Matrix:
            return np.array([SIX(frozenset(np.flatnonzero(row).tolist())) for row in coalitions])

    empty = SIX(frozenset())
    theirs = Theirs(6, normalize=normalised, normalization_value=empty)
    if precomputed:
        theirs.precompute()
    game = sp.Game.from_function(theirs, theirs.n_players)
    exact = sp.estimate(game, "exact")
    assert_allclose(exact.value, by_all_orders(SIX, 6), atol=1e-12)
    assert exact.worth_none == pytest.approx(0.0 if normalised else empty)
    sampled = sp.estimate(game, "permutation", 2_000)
    assert sampled.efficiency_gap == pytest.approx(0, abs=1e-12)
    assert np.all(np.abs(sampled.value - exact.value) < 5 * sampled.stderr)
    assert_allclose(redundancy(game).matrix, redundancy(game_of(SIX, 6)).matrix, atol=1e-12)


def test_there_and_back_it_is_the_same_game(shapiq: ModuleType) -> None:
    back = sp.Game.from_function(game_of(SIX, 6).to_shapiq(), 6)
    assert_array_equal(sp.estimate(back, "exact").value, sp.estimate(game_of(SIX, 6), "exact").value)


def test_a_shapiq_game_of_another_size_is_refused(shapiq: ModuleType) -> None:
    game = sp.Game.from_function(game_of(SIX, 6).to_shapiq(), 5)
    with pytest.raises(TypeError, match=r"does not match the number of players in the game \(6\)"):
        sp.estimate(game, "exact")


# -- interactions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5])
def test_exact_interactions_are_those_of_the_definition(n: int) -> None:
    worth = random_worth(n, seed=n)
    found = redundancy(game_of(worth, n))
    assert_allclose(found.matrix, by_merging(worth, n), atol=1e-12)
    assert found.method == "exact"
    assert found.stderr is not None
    assert not found.stderr.any()


def test_two_players_by_hand() -> None:
    game = sp.Game.from_function(lambda kept: 7.0 + kept @ [1.0, 2.0] - 4.0 * kept.all(1), 2)
    assert_allclose(redundancy(game).matrix, [[0, -4], [-4, 0]])


@pytest.mark.parametrize("n", [9, 12])
def test_exact_interactions_of_unanimity_games(n: int) -> None:
    coefficients = some_unanimity(n, seed=n)
    found = redundancy(game_of(unanimity(coefficients), n))
    assert_allclose(found.matrix, unanimity_interactions(coefficients, n), atol=1e-11)


def test_many_chunks_of_coalitions_add_up() -> None:
    found = redundancy(sp.Game.from_function(lambda kept: -1.0 * kept[:, 3] * kept[:, 16], 17), method="exact")
    truth = np.zeros((17, 17))
    truth[3, 16] = truth[16, 3] = -1
    assert_allclose(found.matrix, truth, atol=1e-12)


@pytest.mark.parametrize("method", ["exact", "permutation", "kernelshap-iq"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_an_additive_game_has_no_interactions(shapiq: ModuleType, method: str, n: int) -> None:
    weights = np.random.default_rng(0).normal(size=n)
    found = redundancy(sp.Game.from_function(lambda kept: 3 + kept @ weights, n), method=method)
    assert_allclose(found.matrix, 0, atol=1e-6 if method == "kernelshap-iq" else 1e-12)


@pytest.mark.parametrize("method", ["exact", "permutation", "kernelshap-iq"])
def test_the_matrix_is_symmetric_with_an_empty_diagonal(shapiq: ModuleType, method: str) -> None:
    found = redundancy(game_of(SIX, 6), method=method)
    assert_array_equal(found.matrix, found.matrix.T)
    assert not np.diag(found.matrix).any()
    assert np.abs(found.matrix).max() > 0.1
    with pytest.raises(ValueError, match="read-only"):
        found.matrix[0, 1] = 1


@pytest.mark.parametrize("n", range(2, 12))
def test_in_a_block_every_two_players_meet_twice(n: int) -> None:
    block = _block(n, np.random.default_rng(n))
    assert_array_equal(np.sort(block, axis=1), np.tile(np.arange(n), (n, 1)))
    met = np.zeros((n, n), dtype=int)
    np.add.at(met, (block[:, :-1], block[:, 1:]), 1)
    assert_array_equal(met + met.T, 2 * (1 - np.eye(n)))


@pytest.mark.parametrize(
    ("game", "blocks"), [(TableGame(5, 12, 1), 20), (TableGame(5, 12, 1), 40), (TableGame(6, 1, 1), 40)]
)
def test_sampled_interactions_and_their_doubt_fit_the_truth(game: TableGame, blocks: int) -> None:
    """The errors of 150 runs, in standard errors, spread by 1; every pair's mean over the runs is on its truth."""
    n = game.n_players
    truth = by_merging(game.mean_worth, n)
    pairs = np.triu_indices(n, 1)
    errors, doubts = [], []
    for seed in range(150):
        found = redundancy(game, method="permutation", max_evaluations=2 * n * n * blocks, seed=seed)
        assert found.n_evaluations == 2 * n * n * blocks
        assert found.stderr is not None
        assert_array_equal(found.stderr, found.stderr.T)
        errors.append((found.matrix - truth)[pairs])
        doubts.append(found.stderr[pairs])
    z = np.array(errors) / np.array(doubts)
    assert 0.9 < np.sqrt(np.mean(z**2)) < 1.15
    assert np.abs(np.mean(errors, 0) / (np.std(errors, 0) / np.sqrt(150))).max() < 4


@pytest.mark.parametrize(("blocks", "spread"), [(9, 0), (11, 1), (12, 0), (27, 4), (30, 0)])
def test_every_example_is_used_alike(blocks: int, spread: int) -> None:
    game = TableGame(4, 6, seed=2)
    redundancy(game, method="permutation", max_evaluations=32 * blocks)
    assert len(game.walked) == 4 * blocks
    assert np.ptp(np.bincount(game.walked, minlength=6)) == spread


def test_what_differs_between_examples_is_no_doubt() -> None:
    """With two blocks per example, worths that differ much from example to example, but not inside, leave no error."""

    class Scaled(Game):
        n_players, n_examples = 5, 8

        def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
            assert examples is not None
            return np.asarray((1.0 + examples) ** 2 * (coalitions[:, 0] & coalitions[:, 3]))

    few, many = (redundancy(Scaled(), method="permutation", max_evaluations=50 * blocks) for blocks in (15, 17))
    assert few.stderr is not None
    assert few.stderr[0, 3] > 1
    assert many.stderr is not None
    assert not many.stderr.any()
    assert many.matrix[0, 3] == pytest.approx(np.mean(np.arange(1, 9) ** 2))


@pytest.mark.parametrize("n", [13, 16])
def test_more_players_without_examples_are_shapiqs_to_estimate(shapiq: ModuleType, n: int) -> None:
    coefficients = some_unanimity(n, seed=n)
    counted = CountingGame(game_of(unanimity(coefficients), n))
    found = redundancy(counted)
    assert found.method == "kernelshap-iq"
    assert found.stderr is None
    assert found.n_evaluations == counted.evaluations <= 8 * n * n + 2
    assert relative_error(found.matrix, unanimity_interactions(coefficients, n)) < 0.2


def test_thirty_players_with_examples() -> None:
    class Thirty(Game):
        n_players, n_examples = 30, 40

        def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
            assert examples is not None
            twins = coalitions[:, 4] | coalitions[:, 20]
            return np.asarray(twins * (1.0 + examples % 2) + coalitions.sum(1) * examples)

    found = redundancy(Thirty(), max_evaluations=1800 * 12)
    assert found.method == "permutation"
    assert found.n_evaluations <= 1800 * 12
    assert found.stderr is not None
    assert found.pairs(1)[0][:2] == (4, 20)
    assert abs(found.matrix[4, 20] + 1.5) < 4 * found.stderr[4, 20]
    assert 0 < found.stderr[4, 20] < 0.3


def test_worths_over_all_examples_only(shapiq: ModuleType) -> None:
    truth = by_merging(random_worth(5, 0), 5)
    game = AllTogether(random_worth(5, 0), 5)
    exact = redundancy(game)
    assert exact.n_evaluations == 7 * (32 + 1)  # the full coalition is asked for twice
    assert_allclose(exact.matrix, truth, atol=1e-12)
    sampled = redundancy(game, method="permutation", max_evaluations=7 * 50 * 30)
    assert sampled.stderr is not None
    assert np.all(np.abs(sampled.matrix - truth) <= 5 * sampled.stderr)
    assert redundancy(AllTogether(lambda kept: float(len(kept)), 13)).method == "kernelshap-iq"


def test_the_same_seed_gives_the_same_bits(shapiq: ModuleType) -> None:
    game, plain = TableGame(6, 9, seed=5), game_of(random_worth(13, 1), 13)
    for g, method, budget in (
        (game, "permutation", None),
        (game, "permutation", 72 * 15),
        (plain, "permutation", None),
        (plain, "kernelshap-iq", None),
    ):
        first, again, other = (redundancy(g, method=method, max_evaluations=budget, seed=s) for s in (1, 1, 2))
        assert first.matrix.tobytes() == again.matrix.tobytes()
        assert first.matrix.tobytes() != other.matrix.tobytes()


# -- networks ---------------------------------------------------------------------------------------------------------


def _batches(n: int, *shape: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, *shape, generator=generator), torch.randint(0, 4, (n,), generator=generator))]


def test_hidden_units_under_a_squared_distance_have_a_closed_form(one_thread: None) -> None:
    """Fidelity of a last hidden layer is -|sum of what the removed units gave|^2, so I(i, j) = -2 mean(c_i . c_j)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = _batches(20, 6)
    with torch.no_grad():
        hidden = torch.relu(model[0](batches[0][0])).double()  # (20, 8)
        given = torch.einsum("eh,oh->eho", hidden, model[2].weight.double())
        truth = -2 * torch.einsum("eio,ejo->ij", given, given).numpy() / 20
    np.fill_diagonal(truth, 0)
    players = sp.find_players(model, batches[0][0][:2])
    game = sp.NetworkGame(model, players, batches, "fidelity")
    assert_allclose(redundancy(game).matrix, truth, atol=1e-4 * np.abs(truth).max())
    sampled = redundancy(game, method="permutation", max_evaluations=128 * 100)
    assert sampled.stderr is not None
    assert np.all(np.abs(sampled.matrix - truth) <= 5 * sampled.stderr + 1e-6)
    assert relative_error(sampled.matrix, truth) < 0.15


@pytest.mark.parametrize("method", ["exact", "permutation", "kernelshap-iq"])
def test_duplicated_channels_are_the_most_redundant_pair(
    shapiq: ModuleType, one_thread: None, untouched: Untouched, method: str
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        conv, norm, last = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 16, 4)
    with torch.no_grad():
        last.weight.mul_(6)  # outputs that are sure of something
        original = nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), last).eval()
        labels = original(_batches(40, 1, 6, 6)[0][0]).argmax(1)
        conv.weight[6], conv.bias[6] = conv.weight[2], conv.bias[2]
        share = last.weight.view(4, 8, 16)
        share[:, 2] /= 2
        share[:, 6] = share[:, 2]
    batches = [(_batches(40, 1, 6, 6)[0][0], labels)]
    players = sp.find_players(original, batches[0][0][:2], include=["0"])
    with untouched(original):
        game = sp.NetworkGame(original, players, batches, "cross_entropy")
        found = redundancy(game, method=method)
    assert found.pairs(1)[0][:2] == (2, 6)
    assert found.matrix[2, 6] < 0


# -- the result -------------------------------------------------------------------------------------------------------


def test_pairs_come_most_redundant_first() -> None:
    matrix = np.array([[0, -1, 2, -3], [-1, 0, -3, 0], [2, -3, 0, 0.5], [-3, 0, 0.5, 0]], dtype=float)
    found = Redundancy(matrix, None, 10, "exact")
    assert found.pairs(3) == [(0, 3, -3.0), (1, 2, -3.0), (0, 1, -1.0)]
    assert len(found.pairs(100)) == 6
    with pytest.raises(InputError, match="k is 0"):
        found.pairs(0)


@pytest.mark.parametrize("method", ["exact", "permutation"])
def test_it_survives_json(method: str) -> None:
    found = redundancy(TableGame(4, 3, seed=0), method=method, seed=7)
    back = Redundancy.from_json(json.loads(json.dumps(found.to_json())))
    assert_array_equal(back.matrix, found.matrix)
    assert found.stderr is not None
    assert back.stderr is not None
    assert_array_equal(back.stderr, found.stderr)
    assert (back.n_evaluations, back.method, back.options) == (found.n_evaluations, found.method, found.options)
    assert back.options == {"max_evaluations": None, "seed": 7}
    unknown = Redundancy(found.matrix, None, 1, "kernelshap-iq")
    assert Redundancy.from_json(json.loads(json.dumps(unknown.to_json()))).stderr is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": [[0, 1], [2, 0]]}, "matrix is not finite, symmetric"),
        ({"matrix": [[0, 1]]}, "matrix is not finite, symmetric"),
        ({"matrix": [[1, 1], [1, 0]]}, "matrix is not finite, symmetric"),
        ({"matrix": [[0, float("nan")], [float("nan"), 0]]}, "matrix is not finite, symmetric"),
        ({"stderr": [[0.0]]}, "stderr is not finite, symmetric"),
        ({"method": None, "n_evaluations": "many"}, "no redundancy written by shaprune"),
        ({"matrix": "x"}, "no redundancy written by shaprune"),
    ],
)
def test_damaged_json_is_refused(change: dict[str, Any], message: str) -> None:
    good = redundancy(game_of(random_worth(2, 0), 2)).to_json()
    Redundancy.from_json(good)
    with pytest.raises(InputError, match=message):
        Redundancy.from_json({**good, **change})
    with pytest.raises(InputError, match="no redundancy written by shaprune"):
        Redundancy.from_json({key: value for key, value in good.items() if key not in change})


# -- bad input --------------------------------------------------------------------------------------------------------


def test_one_player_has_no_pairs_and_costs_nothing() -> None:
    counted = CountingGame(game_of(len, 1))
    found = redundancy(counted, max_evaluations=1)
    assert_array_equal(found.matrix, [[0.0]])
    assert found.pairs() == []
    assert found.n_evaluations == counted.evaluations == 0


def test_more_than_thirty_players_are_refused() -> None:
    with pytest.raises(InputError, match=r"at most 30 players and this game has 31; .*group='NAME'"):
        redundancy(game_of(len, 31))
    assert redundancy(TableGame(2, 1, seed=0)).n == 2


def test_what_is_no_game_is_refused() -> None:
    with pytest.raises(InputError, match=r"game is a function; wrap a callable with Game.from_function"):
        redundancy(lambda kept: kept.sum(1))  # type: ignore[arg-type]


def test_unknown_methods_and_numbers_that_are_none_are_refused() -> None:
    game = game_of(len, 3)
    with pytest.raises(InputError, match=r"unknown method 'permutations'; did you mean 'permutation'\?"):
        redundancy(game, method="permutations")
    with pytest.raises(InputError, match=r"seed is 1\.5; it must be a whole number"):
        redundancy(game, seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_evaluations is 0; it must be a whole number, 1 or above"):
        redundancy(game, max_evaluations=0)
    with pytest.raises(InputError, match=r"need 2\^25 coalitions; the limit is 24 players"):
        redundancy(game_of(len, 25), method="exact")


@pytest.mark.parametrize(
    ("game", "method", "smallest"),
    [
        (TableGame(6, 5, seed=0), "exact", 5 * 64),
        (TableGame(6, 5, seed=0), "permutation", 72),
        (TableGame(6, 5, seed=0), "kernelshap-iq", 5 * 64),
        (TableGame(6, 5, seed=0), None, 72),
        (AllTogether(random_worth(8, 0), 8), "permutation", 7 * 128),
        (AllTogether(random_worth(8, 0), 8), None, 7 * 128),
        (game_of(random_worth(3, 0), 3), None, 8),
    ],
)
def test_the_smallest_budget_is_named_and_works(
    shapiq: ModuleType, game: Game, method: str | None, smallest: int
) -> None:
    with pytest.raises(InputError, match=rf"={smallest - 1} is too small .* the smallest that works is {smallest}$"):
        redundancy(game, method=method, max_evaluations=smallest - 1)
    found = redundancy(game, method=method, max_evaluations=smallest)
    assert 0 < found.n_evaluations <= smallest
    assert np.abs(found.matrix[np.triu_indices(game.n_players, 1)]).min() > 0  # every pair was looked at


def test_a_budget_that_pays_for_all_coalitions_buys_exact_interactions() -> None:
    assert redundancy(TableGame(7, 2, seed=0), max_evaluations=2**8).method == "exact"
    assert redundancy(TableGame(7, 2, seed=0), max_evaluations=2**8 - 1).method == "permutation"


def test_few_blocks_do_not_tell_how_sure_they_are() -> None:
    for game, blocks in (
        (TableGame(4, 1, seed=0), MIN_DEGREES_OF_FREEDOM + 1),
        (TableGame(4, 3, seed=0), MIN_DEGREES_OF_FREEDOM + 3),
    ):
        assert redundancy(game, method="permutation", max_evaluations=32 * blocks - 1).stderr is None
        assert redundancy(game, method="permutation", max_evaluations=32 * blocks).stderr is not None


@pytest.mark.parametrize("method", ["exact", "permutation", "kernelshap-iq"])
def test_worths_that_are_no_numbers_are_named(shapiq: ModuleType, method: str) -> None:
    def worth(kept: frozenset[int]) -> float:
        return float("nan") if kept == {1, 2} else float(len(kept))

    with pytest.raises(GameError, match=r"worth is nan for the coalition with(out players 0, 3| only players 1, 2)"):
        redundancy(game_of(worth, 4), method=method)


@pytest.mark.parametrize("method", ["exact", "permutation", "kernelshap-iq"])
def test_a_game_that_changes_its_answer_is_noticed(shapiq: ModuleType, method: str) -> None:
    rng = np.random.default_rng(0)
    game = sp.Game.from_function(lambda kept: kept.sum(1) + rng.normal(size=len(kept)), 4)
    with pytest.raises(GameError, match="the game changes its answer"):
        redundancy(game, method=method)


# -- the figure -------------------------------------------------------------------------------------------------------


def test_the_figure_shows_every_pair_in_its_colour() -> None:
    matrix = np.array([[0, -1, 0.5], [-1, 0, 1e-9], [0.5, 1e-9, 0]])
    error = np.array([[0, 0.1, 0.3], [0.1, 0, 0.1], [0.3, 0.1, 0]])
    svg = redundancy_figure(Redundancy(matrix, error, 10, "permutation"), ["a<b", "$c$", "d" * 40])
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == "Pairwise interactions of 3 players. The most redundant pair: a<b and $c$, -1."
    groups = {g.attrib["style"]: g.findall("rect") for g in root.iter("g") if g.find("rect") is not None}
    (blue,) = (rects for style, rects in groups.items() if "--kept" in style)
    (orange,) = (rects for style, rects in groups.items() if "--norm" in style)
    assert [r.attrib["fill-opacity"] for r in blue] == ["1.000"] * 2
    assert [r.attrib["fill-opacity"] for r in orange] == ["0.500"] * 2  # and the third pair is too weak to be seen
    assert float(orange[0].attrib["width"]) < 0.6 * float(blue[0].attrib["width"])  # within two standard errors of 0
    assert [r.findtext("title") for r in blue] == ["a<b, $c$: -1 ± 0.1", "$c$, a<b: -1 ± 0.1"]
    first, second = blue
    assert float(first.attrib["x"]) > float(second.attrib["x"])
    assert float(first.attrib["y"]) < float(second.attrib["y"])
    texts = [t.text for t in root.iter("text")]
    assert texts.count("a<b") == texts.count("$c$") == 2
    assert {"-1", "0", "1", "can replace each other", "need each other"} <= set(texts)
    assert re.findall(r"#[0-9a-f]{6}", svg)  # colours to fall back on outside a page
    assert not re.search(r"https?:", svg)


def test_a_figure_of_nothing_to_replace() -> None:
    svg = redundancy_figure(Redundancy(np.zeros((2, 2)), None, 4, "exact"))
    assert "No two can replace each other" in svg
    assert "<title>" not in svg
    assert "one player" not in redundancy_figure(Redundancy(np.zeros((1, 1)), None, 0, "exact"), label="of itself")


def test_names_of_a_figure_are_one_per_player() -> None:
    with pytest.raises(InputError, match="there are 1 names for 2 players"):
        redundancy_figure(Redundancy(np.zeros((2, 2)), None, 4, "exact"), ["a"])
