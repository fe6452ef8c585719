"""Networks without branches: LeNet, VGG, and convolutions over one and three dimensions."""

from __future__ import annotations

from torch import nn

from architectures.entry import CLASSES, OUTPUT, Entry, images, seeded
from shaprune.builtin.models import lenet1, lenet5_reduced


def vgg(*, batchnorm: bool) -> nn.Module:
    """VGG (Simonyan & Zisserman 2015): 3x3 convolutions, max pooling, two hidden linear layers."""
    layers: list[nn.Module] = []
    width = 3
    for n_out, pooled in ((6, True), (8, True), (10, False), (12, True)):
        layers.append(nn.Conv2d(width, n_out, 3, padding=1))
        layers += [nn.BatchNorm2d(n_out)] if batchnorm else []
        layers.append(nn.ReLU(inplace=True))
        layers += [nn.MaxPool2d(2)] if pooled else []  # 16 -> 8 -> 4 -> 2
        width = n_out
    hidden = [nn.Flatten(), nn.Linear(4 * width, 14), nn.ReLU(inplace=True), nn.Dropout()]  # (N, width, 2, 2)
    return nn.Sequential(*layers, *hidden, nn.Linear(14, 10), nn.ReLU(inplace=True), nn.Linear(10, CLASSES))


def conv1d() -> nn.Module:
    """Convolutions over time, as for audio and sensors."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, stride=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 12, 3, dilation=2),
        nn.PReLU(12),
        nn.Conv1d(12, 10, 3),
        nn.GELU(),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),  # (N, 10, 2) -> (N, 20)
        nn.Linear(20, CLASSES),
    )


def conv3d() -> nn.Module:
    """Convolutions over volumes or videos."""
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.MaxPool3d(2),  # 8 -> 4
        nn.Conv3d(6, 8, 3, padding=1),
        nn.InstanceNorm3d(8, affine=True),
        nn.LeakyReLU(),
        nn.Conv3d(8, 10, (1, 3, 3)),
        nn.SiLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(10, CLASSES),
    )


ENTRIES = {
    "lenet1": Entry(
        family="LeNet-1",
        note="tanh, average pooling, flattened into the output layer",
        make=seeded(lenet1),
        inputs=images(1, 28, 28),
        players={"channel": 16},
        skips={"fc": OUTPUT},
        classes=10,
    ),
    "lenet5": Entry(
        family="LeNet-5",
        note="a channel is 16 inputs of the first linear layer",
        make=seeded(lenet5_reduced),
        inputs=images(1, 28, 28),
        players={"channel": 30, "neuron": 125},
        skips={"fc3": OUTPUT},
        classes=10,
    ),
    "vgg": Entry(
        family="VGG",
        note="without batch-norm",
        make=seeded(lambda: vgg(batchnorm=False)),
        inputs=images(3, 16, 16),
        players={"channel": 36, "neuron": 24},
        skips={"17": OUTPUT},
    ),
    "vgg-bn": Entry(
        family="VGG",
        note="with batch-norm",
        make=seeded(lambda: vgg(batchnorm=True)),
        inputs=images(3, 16, 16),
        players={"channel": 36, "neuron": 24},
        skips={"21": OUTPUT},
    ),
    "conv1d": Entry(
        family="1D convolution",
        note="stride, dilation, PReLU with one weight per channel",
        make=seeded(conv1d),
        inputs=images(2, 40),
        players={"channel": 30},
        skips={"9": OUTPUT},
    ),
    "conv3d": Entry(
        family="3D convolution",
        note="batch-norm, instance-norm with affine parameters",
        make=seeded(conv3d),
        inputs=images(1, 8, 8, 8),
        players={"channel": 24},
        skips={"11": OUTPUT},
    ),
}
