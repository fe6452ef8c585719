"""A linear map behind a network whose hidden width is its output, so that the width can leave inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shaprune.errors import InputError
from shaprune.network.batches import Inputs, call, copied_inputs, main_output, transform
from shaprune.network.borrow import borrowed, copied


class MapBack(nn.Module):
    """A network behind whose main output stands a linear map, the identity at first.

    Args:
        of: the network.
        width: entries of the last axis of its output.
    """

    def __init__(self, of: nn.Module, width: int) -> None:
        super().__init__()
        self.of, self.back = of, nn.Linear(width, width)
        with torch.no_grad():
            nn.init.eye_(self.back.weight)
            nn.init.zeros_(self.back.bias)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives, with its main output (..., width) mapped."""
        given = self.of(*args, **kwargs)
        main = main_output(given)
        mapped = self.back(main)
        return transform(given, lambda t: mapped if t is main else t)


def map_back(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """A network of the same function in which channels of a stream that is the output can leave.

    An encoder's hidden states are its output, so that its hidden width stays. Behind them stands a linear map of their
    width here, the identity at first, which reads what is left of the stream; the recovery step ``"refit"`` fits it to
    the dense network's output, without labels.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, batch first.

    Returns:
        A copy with the map, `MapBack`.

    Raises:
        InputError: the main output is no tensor of numbers with a last axis of features.
    """
    with torch.no_grad(), borrowed(model):
        main = main_output(call(model, copied_inputs(example_inputs)))
    if not main.is_floating_point() or main.ndim < 2:
        shape = tuple(main.shape)
        raise InputError(f"map_back needs an output with features on its last axis, and the model gives one of {shape}")
    mapped = MapBack(copied(model), main.shape[-1]).to(main.device, main.dtype)
    return mapped.train(model.training)
