"""Every refusal names the layer and the real cause, and nothing inside following channels comes out raw."""

from typing import Any

import pytest
import torch
from testkit.removing import check_removal, made, reasons
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp

pytestmark = pytest.mark.usefixtures("one_thread")


class Uncalled(nn.Module):
    """Uses the weight of one layer without calling it, and does not use another."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 6), nn.Linear(4, 6)
        self.one, self.out = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.one(x @ self.used.weight.t()).relu())


def test_a_weight_that_is_used_without_a_call_is_told_from_a_layer_that_did_not_run() -> None:
    found = reasons(sp.find_players(Uncalled().eval(), torch.randn(2, 4)))
    assert "its weight is used without calling it" in found["used"]
    assert found["unused"] == "it did not run on the example inputs"


class Router(nn.Linear):
    """A linear layer that gives its logits and the expert with the largest one."""

    def forward(self, x: Tensor) -> Any:
        logits = F.linear(x, self.weight, self.bias)
        return logits, logits.argmax(-1)


class Heads(nn.Linear):
    """A linear layer that gives its outputs in two heads."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias).unflatten(-1, (2, -1))


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 7), nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Mixture(nn.Module):
    """Rows go to the expert that the router chooses; with NaN all go to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(6, 3)
        self.experts = nn.ModuleDict({f"e{k}": Expert() for k in range(3)})

    def forward(self, x: Tensor) -> Tensor:
        _, chosen = self.router(x)
        answer = torch.zeros_like(x)
        for k, expert in enumerate(self.experts.values()):
            rows = torch.nonzero(chosen == k)[:, 0]
            if len(rows):
                answer = answer.index_copy(0, rows, expert(x[rows]))
        return answer


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.mixture, self.two, self.out = nn.Linear(4, 6), Mixture(), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.out(self.two(x + self.mixture(x)).relu())


def routed() -> nn.Module:
    """The first entry of a row says to which of two experts it goes."""
    torch.manual_seed(3)
    model = Routed().eval()
    model.one.weight.data, model.one.bias.data = torch.eye(6, 4), torch.zeros(6)
    model.mixture.router.weight.data = torch.zeros(3, 6)
    model.mixture.router.weight.data[:2, 0] = torch.tensor([9.0, -9.0])
    return model


def test_a_layer_that_gives_no_tensor_of_its_width_is_skipped() -> None:
    found = reasons(
        sp.find_players(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), Heads(8, 4)), torch.randn(2, 4)
        )
    )
    assert found["4"] == "it is a Heads that gives a tensor of shape (2, 2, 2), with no axis of 4 channels"


def test_neurons_of_every_expert_that_an_example_goes_to_are_players() -> None:
    x = torch.cat([torch.tensor([1.0, -1.0, 2.0])[:, None], torch.randn(3, 3)], 1)
    players = sp.find_players(routed(), x)
    found = reasons(players)
    assert made(players) == {"mixture.experts.e0.up": 7, "mixture.experts.e1.up": 7, "two": 8}
    check_removal(routed, players, x)
    assert found["mixture.router"] == "it is a Router that gives a tuple, not one tensor"
    assert found["mixture.experts.e2.up"] == "it did not run on the example inputs"


def test_a_network_in_which_marks_break_is_refused_with_the_place() -> None:
    class Breaking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            features = self.one(x)
            kept = features[features[:, 0] == features[:, 0]]
            return self.out(kept.view(len(x), -1))

    with pytest.raises(sp.InputError, match=r"cannot be followed: where some are NaN it breaks at out"):
        sp.find_players(Breaking().eval(), torch.randn(3, 4))
