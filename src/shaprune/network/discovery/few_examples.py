"""Few examples to find players on: two are enough where these run every layer that all of the examples run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.hooks import hooked
from shaprune.network.layers.kinds import kind_of

FOLLOWED_EXAMPLES = 32  # that channels are followed on where some layer's output reaches nothing on fewer


def few_examples(copy: nn.Module, inputs: Inputs) -> Inputs:
    """Return the first two examples, or twice as many until every layer runs that runs on all of them.

    At least two, because an axis of one would let a tensor of one channel, or of one row, pass for any other: a single
    example is taken twice. ``inputs`` come back as they are where parts of them cannot be run.
    """
    lengths = {len(t) for t in tensors(inputs) if t.ndim}
    if lengths == {2}:
        return inputs
    every, most = _called(copy, inputs), max(lengths, default=0)
    size = 2
    while size < 2 * most:
        few = transform(inputs, partial(_first, size=size))
        try:
            if every <= _called(copy, few):
                return few
        except Exception:  # the first axis of some input is no batch, or the network's code counts on a size
            return inputs
        size *= 2
    return inputs


def more_examples(copy: nn.Module, inputs: Inputs, few: Inputs) -> Inputs | None:
    """Return more of ``inputs`` than ``few``, at most `FOLLOWED_EXAMPLES`; None where these are no more, or fail."""
    size, most = (max((len(t) for t in tensors(held) if t.ndim), default=0) for held in (few, inputs))
    if size >= min(most, FOLLOWED_EXAMPLES):
        return None
    more = transform(inputs, partial(_first, size=min(most, FOLLOWED_EXAMPLES)))
    try:
        _called(copy, more)
    except Exception:
        return None
    return more


def _first(tensor: Tensor, size: int) -> Tensor:
    if not tensor.ndim:
        return tensor
    return tensor.expand(size, *tensor.shape[1:]) if len(tensor) == 1 else tensor[:size]


def _called(copy: nn.Module, inputs: Inputs) -> set[nn.Module]:
    """The layers that a run on ``inputs`` calls."""
    called: set[nn.Module] = set()

    def hook(module: nn.Module, args: Any) -> None:
        called.add(module)

    layers = (m for m in copy.modules() if kind_of(m) is not None)
    with hooked(m.register_forward_pre_hook(hook) for m in layers), torch.no_grad():
        call(copy, transform(inputs, torch.clone))
    return called
