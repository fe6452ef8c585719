"""Plain layers in the place of those that compute their weight anew: the same function, and channels leave."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import shaprune as sp
from shaprune.builtin import plain_layers
from shaprune.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-4)
        return self._conv_forward(x, w, self.bias)  # type: ignore[no-any-return]


class Scaled(nn.Conv2d):
    """As in NF-ResNet: standardised by a batch-norm over the weights, with a gain."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        w = F.batch_norm(flat, None, None, self.gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Equalised(nn.Linear):
    """Weights and biases scaled at run time (StyleGAN)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.7, bias=self.bias * 2)


class Residual(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], groups: int = 1) -> None:
        super().__init__()
        self.first, self.second = kind(8, 12, 3, padding=1, groups=groups), kind(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.second(F.relu(self.first(F.relu(x))))  # type: ignore[no-any-return]


class Last(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.mean((2, 3))).relu())  # type: ignore[no-any-return]


def normed(*args: Any, **options: Any) -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(*args, **options))


def spectral(*args: Any, **options: Any) -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(*args, **options))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{
        kind.__name__: lambda kind=kind: nn.Sequential(kind(3, 8, 3), Residual(kind), nn.ReLU(), Last(nn.Linear(8, 6)))
        for kind in (Standardised, Scaled, normed, spectral)
    },
    "groups": lambda: nn.Sequential(Scaled(3, 8, 3), Residual(Scaled, 4), nn.ReLU(), Last(nn.Linear(8, 6))),
    "linear": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Last(Equalised(8, 6))),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_plain_layers_are_the_same_function_and_lose_channels(name: str) -> None:
    model = made(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plain = plain_layers(model, X)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    kinds = (nn.Conv2d, nn.Linear)
    assert all(type(m) in kinds for m in plain.modules() if isinstance(m, kinds))
    assert not any("parametrizations" in key or "gain" in key for key in plain.state_dict())
    with torch.no_grad():
        assert torch.allclose(plain(X), model(X), atol=1e-6)
    players = sp.find_players(plain, X)
    assert {s.name for s in players.skipped} == {next(n for n, _ in model.named_modules() if n.endswith("out"))}
    small = sp.prune(plain, sp.Plan.from_coalition(players, np.arange(players.n) % 3 > 0), X)
    assert small(X).shape == (2, 3)
    small(X).sum().backward()


@pytest.mark.parametrize("name", ["Standardised", "Scaled"])
def test_the_reason_names_the_layer_that_computes_its_weight(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"\({name}\) computes its weight anew.*builtin\.plain_layers\(model, example"
    ):
        sp.find_players(made(name), X, include="0")


def test_layers_that_differ_otherwise_stay() -> None:
    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * 2, self.bias) + x.sum(-1, keepdim=True)

    class Moving(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * x.mean(), self.bias)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.moving, self.plain = Moving(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(self.moving(self.moving(x)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Adapted(8, 8), Twice())
    plain = plain_layers(model, torch.randn(2, 4))
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]
