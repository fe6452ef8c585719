"""Networks with shortcuts: the ResNet family."""

from __future__ import annotations

from collections.abc import Callable

import torch
from large_networks import Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.entry import CLASSES, OUTPUT, Entry, images, seeded
from architectures.parts import Excite
from shaprune.builtin import plain_layers
from shaprune.builtin.resnet import BasicBlock as PaddedBlock

Block = Callable[[int, int, int], nn.Module]  # channels in, channels out, stride


class ResNet(nn.Module):
    """A stem, one stage of blocks per width, average pooling, one linear layer (He et al. 2016)."""

    def __init__(self, block: Block, widths: tuple[int, ...], *, n_blocks: int = 2, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0]) if norm else nn.Identity()
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.layers = nn.Sequential(
            *(
                block(n_in if i == 0 else n_out, n_out, 2 if i == 0 and stage else 1)
                for stage, (n_in, n_out) in enumerate(pairs)
                for i in range(n_blocks)
            )
        )
        self.last = nn.Identity() if norm else nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
        self.fc = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, CLASSES)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.last(self.layers(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


class Basic(nn.Module):
    """Two 3x3 convolutions; a 1x1 convolution projects the shortcut where the shape changes."""

    def __init__(
        self, n_in: int, n_out: int, stride: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, excite: int = 0
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), norm(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False), norm(n_out)
        self.se = Excite(n_out, excite) if excite else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), norm(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, n_out, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.se(self.bn2(self.conv2(y)))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)  # type: ignore[no-any-return]


class PreActivation(nn.Module):
    """Norm and ReLU before each convolution (He et al. 2016b); the shortcut is never normalised."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(n_out), nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.project = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if stride > 1 or n_in != n_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, n_out, H / stride, W / stride)."""
        y = F.relu(self.bn1(x))
        shortcut = x if self.project is None else self.project(y)
        y = self.conv1(y)
        return self.conv2(F.relu(self.bn2(y))) + shortcut  # type: ignore[no-any-return]


class StandardConv(nn.Conv2d):
    """A convolution whose weights are standardised in every pass, with a gain (Brock et al. 2021)."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(n_in, n_out, kernel, stride, kernel // 2)
        self.gain = nn.Parameter(torch.rand(n_out) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, n_out, H / stride, W / stride)."""
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, self.gain, training=True, momentum=0.0).reshape_as(self.weight)
        return self._conv_forward(x, weight, self.bias)  # type: ignore[no-any-return]


class Unnormed(nn.Module):
    """NF-ResNet: scaled residual blocks of standardised convolutions, without norms over the batch."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = StandardConv(width, inner, 1), StandardConv(inner, inner, 3)
        self.conv3 = StandardConv(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        y = F.relu(self.conv2(F.relu(self.conv1(F.relu(x)))))
        return x + 0.2 * self.conv3(y)  # type: ignore[no-any-return]


def nf_resnet() -> nn.Module:
    """NF-ResNet with its weights as they come out."""
    pooled = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    model = nn.Sequential(StandardConv(3, 8, 3), Unnormed(8, 6), Unnormed(8, 6), *pooled)
    return plain_layers(model, torch.ones(2, 3, 8, 8))


def _grouped_norm(width: int) -> nn.Module:
    return nn.GroupNorm(4, width)


ENTRIES = {
    "resnet18": Entry(
        family="ResNet-18",
        note="basic blocks, projection shortcuts, in-place addition",
        make=seeded(lambda: ResNet(Basic, (8, 12))),
        inputs=images(3, 8, 8),
        players={"channel": 60},
        skips={"fc": OUTPUT},
    ),
    "resnet50": Entry(
        family="ResNet-50",
        note="bottleneck blocks, projection shortcuts",
        make=seeded(lambda: ResNet(lambda a, b, s: Bottleneck(a, b, s, inner=6), (16, 20))),
        inputs=images(3, 8, 8),
        players={"channel": 84},
        skips={"fc": OUTPUT},
    ),
    "resnet56": Entry(
        family="ResNet-56",
        note="option-A shortcuts: strided slices padded with zero channels, which leave, too",
        make=seeded(lambda: ResNet(lambda a, b, s: PaddedBlock(a, b, stride=s), (6, 12, 24))),
        inputs=images(3, 8, 8),
        players={"channel": 99},
        skips={"fc": OUTPUT},
    ),
    "nf-resnet": Entry(
        family="NF-ResNet",
        note="standardised weights, without norms: with `plain_layers`",
        make=seeded(nf_resnet),
        inputs=images(3, 8, 8),
        players={"channel": 32},
        skips={"6": OUTPUT},
    ),
    "resnet-preact": Entry(
        family="Pre-activation ResNet",
        note="norms before convolutions, a last norm before pooling",
        make=seeded(lambda: ResNet(PreActivation, (8, 12), norm=False)),
        inputs=images(3, 8, 8),
        players={"channel": 60},
        skips={"fc": OUTPUT},
    ),
    "resnext": Entry(
        family="ResNeXt",
        note="3x3 convolutions in 4 groups: one channel of every group leaves together",
        make=seeded(lambda: ResNet(lambda a, b, s: Bottleneck(a, b, s, inner=12, groups=4), (10, 14))),
        inputs=images(3, 8, 8),
        players={"channel": 48},
        skips={"fc": OUTPUT},
    ),
    "se-resnet": Entry(
        family="SE-Net",
        note="squeeze and excitation by linear layers",
        make=seeded(lambda: ResNet(lambda a, b, s: Basic(a, b, s, excite=6), (8, 12))),
        inputs=images(3, 8, 8),
        players={"channel": 60, "neuron": 24},
        skips={"fc": OUTPUT},
    ),
    "resnet-groupnorm": Entry(
        family="GroupNorm ResNet",
        note="a group of the norm leaves as a whole",
        make=seeded(lambda: ResNet(lambda a, b, s: Basic(a, b, s, norm=_grouped_norm), (8, 12))),
        inputs=images(3, 8, 8),
        players={"channel": 24},
        skips={"fc": OUTPUT},
    ),
}
