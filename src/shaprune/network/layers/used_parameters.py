"""Parameters that a forward pass uses, also of layers whose weight is used without calling the layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from shaprune.network.batches import Inputs, call, tensors, transform

_QUESTIONS = (
    "shape",
    "size",
    "ndim",
    "dim",
    "numel",
    "stride",
    "dtype",
    "device",
    "requires_grad",
    "data_ptr",
    "element_size",
    "nelement",
    "is_complex",
    "is_floating_point",
)


class _Seen(TorchFunctionMode):
    """Notes every parameter that a function of torch computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_question(func):
            self.ids.update(id(t) for t in tensors((args, kwargs)) if isinstance(t, nn.Parameter))
        return func(*args, **(kwargs or {}))


def _is_question(func: Any) -> bool:
    """Whether a function only reads a type, a shape or a device."""
    name = getattr(func, "__name__", "")
    if name == "__get__":  # of an attribute
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    return name in _QUESTIONS or name.startswith("new_")


def parameters_used(model: nn.Module, inputs: Inputs) -> set[int]:
    """Ids of the parameters, of whatever model, that a run computes with."""
    seen = _Seen()
    with torch.no_grad(), seen:
        call(model, transform(inputs, torch.clone))
    return seen.ids


def modules_used(model: nn.Module, inputs: Inputs) -> set[str]:
    """Names of the modules of which a run uses a parameter of their own."""
    used = parameters_used(model, inputs)
    return {
        name
        for name, module in model.named_modules()
        if any(id(parameter) in used for parameter in module.parameters(recurse=False))
    }
