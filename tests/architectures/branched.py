"""Networks whose branches are concatenated or added: DenseNet, GoogLeNet, NASNet."""

from __future__ import annotations

import torch
from large_networks import Dense
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.entry import CLASSES, OUTPUT, Entry, images, seeded
from architectures.parts import unit


class DenseNet(nn.Module):
    """Two dense blocks with a transition that halves the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8, 3)
        self.block1 = nn.ModuleList(Dense(8 + 6 * i, 6, 10) for i in range(3))
        self.transition = nn.Sequential(nn.BatchNorm2d(26), nn.ReLU(), nn.Conv2d(26, 12, 1), nn.AvgPool2d(2))
        self.block2 = nn.ModuleList(Dense(12 + 6 * i, 6, 10) for i in range(2))
        self.norm = nn.BatchNorm2d(24)
        self.classifier = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, CLASSES)."""
        x = self.transition(_dense(self.block1, self.stem(x)))
        x = F.relu(self.norm(_dense(self.block2, x)))
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))  # type: ignore[no-any-return]


def _dense(block: nn.ModuleList, x: Tensor) -> Tensor:
    features = [x]
    for layer in block:
        features.append(layer(*features))
    return torch.cat(features, 1)


class Inception(nn.Module):
    """Four branches side by side (Szegedy et al. 2015): 1x1, 3x3, two 3x3, pooling."""

    def __init__(self, n_in: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.branch1 = unit(n_in, widths[0], 1)
        self.branch2 = nn.Sequential(unit(n_in, 6, 1), unit(6, widths[1], 3))
        self.branch3 = nn.Sequential(unit(n_in, 7, 1), unit(7, 8, 3), unit(8, widths[2], 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(n_in, widths[3], 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, sum of widths, H, W)."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


def googlenet() -> nn.Module:
    """GoogLeNet: a stem, two inception modules with pooling between, average pooling, a linear layer."""
    return nn.Sequential(
        unit(3, 10, 3),
        Inception(10, (6, 7, 8, 9)),
        nn.MaxPool2d(2),
        Inception(30, (8, 6, 7, 9)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(30, CLASSES),
    )


class Separable(nn.Module):
    """ReLU, a convolution per channel, a 1x1 convolution, batch-norm."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(n_in, n_in, kernel, padding=kernel // 2, groups=n_in, bias=False)
        self.pointwise, self.bn = nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, n_out, H, W)."""
        return self.bn(self.pointwise(self.depthwise(F.relu(x))))  # type: ignore[no-any-return]


class Cell(nn.Module):
    """Adds and concatenates operations on the outputs of the two cells before (Zoph et al. 2018)."""

    def __init__(self, n_before: int, n_in: int, width: int) -> None:
        super().__init__()
        self.adjust_before, self.adjust = unit(n_before, width, 1), unit(n_in, width, 1, activation=None)
        self.sep1, self.sep2 = Separable(width, width, 3), Separable(width, width, 5)
        self.sep3 = Separable(width, width, 3)

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        """(N, n_before, H, W), (N, n_in, H, W) -> (N, 4 width, H, W)."""
        h0, h1 = self.adjust_before(before), self.adjust(x)
        y0 = self.sep1(h1) + h1
        y1 = self.sep2(h0) + self.sep3(h1)
        y2 = F.avg_pool2d(h1, 3, 1, 1, count_include_pad=False) + h0
        return torch.cat([y0, y1, y2, h0], dim=1)


class NasNet(nn.Module):
    """Two cells, each fed by the two outputs before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 10, 3, activation=None)
        self.cell1, self.cell2 = Cell(10, 10, 6), Cell(10, 24, 8)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, CLASSES)."""
        x0 = self.stem(x)
        x1 = self.cell1(x0, x0)
        x2 = self.cell2(x0, x1)
        return self.fc(F.relu(x2).mean((2, 3)))  # type: ignore[no-any-return]


ENTRIES = {
    "densenet": Entry(
        family="DenseNet",
        note="all features before are concatenated, each with norms of its own behind",
        make=seeded(DenseNet),
        inputs=images(3, 8, 8),
        players={"channel": 100},
        skips={"classifier": OUTPUT},
    ),
    "googlenet": Entry(
        family="GoogLeNet, Inception",
        note="parallel branches, concatenated",
        make=seeded(googlenet),
        inputs=images(3, 8, 8),
        players={"channel": 112},
        skips={"7": OUTPUT},
    ),
    "nasnet": Entry(
        family="NASNet",
        note="cells fed by two cells before: separable convolutions, sums, concatenation",
        make=seeded(NasNet),
        inputs=images(3, 8, 8),
        players={"channel": 38},
        skips={"fc": OUTPUT},
    ),
}
