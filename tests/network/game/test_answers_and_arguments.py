"""Answers of unusual form and arguments that are no tensors: they work, or the reason and the next step are true."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.errors import InputError
from shaprune.network.game.network_game import NetworkGame

pytestmark = pytest.mark.usefixtures("one_thread")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.o(torch.relu(self.b(torch.relu(self.a(x)))))


class PerExample(Plain):
    def forward(self, x: Tensor) -> Any:
        return [{"scores": row} for row in super().forward(x)]


class WithLogits(Plain):
    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(x))


class Scaled(Plain):
    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return super().forward(x) * scale


class RunningMean(Plain):
    """It replaces a buffer in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.a(x))
        out = self.o(torch.relu(self.b(h + 0 * self.mean)))
        self.mean = 0.9 * self.mean + 0.1 * h.mean(0)
        return out


def made(make: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return make().eval(), torch.randn(12, 4)


def test_one_answer_per_example_in_a_list_is_refused_with_the_forward_to_give() -> None:
    model, x = made(PerExample)
    players = sp.find_players(model, x)
    with pytest.raises(
        InputError, match=r"one entry for each of 12 examples.*torch\.stack\(\[entry\['scores'\] for"
    ) as e:
        NetworkGame(model, players, [(x, None)], "fidelity")
    forward = eval(str(e.value).partition("forward=")[2], {"torch": torch})  # what it says is what works
    with pytest.warns(sp.errors.ShapruneWarning, match="forward=... is given"):
        game = NetworkGame(model, players, [(x, None)], "fidelity", forward=forward)
    assert game(np.ones((1, players.n), dtype=bool))[0] == 0


@pytest.mark.filterwarnings("ignore:the whole model is run")
def test_an_object_with_logits_is_an_answer() -> None:
    (model, x), (plain, _) = made(WithLogits), made(Plain)
    players = sp.find_players(model, x)
    kept = np.arange(players.n)[None] % 3 > 0
    ours, theirs = (
        NetworkGame(net, players, [(x, torch.arange(12) % 3)], "cross_entropy")(kept) for net in (model, plain)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_mark_does_not_stay_in_a_buffer_that_the_network_replaces() -> None:
    model, x = made(RunningMean)
    assert {group.name for group in sp.find_players(model, x).groups} == {"a", "b"}


def test_another_argument_is_another_game() -> None:
    model, x = made(Scaled)
    players = sp.find_players(model, x)

    def fingerprint(scale: float) -> str:
        return NetworkGame(model, players, [({"x": x, "scale": scale}, None)], "fidelity").fingerprint

    assert fingerprint(2.0) == fingerprint(2.0) != fingerprint(3.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_network_prepared_for_quantisation_is_refused_by_that_reason() -> None:
    from torch.ao import quantization

    model, x = made(Plain)
    model.train().qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = quantization.prepare_qat(model)
    prepared(x)
    prepared.eval().apply(quantization.disable_observer)
    with pytest.raises(InputError, match=r"rounds to the levels of a quantised network .*prune the float model"):
        sp.find_players(prepared, x)


def test_a_nested_tensor_is_named() -> None:
    class Nested(Plain):
        def forward(self, x: Tensor) -> Any:
            rows = torch.nested.nested_tensor(list(x[:, None]))
            return torch.nested.to_padded_tensor(self.o(self.b(self.a(rows))), 0.0)[:, 0]

    model, x = made(Nested)
    with pytest.raises(InputError, match="takes a nested tensor, whose rows have lengths of their own; pad them"):
        sp.find_players(model, x)
