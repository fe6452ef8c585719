"""Which parameters a forward pass uses, also those of layers whose weight is used without calling the layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from shaprune.network.batches import Inputs, call, tensors, transform


class _Seen(TorchFunctionMode):
    """Notes every tensor that a function of torch is given."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ids.update(id(t) for t in tensors((args, kwargs)) if isinstance(t, nn.Parameter))
        return func(*args, **(kwargs or {}))


def modules_used(model: nn.Module, inputs: Inputs) -> set[str]:
    """Names of the modules of which a run uses a parameter of their own."""
    seen = _Seen()
    with torch.no_grad(), seen:
        call(model, transform(inputs, torch.clone))
    return {
        name
        for name, module in model.named_modules()
        if any(id(parameter) in seen.ids for parameter in module.parameters(recurse=False))
    }
