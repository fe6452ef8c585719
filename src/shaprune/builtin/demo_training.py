"""Networks of the demo's recipes, trained from a seed."""

from __future__ import annotations

import torch
from torch import nn

from shaprune.builtin.demo_recipes import RECIPES
from shaprune.builtin.models import build_model
from shaprune.builtin.splits import Dataset
from shaprune.errors import check_choice
from shaprune.network.borrow import preserve_globals
from shaprune.recovery.training import Training, fit

WEIGHT_DECAY = 1e-2


def train(name: str, dataset: Dataset, *, seed: int = 0, device: str | torch.device = "cpu") -> nn.Module:
    """Train a network of ``RECIPES`` on the training part; global random states come back.

    Raises:
        InputError: a network without a recipe.
    """
    check_choice("architecture", name, RECIPES)
    recipe = RECIPES[name]
    with preserve_globals():
        torch.manual_seed(seed)
        model = build_model(name).to(device)
        fit(
            model,
            dataset.train.batches(),
            epochs=recipe.epochs,
            lr=recipe.lr,
            batch_size=recipe.batch_size,
            seed=seed,
            options=Training(weight_decay=WEIGHT_DECAY),
        )
    return model.eval()
