"""Promise 4: a borrowed model comes back untouched, also when something raises and when the user presses Ctrl-C."""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import N_OUTPUTS, NETWORKS
from torch import Tensor, nn

import shaprune as sp
from shaprune.network.batches import call
from shaprune.network.borrow import borrowed
from shaprune.network.discovery.find_players import find_players
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.worths import Evaluate
from shaprune.players.players import Players
from shaprune.values.estimate import estimate

pytestmark = pytest.mark.usefixtures("one_thread")

Worth = Callable[[Tensor, Tensor], Tensor]


def lived_in(name: str) -> tuple[nn.Module, Tensor]:
    """A model as users have them: half in train mode, half frozen, with gradients, and with hooks of its owner."""
    make, inputs = NETWORKS[name]
    model, x = make(), inputs()
    model(x).sum().backward()
    for position, module in enumerate(model.modules()):
        module.training = position % 2 == 0
        if position % 3 == 0:
            module.register_forward_hook(lambda *_: None)
            module.register_forward_pre_hook(lambda *_: None)
    for position, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(position % 2 == 0)
    return model, x


@contextmanager
def unwritten(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
    """A block that leaves every weight, buffer, gradient and hook of a model, and these tensors, as they were."""

    def state() -> list[Any]:
        return [
            [(key, id(value), value.clone()) for key, value in model.state_dict(keep_vars=True).items()],
            [(key, None if p.grad is None else p.grad.clone()) for key, p in model.named_parameters()],
            [(name, id(m), type(m), m.forward.__func__) for name, m in model.named_modules()],
            [(list(m._forward_hooks.items()), list(m._forward_pre_hooks.items())) for m in model.modules()],
            [(name, sorted(vars(m))) for name, m in model.named_modules()],
            [t.clone() for t in tensors],
        ]

    before = state()
    try:
        yield
    finally:
        _assert_equal(before, state())


def _assert_equal(one: Any, two: Any) -> None:
    assert type(one) is type(two)
    if isinstance(one, Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            _assert_equal(a, b)
    else:
        assert one == two


def restless(outputs: Tensor, targets: Tensor) -> Tensor:
    """A worth that uses every generator there is and turns every global flag it finds."""
    torch.rand(3)
    np.random.rand(3)
    random.random()
    torch.set_grad_enabled(not torch.is_grad_enabled())
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic = not torch.backends.cudnn.deterministic
    return outputs.gather(1, targets[:, None])[:, 0]


def data_of(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.arange(len(x)) % N_OUTPUTS)]


def evaluation(worth: Worth, x: Tensor) -> Evaluate:
    """The same worth for a whole model, whose author also forgets to put the model back."""

    def evaluate(model: nn.Module) -> float:
        model.eval()
        value = float(worth(model(x).detach(), torch.arange(len(x)) % N_OUTPUTS).mean())
        next(model.children()).train()
        return value

    return Evaluate(evaluate)


def play(game: NetworkGame) -> None:
    """Every way of asking a game."""
    rng = np.random.default_rng(0)
    coalitions = rng.random((3, game.n_players)) < 0.7
    orders = rng.permuted(np.tile(np.arange(game.n_players), (2, 1)), axis=1)
    game(coalitions)
    game.walk(orders)
    if game.separable:
        game(coalitions, np.zeros(3, dtype=np.int64))
        game.walk(orders, np.zeros(2, dtype=np.int64))
    estimate(game, max_evaluations=2 * (game.n_players + 1) * game.n_examples)


def first_of(players: Players) -> str:
    return players.groups[0].name


WAYS: dict[str, Callable[[nn.Module, Players, Tensor, Worth], NetworkGame]] = {
    "taken apart": lambda model, players, x, worth: NetworkGame(model, players, data_of(x), worth),
    "one group": lambda model, players, x, worth: NetworkGame(model, players, data_of(x), worth, first_of(players)),
    "whole": lambda model, players, x, worth: NetworkGame(model, players, data_of(x), worth, forward=call),
    "little memory": lambda model, players, x, worth: NetworkGame(model, players, data_of(x), worth, max_memory=11_000),
    "evaluate": lambda model, players, x, worth: NetworkGame(model, players, None, evaluation(worth, x)),
}


@contextmanager
def said_to_be_whole(way: str) -> Iterator[None]:
    with warnings.catch_warnings():
        if way == "whole":
            warnings.simplefilter("ignore", sp.errors.ShapruneWarning)
        yield


@pytest.mark.parametrize("name", NETWORKS)
def test_finding_players_touches_nothing(name: str, untouched: Any) -> None:
    model, x = lived_in(name)
    with untouched(model), unwritten(model, x):
        assert find_players(model, x).n > 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_playing_a_game_touches_nothing(name: str, way: str, untouched: Any) -> None:
    model, x = lived_in(name)
    players = find_players(model, x)
    with untouched(model), unwritten(model, x), said_to_be_whole(way):
        play(WAYS[way](model, players, x, restless))


@pytest.mark.parametrize("way", WAYS)
def test_a_caller_without_gradients_stays_without_gradients(way: str, untouched: Any) -> None:
    model, x = lived_in("plain")
    with torch.no_grad(), untouched(model), unwritten(model, x), said_to_be_whole(way):
        play(WAYS[way](model, find_players(model, x), x, restless))


class Tripwire(Exception):
    """Raised where a user's code fails."""


def failing(error: type[BaseException], at: int) -> Worth:
    """A worth that disturbs what it can and raises at its ``at``-th call."""
    calls = 0

    def worth(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        result = restless(outputs, targets)
        if calls == at:
            raise error
        return result

    return worth


@pytest.mark.parametrize("error", [Tripwire, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("way", WAYS)
def test_a_worth_that_raises_leaves_nothing_behind(
    way: str, at: int, error: type[BaseException], untouched: Any
) -> None:
    model, x = lived_in("plain")
    players = find_players(model, x)
    with untouched(model), unwritten(model, x), said_to_be_whole(way):
        game = WAYS[way](model, players, x, failing(error, at))
        with pytest.raises(error):
            play(game)


@pytest.mark.parametrize("error", [Tripwire, KeyboardInterrupt])
@pytest.mark.parametrize("way", ["taken apart", "whole", "evaluate"])
def test_a_layer_that_raises_leaves_nothing_behind(way: str, error: type[BaseException], untouched: Any) -> None:
    model, x = lived_in("residual")
    players = find_players(model, x)
    armed = False

    def wire(*_: Any) -> None:
        if armed:
            raise error

    model.conv2b.register_forward_hook(wire)
    with untouched(model), unwritten(model, x), said_to_be_whole(way):
        game = WAYS[way](model, players, x, restless)
        armed = True
        with pytest.raises(error):
            play(game)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", range(1, 6))
def test_a_model_that_raises_while_players_are_found_comes_back(
    at: int, error: type[BaseException], untouched: Any
) -> None:
    model, x = lived_in("plain")
    calls = 0

    def wire(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise error("on purpose")

    model.conv2.register_forward_hook(wire)
    with untouched(model), unwritten(model, x), pytest.raises((sp.InputError, error)):
        find_players(model, x)
    assert calls >= at


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include": "nothing"}, "matches no prunable layer"),
        ({"unit": "atom"}, "unknown unit"),
        ({"exclude": nn.Conv2d}, "nothing in this model can be pruned"),
        ({"example_inputs": torch.zeros(2, 9, 8, 8)}, "does not run on example_inputs"),
    ],
)
def test_a_search_for_players_that_fails_touches_nothing(options: dict[str, Any], words: str, untouched: Any) -> None:
    model, x = lived_in("plain")
    with untouched(model), unwritten(model, x), pytest.raises(sp.InputError, match=words):
        find_players(model, **{"example_inputs": x, **options})


@pytest.mark.parametrize(
    ("worth", "targets"),
    [("accuracy", None), ("accuracy", torch.full((4,), 99)), ("acuracy", torch.arange(4)), ("accuracy", torch.rand(4))],
)
def test_a_game_that_is_refused_touches_nothing(worth: str, targets: Tensor | None, untouched: Any) -> None:
    model, x = lived_in("plain")
    players = find_players(model, x)
    with untouched(model), unwritten(model, x), pytest.raises(sp.InputError):
        NetworkGame(model, players, [(x, targets)], worth)


def test_inputs_that_a_model_writes_to_come_back() -> None:
    class Centred(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            return super().forward(x)

    model, x = Centred(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, N_OUTPUTS)), torch.randn(4, 6)
    with unwritten(model, x):
        players = find_players(model, x)
    with unwritten(model, x), warnings.catch_warnings():
        warnings.simplefilter("ignore", sp.errors.ShapruneWarning)
        play(NetworkGame(model, players, data_of(x), restless))


def test_the_model_is_lent_in_eval_mode_and_taken_back_in_its_own() -> None:
    model, _ = lived_in("residual")
    flags = [m.training for m in model.modules()]
    assert len(set(flags)) == 2
    with borrowed(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == flags


def test_worths_do_not_depend_on_the_mode_in_which_the_model_came() -> None:
    make, inputs = NETWORKS["mlp"]  # has dropout and batch-norm
    x, coalitions = inputs(), np.random.default_rng(0).random((20, 28)) < 0.5
    worths = []
    for model in (make(), make().train()):
        game = NetworkGame(model, find_players(model, x), data_of(x), restless)
        worths.append(game(coalitions).tolist())
    assert worths[0] == worths[1]
    assert np.std(worths[0]) > 1e-3


def test_the_global_generators_do_not_steer_a_game_or_an_estimate() -> None:
    make, inputs = NETWORKS["plain"]
    model, x = make(), inputs()
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        players = find_players(model, x)
        results.append(estimate(NetworkGame(model, players, data_of(x), restless), seed=3).value.tolist())
    assert results[0] == results[1]
