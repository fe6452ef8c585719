"""Worths on one class, several classes, or one group of examples."""

from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import N_OUTPUTS, NETWORKS
from torch import Tensor, nn
from torchmetrics.classification import MulticlassF1Score

from shaprune.errors import InputError
from shaprune.network.discovery.find_players import find_players
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.subset_worth import Only
from shaprune.network.game.worths import Evaluate, worth_name
from shaprune.players.players import Players
from shaprune.values.estimate import estimate

pytestmark = pytest.mark.usefixtures("one_thread")

N = 12
LABELS = torch.tensor([0, 1, 2, 4, 0, 1, 2, 4, 0, 1, 1, 1])  # nobody is of class 3
MASK = np.arange(N) % 3 == 0
Setting = tuple[nn.Module, Players, Tensor]


@pytest.fixture
def plain() -> Setting:
    make, inputs = NETWORKS["plain"]
    model, x = make(), torch.cat([inputs(), -inputs(), 0.5 * inputs().flip(0)])
    return model, find_players(model, x), x


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"classes": 1}, [1, 5, 9, 10, 11]),
        ({"classes": [4, 0]}, [0, 3, 4, 7, 8]),
        ({"examples": [7, 2, 3]}, [7, 2, 3]),
        ({"examples": torch.tensor([7, 2, 3])}, [7, 2, 3]),
        ({"examples": MASK}, [0, 3, 6, 9]),
        ({"examples": torch.from_numpy(MASK)}, [0, 3, 6, 9]),
        ({"classes": (1, 4), "examples": MASK}, [3, 9]),
        ({"classes": 1, "examples": [9, 0, 1]}, [9, 1]),
    ],
)
@pytest.mark.parametrize("worth", ["cross_entropy", "fidelity", "perplexity", "callable", "metric"])
def test_only_some_examples_is_the_worth_on_just_these(
    plain: Setting, options: dict[str, Any], rows: list[int], worth: Any
) -> None:
    model, players, x = plain
    given = {"callable": lambda o, t: o[:, 0] - t, "metric": MulticlassF1Score(N_OUTPUTS)}.get(worth, worth)
    game = NetworkGame(model, players, [(x, LABELS)], Only(given, **options), "conv2")
    alone = NetworkGame(model, players, [(x[rows], LABELS[rows])], given, "conv2")
    kept = np.random.default_rng(0).random((9, 12)) < 0.5
    orders = np.random.default_rng(1).permuted(np.tile(np.arange(12), (2, 1)), axis=1)
    assert game.n_examples == len(rows)
    assert game.labels is not None
    assert game.labels.tolist() == LABELS[rows].tolist()
    np.testing.assert_allclose(game(kept), alone(kept), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(game.walk(orders), alone.walk(orders), rtol=1e-5, atol=1e-7)
    if game.separable:
        examples = np.arange(2)
        np.testing.assert_allclose(game.walk(orders, examples), alone.walk(orders, examples), rtol=1e-5, atol=1e-7)
    assert game.fingerprint == alone.fingerprint or worth == "callable"


def test_the_classes_of_a_game_are_weighed_parts_of_the_whole(plain: Setting) -> None:
    model, players, x = plain
    calibration, kept = Calibration(model, [(x, LABELS)]), np.random.default_rng(0).random((9, 12)) < 0.5
    parts = [NetworkGame(model, players, calibration, Only("margin", c), "conv2") for c in (0, 1, 2, 4)]
    whole = NetworkGame(model, players, calibration, "margin", "conv2")(kept)
    assert [game.n_examples for game in parts] == [3, 5, 2, 2]
    np.testing.assert_allclose(sum(game(kept) * game.n_examples for game in parts) / N, whole, rtol=1e-5)
    assert np.ptp([game(kept)[0] for game in parts]) > 1e-3
    estimate(parts[0], max_evaluations=3 * 13 * 2)


def test_the_dense_network_is_not_run_again_and_games_share_their_part(plain: Setting) -> None:
    model, players, x = plain
    calibration = Calibration(model, [(x, LABELS)])
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    one = NetworkGame(model, players, calibration, Only("accuracy", 1), "conv1")
    two = NetworkGame(model, players, calibration, Only("fidelity", examples=[1, 5, 9, 10, 11]), "conv2")
    other = NetworkGame(model, players, calibration, Only("accuracy", 2), "conv1")
    assert calls == [3] * 9  # three examples under three coalitions in each game, by which its rows are proved
    assert one.calibration is two.calibration is not other.calibration
    assert calibration.n_examples == N


def test_only_says_what_it_is() -> None:
    assert worth_name(Only("accuracy", 3)) == "accuracy of class 3"
    assert worth_name(Only("kl", (1, 2), examples=[1])) == "kl of classes 1, 2 of some examples"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": 3}, r"no example is of class 3; the data hold classes 0, 1, 2, 4$"),
        ({"classes": [0, 17]}, "no example is of class 17"),
        ({"classes": []}, "classes is empty"),
        ({"classes": "cat"}, "classes is 'cat'; give a class index"),
        ({"classes": 1.5}, "classes is 1.5"),
        ({"examples": []}, "accuracy on no example: examples is empty"),
        ({"examples": np.zeros(N, dtype=bool)}, "accuracy on no example: examples is empty"),
        ({"classes": 0, "examples": [1, 2]}, "accuracy on no example: none of these examples is of class 0"),
        ({"examples": [0, N]}, r"there is no example 12; the data hold examples 0\.\.11"),
        ({"examples": [-1]}, "there is no example -1"),
        ({"examples": [4, 2, 4]}, "example 4 is named twice"),
        ({"examples": np.ones(5, dtype=bool)}, r"examples has shape \(5,\); a mask needs one entry for each of 12"),
        ({"examples": [[1, 2]]}, r"examples is int64 of shape \(1, 2\); give a row of indices"),
        ({"examples": [0.5]}, "examples is float64"),
    ],
)
def test_examples_that_there_are_not_are_refused(plain: Setting, options: dict[str, Any], words: str) -> None:
    model, players, x = plain
    with pytest.raises(InputError, match=words):
        NetworkGame(model, players, [(x, LABELS)], Only("accuracy", **options))


def test_classes_need_class_labels(plain: Setting) -> None:
    model, players, x = plain
    for data in ([x], [(x, torch.randn(N, N_OUTPUTS))]):
        with pytest.raises(
            InputError, match=r"classes=\.\.\. needs one class index per example as targets; use exampl"
        ):
            NetworkGame(model, players, data, Only("fidelity", 1))


def test_what_only_cannot_stand_around_is_refused() -> None:
    with pytest.raises(InputError, match="Only cannot stand around Evaluate"):
        Only(Evaluate(lambda model: 1.0), 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="give classes and examples to one of them"):
        Only(Only("accuracy", 1), 2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Only needs classes=\.\.\. or examples=\.\.\."):
        Only("accuracy")
