"""Finding players works on copies that share the model's weights, and never writes to them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.network.discovery.proof import _wider, disagreement
from shaprune.network.shared_weights import private, release, sharing

pytestmark = pytest.mark.usefixtures("one_thread")


def places(model: nn.Module) -> list[int]:
    return [p.data_ptr() for p in model.parameters()]


class Clamped(nn.Module):
    """Writes to a parameter and to a buffer in eval mode, past autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.scale, self.out = nn.Linear(4, 6), nn.Parameter(torch.full((1,), 5.0)), nn.Linear(6, 2)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.scale.data.clamp_(max=2.0)
        return self.out(self.one(x).relu() * self.scale)


def test_a_copy_shares_weights_and_copies_buffers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    model[0].weight.requires_grad_(False)
    copy = sharing(model)
    assert places(copy) == places(model)
    assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in model.parameters()]
    assert copy[1].running_mean.data_ptr() != model[1].running_mean.data_ptr()
    release(copy.double())
    assert model[0].weight.shape == (4, 3)
    assert model[0].weight.dtype == torch.float32


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    copy = sharing(model)
    assert copy[1].weight is copy[0].weight


def test_a_network_that_writes_to_its_parameters_is_copied() -> None:
    model = Clamped().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert set(places(private(model, torch.randn(2, 4)))).isdisjoint(places(model))
    assert sp.find_players(model, torch.randn(2, 4)).n == 6
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_the_model_is_untouched_whatever_the_unit() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 5), nn.ReLU()), nn.Linear(5, 2)).eval()
    before, where = {name: t.clone() for name, t in model.state_dict().items()}, places(model)
    for unit in ("channel", "weight", "block"):
        sp.find_players(model, torch.randn(2, 3), unit=unit)
    assert places(model) == where
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_no_copy_of_the_whole_model_lives_beside_another() -> None:
    """Bytes of parameters that are alive beside the model's own, at any forward pass: of one wider copy at most."""
    model = nn.Sequential(
        *(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 3)
    ).eval()
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    alive: set[nn.Module] = set()
    most = 0

    def watch(module: nn.Module, args: object) -> None:
        nonlocal most
        alive.add(module)
        theirs = {p.data_ptr(): p.numel() * p.element_size() for m in alive for p in m.parameters()}
        most = max(most, sum(n for place, n in theirs.items() if place not in places(model)))

    handle = nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        sp.find_players(model, torch.randn(2, 64))
    finally:
        handle.remove()
    assert 0 < most <= 1.5 * own


def test_large_models_of_sixteen_bits_are_compared_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).bfloat16().eval()
    x = torch.randn(2, 3, dtype=torch.bfloat16)
    players = sp.find_players(model, x)
    assert _wider(model) == torch.float64
    monkeypatch.setattr("shaprune.network.discovery.proof._SMALL", 100)
    assert _wider(model) == torch.float32
    assert _wider(model.float()) == torch.float64
    assert disagreement(model.bfloat16(), x, players) is None


def test_players_are_found_without_torchs_compiler_which_takes_a_second_to_import() -> None:
    code = (
        "import sys, torch, shaprune as sp; from torch import nn; "
        "sp.find_players(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(2, 4)); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    places = str(Path(sp.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": places}).returncode == 0
