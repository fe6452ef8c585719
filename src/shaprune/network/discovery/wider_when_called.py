"""A network in a wider type of numbers, of which layers take the memory one at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from shaprune.network.layers.kinds import PRODUCERS, kind_of
from shaprune.network.shared_weights import in_type


def convert_when_called(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert ``model`` as `convert` does, but layers that make channels only while they run.

    So the weights of one of them at a time take more memory. A network that reads the weights of such a layer without
    calling it, or before, meets two types and breaks.
    """
    held: set[int] = set()
    for module in model.modules():
        plain = not isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and not is_parametrized(module)
        if kind_of(module) in PRODUCERS and plain and next(module.children(), None) is None:
            vars(module)["forward"] = partial(_run_converted, module, module.forward, dtype)
            held.update(map(id, module.parameters()))
    model._apply(lambda tensor: tensor if id(tensor) in held else in_type(tensor, dtype))
    return model


def _run_converted(
    module: nn.Module, forward: Callable[..., Any], dtype: torch.dtype, *args: Any, **kwargs: Any
) -> Any:
    own = {key: p for key, p in module._parameters.items() if p is not None and p.is_floating_point()}
    try:
        for key, parameter in own.items():
            module._parameters[key] = nn.Parameter(in_type(parameter.data, dtype), requires_grad=False)
        return forward(*args, **kwargs)
    finally:
        module._parameters.update(own)
