"""Reference networks of the pruning literature, by name, untrained. ``MODELS`` is the registry."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from shaprune.builtin.resnet import ResNet
from shaprune.errors import InputError, nearest


@dataclass(frozen=True)
class ModelEntry:
    """A network: how to make it, the shape (C, H, W) of one input, and what it is."""

    factory: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    doc: str


def digits() -> nn.Module:
    """The demo's network: three convolutions and two linear layers for 8x8 images."""
    return _named(
        conv1=nn.Conv2d(1, 32, 3, padding=1),
        bn1=nn.BatchNorm2d(32),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(32, 64, 3, padding=1),
        bn2=nn.BatchNorm2d(64),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),  # 8x8 -> 4x4
        conv3=nn.Conv2d(64, 64, 3, padding=1),
        bn3=nn.BatchNorm2d(64),
        relu3=nn.ReLU(),
        pool3=nn.AdaptiveAvgPool2d(2),
        flatten=nn.Flatten(),  # (N, 64, 2, 2) -> (N, 256)
        fc1=nn.Linear(256, 64),
        relu4=nn.ReLU(),
        fc2=nn.Linear(64, 10),
    )


def lenet5() -> nn.Module:
    """LeNet-5 in Caffe's widths (20-50-500), with a ReLU after each convolution: 431,080 parameters."""
    return _lenet(20, 50, (500,))


def lenet5_reduced() -> nn.Module:
    """A reduced LeNet-5: 10 and 20 channels as in Adamczewski et al. 2024; the linear widths (100, 25) are ours."""
    return _lenet(10, 20, (100, 25))


def lenet1() -> nn.Module:
    """LeNet-1 (4-12, tanh, average pooling) of Munovas 2023: 3,246 parameters."""
    return _named(
        conv1=nn.Conv2d(1, 4, 5),  # 28x28 -> 24x24
        tanh1=nn.Tanh(),
        pool1=nn.AvgPool2d(2),
        conv2=nn.Conv2d(4, 12, 5),  # 12x12 -> 8x8
        tanh2=nn.Tanh(),
        pool2=nn.AvgPool2d(2),
        flatten=nn.Flatten(),  # (N, 12, 4, 4) -> (N, 192)
        fc=nn.Linear(192, 10),
    )


def resnet56() -> nn.Module:
    """ResNet-56 for CIFAR-10, option-A shortcuts: 853,018 parameters."""
    return ResNet(9)


def mlp() -> nn.Module:
    """A perceptron for 8x8 images: 64-64-64-10."""
    return _named(
        flatten=nn.Flatten(),
        fc1=nn.Linear(64, 64),
        relu1=nn.ReLU(),
        fc2=nn.Linear(64, 64),
        relu2=nn.ReLU(),
        fc3=nn.Linear(64, 10),
    )


def lenet300() -> nn.Module:
    """LeNet-300-100 (LeCun et al. 1998), the usual perceptron for MNIST in pruning: 266,610 parameters."""
    return _named(
        flatten=nn.Flatten(),  # (N, 1, 28, 28) -> (N, 784)
        fc1=nn.Linear(784, 300),
        relu1=nn.ReLU(),
        fc2=nn.Linear(300, 100),
        relu2=nn.ReLU(),
        fc3=nn.Linear(100, 10),
    )


def mlp_mnist() -> nn.Module:
    """The perceptron of the untrained-network experiment of Ancona et al. 2020: 784-2024-2024-10, 5,707,690 parameters.

    With leaky ReLUs, as in their code.
    """
    return _named(
        flatten=nn.Flatten(),  # (N, 1, 28, 28) -> (N, 784)
        fc1=nn.Linear(784, 2024),
        relu1=nn.LeakyReLU(),
        fc2=nn.Linear(2024, 2024),
        relu2=nn.LeakyReLU(),
        fc3=nn.Linear(2024, 10),
    )


