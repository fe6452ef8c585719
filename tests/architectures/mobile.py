"""Networks with depthwise convolutions: MobileNet, EfficientNet, ShuffleNet."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from architectures.entry import CLASSES, OUTPUT, Entry, images, seeded
from architectures.parts import ExciteConv, unit


class Inverted(nn.Module):
    """Expand by a 1x1 convolution, filter each channel, maybe excite, project (Sandler et al. 2018)."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        inner: int,
        stride: int = 1,
        kernel: int = 3,
        activation: Callable[[], nn.Module] = nn.ReLU6,
        gate: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [unit(n_in, inner, 1, activation=activation)] if inner != n_in else []
        layers.append(unit(inner, inner, kernel, stride=stride, groups=inner, activation=activation))
        if gate:
            layers.append(ExciteConv(inner, 4, activation(), gate()))
        self.conv = nn.Sequential(*layers, unit(inner, n_out, 1, activation=None))
        self.shortcut = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, n_out, H / stride, W / stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.shortcut else y


class Classifier(nn.Module):
    """Features, average pooling, linear layers."""

    def __init__(self, features: nn.Sequential, classifier: nn.Module) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, CLASSES)."""
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def mobilenet2() -> nn.Module:
    """MobileNet v2."""
    features = nn.Sequential(
        unit(3, 6, 3, stride=2, activation=nn.ReLU6),  # 16 -> 8
        Inverted(6, 8, inner=6),  # the first block does not expand
        Inverted(8, 10, inner=16, stride=2),  # 8 -> 4
        Inverted(10, 10, inner=20),
        unit(10, 16, 1, activation=nn.ReLU6),
    )
    return Classifier(features, nn.Sequential(nn.Dropout(0.2), nn.Linear(16, CLASSES)))


def mobilenet3() -> nn.Module:
    """MobileNet v3 (Howard et al. 2019)."""
    features = nn.Sequential(
        unit(3, 6, 3, stride=2, activation=nn.Hardswish),  # 16 -> 8
        Inverted(6, 6, inner=6, activation=nn.ReLU, gate=nn.Hardsigmoid),
        Inverted(6, 8, inner=14, stride=2, kernel=5, activation=nn.Hardswish, gate=nn.Hardsigmoid),  # 8 -> 4
        Inverted(8, 8, inner=18, kernel=5, activation=nn.Hardswish),
        unit(8, 16, 1, activation=nn.Hardswish),
    )
    return Classifier(features, nn.Sequential(nn.Linear(16, 12), nn.Hardswish(), nn.Linear(12, CLASSES)))


def efficientnet() -> nn.Module:
    """EfficientNet (Tan & Le 2019)."""
    features = nn.Sequential(
        unit(3, 6, 3, stride=2, activation=nn.SiLU),  # 16 -> 8
        Inverted(6, 6, inner=6, activation=nn.SiLU, gate=nn.Sigmoid),
        Inverted(6, 10, inner=18, stride=2, kernel=5, activation=nn.SiLU, gate=nn.Sigmoid),  # 8 -> 4
        Inverted(10, 10, inner=20, activation=nn.SiLU, gate=nn.Sigmoid),
        unit(10, 16, 1, activation=nn.SiLU),
    )
    return Classifier(features, nn.Linear(16, CLASSES))


class Shuffled(nn.Module):
    """Half of the channels pass; the other half is convolved; then both are interleaved (Ma et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            unit(half, half, 1), unit(half, half, 3, groups=half, activation=None), unit(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        passed, convolved = x.chunk(2, dim=1)
        return shuffled(torch.cat((passed, self.branch(convolved)), dim=1))


class ShuffledDown(nn.Module):
    """Both branches see all channels and halve the image."""

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.left = nn.Sequential(unit(n_in, n_in, 3, stride=2, groups=n_in, activation=None), unit(n_in, half, 1))
        self.right = nn.Sequential(
            unit(n_in, half, 1), unit(half, half, 3, stride=2, groups=half, activation=None), unit(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, width, H / 2, W / 2)."""
        return shuffled(torch.cat((self.left(x), self.right(x)), dim=1))


def shuffled(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet2() -> nn.Module:
    """ShuffleNet v2."""
    features = nn.Sequential(unit(3, 6, 3), ShuffledDown(6, 16), Shuffled(16), Shuffled(16), unit(16, 12, 1))
    return Classifier(features, nn.Linear(12, CLASSES))


ENTRIES = {
    "mobilenet2": Entry(
        family="MobileNet v2",
        note="inverted residuals, ReLU6",
        make=seeded(mobilenet2),
        inputs=images(3, 16, 16),
        players={"channel": 76},
        skips={"classifier.1": OUTPUT},
    ),
    "mobilenet3": Entry(
        family="MobileNet v3",
        note="5x5 depthwise, squeeze and excitation by 1x1 convolutions, hard-swish",
        make=seeded(mobilenet3),
        inputs=images(3, 16, 16),
        players={"channel": 70, "neuron": 12},
        skips={"classifier.2": OUTPUT},
    ),
    "efficientnet": Entry(
        family="EfficientNet",
        note="SiLU, squeeze and excitation in every block",
        make=seeded(efficientnet),
        inputs=images(3, 16, 16),
        players={"channel": 82},
        skips={"classifier": OUTPUT},
    ),
    "shufflenet2": Entry(
        family="ShuffleNet v2",
        note="channel split and shuffle: channels of all blocks of a stage leave together",
        make=seeded(shufflenet2),
        inputs=images(3, 8, 8),
        players={"channel": 44},
        skips={"classifier": OUTPUT},
    ),
}
