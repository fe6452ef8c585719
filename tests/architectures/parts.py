"""Blocks that several families share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Excite(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): channels are scaled by what their means say."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        n, c, _, _ = x.shape
        gates = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3)))))).view(n, c, 1, 1)
        return x * gates.expand_as(x)


class ExciteConv(nn.Module):
    """Squeeze and excitation by 1x1 convolutions (MobileNet v3, EfficientNet)."""

    def __init__(self, width: int, inner: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.activation, self.gate = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        y = self.expand(self.activation(self.reduce(self.pool(x))))
        return self.gate(y) * x  # type: ignore[no-any-return]


def unit(
    n_in: int,
    n_out: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias, batch-norm, and an activation (None: none)."""
    layers: list[nn.Module] = [
        nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))
