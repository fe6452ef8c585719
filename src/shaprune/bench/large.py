"""Networks for ImageNet at their real size, random weights: what discovery, planning and surgery must cope with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaprune.bench.zoo.branched import Dense
from shaprune.bench.zoo.residual import Bottleneck

CLASSES = 1000


def resnet50(n_classes: int = CLASSES) -> nn.Module:
    """ResNet-50 (He et al. 2016) with the stride in the 3x3 convolutions: 25,557,032 parameters."""
    blocks: list[nn.Module] = []
    width = 64
    for inner, n_blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(n_blocks):
            blocks.append(Bottleneck(width, 4 * inner, stride if i == 0 else 1, inner=inner))
            width = 4 * inner
    return nn.Sequential(*_stem(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes)).eval()


class DenseStage(nn.ModuleList):
    """Layers that each read everything before them."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + layers x growth, H, W)."""
        features = [x]
        for layer in self:
            features.append(layer(*features))
        return torch.cat(features, 1)


class Transition(nn.Module):
    """Halves the channels and the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C / 2, H / 2, W / 2)."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


def densenet121(n_classes: int = CLASSES) -> nn.Module:
    """DenseNet-121 (Huang et al. 2017): 7,978,856 parameters."""
    stages: list[nn.Module] = []
    width, growth = 64, 32
    for i, n_layers in enumerate((6, 12, 24, 16)):
        stages.append(DenseStage(Dense(width + growth * k, growth, 4 * growth) for k in range(n_layers)))
        width += growth * n_layers
        if i < 3:
            stages.append(Transition(width))
            width //= 2
    head = nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes)
    return nn.Sequential(*_stem(), *stages, *head).eval()


def _stem() -> tuple[nn.Module, ...]:
    return nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
