"""Worths by name: each against its formula, written out in NumPy, on networks after surgery."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from testkit.networks import N_OUTPUTS, NETWORKS
from torch import Tensor, nn

from shaprune.errors import GameError, InputError
from shaprune.network.discovery.find_players import find_players
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.torchmetrics_worth import MetricFunction
from shaprune.network.game.worths import WORTHS, Evaluate, SetWorth, Worth, is_built_in, resolve_row_worth, worth_name
from shaprune.network.removal.surgery import remove_players
from shaprune.players.players import Players

pytestmark = pytest.mark.usefixtures("one_thread")

Floats = NDArray[np.float64]


# -- the formulas, for outputs (N, ..., C) -------------------------------------------------------------------------


def log_softmax(outputs: Floats) -> Floats:
    shifted = outputs - outputs.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def of_target(values: Floats, targets: NDArray[Any]) -> Floats:
    return np.take_along_axis(values, targets[..., None], -1)[..., 0]


def largest_other(outputs: Floats, targets: NDArray[Any]) -> Floats:
    rows, labels = outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
    best = [max(v for c, v in enumerate(row) if c != label) for row, label in zip(rows, labels, strict=True)]
    return np.array(best).reshape(targets.shape)


def per_row(values: Floats) -> Floats:
    return values.reshape(len(values), -1).mean(1)


def fitting(outputs: Floats, targets: Floats) -> Floats:
    return outputs - targets.reshape(outputs.shape)


FORMULAS: dict[str, Callable[[Floats, Any, Floats], Floats]] = {
    "accuracy": lambda o, t, d: per_row((o.argmax(-1) == t).astype(float)),
    "cross_entropy": lambda o, t, d: per_row(of_target(log_softmax(o), t)),
    "margin": lambda o, t, d: per_row(of_target(o, t) - largest_other(o, t)),
    "fidelity": lambda o, t, d: -np.square(o - d).reshape(len(o), -1).sum(1),
    "kl": lambda o, t, d: -per_row((np.exp(log_softmax(d)) * (log_softmax(d) - log_softmax(o))).sum(-1)),
    "squared_error": lambda o, t, d: -per_row(np.square(fitting(o, t))),
    "absolute_error": lambda o, t, d: -per_row(np.abs(fitting(o, t))),
}


def perplexity(outputs: Floats, targets: Any) -> float:
    return float(np.exp(-of_target(log_softmax(outputs), targets).mean()))


# -- networks and data ---------------------------------------------------------------------------------------------


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def perceptron(outputs: int) -> nn.Module:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, outputs))

    return louder(seeded(make))


def louder(model: nn.Module) -> nn.Module:
    """With larger weights in the last layer, so that coalitions make a difference."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight *= 10
    return model


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def indices(*shape: int) -> Tensor:
    return torch.randint(0, N_OUTPUTS, shape, generator=torch.Generator().manual_seed(2))


N = 9
SETTINGS: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]] = {
    "images": lambda: (louder(NETWORKS["plain"][0]()), drawn(N, 3, 8, 8), indices(N)),
    "narrow integers": lambda: (louder(NETWORKS["mlp"][0]()), drawn(N, 10), indices(N).to(torch.uint8)),
    "tokens": lambda: (perceptron(N_OUTPUTS), drawn(N, 4, 6), indices(N, 4)),
    "one number": lambda: (perceptron(1), drawn(N, 6), drawn(N, seed=3)),
    "three numbers": lambda: (perceptron(3), drawn(N, 6), drawn(N, 3, seed=3)),
    "whole numbers": lambda: (perceptron(1), drawn(N, 6), indices(N)),
    "a number per token": lambda: (perceptron(2), drawn(N, 4, 6), drawn(N, 4, 2, seed=3)),
}
CLASSES, NUMBERS = ("images", "narrow integers", "tokens"), tuple(SETTINGS)[3:]
NEEDS = {"accuracy": CLASSES, "cross_entropy": CLASSES, "margin": CLASSES, "perplexity": CLASSES}
NEEDS |= {"squared_error": NUMBERS, "absolute_error": NUMBERS, "fidelity": tuple(SETTINGS)}
NEEDS["kl"] = tuple(name for name in SETTINGS if name not in ("one number", "whole numbers"))
CASES = [(worth, setting) for worth, settings in NEEDS.items() for setting in settings]


