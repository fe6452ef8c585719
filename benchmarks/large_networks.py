"""Networks for ImageNet at their real size, random weights: what discovery, planning and surgery must cope with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 1000


class Dense(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3 convolution; the result is appended (Huang et al. 2017)."""

    def __init__(self, n_in: int, growth: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, *features: Tensor) -> Tensor:
        """Several (N, C_i, H, W) -> (N, growth, H, W)."""
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 (in groups for ResNeXt), 1x1 convolution; a projection where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int, *, inner: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, n_out, 1, bias=False), nn.BatchNorm2d(n_out)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, n_out, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


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
