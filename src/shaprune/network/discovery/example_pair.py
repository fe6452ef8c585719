"""Few examples to find players on: two are enough where the network runs on two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, call, transform


def example_pair(copy: nn.Module, inputs: Inputs) -> Inputs:
    """Return the first two examples, one twice where there is one; ``inputs`` as they are where no two can be run.

    Two, because an axis of one would let a tensor of one channel, or of one row, pass for any other.
    """
    pair = transform(inputs, _two)
    try:
        with torch.no_grad():
            call(copy, transform(pair, torch.clone))
    except Exception:  # the first axis of some input is no batch, or the network's code counts on a size
        return inputs
    return pair


def _two(tensor: Tensor) -> Tensor:
    if not tensor.ndim or len(tensor) == 2:
        return tensor
    return tensor[:2] if len(tensor) > 1 else tensor.expand(2, *tensor.shape[1:])