def coalitions_of(players: Players, count: int = 12) -> NDArray[np.bool_]:
    """Random rows; of every group somebody stays, so that the network can be cut."""
    rng = np.random.default_rng(4)
    kept = rng.random((count, players.n)) < np.linspace(0.2, 1, count)[:, None]
    for group in players.groups:
        kept[:, rng.choice(group.indices)] = True
    return kept


def after_surgery(model: nn.Module, players: Players, kept: NDArray[np.bool_], x: Tensor) -> Floats:
    """(R, N, ...) outputs of the networks in which the players of each coalition stay."""
    with torch.no_grad():
        small = [remove_players(copy.deepcopy(model), players, row) for row in kept]
        return np.stack([net(x).double().numpy() for net in small])


def test_every_worth_by_name_is_tested() -> None:
    assert {worth for worth, _ in CASES} == set(WORTHS) == {*FORMULAS, "perplexity"}
    assert all(name == worth.name for name, worth in WORTHS.items())


@pytest.mark.parametrize(("worth", "setting"), CASES)
def test_a_worth_by_name_is_its_formula_on_the_cut_network(worth: str, setting: str) -> None:
    model, x, targets = SETTINGS[setting]()
    players = find_players(model, x)
    kept = coalitions_of(players)
    outputs, dense = after_surgery(model, players, kept, x), model(x).detach().double().numpy()
    game = NetworkGame(model, players, [(x[:5], targets[:5]), (x[5:], targets[5:])], worth)
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    labels = targets.numpy()
    if worth == "perplexity":
        expected = np.array([-perplexity(row, labels) for row in outputs])
        assert expected.std() > 1e-3
        close(game(kept), expected)
        order = np.arange(players.n)[None, : players.n - 1]
        close(game.walk(order)[0, [0]], [-perplexity(dense, labels)])
        return
    by_row = np.stack([FORMULAS[worth](row, labels, dense) for row in outputs])
    assert by_row.std() > 1e-3
    close(game(kept), by_row.mean(1))
    rows, examples = np.repeat(np.arange(len(kept)), 3), np.tile([8, 0, 4], len(kept))
    close(game(kept[rows], examples), by_row[rows, examples])


def test_perplexity_of_equal_logits_is_the_number_of_classes() -> None:
    model, x, targets = SETTINGS["tokens"]()
    nn.init.zeros_(model[-1].weight), nn.init.zeros_(model[-1].bias)  # type: ignore[index]
    game = NetworkGame(model, find_players(model, x), [(x, targets)], "perplexity")
    assert game(np.ones((1, game.n_players), dtype=bool))[0] == pytest.approx(-N_OUTPUTS)