def vgg_small() -> nn.Module:
    """A small VGG with batch-norm (Simonyan & Zisserman 2015) for 32x32 images: 173,034 parameters.

    Five 3x3 convolutions, each with batch-norm and ReLU, and two linear layers; the widths are ours, so that it trains
    on CIFAR-10 in minutes on two cores. As in VGG16, a group of convolutions is followed by max pooling.
    """
    layers: dict[str, nn.Module] = {}
    width = 3
    for i, (n_out, pooled) in enumerate([(32, True), (48, True), (64, False), (64, True), (96, True)], 1):
        layers[f"conv{i}"] = nn.Conv2d(width, n_out, 3, padding=1, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm2d(n_out)
        layers[f"relu{i}"] = nn.ReLU()
        if pooled:
            layers[f"pool{i}"] = nn.MaxPool2d(2)  # 32x32 -> 16x16 -> 8x8 -> 4x4 -> 2x2
        width = n_out
    layers |= {
        "flatten": nn.Flatten(),  # (N, 96, 2, 2) -> (N, 384)
        "fc1": nn.Linear(384, 96),
        "relu6": nn.ReLU(),
        "fc2": nn.Linear(96, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def vgg16(width: int = 64) -> nn.Module:
    """VGG-16 with batch-norm for 32x32 images, as in Adamczewski et al. 2024: 14,986,698 parameters.

    Thirteen 3x3 convolutions of 1, 2, 4 and 8 times ``width`` channels, and two linear layers.
    """
    layers: dict[str, nn.Module] = {}
    last = 3
    for stage, times in enumerate((1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8), 1):
        layers[f"conv{stage}"] = nn.Conv2d(last, times * width, 3, padding=1, bias=False)
        layers[f"bn{stage}"] = nn.BatchNorm2d(times * width)
        layers[f"relu{stage}"] = nn.ReLU()
        if stage in (2, 4, 7, 10, 13):
            layers[f"pool{stage}"] = nn.MaxPool2d(2)  # 32x32 -> ... -> 1x1
        last = times * width
    layers |= {
        "flatten": nn.Flatten(),  # (N, 8 * width, 1, 1) -> (N, 8 * width)
        "fc1": nn.Linear(last, last),
        "relu14": nn.ReLU(),
        "fc2": nn.Linear(last, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def vgg16_quarter() -> nn.Module:
    """VGG-16 with batch-norm for 32x32 images with a quarter of the channels: 939,642 parameters."""
    return vgg16(16)


def _lenet(n_conv1: int, n_conv2: int, hidden: tuple[int, ...]) -> nn.Module:
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(1, n_conv1, 5),  # 28x28 -> 24x24
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(n_conv1, n_conv2, 5),  # 12x12 -> 8x8
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),  # (N, n_conv2, 4, 4) -> (N, 16 * n_conv2)
    }
    widths = (16 * n_conv2, *hidden, 10)
    for i in range(1, len(widths)):
        layers[f"fc{i}"] = nn.Linear(widths[i - 1], widths[i])
        if i < len(hidden) + 1:
            layers[f"relu{i + 2}"] = nn.ReLU()
    return nn.Sequential(OrderedDict(layers))


def _named(**layers: nn.Module) -> nn.Module:
    """A sequence whose layers keep their names (``conv1``, not ``0``)."""
    return nn.Sequential(OrderedDict(layers))


def _entry(factory: Callable[[], nn.Module], *input_shape: int) -> ModelEntry:
    return ModelEntry(factory, input_shape, (factory.__doc__ or "").splitlines()[0])


MODELS: dict[str, ModelEntry] = {
    "digits": _entry(digits, 1, 8, 8),
    "lenet5": _entry(lenet5, 1, 28, 28),
    "lenet5-reduced": _entry(lenet5_reduced, 1, 28, 28),
    "lenet1": _entry(lenet1, 1, 28, 28),
    "resnet56": _entry(resnet56, 3, 32, 32),
    "mlp": _entry(mlp, 1, 8, 8),
    "lenet300": _entry(lenet300, 1, 28, 28),
    "mlp-mnist": _entry(mlp_mnist, 1, 28, 28),
    "vgg-small": _entry(vgg_small, 3, 32, 32),
    "vgg16": _entry(vgg16, 3, 32, 32),
    "vgg16-quarter": _entry(vgg16_quarter, 3, 32, 32),
}


def build_model(name: str) -> nn.Module:
    """A fresh, untrained network of the registry; its weights come from torch's global generator.

    Raises:
        InputError: an unknown name.
    """
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}{nearest(name, MODELS)}")
    return MODELS[name].factory()
