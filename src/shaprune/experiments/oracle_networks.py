"""The networks of the oracle benchmark, and how they are trained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from shaprune.builtin.demo_recipes import Recipe
from shaprune.builtin.models import build_model
from shaprune.builtin.splits import Dataset
from shaprune.errors import InputError, check_choice
from shaprune.recovery.training import fit


def narrow() -> nn.Module:
    """Two convolutions of 8 and 9 channels for 8x8 images: every coalition of them takes a second."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 8, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(8, 9, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),  # (N, 9, 2, 2) -> (N, 36)
            fc1=nn.Linear(36, 32),
            relu3=nn.ReLU(),
            fc2=nn.Linear(32, 10),
        )
    )


def lenet5_reduced_bn() -> nn.Module:
    """The reduced LeNet-5 with batch-norm behind each ReLU and a linear head, as in the authors' released code."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 10, 5),  # 28x28 -> 24x24
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            bn1=nn.BatchNorm2d(10),
            conv2=nn.Conv2d(10, 20, 5),  # 12x12 -> 8x8
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            bn2=nn.BatchNorm2d(20),
            flatten=nn.Flatten(),  # (N, 20, 4, 4) -> (N, 320)
            fc1=nn.Linear(320, 100),
            fc2=nn.Linear(100, 25),
            fc3=nn.Linear(25, 10),
        )
    )


@dataclass(frozen=True)
class Architecture:
    """A network of the benchmark: how it is made and trained."""

    factory: Callable[[], nn.Module]
    recipe: Recipe


ARCHITECTURES = {
    "narrow": Architecture(narrow, Recipe("digits", epochs=15, lr=1e-2, batch_size=64)),
    "lenet5-reduced": Architecture(
        lambda: build_model("lenet5-reduced"), Recipe("mnist", epochs=3, lr=2e-3, batch_size=128)
    ),
    "lenet5-reduced-bn": Architecture(lenet5_reduced_bn, Recipe("mnist", epochs=3, lr=2e-3, batch_size=128)),
}


def choose(data: str, architecture: str | None) -> str:
    """The network to train on ``data`` (``digits`` or ``mnist``): the one asked for, or the first that fits.

    Raises:
        InputError: data or a network that the benchmark does not know, or that do not fit each other.
    """
    fitting = [name for name, known in ARCHITECTURES.items() if known.recipe.data == data]
    if not fitting:
        raise InputError(f"the oracle benchmark runs on digits or mnist:DIR, not on {data!r}")
    if architecture is None:
        return fitting[0]
    check_choice("architecture", architecture, ARCHITECTURES)
    if architecture not in fitting:
        raise InputError(f"{architecture} is not for {data}; choose {' or '.join(fitting)}")
    return architecture


def trained(architecture: Architecture, data: Dataset, seed: int, device: torch.device) -> nn.Module:
    """A network of the benchmark, in eval mode."""
    recipe = architecture.recipe
    torch.manual_seed(seed)
    model = architecture.factory().to(device)
    fit(model, data.train.batches(), epochs=recipe.epochs, lr=recipe.lr, batch_size=recipe.batch_size, seed=seed)
    return model.eval()
