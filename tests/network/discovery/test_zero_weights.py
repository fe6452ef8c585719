"""Blocks that give nothing yet, because a gain is zero from the start, are verified as if they gave something."""

import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.network.discovery.zero_weights import zeros_filled

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w, self.bias)  # type: ignore[no-any-return]


class Gained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.gain = (
            nn.Conv2d(8, 6, 3, padding=1),
            Standardised(6, 8, 1),
            nn.Parameter(torch.zeros(())),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.second(self.first(x).relu())  # type: ignore[no-any-return]


def made() -> nn.Module:
    torch.manual_seed(0)
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(3, 8, 1), Gained(), *tail).eval()


def test_what_a_gain_of_zero_hides_is_seen() -> None:
    model = made()
    players = sp.find_players(model, X)
    assert [group.name for group in players.groups] == ["0"]
    why = next(s.reason for s in players.skipped if s.name == "1.first")
    assert why.startswith("masking and removing disagree")
    assert not model.get_submodule("1").gain.any()


def test_zeros_come_back_and_memory_is_not_written_to() -> None:
    model = made()
    gain = model.get_submodule("1").gain
    shared = gain.data
    with zeros_filled(model):
        assert gain.any()
        assert not shared.any()
    assert gain.data_ptr() == shared.data_ptr()
    with pytest.raises(KeyError), zeros_filled(model):
        raise KeyError
    assert not gain.any()