def test_perplexity_is_no_mean_over_examples_and_is_finite_where_the_loss_is_large() -> None:
    model, x, targets = SETTINGS["images"]()
    with torch.no_grad():
        model.fc.weight *= 500  # type: ignore[operator, union-attr]
    game = NetworkGame(model, find_players(model, x), [(x, targets)], "perplexity", "conv3")
    loss = NetworkGame(model, find_players(model, x), [(x, targets)], "cross_entropy", "conv3")
    everyone = np.ones((1, 10), dtype=bool)
    assert -700 < loss(everyone)[0] < -90  # exp(90) is no float32
    assert game(everyone)[0] == pytest.approx(-np.exp(-loss(everyone)[0]), rel=1e-4)


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worth", "setting", "targets", "words"),
    [
        ("margin", "images", drawn(N), r"one class index per example, the targets are torch.float32 of shape \(9,\)"),
        ("margin", "images", indices(N) + 1, "labels run from 1 to 5 and the model has 5 outputs"),
        (
            "margin",
            "one number",
            torch.full((N,), 2),
            "labels run from 2 to 2 and the model has one output, a binary logi",
        ),
        ("cross_entropy", "tokens", drawn(N, 4), r"one class index per token, the targets are torch.float32"),
        ("cross_entropy", "tokens", indices(N, 4) - 1, "labels run from -1 to 3"),
        ("accuracy", "tokens", indices(N, 5), "labels run from 0 to 4 and the model has 4 outputs"),
        (
            "perplexity",
            "tokens",
            indices(N),
            r"outputs \(batch, places, classes\): .*, the model's outputs \(9, 4, 5\)",
        ),
        ("perplexity", "tokens", None, "'perplexity' needs targets and the batches have none"),
        (
            "accuracy",
            "images",
            indices(N, 2),
            r"one class index per prediction, .* the targets are torch.int64 .*\(9, 2\)",
        ),
        ("kl", "one number", None, r"with two classes at least, the model's are \(9, 1\)"),
        ("squared_error", "images", indices(N), r"targets of the outputs' shape \(9, 5\).*yours are \(9,\)"),
        ("absolute_error", "one number", drawn(N, 2), r"the outputs' shape \(9, 1\).*yours are \(9, 2\)"),
        ("squared_error", "one number", drawn(N) > 0, "needs real numbers as targets, yours are torch.bool"),
        (
            "squared_error",
            "one number",
            drawn(N).index_fill(0, torch.tensor([1, 3]), torch.inf),
            "the target of example 1 is NaN or infinite",
        ),
        ("squared_error", "three numbers", None, "'squared_error' needs targets"),
    ],
)
def test_targets_of_the_wrong_kind_are_refused(worth: str, setting: str, targets: Tensor | None, words: str) -> None:
    model, x, _ = SETTINGS[setting]()
    with pytest.raises(InputError, match=words):
        NetworkGame(model, find_players(model, x), [(x, targets)], worth)


def test_class_maps_of_another_size_are_refused() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1)))
    x = drawn(4, 3, 8, 8)
    with pytest.raises(InputError, match=r"of shape \(4, 8, 7\), the model's outputs \(4, 5, 8, 8\)"):
        NetworkGame(model, find_players(model, x), [(x, indices(4, 8, 7))], "cross_entropy")


def test_a_worth_that_is_a_class_is_refused() -> None:
    model, x, targets = SETTINGS["images"]()
    with pytest.raises(InputError, match="worth is the class CrossEntropyLoss; give an instance"):
        NetworkGame(model, find_players(model, x), [(x, targets)], nn.CrossEntropyLoss)


def test_a_set_worth_is_refused_where_a_worth_per_example_is_needed() -> None:
    assert resolve_row_worth("margin") is WORTHS["margin"]
    with pytest.raises(InputError, match=r"'perplexity' is one number over all examples.*'cross_entropy'"):
        resolve_row_worth("perplexity")


def test_a_worth_that_is_nan_names_coalition_and_layer() -> None:
    model, x, targets = SETTINGS["images"]()
    players = find_players(model, x)
    kept = np.ones((2, 12), dtype=bool)
    kept[1, 3] = False
    for worth in ("kl", "margin", "perplexity"):
        game = NetworkGame(model, players, [(x, targets)], worth, "conv2")
        game(kept)
        with torch.no_grad():
            model.fc.bias[0] = torch.nan  # type: ignore[index, union-attr]
        with pytest.raises(GameError, match=r"for the full coalition of conv2 on example 0; .*output is 'fc'"):
            game(kept)
        with torch.no_grad():
            model.fc.bias[0] = 0  # type: ignore[index, union-attr]


def test_names_and_which_worths_are_ours() -> None:
    mine = Worth("accuracy", lambda o, t: o[:, 0])
    assert [is_built_in(w) for w in (*WORTHS.values(), mine)] == [True] * len(WORTHS) + [False]
    names = ("kl", np.mean, SetWorth("mine", np.mean), Evaluate(np.mean), MetricFunction(None, 1), nn.ReLU())
    assert [worth_name(w) for w in names] == ["kl", "mean", "mine", "evaluate", "MetricFunction", "ReLU"]
