"""Models that keep functions which hold their layers: a copy runs the original's, so they are refused for that."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import shaprune as sp


class Kept(nn.Module):
    """Its forward goes through a function that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.o = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 3)

    def inner(self, x: Tensor) -> Tensor:
        out: Tensor = self.f(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.way["x"](x)))


def in_a_lambda(model: Kept) -> Callable[[Tensor], Tensor]:
    return lambda x: model.f(x)


def in_a_default(model: Kept) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor, model: Kept = model) -> Tensor:
        return model.inner(x)

    return run


def in_a_closure_of_a_closure(model: Kept) -> Callable[[Tensor], Tensor]:
    inner = in_a_lambda(model)
    return lambda x: inner(x) * 1


@pytest.mark.parametrize("way", [in_a_lambda, in_a_default, in_a_closure_of_a_closure])
def test_functions_that_hold_the_model_are_named(way: Callable[[Kept], Callable[[Tensor], Tensor]]) -> None:
    model = Kept().eval()
    model.way = {"x": way(model)}
    said = r"a copy of the model still computes with 'f.0.weight' of the original.*\(way\).*replace it by a method"
    with pytest.raises(sp.InputError, match=said):
        sp.find_players(model, torch.randn(5, 4))


def test_a_hook_that_holds_the_model_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    other = model[0]
    model[1].register_forward_hook(lambda module, args, output: output + other.weight.sum())
    with pytest.raises(sp.InputError, match=r"computes with '0.weight' of the original.*\(forward_hooks of 1\)"):
        sp.find_players(model, torch.randn(5, 4))


@pytest.mark.parametrize("way", [lambda m: m.inner, lambda m: partial(m.inner), lambda m: m.f, lambda m: m.f.forward])
def test_methods_partials_and_modules_are_copied_and_cut(way: Callable[[Kept], Callable[[Tensor], Tensor]]) -> None:
    model, x = Kept().eval(), torch.randn(5, 4)
    model.way = {"x": way(model)}
    players = sp.find_players(model, x)
    plan = sp.Plan.from_coalition(players, [i > 0 for i in range(players.n)])
    small = sp.prune(model, plan, x)
    assert small.f[0].out_features == 7
